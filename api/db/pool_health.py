"""Judging a pool by its numbers: on request, and from a thread that logs what changes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from dataclasses import asdict
from enum import StrEnum
from typing import Any, ClassVar

import peewee
import structlog

from api.db.dialects.engine import unwrap
from api.db.pool import snapshot_of

log = structlog.get_logger(__name__)

SMALL_POOL = 4
MONITOR = "_plinth_health_monitor"


class Health(StrEnum):
    """What a pool's numbers mean."""

    FINE = "fine"
    WARNING = "warning"
    CRITICAL = "critical"


EVENTS = {
    Health.FINE: "pool is fine",
    Health.WARNING: "pool is nearly used up",
    Health.CRITICAL: "pool is used up",
}


class PoolDiagnostics:
    """Reads, judges and logs a pool's numbers. Borrows nothing, and takes no lock that a borrow takes.

    Every *database* may be a ``DatabaseProxy``. Thresholds are shares of the pool, 0.8 being 80 %.
    """

    HEALTH_CHECK_INTERVAL: ClassVar[int] = 60
    WARNING_THRESHOLD: ClassVar[float] = 0.8
    CRITICAL_THRESHOLD: ClassVar[float] = 0.95

    @classmethod
    def get_pool_stats(cls, database: Any) -> dict[str, Any]:
        """Return ``max, active, idle, waiting, utilization_percent``, and the totals of ``PoolSnapshot``.

        *max* and *utilization_percent* are None where nothing limits the number of connections.
        """
        stats = asdict(snapshot_of(database))
        share = 100 * stats["active"] / stats["max"] if stats["max"] else None
        return stats | {"utilization_percent": share}

    @classmethod
    def judge(cls, stats: dict[str, Any], *, warning: float | None = None, critical: float | None = None) -> Health:
        """Say how a pool with *stats* does, by utilisation; a pool of less than four, by who waits.

        There the shares say nothing: one connection of one is 100 % in normal use.
        """
        limit, waiting = stats["max"], stats["waiting"]
        if limit is None:
            return Health.FINE
        if limit < SMALL_POOL:
            return Health.CRITICAL if waiting >= limit else Health.WARNING if waiting else Health.FINE
        share = stats["active"] / limit
        if share >= (cls.CRITICAL_THRESHOLD if critical is None else critical):
            return Health.CRITICAL
        return Health.WARNING if share >= (cls.WARNING_THRESHOLD if warning is None else warning) else Health.FINE

    @classmethod
    def log_pool_health(cls, database: Any, *, warning: float | None = None, critical: float | None = None) -> Health:
        """Log the numbers once, at debug when all is fine, else at warning or critical; return the verdict."""
        stats = cls.get_pool_stats(database)
        health = cls.judge(stats, warning=warning, critical=critical)
        _log(health, stats)
        return health

    @classmethod
    def start_health_monitoring(
        cls,
        database: Any,
        interval: float = 5.0,
        *,
        warning: float | None = None,
        critical: float | None = None,
    ) -> None:
        """Look at *database*'s pool every *interval* seconds from a daemon thread; there is never a second one.

        Cheap enough for every request, and so a forked worker gets a thread of its own: none survives a fork.
        The thread keeps nothing alive, and ends within an *interval* of the database's end.
        """
        database = unwrap(database)
        if not _is_monitored(database):
            with _starting():
                if not _is_monitored(database):
                    vars(database)[MONITOR] = _Monitor(database, interval, warning, critical)

    @classmethod
    def stop_health_monitoring(cls, database: Any) -> None:
        """End the thread that looks at *database*'s pool, if there is one, and wait for its end."""
        monitor = vars(unwrap(database)).pop(MONITOR, None)
        if monitor is not None:
            monitor.stop()


def _log(health: Health, stats: dict[str, Any], **more: Any) -> None:
    write = {Health.FINE: log.debug, Health.WARNING: log.warning, Health.CRITICAL: log.critical}[health]
    write(EVENTS[health], **stats, pid=os.getpid(), **more)


_locks: dict[int, threading.Lock] = {}


def _starting() -> threading.Lock:
    """Return this process's own lock: the parent's, if held at the fork, stays held for ever in the child."""
    return _locks.setdefault(os.getpid(), threading.Lock())


def _is_monitored(database: peewee.Database) -> bool:
    monitor: _Monitor | None = vars(database).get(MONITOR)
    return monitor is not None and monitor.thread.is_alive()


class _Monitor:
    """A daemon thread that logs a pool's changes of health, and repeats a bad one."""

    def __init__(
        self, database: peewee.Database, interval_s: float, warning: float | None, critical: float | None
    ) -> None:
        self._database = weakref.ref(database)
        self._interval_s = interval_s
        self._thresholds = {"warning": warning, "critical": critical}
        self._health = Health.FINE
        self._since_s = self._logged_s = time.monotonic()
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"pool-health {database.database}", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self.thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            database = self._database()
            if database is None:
                return
            try:
                self.look(database, time.monotonic())
            except Exception:
                # A log may fail in any way, even in saying so; a watch that died would look like health.
                with contextlib.suppress(Exception):
                    log.exception("the pool could not be looked at")
            # Not even between two looks may the thread keep the database alive.
            del database

    def look(self, database: peewee.Database, now_s: float) -> None:
        """Log what has changed by *now_s*, or a bad state unlogged for ``HEALTH_CHECK_INTERVAL``."""
        stats = PoolDiagnostics.get_pool_stats(database)
        health = PoolDiagnostics.judge(stats, **self._thresholds)
        lasted_s = round(now_s - self._since_s, 1)
        is_new = health != self._health
        if is_new:
            self._health, self._since_s = health, now_s
        if is_new and health is Health.FINE:
            log.info("pool has recovered", **stats, pid=os.getpid(), lasted_s=lasted_s)
        elif is_new or (health is not Health.FINE and now_s - self._logged_s >= PoolDiagnostics.HEALTH_CHECK_INTERVAL):
            self._logged_s = now_s
            _log(health, stats, lasted_s=0 if is_new else lasted_s)
