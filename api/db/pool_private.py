"""Every private name of peewee and playhouse 4.5 that the pool rests on, each with its reason.

``InstrumentedPool`` overrides ``_connect`` and ``_close`` besides, which are their own points for subclasses.
``test/test_pool_contract.py`` fails on a peewee that changed one of them.
"""

from __future__ import annotations

import math
import threading
from typing import Any

from playhouse.pool import PooledDatabase

from api.db.dialects.connecting import IN_MEMORY


def limit_of(database: Any) -> float:
    """Return how many connections may be in use at once: ``init()`` may change it, nothing public tells it."""
    return database._max_connections or math.inf


def timeout_of(database: Any) -> float:
    """Return how many seconds a borrow may wait; 0 where it may not, playhouse's None."""
    return database._wait_timeout or 0.0


def lifetime_of(database: Any) -> float:
    """Return how many seconds a connection may live: playhouse's ``stale_timeout``, of which it means the same.

    One to SQLite's memory has no limit: its data ends with it.
    """
    return math.inf if database.database == IN_MEMORY else database._stale_timeout or math.inf


def answer_limit_of(database: Any) -> float:
    """Return how many seconds a server may take to answer: as long as a connect may (public, but a text in a URL)."""
    return float(database.connect_params.get("connect_timeout") or math.inf)


def place_of(database: Any) -> Any:
    """Return where *database* leads, to compare: its name and what the driver is told; not known before ``init()``."""
    return vars(database).get("database"), dict(database.connect_params)


def hand_over(database: Any, reuse_if_open: bool = False) -> bool:
    """Do what a database without a pool does to connect: past playhouse's own loop, which polls and is unfair."""
    return bool(super(PooledDatabase, database).connect(reuse_if_open))


def dial(database: Any) -> Any:
    """Open a connection: what stands behind the pool in the bases really connects."""
    return super(PooledDatabase, database)._connect()


def hang_up(database: Any, connection: Any) -> None:
    """Close the driver's *connection* whatever state it is in; playhouse's way, which swallows the driver's errors."""
    database._close_raw(connection)


def forget_connection(database: Any) -> None:
    """Let this thread have none: a connect that fails half-way leaves peewee believing it is connected (4.5.3)."""
    database._state.reset()


def renew_locks(database: Any) -> None:
    """Replace the locks after a fork: one that another thread held at that moment is held for ever in the child."""
    database._lock = threading.Lock()
    database._pool_lock = threading.RLock()
    database._pool_available = threading.Condition(database._pool_lock)
