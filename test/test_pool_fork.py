"""A forked child has a pool of its own, and the parent never notices."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peewee
import pytest
from borrowing import held, locks_held
from forking import in_child
from sessions import SERVERS, session_number

from api.db.pool_numbers import PoolTimeout


def answer(database: peewee.Database) -> object:
    """Return what a query of *database* answers."""
    with database.connection_context():
        return database.execute_sql("SELECT 41 + 1").fetchone()[0]


def test_locks_held_at_the_fork_do_not_hold_the_child(backend: Any) -> None:
    """Whatever another thread of the parent was doing, the child connects."""
    database = backend.database()
    with locks_held(database):
        assert in_child(lambda: answer(database)) == "42"


def test_a_full_pool_is_empty_in_the_child(backend: Any) -> None:
    """The holders did not come along: neither do their slots, their line, nor the numbers."""
    database = backend.database(pool_max=2, pool_timeout_s=0.01)

    def look() -> object:
        before = database.snapshot()
        assert (before.active, before.idle, before.pending, before.waiting) == (0, 0, 0, 0)
        assert (before.requests, before.borrowed, before.created, before.wait.count) == (0, 0, 0, 0)
        return answer(database)

    with held(database, 2):
        assert in_child(look) == "42"
        assert database.snapshot().active == 2


def test_the_limit_holds_in_the_child_too(backend: Any) -> None:
    """So many connections, and the next one waits."""
    database = backend.database(pool_max=1, pool_timeout_s=0.01)

    def look() -> object:
        with held(database, 1):
            try:
                database.connect()
            except PoolTimeout as exc:
                return exc.snapshot.active
        return "no limit"

    assert in_child(look) == "1"


@SERVERS
def test_parent_and_child_have_sessions_of_their_own(backend: Any) -> None:
    """Though the parent was connected, in use and idle, when it forked."""
    database = backend.database()
    with held(database, 1):
        pass
    database.connect()

    def number() -> object:
        with database.connection_context():
            return session_number(database)

    mine = session_number(database)
    theirs = int(in_child(number))
    assert theirs != mine
    assert session_number(database) == mine


def test_the_parent_s_connections_survive_the_child(db: peewee.Database) -> None:
    """A child that closes everything and ends leaves them, and a transaction on them, as they were."""
    with db.atomic():
        db.execute_sql("CREATE TABLE item (id INTEGER)")
        db.execute_sql("INSERT INTO item (id) VALUES (1)")

        def end() -> object:
            db.close_all()
            db.dispose()
            return "ended"

        assert in_child(end) == "ended"
        db.execute_sql("INSERT INTO item (id) VALUES (2)")
    assert db.execute_sql("SELECT COUNT(*) FROM item").fetchone() == (2,)
    assert db.snapshot().active == 1


@SERVERS
def test_children_forked_while_others_connect_connect_too(backend: Any) -> None:
    """The driver's C library takes locks of its own to connect (Kerberos's, unless it is told not to)."""
    database, enough = backend.database(pool_max=8), threading.Event()

    def connect_again_and_again() -> None:
        while not enough.is_set():
            database.connect()
            database.manual_close()

    def connect() -> object:
        # A child that hangs ends by this, and fails the test.
        signal.alarm(60)
        return answer(database)

    with ThreadPoolExecutor(max_workers=8) as threads:
        connecting = [threads.submit(connect_again_and_again) for _ in range(8)]
        try:
            assert [in_child(connect) for _ in range(40)] == ["42"] * 40
        finally:
            enough.set()
    assert [future.result() for future in connecting] == [None] * 8


def test_a_child_of_a_child_works_too(backend: Any) -> None:
    """Each generation begins anew."""
    database = backend.database()
    database.connect()
    assert in_child(lambda: (answer(database), in_child(lambda: answer(database)))) == "(42, '42')"


@pytest.mark.engines("sqlite")
def test_a_pool_that_is_gone_is_not_looked_for(backend: Any) -> None:
    """The fork keeps no database alive."""
    database = backend.database()
    backend.opened.clear()
    del database
    assert in_child(lambda: "fine") == "fine"
