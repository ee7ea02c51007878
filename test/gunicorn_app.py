"""The app for gunicorn's tests, with views that answer what only their own request can know."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from borrowing import until, watchers_of
from flask import Blueprint, Flask, Response

from api import create_app
from api.db.connection import DB
from api.db.dialects.engine import engine_of
from api.db.pool import snapshot_of

log = structlog.get_logger(__name__)
views = Blueprint("views", __name__)

HOLD_S = 0.02
ROWS = 5
ENDS = "process ends"
LOCKS = {
    "postgres": ("SELECT pg_advisory_lock(42)", "SELECT pg_advisory_unlock(42)"),
    "mysql": ("SELECT GET_LOCK('42', 60)", "SELECT RELEASE_LOCK('42')"),
}

_meeting: list[int] = []


def build() -> Flask:
    """Build the app; a process of it that ends, and is not killed, logs its pool's numbers."""
    app = create_app()
    app.register_blueprint(views)
    atexit.register(_tell_end)
    return app


def build_in_use() -> Flask:
    """Build the app in the master that will fork: a connection is in use, one is idle, and the locks are taken."""
    app = build()
    DB.connect()
    DB.execute_sql("SELECT 1")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(app.test_client().get, "/answer/1").result().status_code == 200
    locked = threading.Event()
    threading.Thread(target=_hold_the_locks, args=(locked,), daemon=True).start()
    locked.wait()
    return app


def _hold_the_locks(locked: threading.Event) -> None:
    database: Any = DB.obj
    with database._lock, database._pool_lock, database._slots.lock:
        locked.set()
        threading.Event().wait()


def _tell_end() -> None:
    now = snapshot_of(DB)
    log.info(ENDS, pid=now.pid, active=now.active, pending=now.pending, borrowed=now.borrowed, returned=now.returned)


def _ask(number: int) -> dict[str, int]:
    own = "pg_backend_pid()" if engine_of(DB) == "postgres" else "CONNECTION_ID()"
    answer, session = DB.execute_sql(f"SELECT CAST(%s AS DECIMAL(20)), {own}", (number,)).fetchone()
    return {"answer": int(answer), "session": session, "pid": os.getpid(), "watchers": len(watchers_of(DB.obj))}


@views.get("/answer/<int:number>")
def answer(number: int) -> list[dict[str, int]]:
    """Let the server say *number*."""
    return [_ask(number)]


@views.get("/held/<int:number>")
def held(number: int) -> list[dict[str, int]]:
    """Let the server say *number* twice in one transaction, with a while between."""
    with DB.atomic():
        first = _ask(number)
        time.sleep(HOLD_S)
        return [first, _ask(number)]


@views.get("/rows/<int:number>")
def rows(number: int) -> Response:
    """Let the server say *number* again and again, each time as the response has come that far."""

    def lines() -> Iterator[str]:
        for row in range(ROWS):
            yield f"{',' if row else '['}{json.dumps(_ask(number))}\n"
        yield "]"

    return Response(lines(), mimetype="application/json")


@views.get("/turn/<int:number>")
def turn(number: int) -> list[dict[str, int]]:
    """Hold a lock on the server until another request of this worker comes for it."""
    take, give = LOCKS["postgres" if engine_of(DB) == "postgres" else "mysql"]
    _meeting.append(number)
    DB.execute_sql(take)
    until(lambda: len(_meeting) > 1)
    time.sleep(HOLD_S)
    DB.execute_sql(give)
    return [_ask(number)]


@views.get("/lost/<int:number>")
def lost(number: int) -> list[dict[str, int]]:
    """Let what is neither a request nor a thread borrow a connection and end with it, as gevent allows."""
    import gevent  # type: ignore[import-untyped]

    gevent.spawn(DB.connect).join()
    return [_ask(number)]
