"""The watch: one daemon thread a process and database, which looks at a pool and logs what is worth a line.

It reads numbers without a lock, borrows nothing, and holds the database weakly: watching keeps nothing alive.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import peewee
import structlog

from api.db.pool import InstrumentedPool, snapshot_of
from api.db.pool_judge import Judge, Rules
from api.db.pool_leaks import LeakWatch
from api.db.pool_lines import Line, back_line, change_line, late_line, leak_line, orphan_line, write
from api.db.pool_numbers import Borrow, PoolSnapshot
from api.db.pool_probe import Probe

log = structlog.get_logger(__name__)

MONITOR = "_plinth_health_monitor"
# A pool that rings at every timeout is looked at once a second.
ALARM_PAUSE_S = 1.0
LATE_AFTER_S = 1.0
EXIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Watching:
    """How a pool is watched: a look every *interval_s*, and at once when the pool rings.

    A borrow of *leak_after_s* is said to be held for too long. *probe_every_s*: how often to connect to the server
    apart from the pool, never if None. *on_sample* gets the numbers of each look, for metrics.
    """

    interval_s: float = 5.0
    rules: Rules = field(default_factory=Rules)
    leak_after_s: float = 60.0
    probe_every_s: float | None = None
    on_sample: Callable[[PoolSnapshot], object] | None = None


def borrows_of(database: peewee.Database) -> list[Borrow]:
    """Return *database*'s connections in use, the oldest first; none where it has no such pool."""
    return database.borrows() if isinstance(database, InstrumentedPool) else []


def _sample(database: peewee.Database, *, is_alarmed: bool) -> PoolSnapshot:
    # The peak is the interval's: an alarm in the middle of one does not begin another.
    return database.snapshot(sample=not is_alarmed) if isinstance(database, InstrumentedPool) else snapshot_of(database)


def is_watched(database: peewee.Database) -> bool:
    """Say whether a thread of this process watches *database*: a thread of the parent did not survive the fork."""
    monitor: PoolMonitor | None = vars(database).get(MONITOR)
    return monitor is not None and monitor.is_alive


def start_watching(database: peewee.Database, watching: Watching) -> None:
    """Watch *database* from a thread, unless one does already in this process.

    A system that has no thread left is said in the log: no request fails for want of a watch.
    """
    if not is_watched(database):
        with _starting():
            if not is_watched(database):
                try:
                    vars(database)[MONITOR] = PoolMonitor(database, watching)
                except RuntimeError as exc:
                    log.error("the pool is not watched: its thread could not start", error=str(exc))


def stop_watching(database: peewee.Database) -> None:
    """End the thread that watches *database*, if there is one, and wait for its end."""
    monitor: PoolMonitor | None = vars(database).pop(MONITOR, None)
    if monitor is not None:
        monitor.stop()


_locks: dict[int, threading.Lock] = {}
_running: weakref.WeakSet[PoolMonitor] = weakref.WeakSet()


def _starting() -> threading.Lock:
    """Return this process's own lock: the parent's, if held at the fork, stays held for ever in the child."""
    return _locks.setdefault(os.getpid(), threading.Lock())


def _stop_all() -> None:
    """End the threads before the interpreter does: it would freeze them in the middle of a line."""
    for monitor in list(_running):
        monitor.stop(EXIT_S)


