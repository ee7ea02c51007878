"""The pool's numbers are right, whatever is done to it, and reading them costs nobody anything."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peewee
import pytest
from borrowing import PATIENCE_S, held, waiting
from playhouse.pool import MaxConnectionsExceeded, PooledSqliteDatabase

from api.db.connection import open_database
from api.db.pool import pool_limits, snapshot_of


def test_playhouse_still_has_what_the_counting_rests_on() -> None:
    """A playhouse that changed a private name is noticed here, and not by wrong numbers."""
    names = vars(PooledSqliteDatabase(":memory:", max_connections=3, timeout=7))
    assert names.keys() >= {"_in_use", "_connections", "_pool_lock", "_max_connections", "_wait_timeout"}
    assert (names["_in_use"], names["_connections"]) == ({}, [])
    assert (names["_max_connections"], names["_wait_timeout"]) == (3, 7)
    with names["_pool_lock"], names["_pool_lock"]:
        assert True, "the lock may be taken twice by one thread"


def test_a_borrow_and_its_return_are_counted(backend: Any) -> None:
    """One connection in use, then idle; one borrow, one return."""
    database = backend.database(pool_max=5)
    with held(database, 2):
        now = database.snapshot()
        assert (now.max, now.active, now.idle, now.borrowed, now.returned) == (5, 2, 0, 2, 0)
    now = database.snapshot()
    assert (now.active, now.idle, now.borrowed, now.returned) == (0, 2, 2, 2)


def test_a_full_pool_says_how_many_wait(backend: Any) -> None:
    """Three threads behind a pool of two are three waiters, and none once all are served."""
    database = backend.database(pool_max=2)
    with held(database, 2) as release, waiting(database, 3) as waiters:
        assert (database.snapshot().active, database.snapshot().waiting) == (2, 3)
        assert not any(waiter.done() for waiter in waiters)
        release()
    assert all(waiter.result() for waiter in waiters)
    now = database.snapshot()
    assert (now.active, now.waiting, now.borrowed, now.returned, now.timeouts) == (0, 0, 5, 5, 0)


def test_a_wait_in_vain_names_the_numbers(backend: Any) -> None:
    """The error says how full the pool is, stays playhouse's, and is counted."""
    database = backend.database(pool_max=1, pool_timeout_s=0.05)
    with held(database, 1), pytest.raises(MaxConnectionsExceeded) as caught:
        database.connect()
    assert str(caught.value) == "no connection came free within 0.05 s: 1 of 1 in use, 0 idle, 1 waiting"
    now = database.snapshot()
    assert (now.timeouts, now.waiting, now.borrowed, now.returned) == (1, 0, 1, 1)


def test_a_thread_that_is_connected_is_not_counted_again(db: peewee.Database) -> None:
    """Asking again for the connection one has borrows nothing."""
    assert db.connect(reuse_if_open=True) is False
    assert db.snapshot().borrowed == 1


def test_a_server_that_refuses_is_no_borrow() -> None:
    """A connect that fails leaves every number at nought."""
    database = open_database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(peewee.OperationalError):
        database.connect()
    assert (database.snapshot().borrowed, database.snapshot().active) == (0, 0)


@pytest.mark.parametrize("way", ["close", "manual_close", "close_all"])
def test_every_way_to_give_up_a_connection_counts_as_a_return(db: peewee.Database, way: str) -> None:
    """Returned, thrown away, or closed with all the others: borrowed and returned agree."""
    getattr(db, way)()
    now = db.snapshot()
    assert (now.borrowed, now.returned, now.active) == (1, 1, 0)


def test_closing_stale_connections_counts_as_a_return(db: peewee.Database) -> None:
    """What an age limit takes from its holder is returned; the holder's own close is not a second return."""
    assert db.close_stale(age=-1) == 1
    db.close()
    assert (db.snapshot().borrowed, db.snapshot().returned) == (1, 1)


def test_a_connection_forgotten_in_a_transaction_is_counted_once(db: peewee.Database) -> None:
    """playhouse lets go of it before its close is refused: counted as returned then, and not again."""
    with db.atomic(), pytest.raises(peewee.OperationalError):
        db.manual_close()
    db.close()
    assert (db.snapshot().borrowed, db.snapshot().returned) == (1, 1)


def test_dispose_forgets_connections_and_numbers(db: peewee.Database) -> None:
    """A forked child starts from nought."""
    db.dispose()
    now = db.snapshot()
    assert (now.active, now.idle, now.waiting, now.borrowed, now.returned, now.timeouts) == (0, 0, 0, 0, 0, 0)


def test_counts_add_up_under_threads(backend: Any) -> None:
    """Eight threads that borrow fifty times each from a pool of three make four hundred, exactly."""
    database = backend.database(pool_max=3)

    def borrow_often(_: int) -> None:
        for _ in range(50):
            with database.connection_context():
                database.execute_sql("SELECT 1").fetchone()

    with ThreadPoolExecutor(max_workers=8) as threads:
        list(threads.map(borrow_often, range(8)))
    now = database.snapshot()
    assert (now.borrowed, now.returned, now.active, now.waiting) == (400, 400, 0, 0)
    assert now.idle <= 3


def test_numbers_are_read_while_peewee_holds_its_locks(db: peewee.Database) -> None:
    """A connect that hangs with both locks in its hand does not hang those who look."""
    locked, release = threading.Event(), threading.Event()

    def hang() -> None:
        with db._lock, db._pool_lock, db._waits_lock:
            locked.set()
            release.wait()

    with ThreadPoolExecutor(max_workers=2) as threads:
        threads.submit(hang)
        locked.wait()
        try:
            assert threads.submit(db.snapshot).result(timeout=PATIENCE_S).active == 1
        finally:
            release.set()


def test_a_database_without_a_pool_has_no_limit() -> None:
    """Of a plain peewee database only this thread's connection is known, and that is said by None and nought."""
    database = peewee.SqliteDatabase(":memory:")
    with database:
        now = snapshot_of(database)
    assert (now.max, now.active, now.borrowed) == (None, 1, 0)
    assert pool_limits(database) == (None, None)


def test_limits_are_those_the_pool_was_opened_with() -> None:
    """The size and the wait in seconds, as asked for."""
    assert pool_limits(open_database("sqlite://", pool_max=7, pool_timeout_s=1.5)) == (7, 1.5)
