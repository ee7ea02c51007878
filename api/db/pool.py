"""The counting pool: playhouse's pool with numbers beside it. It counts, and never logs, judges or retries.

The private names of playhouse 4.5 are used in this file only, and ``test/test_pool.py`` checks them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import peewee
from playhouse.pool import MaxConnectionsExceeded, PooledDatabase

from api.db.dialects.engine import unwrap


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool's numbers at one moment, read without a lock: each is true, two of them may be a borrow apart.

    *max* is None where nothing limits the number; *waiting* counts the threads that were refused a connection
    and still wait for one. The totals only grow: *borrowed*, *returned* (given up, whichever way), *timeouts*
    (waits that came to nothing).
    """

    max: int | None
    active: int
    idle: int
    waiting: int
    borrowed: int
    returned: int
    timeouts: int


class _Request(threading.local):
    """What this thread's borrow in progress has met so far."""

    is_waiting = False


class CountingPool(PooledDatabase):
    """A mixin to stand before one of playhouse's pooled databases in the bases; it changes numbers only.

    *borrowed* and *returned* change under playhouse's lock, so that they agree with what is in use. *waiting*
    and *timeouts* have a lock of their own, held for one addition: a thread that gives up must not wait for
    another one that dials a dead server with playhouse's lock in its hand.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waits_lock = threading.Lock()
        self._request = _Request()
        self._waiting = 0
        self._timeouts = 0
        self._borrowed = 0
        self._returned = 0
        super().__init__(*args, **kwargs)

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Borrow a connection for this thread, waiting for one up to the pool's timeout.

        Raises playhouse's ``MaxConnectionsExceeded``, with the numbers in its message, when none came free.
        """
        if not self.is_closed():
            return bool(super().connect(reuse_if_open))
        self._request.is_waiting = False
        try:
            return bool(super().connect(reuse_if_open))
        except MaxConnectionsExceeded as exc:
            with self._waits_lock:
                self._timeouts += 1
            raise MaxConnectionsExceeded(self._exhausted()) from exc
        finally:
            if self._request.is_waiting:
                with self._waits_lock:
                    self._waiting -= 1

    def _connect(self) -> Any:
        with self._pool_lock:
            try:
                connection = super()._connect()
            except MaxConnectionsExceeded:
                # playhouse asks again every second: only the first refusal of a request makes it a waiter.
                if not self._request.is_waiting:
                    self._request.is_waiting = True
                    with self._waits_lock:
                        self._waiting += 1
                raise
            self._borrowed += 1
            return connection

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        super()._close(conn, close_conn)
        self._count_returned()

    def manual_close(self) -> bool:
        """Close this thread's connection for good, instead of returning it; False when it had none."""
        try:
            return super().manual_close() is not False
        finally:
            self._count_returned()

    def close_stale(self, age: float = 600) -> int:
        """Close connections borrowed more than *age* seconds ago, also those in use; return how many."""
        closed = super().close_stale(age)
        self._count_returned()
        return int(closed)

    def close_all(self) -> None:
        """Close every connection, also those in use by other threads."""
        super().close_all()
        self._count_returned()

    def dispose(self) -> None:
        """Forget every connection without closing it, and every number: for a forked child's first step.

        The connections stay the parent's.
        """
        super().dispose()
        with self._pool_lock, self._waits_lock:
            self._waiting = self._timeouts = self._borrowed = self._returned = 0

    def _count_returned(self) -> None:
        # Derived: playhouse lets go of connections in five places. Exact: all five hold this lock.
        with self._pool_lock:
            self._returned = self._borrowed - len(self._in_use)

    def _exhausted(self) -> str:
        now = self.snapshot()
        return (
            f"no connection came free within {self._wait_timeout or 0:g} s: {now.active} of {now.max} in use, "
            f"{now.idle} idle, {now.waiting} waiting"
        )

    def snapshot(self) -> PoolSnapshot:
        """Return the numbers of this moment; takes no lock, borrows nothing, costs some microseconds."""
        return PoolSnapshot(
            max=self._max_connections or None,
            active=len(self._in_use),
            idle=len(self._connections),
            waiting=self._waiting,
            borrowed=self._borrowed,
            returned=self._returned,
            timeouts=self._timeouts,
        )


def snapshot_of(database: Any) -> PoolSnapshot:
    """Return the numbers of *database*'s pool, through a ``DatabaseProxy`` too.

    A database without a counting pool has no limit and no counters, and only this thread's connection is seen.
    """
    database = unwrap(database)
    if isinstance(database, CountingPool):
        return database.snapshot()
    is_open = not database.is_closed()
    return PoolSnapshot(max=None, active=int(is_open), idle=0, waiting=0, borrowed=0, returned=0, timeouts=0)


def pool_limits(database: peewee.Database) -> tuple[int | None, float | None]:
    """Return how many connections *database*'s pool may hold, and how many seconds a borrow waits for one."""
    if not isinstance(database, CountingPool):
        return None, None
    return database._max_connections or None, database._wait_timeout
