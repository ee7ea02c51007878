"""Every error of a request as one JSON object, with the status that fits it.

``{"code", "message", "severity", "hint", "correlation_id"}``, in development also ``traceback`` where nobody
expected the error. docs/SERVICE.md lists the codes.
"""

from __future__ import annotations

import traceback
from typing import Any

import peewee
import structlog
from flask import Flask, Response, jsonify
from playhouse.pool import MaxConnectionsExceeded
from werkzeug.exceptions import HTTPException

from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.pool_gate import ConnectPostponed
from api.db.pool_lines import figures
from api.db.pool_numbers import PoolTimeout
from api.exceptions import AADAPError, DatabaseUnavailableError, ErrorSeverity, ExecutionError
from api.logs import current_correlation_id, redact
from api.settings import Settings

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 5
ENGINE_OF_SCHEME: dict[str, Engine] = {
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
}
LOOK_IN_THE_LOG = AADAPError.default_hint


def answer_errors_as_json(app: Flask, settings: Settings) -> None:
    """Answer each error of *app* as JSON; in development with tracebacks and the database's address."""
    is_open = settings.app_env == "development"
    engine = ENGINE_OF_SCHEME[settings.database_url.get_secret_value().partition(":")[0]]

    def unexpected(error: Exception) -> Response:
        log.error("request failed unexpectedly", exc_info=error)
        body = _body("INTERNAL", "the request failed on our side", ErrorSeverity.HIGH, LOOK_IN_THE_LOG)
        if is_open:
            body["traceback"] = [redact(line) for line in traceback.format_exception(error)]
        return _respond(body, 500)

    def from_the_driver(error: peewee.PeeweeException) -> Response:
        found = classify(error, engine)
        if not found.is_transient:
            return unexpected(error)
        log.error("request failed, and may succeed again", category=found.category, error=found.server_message)
        message = f"the database did not carry it out: {found.category.replace('_', ' ')}"
        return _respond(_body(found.category.upper(), message, found.severity, "send the request again"), 503)

    def unavailable(error: DatabaseUnavailableError) -> Response:
        log.error("the database is unavailable", code=error.error_code, error=error.message, hint=error.hint)
        shown = {} if is_open else {"message": "the database cannot be reached", "hint": "try again later"}
        return _respond(_typed_body(error) | shown, 503)

    def postponed(error: ConnectPostponed) -> Response:
        return unavailable(DatabaseUnavailableError(str(error)))

    app.register_error_handler(Exception, unexpected)
    app.register_error_handler(AADAPError, _typed)
    app.register_error_handler(DatabaseUnavailableError, unavailable)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(MaxConnectionsExceeded, _exhausted)
    app.register_error_handler(ConnectPostponed, postponed)
    app.register_error_handler(peewee.OperationalError, from_the_driver)
    app.register_error_handler(peewee.InterfaceError, from_the_driver)
    app.register_error_handler(peewee.DoesNotExist, _missing)
    app.register_error_handler(peewee.IntegrityError, _conflict)


def _typed(error: AADAPError) -> Response:
    if isinstance(error, ExecutionError):
        return _respond(_typed_body(error), 400)
    log.error("request failed", code=error.error_code, error=error.message, hint=error.hint)
    return _respond(_typed_body(error), 500)


def _typed_body(error: AADAPError) -> dict[str, Any]:
    body = {"correlation_id": current_correlation_id()} | error.as_dict()
    return body | {"message": redact(error.message)}


def _http(error: HTTPException) -> Response:
    """Answer werkzeug's own errors with their status and headers, such as ``Allow``, and a JSON body."""
    status = error.code or 500
    severity = ErrorSeverity.HIGH if status >= 500 else ErrorSeverity.LOW
    name = error.name.upper().replace(" ", "_")
    body = _body(name, error.description or error.name, severity, "see docs/SERVICE.md for the resources")
    response = _respond(body, status)
    for header, value in error.get_headers():
        if header.lower() not in ("content-type", "content-length"):
            response.headers[header] = value
    return response


def _exhausted(error: MaxConnectionsExceeded) -> Response:
    # A ValueError of peewee's with no number in it, unless the pool is ours.
    known = figures(error.snapshot) | {"holders": error.holders} if isinstance(error, PoolTimeout) else {}
    log.error("no connection came free", error=str(error), **known)
    hint = "try again; if it stays, raise DB_POOL_MAX or find what holds the connections"
    return _respond(_body("POOL_EXHAUSTED", "every database connection is in use", ErrorSeverity.HIGH, hint), 503)


def _missing(_: peewee.DoesNotExist) -> Response:
    return _respond(_body("NOT_FOUND", "there is no such row", ErrorSeverity.LOW, "check the id"), 404)


def _conflict(error: peewee.IntegrityError) -> Response:
    # The first line only: PostgreSQL puts the row's values into the next.
    log.info("the database refused a row", error=str(error).partition("\n")[0])
    message = "a row like this exists, or one it refers to does not"
    return _respond(_body("CONFLICT", message, ErrorSeverity.LOW, "read what is there, then decide"), 409)


def _body(code: str, message: str, severity: ErrorSeverity, hint: str) -> dict[str, Any]:
    return {
        "code": code,
        "message": message,
        "severity": str(severity),
        "hint": hint,
        "correlation_id": current_correlation_id(),
    }


def _respond(body: dict[str, Any], status: int) -> Response:
    response = jsonify(body)
    response.status_code = status
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response
