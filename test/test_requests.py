"""What surrounds a request: its id, its connection, and its errors as JSON."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import peewee
import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from playhouse.pool import MaxConnectionsExceeded
from werkzeug.exceptions import TooManyRequests

from api.db.connection import DB, PoolDiagnostics
from api.db.models import Task
from api.exceptions import (
    ConfigurationError,
    DatabaseUnavailableError,
    ExecutionError,
    GraphExecutionError,
    MigrationFailedError,
)
from api.logs import carry_context

if TYPE_CHECKING:
    from app_fixtures import BuildApp, Logged

    from conftest import Backend

pytest_plugins = ("app_fixtures",)

SECRET = "hunter2"


def titles() -> list[str]:
    """Return the titles of the tasks that stand in the database."""
    with DB.connection_context():
        return [task.title for task in Task.select().order_by(Task.title)]


@pytest.mark.engines("sqlite")
def test_a_sane_id_comes_back_and_stands_in_every_line(app: Flask, logged: Logged) -> None:
    """The view's line, a library's line and a helping thread's line all carry the request's id."""

    def speak() -> None:
        structlog.get_logger("x").info("in a thread")

    @app.get("/x")
    def x() -> str:
        structlog.get_logger("x").info("in the view")
        helper = threading.Thread(target=carry_context(speak))
        helper.start()
        helper.join()
        app.logger.warning("from flask")
        return ""

    logged()
    response = app.test_client().get("/x", headers={"X-Request-ID": "request-1"})

    assert response.headers["X-Request-ID"] == "request-1"
    assert [(line["event"], line["correlation_id"]) for line in logged()] == [
        ("in the view", "request-1"),
        ("in a thread", "request-1"),
        ("from flask", "request-1"),
    ]


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("given", ["a b", "x" * 129, "<script>"])
def test_an_insane_id_is_replaced(client: FlaskClient, given: str) -> None:
    """What a caller may put into our log is limited."""
    ids = [client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"] for _ in range(2)]

    assert given not in ids
    assert len(set(ids)) == 2


@pytest.mark.engines("sqlite")
def test_a_request_forgets_what_the_one_before_bound(app: Flask, logged: Logged) -> None:
    """A thread serves one request after the other: their contexts do not mix."""

    @app.get("/bind/<key>")
    def bind(key: str) -> str:
        structlog.contextvars.bind_contextvars(**{key: 1})
        structlog.get_logger("x").info("bound")
        return ""

    logged()
    for key in ("first", "second"):
        app.test_client().get(f"/bind/{key}")

    assert "first" not in logged()[1]


def test_the_connection_is_returned_after_a_request(client: FlaskClient) -> None:
    """Whatever the answer, nothing stays borrowed."""
    for path in ("/tasks", "/tasks?limit=0", "/nowhere", "/readyz"):
        client.get(path)

        assert DB.is_closed()
        assert PoolDiagnostics.get_pool_stats(DB)["active"] == 0


@pytest.mark.parametrize("dies", [True, False])
def test_a_transaction_left_open_is_rolled_back(app: Flask, logged: Logged, dies: bool) -> None:
    """Its row is not there, the connection is back, the log says so, and the thread's next request is clean."""

    @app.post("/leave")
    def leave() -> str:
        DB.atomic().__enter__()
        DB.atomic().__enter__()
        Task.create(title="from the transaction left open")
        if dies:
            raise RuntimeError("in the middle")
        return ""

    client = app.test_client()
    logged()
    assert client.post("/leave").status_code == (500 if dies else 200)
    assert DB.is_closed()
    assert "a transaction was left open; rolled back" in [line["event"] for line in logged()]
    assert client.post("/tasks", json={"title": "the next one"}).status_code == 201
    assert titles() == ["the next one"]


def test_a_connection_kept_from_before_is_returned_first(app: Flask, logged: Logged) -> None:
    """What ran on the thread outside a request, transaction and all, does not reach into the next one."""
    DB.connect()
    DB.atomic().__enter__()
    Task.create(title="from before")
    logged()

    assert app.test_client().get("/tasks").get_json() == {"tasks": []}
    assert "held a connection from before" in logged()[0]["event"]


