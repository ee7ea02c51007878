"""What surrounds a request: its correlation id, and this thread's connection from before it until after it."""

from __future__ import annotations

import structlog
from flask import Flask, Response, request

from api.db.connection import DB, PoolDiagnostics, get_db_connection, return_db_connection
from api.logs import bind_correlation_id, current_correlation_id
from api.settings import Settings

log = structlog.get_logger(__name__)

HEADER = "X-Request-ID"


def surround_requests(app: Flask, settings: Settings) -> None:
    """Give each request of *app* a correlation id and a connection, and take that back whatever happens.

    The pool's health thread is started here too: none survives the fork of a worker from its master.
    """

    def watch_the_pool() -> None:
        PoolDiagnostics.start_health_monitoring(
            DB,
            settings.pool_check_interval_s,
            warning=settings.pool_warning_threshold,
            critical=settings.pool_critical_threshold,
            leak_after_s=settings.pool_leak_after_s,
        )

    def borrow() -> None:
        # The health endpoints must answer with an empty pool too, and what has no view needs no connection.
        if request.endpoint is not None and request.blueprint != "ops":
            _borrow(settings.db_pool_timeout_s)

    app.before_request(_bind_id)
    app.before_request(watch_the_pool)
    app.before_request(borrow)
    app.after_request(_tell_id)
    app.teardown_request(_return)


def _bind_id() -> None:
    # A worker thread serves one request after the other: what the last one bound must go first. It is not taken
    # away at the request's end, so that the server's access line, written after it, still holds the id.
    structlog.contextvars.clear_contextvars()
    bind_correlation_id(request.headers.get(HEADER))


def _tell_id(response: Response) -> Response:
    response.headers[HEADER] = current_correlation_id() or ""
    return response


def _borrow(deadline_s: float) -> None:
    if not DB.is_closed():
        log.error("this thread still held a connection from before the request; returned it")
        return_connection()
    get_db_connection(deadline_s=deadline_s)


def _return(_: BaseException | None) -> None:
    if not DB.is_closed():
        return_connection()


def return_connection() -> None:
    """Return this thread's connection, and say when a transaction was left open on it."""
    depth = return_db_connection()
    if depth:
        log.error("a transaction was left open; rolled back", depth=depth, endpoint=request.endpoint)
