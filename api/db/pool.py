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
from collections.abc import Callable
from typing import Any

import peewee

from api.db import pool_private as private
from api.db.dialects.answering import is_lost
from api.db.dialects.connecting import host_and_port
from api.db.dialects.engine import unwrap
from api.db.pool_gate import Gate
from api.db.pool_numbers import ENDPOINT, Borrow, CloseReason, Counters, Link, PoolSnapshot, PoolTimeout
from api.db.pool_opening import OpeningPool
from api.db.pool_queue import Place
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

    def init(
        self,
        database: Any,
        max_connections: Any = None,
        stale_timeout: Any = None,
        timeout: Any = None,
        **connect_kwargs: Any,
    ) -> None:
        """Lead to *database* from now on, or let the pool have other limits; who waits has them, too.

        A connection to the place before is lent no more, but to one who asked before.
        """
        before = private.place_of(self)
        super().init(database, max_connections, stale_timeout, timeout, **connect_kwargs)
        with self._slots.lock:
            self._slots.limit(private.limit_of(self))
            is_elsewhere = private.place_of(self) != before
            if is_elsewhere:
                self._era += 1
                self._gate = Gate()
        if is_elsewhere:
            self.close_idle()

    # Borrowing

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Borrow a connection for this thread, waiting for one up to the pool's timeout.

        Raises ``PoolTimeout`` when none came free, ``ConnectPostponed`` without dialling a server that has just
        failed, and otherwise what the driver says, in peewee's classes. After an error nothing is held.
        """
        if self.deferred or not self.is_closed():
            # Needs no connection: peewee says what is wrong, or that this thread has one.
            return private.hand_over(self, reuse_if_open)
        place = Place()
        try:
            self._borrow(place)
            self._prepared.connection = place.link.connection
            return private.hand_over(self)
        except BaseException:
            # Again in case that something from outside strikes while it is at it.
            try:
                self._break_off(place)
            finally:
                self._break_off(place)
            raise

    def _connect(self) -> Any:
        connection, self._prepared.connection = self._prepared.connection, None
        return connection

    def _borrow(self, place: Place) -> None:
        """Lend this thread a connection that lives, when it is its turn."""
        with self._slots.lock:
            self._counters.requests += 1
            is_served = self._slots.take(place)
            self._counters.queued += not is_served
        if not is_served:
            self._wait(place)
        if not self._take_idle(place):
            self._dial(place)
        self._lend(place)

    def _wait(self, place: Place) -> None:
        timeout_s = private.timeout_of(self)
        if self._slots.wait(place, timeout_s, self.alarm.set):
            return
        with self._slots.lock:
            self._counters.timeouts += 1
        self.alarm.set()
        now_s = time.monotonic()
        holders = [borrow.with_age(now_s) for borrow in self.borrows()]
        raise PoolTimeout(self.snapshot(), holders, timeout_s)

    def _lend(self, place: Place) -> None:
        now_s, link = time.monotonic(), place.link
        key = id(link.connection)
        holder = threading.current_thread()
        place.borrow = Borrow(holder, ENDPOINT.get(), current_correlation_id(), now_s, key, link, place)
        with self._slots.lock:
            self._lent[key] = place.borrow
            counters = self._counters
            counters.borrowed += 1
            counters.wait.record(now_s - place.since_s)
            if len(self._lent) > counters.peak:
                counters.peak = len(self._lent)

    def _break_off(self, place: Place) -> None:
        """Give up all that *place* has got: nobody knows in which state a connection is that was broken off."""
        private.forget_connection(self)
        try:
            if place.link is not None:
                private.hang_up(self, place.link.connection)
        finally:
            with self._slots.lock:
                if place.borrow is not None:
                    self._unlend(place.borrow, time.monotonic(), "bad return")
                if place.link is not None:
                    self._counters.closed["bad return"] += 1
                    place.link = None
                self._slots.give(place)

    # Returning

    def close(self) -> bool:
        """Return this thread's connection, rolled back if a transaction is open on it; False when it had none.

        Raises peewee's ``OperationalError`` inside ``atomic()``, and then keeps the connection. Whatever else it
        raises, the connection is given up.
        """
        return self._let_go(self._judge)

    def manual_close(self) -> bool:
        """Close this thread's connection for good, instead of returning it; False when it had none.

        Raises peewee's ``OperationalError`` inside ``atomic()``, and then keeps the connection, which counts on.
        """
        return self._let_go(self._throw_away)

    def _let_go(self, judge: Callable[[Link], CloseReason | None]) -> bool:
        borrow = None
        if not (self.deferred or self.is_closed() or self.in_transaction()):
            key = id(self.connection())
            with self._slots.lock:
                borrow = self._lent.get(key)
                if borrow is not None:
                    # From now on nobody else hangs up on it.
                    borrow.is_ending = True
        if borrow is None:
            # peewee says what is wrong, or this thread has none: perhaps it was taken away.
            return bool(super().close())
        try:
            reason = judge(borrow.link)
            is_open = bool(super().close())
            self._end(borrow, reason)
        except BaseException:
            self._break_off(borrow.place)
            raise
        return is_open

    def _judge(self, link: Link) -> CloseReason | None:
        """Roll *link* back where it needs it; where it may not be lent again, close it and say why."""
        if self._can_reuse(link.connection):
            return None
        reason: CloseReason = "lost" if is_lost(link.connection) else "bad return"
        private.hang_up(self, link.connection)
        return reason

    def _throw_away(self, link: Link) -> CloseReason:
        private.hang_up(self, link.connection)
        return "manual"

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        """Do nothing: here peewee holds its lock. What there is to do is done before and after."""

    def _end(self, borrow: Borrow, reason: CloseReason | None) -> None:
        """End a borrow: its connection is idle, unless closed for a *reason*; its slot goes to the next in line."""
        place, idle, now_s = borrow.place, self._idle, time.monotonic()
        with self._slots.lock:
            if self._unlend(borrow, now_s, reason) and reason is None:
                borrow.link.returned_s = now_s
                place.link = None
                idle.append(borrow.link)
                # Its own time may be up, or that of the one returned longest ago: in quiet hours nobody gets to it.
                if idle[-1].expires_s <= now_s or idle[-1].era != self._era:
                    place.link = idle[-1]
                    del idle[-1]
                elif idle[0].expires_s <= now_s:
                    place.link = idle[0]
                    del idle[0]
            self._slots.give(place)
        if place.link is not None:
            self._drop(place, "stale")

    def _unlend(self, borrow: Borrow, now_s: float, reason: CloseReason | None) -> bool:
        """Take the connection from its holder, but not the slot yet; False when somebody has done so before."""
        if self._lent.get(borrow.key) is not borrow:
            return False
        del self._lent[borrow.key]
        counters = self._counters
        counters.returned += 1
        if reason is not None:
            counters.closed[reason] += 1
            borrow.place.link = None
        counters.use.record(now_s - borrow.since_s)
        return True

    # Closing what others have

    def reclaim(self, borrow: Borrow) -> bool:
        """Close the connection of *borrow* if the thread that held it is dead, and free its slot.

        False when the thread lives, for its connection is never closed, or when it is a borrow no more.
        """
        return borrow.is_orphan and self._take_away(borrow, "orphan")

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        place = Place()
        try:
            while self._pop_idle(place):
                self._drop(place, "manual")
        finally:
            # Struck from outside, between taking it and closing it.
            if place.link is not None:
                self._drop(place, "manual")

    def close_stale(self, age: float = 600) -> int:
        """Close connections borrowed more than *age* seconds ago, though they are in use; return how many.

        One that is being returned at this moment, and any of SQLite's, is left to its holder's return, which closes it.
        """
        before_s = time.monotonic() - age
        return sum(self._take_away(borrow, "stale") for borrow in self.borrows() if borrow.since_s < before_s)

    def close_all(self) -> None:
        """Close every connection, also those in use by other threads.

        One that is being returned at this moment, and any of SQLite's, is left to its holder's return, which closes it.
        """
        self.close()
        self.close_idle()
        for borrow in self.borrows():
            self._take_away(borrow, "manual")

    def _take_away(self, borrow: Borrow, reason: CloseReason) -> bool:
        now_s = time.monotonic()
        try:
            with self._slots.lock:
                if reason != "orphan" and (borrow.is_ending or isinstance(self, peewee.SqliteDatabase)):
                    # Neither libpq nor SQLite survives the loss of a connection that its holder is just using.
                    borrow.link.expires_s = 0.0
                    return False
                if not self._unlend(borrow, now_s, reason):
                    return False
            private.hang_up(self, borrow.link.connection)
            self._free(borrow.place)
        except BaseException:
            if borrow.place.link is None:
                self._free(borrow.place)
            raise
        return True

    def _free(self, place: Place) -> None:
        with self._slots.lock:
            self._slots.give(place)

    def dispose(self) -> None:
        """Forget every connection without closing it, and every number; who waits is served.

        After a fork the child does this, and more, by itself: the connections are the parent's.
        """
        super().dispose()
        with self._slots.lock:
            self._idle.clear()
            lent, self._lent = self._lent, {}
            self._counters = Counters()
            for borrow in lent.values():
                borrow.place.link = None
                self._slots.give(borrow.place)

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
        self._slots.limit(private.limit_of(self))

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
        waiting = self._slots.waiting
        if sample:
            counters.peak = active
        return PoolSnapshot(
            name=_name_of(self),
            pid=os.getpid(),
            max=None if math.isinf(limit) else int(limit),
            active=active,
            idle=idle,
            total=active + idle,
            waiting=waiting,
            pending=max(0, self._slots.taken - active) + waiting,
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
    host, port = host_and_port(database)
    return f"{host}:{port}/{database.database}"


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
