"""What surrounds a request: its id, its connection, and its errors as JSON."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import peewee
import pytest
import structlog
from flask import Flask, abort, request, stream_with_context
from flask.testing import FlaskClient
from playhouse.pool import MaxConnectionsExceeded
from werkzeug.exceptions import TooManyRequests
from werkzeug.test import create_environ

from api.db.connection import DB, PoolDiagnostics
from api.db.models import Task
from api.db.pool import snapshot_of
from api.db.pool_gate import ConnectPostponed
from api.db.pool_numbers import ENDPOINT
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


def is_settled() -> bool:
    """Say whether every connection that was ever borrowed is back, and no thread waits for one."""
    now = snapshot_of(DB)
    assert (now.active, now.pending, now.waiting) == (0, 0, 0)
    assert now.borrowed == now.returned > 0
    return True


def end_own_session(backend: Backend) -> None:
    """Let the server end the session of this thread's connection."""
    is_postgres = backend.engine == "postgres"
    (number,) = DB.execute_sql(f"SELECT {'pg_backend_pid' if is_postgres else 'connection_id'}()").fetchone()
    backend.private.execute(f"SELECT pg_terminate_backend({number})" if is_postgres else f"KILL {number}")


def send(app: Flask, path: str, method: str = "GET") -> Iterable[bytes]:
    """Return the body of *app*'s answer as a WSGI server gets it: nothing of it is made yet, and it is to be closed."""
    return app(create_environ(path, method=method), lambda *_: lambda _: None)


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
@pytest.mark.parametrize("left_open", [False, True])
def test_a_lost_connection_costs_one_request(app: Flask, backend: Backend, left_open: bool) -> None:
    """The server ends the session, in a transaction or outside: 503 for that request, the next has a new connection."""

    @app.get("/lose")
    def lose() -> str:
        if left_open:
            DB.atomic().__enter__()
        end_own_session(backend)
        return str(Task.select().count())

    client = app.test_client()
    lost = client.get("/lose")

    assert (lost.status_code, lost.get_json()["code"]) == (503, "LOST_CONNECTION")
    assert lost.headers["Retry-After"] == "5"
    assert is_settled()
    assert client.get("/tasks").status_code == 200


@pytest.mark.engines("postgres", "mariadb")
def test_a_transaction_lost_to_the_server_leaves_nothing_borrowed(app: Flask, backend: Backend) -> None:
    """A transaction whose session ended, unnoticed by a view that answers, is returned and makes room."""

    @app.get("/lose")
    def lose() -> str:
        DB.atomic().__enter__()
        end_own_session(backend)
        return ""

    client = app.test_client()

    assert client.get("/lose").status_code == 200
    assert is_settled()
    assert snapshot_of(DB).idle == 0
    assert client.get("/tasks").status_code == 200


@pytest.fixture
def endings(app: Flask) -> Flask:
    """Return the app with a view for each way in which a request may end."""

    class TwiceError(Exception): ...

    def fail_at(path: str) -> None:
        if request.path == path:
            raise RuntimeError(path)

    @app.errorhandler(TwiceError)
    def fail_again(_: Exception) -> str:
        raise RuntimeError("again")

    def view() -> str:
        Task.create(title=request.path)
        if request.path == "/raises-twice":
            raise TwiceError
        fail_at("/raises")
        return ""

    @app.get("/aborts")
    def aborts() -> str:
        with DB.atomic():
            Task.create(title="aborted")
            abort(409)

    @app.get("/closes-itself")
    def closes_itself() -> str:
        DB.close()
        return ""

    for path in ("/answers", "/before", "/raises", "/raises-twice", "/after"):
        app.add_url_rule(path, path[1:], view)
    app.before_request(lambda: fail_at("/before"))

    @app.after_request
    def fail_after(response: Any) -> Any:
        fail_at("/after")
        return response

    return app


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/answers", 200),
        ("HEAD", "/answers", 200),
        ("PUT", "/answers", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/before", 500),
        ("GET", "/raises", 500),
        ("GET", "/raises-twice", 500),
        ("GET", "/after", 500),
        ("GET", "/aborts", 409),
        ("GET", "/closes-itself", 200),
    ],
)
def test_however_a_request_ends_its_connection_is_back(endings: Flask, method: str, path: str, status: int) -> None:
    """Each connection borrowed was returned, and the thread's next request is served."""
    client = endings.test_client()

    assert client.open(path, method=method).status_code == status
    assert client.get("/tasks").status_code == 200
    assert is_settled()


def test_a_failing_teardown_of_the_app_keeps_no_connection(app: Flask) -> None:
    """Flask leaves out what would come after it, ours too: the connection is back all the same."""

    @app.teardown_request
    def fail(_: BaseException | None) -> None:
        raise RuntimeError("the app's own")

    with pytest.raises(RuntimeError, match="the app's own"):
        app.test_client().get("/tasks")

    assert is_settled()


@pytest.mark.engines("sqlite")
def test_what_fails_in_the_teardown_is_said_and_stops_nothing(app: Flask, logged: Logged) -> None:
    """A view that takes the database from under us is answered, the app's own teardown runs, the log has the error."""
    torn_down = []

    @app.get("/x")
    def x() -> str:
        DB.initialize(None)
        return "answered"

    @app.teardown_appcontext
    def tear_down(_: BaseException | None) -> None:
        torn_down.append(True)

    logged()
    assert app.test_client().get("/x").text == "answered"
    assert torn_down == [True]
    (line, *_) = [line for line in logged() if line["event"] == "the connection could not be returned"]
    assert (line["level"], line["endpoint"]) == ("error", "x")
    assert "AttributeError" in line["exception"]