@pytest.mark.engines("postgres", "mariadb")
def test_a_lost_connection_costs_one_request(app: Flask, backend: Backend) -> None:
    """The server ends the session in the middle: 503 for that request, and the next one gets a new connection."""

    @app.get("/lose")
    def lose() -> str:
        is_postgres = backend.engine == "postgres"
        (number,) = DB.execute_sql(f"SELECT {'pg_backend_pid' if is_postgres else 'connection_id'}()").fetchone()
        backend.private.execute(f"SELECT pg_terminate_backend({number})" if is_postgres else f"KILL {number}")
        return str(Task.select().count())

    client = app.test_client()
    lost = client.get("/lose")

    assert (lost.status_code, lost.get_json()["code"]) == (503, "LOST_CONNECTION")
    assert lost.headers["Retry-After"] == "5"
    assert client.get("/tasks").status_code == 200


def test_health_is_answered_while_the_pool_is_empty(build_app: BuildApp) -> None:
    """With every connection in use a request is told to come again, and the health endpoints do not notice."""
    client = build_app(db_pool_max=1, db_pool_timeout_s=0.01).test_client()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with DB.connection_context():
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    answers = [client.get(path) for path in ("/healthz", "/readyz", "/tasks")]
    done.set()
    holder.join()

    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert (answers[2].get_json()["code"], answers[2].headers["Retry-After"]) == ("POOL_EXHAUSTED", "5")
    assert client.get("/tasks").status_code == 200


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    ("error", "status", "code", "severity"),
    [
        (ExecutionError("no"), 400, "EXEC001", "medium"),
        (ConfigurationError("no"), 500, "CONF001", "high"),
        (GraphExecutionError("no", task_id="t1"), 500, "ORCH002", "high"),
        (MigrationFailedError("no"), 500, "MIG003", "critical"),
        (DatabaseUnavailableError("no"), 503, "DB002", "critical"),
        (MaxConnectionsExceeded("no"), 503, "POOL_EXHAUSTED", "high"),
        (Task.DoesNotExist("no"), 404, "NOT_FOUND", "low"),
        (peewee.IntegrityError("no"), 409, "CONFLICT", "low"),
        (peewee.OperationalError("no"), 500, "INTERNAL", "high"),
        (TooManyRequests("no"), 429, "TOO_MANY_REQUESTS", "low"),
        (ZeroDivisionError("no"), 500, "INTERNAL", "high"),
    ],
)
def test_an_error_is_json_with_its_status(app: Flask, error: Exception, status: int, code: str, severity: str) -> None:
    """Code, message, severity, hint and correlation id, the same id as in the header."""

    @app.get("/x")
    def x() -> Any:
        raise error

    response = app.test_client().get("/x")
    body = response.get_json()

    assert (response.status_code, body["code"], body["severity"]) == (status, code, severity)
    assert body.keys() - {"task_id"} == {"code", "message", "severity", "hint", "correlation_id"}
    assert body["correlation_id"] == response.headers["X-Request-ID"]


@pytest.mark.engines("sqlite")
def test_werkzeugs_errors_keep_their_headers(client: FlaskClient) -> None:
    """A wrong method is answered with the right ones."""
    response = client.put("/tasks")

    assert (response.status_code, response.get_json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))
    assert response.content_type == "application/json"


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("app_env", ["production", "development"])
def test_a_traceback_is_shown_in_development_only(build_app: BuildApp, logged: Logged, app_env: str) -> None:
    """Production reveals nothing; the log has it all but the password, in both."""
    app = build_app(app_env=app_env)

    @app.get("/x")
    def x() -> Any:
        raise ZeroDivisionError(f"postgresql://u:{SECRET}@h/d")

    response = app.test_client().get("/x")
    (line,) = [line for line in logged() if line["level"] == "error"]

    assert ("traceback" in response.get_json()) is (app_env == "development")
    assert ("ZeroDivisionError" in response.text) is (app_env == "development")
    assert "ZeroDivisionError: postgresql://u:***@h/d" in line["exception"]
    assert SECRET not in f"{response.text}{line}"


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("app_env", ["production", "development"])
def test_where_the_database_is_is_told_in_development_only(build_app: BuildApp, app_env: str) -> None:
    """A caller learns that the database is away; where it would be is for the log."""
    app = build_app(app_env=app_env)

    @app.get("/x")
    def x() -> Any:
        raise DatabaseUnavailableError("cannot connect to postgres db.internal:5432/d as 'u'")

    assert ("db.internal" in app.test_client().get("/x").text) is (app_env == "development")
