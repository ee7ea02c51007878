"""What the pool rests on in peewee and playhouse: a release that changed it fails here, and says what."""

from __future__ import annotations

import inspect
from typing import Any

import peewee
import pytest
from playhouse.pool import (
    PooledDatabase,
    PooledMySQLDatabase,
    PooledPostgresqlDatabase,
    PooledSqliteDatabase,
)

from api.db.connection import SqlitePool
from api.db.pool import InstrumentedPool

HANDLED = {"init", "connect", "_connect", "_close", "manual_close", "close_idle", "close_stale", "close_all", "dispose"}
LEFT_ALONE = {"_is_stale", "_is_closed", "_can_reuse", "_close_raw"}


def locks_seen(database: Any) -> list[bool]:
    """Let *database* connect and close, and return whether its lock was held at the pool's two points."""
    seen: list[bool] = []

    class Seeing(peewee.SqliteDatabase):
        def _connect(self) -> Any:
            seen.append(self._lock.locked())
            return super()._connect()

        def _close(self, conn: Any) -> None:
            seen.append(self._lock.locked())
            super()._close(conn)

    plain = Seeing(database)
    plain.connect()
    plain.close()
    return seen


def test_the_names_in_pool_private_are_there() -> None:
    """Size, wait, age and locks stand where they are read."""
    names = vars(PooledSqliteDatabase(":memory:", max_connections=3, timeout=7, stale_timeout=9))
    assert (names["_max_connections"], names["_wait_timeout"], names["_stale_timeout"]) == (3, 7, 9)
    assert names.keys() >= {"_lock", "_pool_lock", "_pool_available", "_state"}


def test_playhouse_has_no_method_that_the_pool_does_not_know() -> None:
    """A new one would look for connections where the pool has none."""
    methods = {name for name, value in vars(PooledDatabase).items() if inspect.isfunction(value)}
    assert methods - {"__init__"} == HANDLED | LEFT_ALONE


def test_every_method_that_touches_connections_is_overridden() -> None:
    """What playhouse does with its own lists of them must not be reached."""
    own = {name for base in InstrumentedPool.__mro__ if base.__module__.startswith("api.") for name in vars(base)}
    assert own >= HANDLED


@pytest.mark.parametrize("name", sorted(HANDLED - {"_connect", "connect", "close_idle", "dispose"}))
def test_overridden_methods_take_what_playhouse_s_take(name: str) -> None:
    """A parameter that is new there has a meaning that is missing here."""
    theirs = inspect.signature(getattr(PooledDatabase, name)).parameters
    ours = inspect.signature(getattr(InstrumentedPool, name)).parameters
    assert list(ours) == list(theirs)


def test_peewee_connects_and_closes_through_the_two_points_under_its_lock() -> None:
    """That is why nothing may be asked of a server in either."""
    assert locks_seen(":memory:") == [True, True]


@pytest.mark.parametrize("pooled", [PooledSqliteDatabase, PooledPostgresqlDatabase, PooledMySQLDatabase])
def test_what_dials_stands_behind_the_pool(pooled: type) -> None:
    """``super(PooledDatabase, database)`` is the database without a pool."""
    order = pooled.__mro__
    behind = order[order.index(PooledDatabase) + 1 :]
    assert any("_connect" in vars(base) for base in behind)


def test_a_failed_connect_leaves_peewee_open() -> None:
    """The reason for ``forget_connection``; where it is gone, that can go too."""

    class Breaking(peewee.SqliteDatabase):
        def _initialize_connection(self, conn: Any) -> None:
            raise peewee.OperationalError("half way")

    database = Breaking(":memory:")
    with pytest.raises(peewee.OperationalError, match="half way"):
        database.connect()
    assert not database.is_closed()
    database.close()


def test_the_pool_s_own_names_are_nobody_else_s() -> None:
    """None of them is one that peewee or playhouse has."""
    theirs = set(vars(PooledSqliteDatabase(":memory:"))) | set(dir(PooledSqliteDatabase))
    ours = set(vars(SqlitePool(":memory:"))) - set(vars(PooledSqliteDatabase(":memory:")))
    methods = {
        name
        for base in InstrumentedPool.__mro__
        if base.__module__.startswith("api.")
        for name in vars(base)
        if not name.startswith("__")
    }
    assert ours & theirs == set()
    assert methods & theirs <= HANDLED | {"close"}
