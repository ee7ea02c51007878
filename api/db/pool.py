"""The instrumented pool: playhouse's pool made fair and quick, with numbers. It counts, and never logs or judges.

Its locks, and what happens under which:

- peewee's lock of the database, for a moment in ``connect`` and ``close``: what asks the server is done before.
- ``Slots.lock``, for a few instructions: slots, idle and lent connections, counters.
- None while a thread waits, dials, validates, rolls back or hangs up: that costs its own caller, and nobody else.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from typing import Any

import peewee

from api.db import pool_private as private
from api.db.dialects.answering import is_lost
from api.db.dialects.engine import unwrap
from api.db.pool_numbers import ENDPOINT, Borrow, CloseReason, Counters, Link, PoolSnapshot, PoolTimeout
from api.db.pool_opening import OpeningPool
from api.db.pool_queue import Waiter
from api.logs import current_correlation_id


class _Prepared(threading.local):
    """The connection that this thread has got ready for peewee to take."""

    connection: Any = None


class InstrumentedPool(OpeningPool):
    """A mixin to stand before one of playhouse's pooled databases in the bases.

    A borrow waits its turn, up to playhouse's *timeout*. *alarm* is set when one has waited for a second, and
    when one has waited in vain.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _pools.add(self)

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self.alarm = threading.Event()
        self._prepared = _Prepared()
        self._lent: dict[int, Borrow] = {}
        self._pending = 0

    # Borrowing

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Borrow a connection for this thread, waiting for one up to the pool's timeout.

        Raises ``PoolTimeout`` when none came free, ``ConnectPostponed`` without dialling a server that has just
        failed, and otherwise what the driver says, in peewee's classes. After an error nothing is held.
        """
        if self.deferred or not self.is_closed():
            # Needs no connection: peewee says what is wrong, or that this thread has one.
            return private.hand_over(self, reuse_if_open)
        borrow = self._borrow()
        self._prepared.connection = borrow.link.connection
        try:
            return private.hand_over(self)
        except BaseException:
            private.forget_connection(self)
            private.hang_up(self, borrow.link.connection)
            self._end(borrow, "bad return")
            raise

    def _connect(self) -> Any:
        connection, self._prepared.connection = self._prepared.connection, None
        return connection

    def _borrow(self) -> Borrow:
        """Lend this thread a connection that lives, when it is its turn."""
        asked_s = time.monotonic()
        with self._slots.lock:
            self._counters.requests += 1
            self._pending += 1
            waiter = self._slots.take(private.limit_of(self))
            self._counters.queued += waiter is not None
        try:
            if waiter is not None:
                self._wait(waiter)
            link = self._open_link()
        except BaseException:
            with self._slots.lock:
                self._pending -= 1
            raise
        return self._lend(link, asked_s)

    def _wait(self, waiter: Waiter) -> None:
        timeout_s = private.timeout_of(self)
        if self._slots.wait(waiter, timeout_s, self.alarm.set):
            return
        with self._slots.lock:
            self._counters.timeouts += 1
        self.alarm.set()
        now_s = time.monotonic()
        holders = [f"{borrow} {now_s - borrow.since_s:.1f} s" for borrow in self.borrows()]
        raise PoolTimeout(self.snapshot(), holders, timeout_s=timeout_s)

    def _lend(self, link: Link, asked_s: float) -> Borrow:
        now_s = time.monotonic()
        key = id(link.connection)
        borrow = Borrow(threading.current_thread(), ENDPOINT.get(), current_correlation_id(), now_s, key, link)
        with self._slots.lock:
            self._pending -= 1
            self._lent[key] = borrow
            counters = self._counters
            counters.borrowed += 1
            counters.wait.record(now_s - asked_s)
            if len(self._lent) > counters.peak:
                counters.peak = len(self._lent)
        return borrow

    # Returning

    def close(self) -> bool:
        """Return this thread's connection, rolled back if a transaction is open on it; False when it had none.

        Raises peewee's ``OperationalError`` inside ``atomic()``, and then keeps the connection.
        """
        if not (self.deferred or self.is_closed() or self.in_transaction()):
            borrow = self._lent.get(id(self.connection()))
            if borrow is not None:
                self._judge(borrow.link)
        return bool(super().close())

    def _judge(self, link: Link) -> None:
        """Roll *link* back where it needs it, and close it where it may not be lent again."""
        # Kept when the rollback is broken off.
        link.verdict = "bad return"
        try:
            if self._can_reuse(link.connection):
                link.verdict = "stale" if time.monotonic() >= link.expires_s else None
            elif is_lost(link.connection):
                link.verdict = "lost"
        finally:
            if link.verdict is not None:
                private.hang_up(self, link.connection)

    def manual_close(self) -> bool:
        """Close this thread's connection for good, instead of returning it; False when it had none.

        Raises peewee's ``OperationalError`` inside ``atomic()``, and then keeps the connection, which counts on.
        """
        if not (self.deferred or self.is_closed() or self.in_transaction()):
            borrow = self._lent.get(id(self.connection()))
            if borrow is not None:
                borrow.link.verdict = "manual"
                private.hang_up(self, self.connection())
        return bool(super().close())

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        borrow = self._lent.get(id(conn))
        # Without one, close_stale or close_all have taken it away.
        if borrow is not None:
            self._end(borrow, "manual" if close_conn else borrow.link.verdict)

    def _end(self, borrow: Borrow, reason: CloseReason | None) -> None:
        """End a borrow: its connection is idle, unless closed for a *reason*; its slot goes to the next in line."""
        now_s, expired = time.monotonic(), None
        with self._slots.lock:
            if not self._unlend(borrow, now_s, reason):
                return
            if reason is None:
                borrow.link.returned_s = now_s
                self._idle.append(borrow.link)
                # The one returned longest ago: in quiet hours nobody gets to it.
                if self._idle[0].expires_s <= now_s:
                    expired = self._idle.popleft()
            self._slots.give()
        if expired is not None:
            self._discard(expired, "stale")

    def _unlend(self, borrow: Borrow, now_s: float, reason: CloseReason | None) -> bool:
        """Take the connection from its holder, but not the slot yet; False when somebody has done so before."""
        if self._lent.get(borrow.key) is not borrow:
            return False
        del self._lent[borrow.key]
        counters = self._counters
        counters.returned += 1
        counters.use.record(now_s - borrow.since_s)
        if reason is not None:
            counters.closed[reason] += 1
        return True

    # Closing what others have

    def reclaim(self, borrow: Borrow) -> bool:
        """Close the connection of *borrow* if the thread that held it is dead, and free its slot.

        False when the thread lives, for its connection is never closed, or when it is a borrow no more.
        """
        return borrow.is_orphan and self._take_away(borrow, "orphan")

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        while (link := self._pop_idle()) is not None:
            self._discard(link, "manual")

    def close_stale(self, age: float = 600) -> int:
        """Close connections borrowed more than *age* seconds ago, though they are in use; return how many."""
        before_s = time.monotonic() - age
        return sum(self._take_away(borrow, "stale") for borrow in self.borrows() if borrow.since_s < before_s)

    def close_all(self) -> None:
        """Close every connection, also those in use by other threads."""
        self.close()
        self.close_idle()
        for borrow in self.borrows():
            self._take_away(borrow, "manual")

    def _take_away(self, borrow: Borrow, reason: CloseReason) -> bool:
        now_s = time.monotonic()
        with self._slots.lock:
            if not self._unlend(borrow, now_s, reason):
                return False
        private.hang_up(self, borrow.link.connection)
        with self._slots.lock:
            self._slots.give()
        return True

    def dispose(self) -> None:
        """Forget every connection without closing it, and every number; who waits is served.

        After a fork the child does this, and more, by itself: the connections are the parent's.
        """
        super().dispose()
        with self._slots.lock:
            self._idle.clear()
            freed, self._lent = len(self._lent), {}
            self._counters = Counters()
            for _ in range(freed):
                self._slots.give()

    def after_fork_in_child(self) -> None:
        """Leave the parent its connections, and begin with new locks, no connections and no numbers.

        Python calls it in each forked child.
        """
        if isinstance(self, peewee.SqliteDatabase):
            # Not even to be closed here: https://sqlite.org/howtocorrupt.html, 2.6.
            _inherited.append((self._idle, self._lent))
        private.renew_locks(self)
        private.forget_connection(self)
        self._begin_anew()

    # Looking

    def borrows(self) -> list[Borrow]:
        """Return the connections in use, oldest first; takes no lock."""
        return sorted(self._lent.copy().values(), key=lambda borrow: borrow.since_s)

    def snapshot(self, *, sample: bool = False) -> PoolSnapshot:
        """Return the numbers of this moment; takes no lock, borrows nothing, costs some microseconds.

        *sample* also begins a new interval for *peak*.
        """
        counters, limit = self._counters, private.limit_of(self)
        active, idle, peak = len(self._lent), len(self._idle), counters.peak
        if sample:
            counters.peak = active
        return PoolSnapshot(
            name=_name_of(self),
            pid=os.getpid(),
            max=None if math.isinf(limit) else int(limit),
            active=active,
            idle=idle,
            total=active + idle,
            waiting=self._slots.waiting,
            pending=self._pending,
            oldest_wait_s=self._slots.oldest_wait_s(time.monotonic()),
            peak=max(peak, active),
            **counters.picture(),
        )


_pools: weakref.WeakSet[InstrumentedPool] = weakref.WeakSet()
_inherited: list[Any] = []


def _begin_anew_in_child() -> None:
    for pool in list(_pools):
        pool.after_fork_in_child()


os.register_at_fork(after_in_child=_begin_anew_in_child)


def _name_of(database: peewee.Database) -> str:
    if isinstance(database, peewee.SqliteDatabase):
        return str(database.database)
    params = database.connect_params
    port = params.get("port", 5432 if isinstance(database, peewee.PostgresqlDatabase) else 3306)
    return f"{params.get('host') or params.get('unix_socket') or 'localhost'}:{port}/{database.database}"


def snapshot_of(database: Any) -> PoolSnapshot:
    """Return the numbers of *database*'s pool, through a ``DatabaseProxy`` too.

    A database without an instrumented pool has no limit and no counters, and only this thread's connection is seen.
    """
    database = unwrap(database)
    if isinstance(database, InstrumentedPool):
        return database.snapshot()
    active = int(not database.is_closed())
    return PoolSnapshot(name=_name_of(database), pid=os.getpid(), max=None, active=active, idle=0, total=active)


def pool_limits(database: Any) -> tuple[int | None, float | None]:
    """Return how many connections *database*'s pool may hold, and how many seconds a borrow waits for one."""
    database = unwrap(database)
    if not isinstance(database, InstrumentedPool):
        return None, None
    return database.snapshot().max, private.timeout_of(database)
