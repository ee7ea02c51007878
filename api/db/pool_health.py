"""What the app calls to learn how a pool does: its numbers, a line about them, and the watch that logs what changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import peewee

from api.db.dialects.engine import unwrap
from api.db.pool import snapshot_of
from api.db.pool_judge import Health, Rules, grade
from api.db.pool_lines import holders, state_line, utilization_percent, write
from api.db.pool_monitor import Watching, borrows_of, is_watched, start_watching, stop_watching
from api.db.pool_numbers import PoolSnapshot, Timings, require_number


class PoolDiagnostics:
    """Reads, judges and logs a pool's numbers. Borrows nothing, and takes no lock that a borrow takes.

    Every *database* may be a ``DatabaseProxy``. Thresholds are shares of the pool, 0.8 being 80 %.
    """

    HEALTH_CHECK_INTERVAL: ClassVar[int] = 60
    WARNING_THRESHOLD: ClassVar[float] = 0.8
    CRITICAL_THRESHOLD: ClassVar[float] = 0.95

    @classmethod
    def get_pool_stats(cls, database: Any) -> dict[str, Any]:
        """Return ``max, active, idle, waiting, utilization_percent``, then the rest of ``PoolSnapshot``.

        *max* and *utilization_percent* are None where nothing limits the number of connections. *holders* are the
        longest borrows, as text: endpoint, correlation id, thread, age.
        """
        now = snapshot_of(database)
        first: dict[str, Any] = {"max": now.max, "active": now.active, "idle": now.idle, "waiting": now.waiting}
        first["utilization_percent"] = utilization_percent(now)
        return first | _as_dict(now) | {"holders": holders(borrows_of(unwrap(database)), time.monotonic())}

    @classmethod
    def log_pool_health(cls, database: Any, *, warning: float | None = None, critical: float | None = None) -> Health:
        """Log the numbers once, at debug when all is fine, else at warning or critical; return the verdict."""
        database = unwrap(database)
        now = snapshot_of(database)
        found = grade(now, cls._rules(database, warning, critical))
        write(state_line(found, now, borrows_of(database), time.monotonic()))
        return found.health

    @classmethod
    def start_health_monitoring(
        cls,
        database: Any,
        interval: float = 5.0,
        *,
        warning: float | None = None,
        critical: float | None = None,
        leak_after_s: float = 60.0,
        probe_every_s: float | None = None,
        on_sample: Callable[[PoolSnapshot], object] | None = None,
    ) -> None:
        """Look at *database*'s pool every *interval* seconds from a daemon thread; there is never a second one.

        It logs what changes, and a state that lasts every ``HEALTH_CHECK_INTERVAL`` seconds; it looks at once when a
        borrow times out or waits over a second. A borrow of *leak_after_s* is said to be held for too long, and the
        connection of a dead thread is taken back. *probe_every_s* connects to the server apart from the pool.
        *on_sample* gets the numbers of each look.

        Cheap enough for every request, and so a forked worker gets a thread of its own: none survives a fork. The
        thread keeps nothing alive, and ends within an *interval* of the database's end. Raises ``ConfigurationError``
        for a number that is none to wait for.
        """
        require_number(interval=interval)
        require_number(leak_after_s=leak_after_s, probe_every_s=probe_every_s or 0.0, least=0.0)
        database = unwrap(database)
        if not is_watched(database):
            rules = cls._rules(database, warning, critical)
            start_watching(database, Watching(interval, rules, leak_after_s, probe_every_s, on_sample))

    @classmethod
    def stop_health_monitoring(cls, database: Any) -> None:
        """End the thread that looks at *database*'s pool, if there is one, and wait for its end."""
        stop_watching(unwrap(database))

    @classmethod
    def _rules(cls, database: peewee.Database, warning: float | None, critical: float | None) -> Rules:
        return Rules(
            warning=cls.WARNING_THRESHOLD if warning is None else warning,
            critical=cls.CRITICAL_THRESHOLD if critical is None else critical,
            repeat_s=cls.HEALTH_CHECK_INTERVAL,
            # An SQLite connection is a file handle: many are in use, and nobody waits for them.
            by_share=not isinstance(database, peewee.SqliteDatabase),
        )


def _as_dict(data: Any) -> dict[str, Any]:
    # dataclasses.asdict() copies every number of the histograms: 150 of 190 us.
    values = {each.name: getattr(data, each.name) for each in fields(data)}
    return {name: _as_dict(value) if isinstance(value, Timings) else value for name, value in values.items()}
