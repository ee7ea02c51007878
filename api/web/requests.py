"""What surrounds a request: its correlation id, and this thread's connection from before it until after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import structlog
from flask import Flask, Response, request

from api.db.connection import DB, PoolDiagnostics, get_db_connection, return_db_connection
from api.db.pool_numbers import ENDPOINT
from api.logs import bind_correlation_id, current_correlation_id
from api.settings import Settings
from api.web.metrics import METRICS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)

HEADER = "X-Request-ID"


def surround_requests(app: Flask, settings: Settings) -> None:
    """Give each request of *app* a correlation id and a connection, and take that back whatever happens.

    It goes back before the response is sent: a slow client holds none. A generator that asks the database while it
    is sent borrows anew by that, and its connection goes back when the response is closed, sent or not.

    The pool's health thread is started here too: none survives the fork of a worker from its master.
    """
    METRICS.include(DB)

    def watch_the_pool() -> None:
        PoolDiagnostics.start_health_monitoring(
            DB,
            settings.pool_check_interval_s,
            warning=settings.pool_warning_threshold,
            critical=settings.pool_critical_threshold,
            leak_after_s=settings.pool_leak_after_s,
            on_sample=METRICS.push,
        )
        METRICS.push_at_exit()

    def borrow() -> None:
        # The health endpoints must answer with an empty pool too, and what has no view needs no connection.
        if request.endpoint is not None and request.blueprint != "ops":
            _borrow(settings.db_pool_timeout_s)

    app.before_request(_name)
    app.before_request(watch_the_pool)
    app.before_request(borrow)
    app.after_request(_tell_id)
    app.teardown_request(_return)
    app.wsgi_app = _Returning(app.wsgi_app)  # type: ignore[method-assign]


class _Returning:
    """Serves *app*; when a response has been sent, or given up in the middle, its thread holds no connection.

    Flask's teardown is over before a response is sent, and leaves out the rest when one of its functions raises.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return _Body(self._app(environ, start_response))
        except BaseException:
            _end()
            raise


class _Body:
    """A response's *body*, which the server closes in any case: https://peps.python.org/pep-3333."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """End what makes the body, and the request."""
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            _end()


def _end() -> None:
    _return()
    # What this thread borrows next is not for this request.
    ENDPOINT.set(None)


def _name() -> None:
    # A worker thread serves one request after the other: what the last one bound must go first. It is not taken
    # away at the request's end, so that the server's access line, written after it, still holds the id.
    structlog.contextvars.clear_contextvars()
    bind_correlation_id(request.headers.get(HEADER))
    ENDPOINT.set(request.endpoint)


def _tell_id(response: Response) -> Response:
    response.headers[HEADER] = current_correlation_id() or ""
    return response


def _borrow(deadline_s: float) -> None:
    if not DB.is_closed():
        log.error("this thread still held a connection from before the request; returned it")
        return_connection()
    get_db_connection(deadline_s=deadline_s)


def _return(_: BaseException | None = None) -> None:
    try:
        if not DB.is_closed():
            return_connection()
    except Exception as exc:
        # Said and not raised: the app's other functions for the teardown have to run all the same.
        log.error("the connection could not be returned", endpoint=ENDPOINT.get(), exc_info=exc)


def return_connection() -> None:
    """Return this thread's connection, and say when a transaction was left open on it."""
    depth = return_db_connection()
    if depth:
        log.error("a transaction was left open; rolled back", depth=depth, endpoint=ENDPOINT.get())