class PoolMonitor:
    """A daemon thread that watches one database until that is gone, or ``stop``."""

    def __init__(self, database: peewee.Database, watching: Watching) -> None:
        self._database = weakref.ref(database)
        self._watching = watching
        self._alarm = database.alarm if isinstance(database, InstrumentedPool) else threading.Event()
        # What rang before nobody heard; the numbers of that time are the start's.
        self._alarm.clear()
        self._stopped = threading.Event()
        self._judge = Judge(watching.rules, snapshot_of(database))
        self._leaks = LeakWatch(watching.leak_after_s)
        self._probe = Probe(watching.probe_every_s)
        self._said_late_s = self._said_failed_s = -float("inf")
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"pool-health {database.database}", daemon=True)
        self._thread.start()
        _running.add(self)
        # Once, however often; a forked child inherits it.
        atexit.unregister(_stop_all)
        atexit.register(_stop_all)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, in this process."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float | None = None) -> None:
        """End the thread, and wait for its end, *timeout_s* at the most; in a forked child there is none to end."""
        if self._pid != os.getpid():
            # Its events may have been held at the fork.
            return
        self._stopped.set()
        self._alarm.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        interval_s = self._watching.interval_s
        due_s = time.monotonic() + interval_s
        while True:
            is_alarmed = self._alarm.wait(max(0.0, due_s - time.monotonic()))
            # Before the numbers are read: what comes after wakes the thread again.
            self._alarm.clear()
            now_s = time.monotonic()
            database = self._database()
            if self._stopped.is_set() or database is None:
                return
            self._watch(database, now_s, now_s - due_s, is_alarmed=is_alarmed)
            # Not even between two looks may the thread keep the database alive.
            del database
            if is_alarmed and self._stopped.wait(min(ALARM_PAUSE_S, interval_s)):
                return
            # From the look's beginning: a log handler that blocks makes the next one late, and that is said.
            due_s = now_s + interval_s if now_s >= due_s else max(due_s, time.monotonic())

    def _watch(self, database: peewee.Database, now_s: float, late_s: float, *, is_alarmed: bool) -> None:
        """Look, and log what was seen. A log may fail in any way; a watch that died would look like health."""
        try:
            seen = _sample(database, is_alarmed=is_alarmed)
            for line in self.look(database, seen, now_s, late_s=late_s, is_alarmed=is_alarmed):
                try:
                    write(line)
                except Exception as exc:  # noqa: BLE001 - the other lines have to be tried all the same
                    self._say_failed(exc, now_s)
            if self._watching.on_sample is not None:
                self._watching.on_sample(seen)
        except Exception as exc:  # noqa: BLE001 - the next look may succeed
            self._say_failed(exc, now_s)

    def look(
        self, database: peewee.Database, seen: PoolSnapshot, now_s: float, *, late_s: float, is_alarmed: bool
    ) -> Iterator[Line]:
        """Yield what to log about *seen*, *database*'s numbers at *now_s*, *late_s* after the look was due."""
        borrows = borrows_of(database)
        yield from self._lateness(late_s, seen, now_s)
        finding = self._judge.look(seen, now_s, alarmed=is_alarmed)
        if finding is not None:
            yield change_line(finding, seen, borrows, now_s)
        yield from self._held_too_long(database, borrows, seen, now_s)
        yield from self._probe.look(database, seen, now_s)

    def _lateness(self, late_s: float, seen: PoolSnapshot, now_s: float) -> list[Line]:
        is_late = late_s > max(LATE_AFTER_S, self._watching.interval_s / 2)
        if not is_late or now_s - self._said_late_s < self._watching.rules.repeat_s:
            return []
        self._said_late_s = now_s
        return [late_line(late_s, seen)]

    def _held_too_long(
        self, database: peewee.Database, borrows: list[Borrow], seen: PoolSnapshot, now_s: float
    ) -> Iterator[Line]:
        found = self._leaks.look(borrows, now_s)
        for borrow in found.orphans:
            if database.reclaim(borrow):
                yield orphan_line(borrow, seen, now_s)
        yield from (leak_line(borrow, seen, now_s) for borrow in found.leaks)
        yield from (back_line(borrow, seen, now_s) for borrow in found.back)

    def _say_failed(self, error: Exception, now_s: float) -> None:
        if now_s - self._said_failed_s < self._watching.rules.repeat_s:
            return
        self._said_failed_s = now_s
        with contextlib.suppress(Exception):
            log.error("the pool could not be looked at", exc_info=error)
