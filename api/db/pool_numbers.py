"""What a pool says about itself: plain data, the histogram it counts into, and the error of a wait in vain."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from playhouse.pool import MaxConnectionsExceeded

from api.exceptions import ConfigurationError

CloseReason = Literal["stale", "lost", "bad return", "manual", "orphan"]
CLOSE_REASONS: tuple[CloseReason, ...] = ("stale", "lost", "bad return", "manual", "orphan")

# From a borrow that waits for nobody to a wait that somebody complains about.
BOUNDS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
HOLDERS_NAMED = 3

# What this thread works on at the moment; whoever knows sets it, a borrow keeps it.
ENDPOINT: ContextVar[str | None] = ContextVar("endpoint", default=None)


def require_number(*, least: float | None = None, **numbers: float) -> None:
    """Raise ``ConfigurationError`` for the first of *numbers* that is not above 0, or not *least* or more.

    Nor may it be longer than a wait can be: 292 years, and so not infinite.
    """
    for name, value in numbers.items():
        is_enough = value > 0 if least is None else value >= least
        if not (is_enough and value <= threading.TIMEOUT_MAX):
            wanted = "above 0" if least is None else f"of {least:g} or more"
            raise ConfigurationError(f"{name} is {value!r}", hint=f"give a number {wanted}, and not infinite")


@dataclass(slots=True, eq=False)
class Link:
    """An open connection, lent and idle in turn, until it *expires_s*, and while it is of the pool's *era*."""

    connection: Any
    expires_s: float
    is_quiet: Callable[[], bool]
    era: int
    returned_s: float = 0.0


@dataclass(slots=True)
class Borrow:
    """One connection in use: by which thread, for what, and since when (*since_s*, ``time.monotonic()``).

    *key* says which connection it is. *link*, *place* and *is_ending*, its holder is returning it, are the pool's own.
    """

    thread: threading.Thread
    endpoint: str | None
    correlation_id: str | None
    since_s: float
    key: int
    link: Any = field(default=None, repr=False, compare=False)
    place: Any = field(default=None, repr=False, compare=False)
    is_ending: bool = field(default=False, repr=False, compare=False)

    @property
    def is_orphan(self) -> bool:
        """Whether the thread that holds it is dead; a green one never says so, but is listed while it lives."""
        return not self.thread.is_alive() or self.thread not in threading.enumerate()

    def __str__(self) -> str:
        """Return who holds it, without the age: ``tasks.create req-7 (Thread-3)``."""
        names = (self.endpoint, self.correlation_id, f"({self.thread.name})")
        return " ".join(name for name in names if name)

    def with_age(self, now_s: float) -> str:
        """Return who holds it, and for how long at *now_s*: ``tasks.create req-7 (Thread-3) 1.5 s``."""
        return f"{self} {now_s - self.since_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Timings:
    """A histogram's picture: ``counts[i]`` durations up to ``bounds_s[i]``, the last count is of those beyond."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float
    count: int


class Histogram:
    """Counts durations by size. Who records holds the pool's lock; who looks needs none."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def picture(self) -> Timings:
        """Return what was counted so far."""
        counts = tuple(self._counts)
        return Timings(BOUNDS_S, counts, self._sum_s, sum(counts))


NO_TIMINGS = Histogram().picture()


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool's numbers at one moment, read without a lock: each is true, two of them may be a borrow apart.

    *name* is ``host:port/database``. *max* is None where nothing limits the number. *pending* asked and have not
    been served yet; *waiting* are those of them that wait for another to give a connection back, the others
    wait for the server; *oldest_wait_s* is the longest of these waits. *peak* is the highest *active* since the
    last sample.

    The totals only grow: *requests*, *queued* (had to wait), *timeouts* (waited in vain), *connect_errors*,
    *postponed* (not dialled so soon after one), *created*, *borrowed*, *returned* (given up, whichever way), *closed*
    by reason. *wait* times a borrow from the question to the connection, *use* from there to its return, *create* a
    connect. *last_connect_error* is *last_connect_error_age_s* seconds old.

    When nothing is pending, *requests* is the sum of *borrowed*, *timeouts*, *connect_errors* and *postponed*: each
    connect error reached the caller. What was broken off before it had a connection (a signal, the end of a green
    thread) is in none of them.
    """

    name: str
    pid: int
    max: int | None
    active: int
    idle: int
    total: int
    waiting: int = 0
    pending: int = 0
    oldest_wait_s: float = 0.0
    peak: int = 0
    requests: int = 0
    queued: int = 0
    timeouts: int = 0
    connect_errors: int = 0
    postponed: int = 0
    created: int = 0
    borrowed: int = 0
    returned: int = 0
    closed: dict[CloseReason, int] = field(default_factory=lambda: dict.fromkeys(CLOSE_REASONS, 0))
    wait: Timings = NO_TIMINGS
    use: Timings = NO_TIMINGS
    create: Timings = NO_TIMINGS
    last_connect_error: str | None = None
    last_connect_error_age_s: float | None = None


class Counters:
    """The totals of a pool, and its histograms; changed under the pool's lock."""

    def __init__(self) -> None:
        self.requests = self.queued = self.timeouts = self.connect_errors = self.postponed = 0
        self.created = self.borrowed = self.returned = self.peak = 0
        self.closed: dict[CloseReason, int] = dict.fromkeys(CLOSE_REASONS, 0)
        self.wait, self.use, self.create = Histogram(), Histogram(), Histogram()
        self.last_failure: tuple[str, float] | None = None

    def picture(self) -> dict[str, Any]:
        """Return the totals by the names of ``PoolSnapshot``'s fields, *peak* aside."""
        totals: dict[str, Any] = vars(self) | {"closed": dict(self.closed)}
        del totals["peak"]
        if failure := totals.pop("last_failure"):
            age_s = time.monotonic() - failure[1]
            totals |= {"last_connect_error": failure[0], "last_connect_error_age_s": age_s}
        return totals | {name: totals[name].picture() for name in ("wait", "use", "create")}


class PoolTimeout(MaxConnectionsExceeded):
    """No connection came free in time.

    Carries the pool's *snapshot* of that moment, its *holders* (longest first, as text) and the
    *last_connect_error*; the message says all of it, and what to do.
    """

    def __init__(self, snapshot: PoolSnapshot, holders: list[str], timeout_s: float) -> None:
        self.snapshot = snapshot
        self.holders = holders
        self.last_connect_error = snapshot.last_connect_error
        self._timeout_s = timeout_s
        super().__init__(_in_vain(snapshot, holders, timeout_s))

    def __reduce__(self) -> tuple[Any, ...]:
        return PoolTimeout, (self.snapshot, self.holders, self._timeout_s)


def _in_vain(now: PoolSnapshot, holders: list[str], timeout_s: float) -> str:
    parts = [
        f"no connection to {now.name} came free within {timeout_s:g} s: {now.active} of {now.max} in use, "
        f"{now.idle} idle, {now.waiting} waiting, {now.pending} pending, {now.timeouts} timeouts so far"
    ]
    if holders:
        parts.append(f"held longest by {', '.join(holders[:HOLDERS_NAMED])}")
    if now.last_connect_error:
        parts.append(f"last connect error, {now.last_connect_error_age_s:.0f} s ago: {now.last_connect_error}")
    parts.append("find what holds them so long, or raise DB_POOL_MAX")
    return "; ".join(parts)