@pytest.fixture
def streams(app: Flask) -> Flask:
    """Return the app with two views that ask the database while they are sent, one of them in the request's context."""

    def numbers(*, is_cut: bool) -> Iterator[str]:
        with DB.atomic():
            for number in range(3):
                (row,) = DB.execute_sql("SELECT 40 + 2").fetchone()
                yield f"{row} "
                if is_cut and number:
                    raise RuntimeError("in the middle of the stream")

    @app.get("/alone")
    def alone() -> Iterator[str]:
        return numbers(is_cut="cut" in request.args)

    @app.get("/in-context")
    def in_context() -> Iterator[str]:
        return stream_with_context(numbers(is_cut="cut" in request.args))

    return app


STREAMS = pytest.mark.parametrize("path", ["/alone", "/in-context"])


@STREAMS
def test_a_stream_asks_the_database_and_returns_its_connection(streams: Flask, path: str) -> None:
    """All of it arrives, and at its end nothing is borrowed; while it is made one connection is, and no more."""
    body = send(streams, path)
    parts = []
    for part in body:
        parts.append(part)
        assert snapshot_of(DB).active == 1
    body.close()  # type: ignore[attr-defined]

    assert parts == [b"42 "] * 3
    assert is_settled()
    assert streams.test_client().get("/tasks").status_code == 200


@STREAMS
@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_client_that_goes_away_costs_no_connection(streams: Flask, path: str, chunks: int) -> None:
    """Before the first chunk or after some, the server closes the body, and the connection is back, rolled back."""
    body = send(streams, path)
    parts = iter(body)
    assert [next(parts) for _ in range(chunks)] == [b"42 "] * chunks
    body.close()  # type: ignore[attr-defined]

    assert is_settled()
    assert DB.transaction_depth() == 0


@STREAMS
def test_a_stream_that_fails_costs_no_connection(streams: Flask, path: str) -> None:
    """What the generator raises reaches the server, which closes the body, and the connection is back."""
    body = send(streams, f"{path}?cut")
    with pytest.raises(RuntimeError, match="in the middle"):
        b"".join(body)
    body.close()  # type: ignore[attr-defined]

    assert is_settled()


@STREAMS
def test_a_stream_that_nobody_wants_costs_no_connection(streams: Flask, path: str) -> None:
    """HEAD sends nothing of it."""
    assert streams.test_client().head(path).data == b""
    assert is_settled()


def test_a_stream_that_fails_at_its_close_costs_no_connection(app: Flask) -> None:
    """A generator that does not end well when it is closed: the error is the server's, the connection is the pool's."""

    @app.get("/x")
    def x() -> Iterator[str]:
        try:
            yield str(Task.select().count())
        finally:
            raise RuntimeError("at the close")

    body = send(app, "/x")
    assert next(iter(body)) == b"0"
    with pytest.raises(RuntimeError, match="at the close"):
        body.close()  # type: ignore[attr-defined]

    assert is_settled()


@pytest.mark.engines("sqlite")
def test_a_borrow_is_known_by_the_endpoint_it_is_for(app: Flask) -> None:
    """Each request's by its own, whatever the thread did before, also while it streams; and none after it."""

    def names() -> Iterator[str]:
        Task.select().count()
        yield " ".join(borrow.endpoint or "?" for borrow in DB.obj.borrows())

    for path in ("first", "second"):
        app.add_url_rule(f"/{path}", path, names)
    app.add_url_rule("/third", "third", lambda: next(names()))
    client, paths = app.test_client(), ["first", "third", "second"]

    assert [client.get(f"/{path}", buffered=True).text for path in paths] == paths
    assert ENDPOINT.get() is None


@pytest.mark.parametrize("app_env", ["production", "development"])
def test_an_exhausted_pool_is_explained_in_the_log(build_app: BuildApp, logged: Logged, app_env: str) -> None:
    """The line has the numbers and who holds what, as fields; the answer has neither holders nor hosts."""
    app = build_app(db_pool_max=1, db_pool_timeout_s=0.01, app_env=app_env)
    held, done = threading.Event(), threading.Event()

    @app.get("/hold")
    def hold() -> str:
        held.set()
        done.wait(30)
        return ""

    holder = threading.Thread(target=app.test_client().get, args=("/hold",))
    holder.start()
    held.wait(30)
    logged()
    refused = app.test_client().get("/tasks")
    done.set()
    holder.join()

    assert (refused.status_code, refused.get_json()["code"]) == (503, "POOL_EXHAUSTED")
    assert refused.headers["Retry-After"] == "5"
    (line,) = [line for line in logged() if line["event"] == "no connection came free"]
    assert (line["max"], line["active"], line["idle"], line["timeouts"]) == (1, 1, 0, 1)
    assert line["last_connect_error"] is None
    assert [name.split()[0] for name in line["holders"]] == ["hold"]
    assert not [word for word in ("hold ", line["pool"]) if word in refused.text]
    assert is_settled()


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
        (ConnectPostponed(peewee.OperationalError("no"), 0.1), 503, "DB002", "critical"),
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
@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailableError("cannot connect to postgres db.internal:5432/d as 'u'"),
        ConnectPostponed(peewee.OperationalError("connection to server at db.internal failed"), 0.1),
    ],
)
def test_where_the_database_is_is_told_in_development_only(build_app: BuildApp, app_env: str, error: Exception) -> None:
    """A caller learns that the database is away, and when to ask again; where it would be is for the log."""
    app = build_app(app_env=app_env)

    @app.get("/x")
    def x() -> Any:
        raise error

    response = app.test_client().get("/x")

    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert ("db.internal" in response.text) is (app_env == "development")
