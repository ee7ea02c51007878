"""What a pool's numbers mean, and when that is worth a line: a state machine without clock, lock or log.

Whoever looks passes the numbers and the time in, so that an hour can be judged in a millisecond.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from api.db.pool_numbers import PoolSnapshot

# A smaller pool is full in normal use: two of two connections are 100 %, and nobody has to wait.
SMALL_POOL = 5
SLOW_AFTER_S = 1.0
# How far below a threshold its state is left: entered at 80 %, left below 70 %.
SLACK = 0.1
SAMPLES_TO_RISE = 2
SAMPLES_TO_FALL = 3
# A pool that comes back to trouble within FLAPPING_S has to be calm for longer each time before it has recovered.
FLAPPING_S = 900.0
FIRST_PATIENCE_S = 60.0
# A state that wavers around its threshold is repeated this many times more rarely than an unbroken one.
WAVERING = 10


class Health(StrEnum):
    """What a pool's numbers mean, from good to bad."""

    FINE = "fine"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0, 1, 2: the higher the worse."""
        return list(Health).index(self)


class Reason(StrEnum):
    """Where to look."""

    NONE = "none"
    BUSY = "busy"
    SATURATED = "saturated"
    SLOW = "slow database"
    FAILING = "failing database"


@dataclass(frozen=True, slots=True)
class Rules:
    """Where a pool's states begin, as shares (0.8 is 80 %), and how often an unbroken one is repeated.

    Without *by_share* only exhaustion, waiting and timeouts count, as in a small pool.
    """

    warning: float = 0.8
    critical: float = 0.95
    repeat_s: float = 60.0
    by_share: bool = True


@dataclass(frozen=True, slots=True)
class Grade:
    """One look's verdict.

    *urgency*: 1 when a borrow took over a second, 2 when one timed out; neither waits for a second look to confirm it.
    """

    health: Health
    reason: Reason
    urgency: int = 0


FINE = Grade(Health.FINE, Reason.NONE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is worth a line: a state entered, one that lasts, or the recovery.

    *lasted_s* counts from the line that began it, and for a recovery to the first calm look. *peak* is the most
    connections in use since then; what ends in *_new* counts from the last line.
    """

    change: Literal["entered", "repeated", "recovered"]
    health: Health
    reason: Reason
    lasted_s: float
    peak: int
    timeouts_new: int
    queued_new: int
    connect_errors_new: int
    long_waits_new: int


@dataclass(frozen=True, slots=True)
class Past:
    """What one look is compared with: the look *before*, and the last one that found a borrow *served*.

    Connects that have failed since then are a state that lasts, however rarely somebody tries. *unserved_s*: for how
    long threads have waited for the server, and nobody was served. *is_alarmed* is what the pool said itself: a
    borrow timed out or waited over a second since the last look.
    """

    before: PoolSnapshot
    served: PoolSnapshot
    unserved_s: float = 0.0
    is_alarmed: bool = False


def grade(now: PoolSnapshot, rules: Rules, past: Past | None = None, held: Health = Health.FINE) -> Grade:
    """Judge one look, *now*; a state that is *held* is left 10 % below its threshold."""
    past = past or Past(now, now)
    before = past.before
    timeouts, queued = now.timeouts - before.timeouts, now.queued - before.queued
    has_failed = now.connect_errors > before.connect_errors or _is_cut_off(now, past.served)
    if timeouts > 0 or _is_long(now, past):
        urgency = 2 if timeouts > 0 else 1
        if _is_full(now):
            return Grade(Health.CRITICAL, Reason.SATURATED, urgency)
        health = Health.CRITICAL if timeouts > 0 else Health.WARNING
        return Grade(health, Reason.FAILING if has_failed else Reason.SLOW, urgency)
    if now.max is None:
        health = Health.FINE
    elif rules.by_share and now.max >= SMALL_POOL:
        health = _by_share(max(now.peak, now.active) / now.max, rules, held)
    else:
        health = _by_waiting(now)
    if health is not Health.FINE:
        return Grade(health, Reason.SATURATED if now.waiting or (_is_full(now) and queued > 0) else Reason.BUSY)
    return Grade(Health.WARNING, Reason.FAILING) if has_failed else FINE


def long_waits(now: PoolSnapshot) -> int:
    """Return how many borrows took over a second from the question to the connection, in all."""
    return sum(now.wait.counts[bisect_left(now.wait.bounds_s, SLOW_AFTER_S) + 1 :])


def _is_full(now: PoolSnapshot) -> bool:
    """Say whether connections in use fill the pool; with as many that are being dialled the server is what is slow."""
    return now.max is not None and max(now.peak, now.active) >= now.max and now.pending - now.waiting <= now.active


def _is_cut_off(now: PoolSnapshot, served: PoolSnapshot) -> bool:
    return now.borrowed == served.borrowed and now.connect_errors > served.connect_errors


def _is_long(now: PoolSnapshot, past: Past) -> bool:
    """Say whether a borrow has taken over a second, waits for that long now, or did since the last look."""
    waits_s = max(now.oldest_wait_s, past.unserved_s)
    return past.is_alarmed or waits_s > SLOW_AFTER_S or long_waits(now) > long_waits(past.before)


def _by_share(share: float, rules: Rules, held: Health) -> Health:
    for health, threshold in ((Health.CRITICAL, rules.critical), (Health.WARNING, rules.warning)):
        slack = min(SLACK, threshold / 2) if held.rank >= health.rank else 0.0
        # Rounded: 0.8 - 0.1 is a little more than 0.7, and 14 of 20 are not below 70 %.
        if share >= round(threshold - slack, 9):
            return health
    return Health.FINE


def _by_waiting(now: PoolSnapshot) -> Health:
    if not now.waiting or now.max is None:
        return Health.FINE
    return Health.CRITICAL if now.waiting >= now.max else Health.WARNING


@dataclass(slots=True)
class _Episode:
    """The time from the first line about a pool to the line of its recovery."""

    since_s: float
    base: PoolSnapshot
    reason: Reason = Reason.NONE
    peak: int = 0
    said_at_s: float = 0.0
    said_rank: tuple[int, int] = (0, 0)
    wavered_at_s: float | None = None
    has_fallen: bool = False
    urgency: int = 0


@dataclass(slots=True)
class _Run:
    """Looks in a row that agree: how many, since when, and the worst of them."""

    count: int = 0
    since_s: float = 0.0
    worst: Health = Health.FINE

    def add(self, health: Health, now_s: float) -> None:
        if self.count == 0:
            self.since_s, self.worst = now_s, health
        self.count += 1
        self.worst = max(self.worst, health, key=lambda each: each.rank)


@dataclass(slots=True)
class Judge:
    """Remembers how a pool did, and says what is worth a line; *before* are its numbers at the start.

    A state is entered after two looks, at once when urgent, and left after three below its lower threshold, or
    after longer when the pool flaps. Said are: what is worse than all that was said since the pool was fine; an
    unbroken state, and urgent news, every *repeat_s*; a state that wavers, ten times more rarely; the recovery. A
    milder state that is no recovery waits for its turn.
    """

    rules: Rules
    before: PoolSnapshot
    health: Health = Health.FINE
    _served: PoolSnapshot = field(init=False)
    _quiet: PoolSnapshot = field(init=False)
    _episode: _Episode | None = None
    _rise: _Run = field(default_factory=_Run)
    _fall: _Run = field(default_factory=_Run)
    _unserved_since_s: float | None = None
    _calm_since_s: float = 0.0
    _patience_s: float = 0.0
    _recovered_at_s: float | None = None

    def __post_init__(self) -> None:
        self._served = self._quiet = self.before

    def look(self, seen: PoolSnapshot, now_s: float, *, alarmed: bool = False) -> Finding | None:
        """Take in what was *seen* at *now_s*, a monotonic time, and return what to say about it."""
        past = Past(self.before, self._served, self._unserved_s(seen, now_s), alarmed)
        found = grade(seen, self.rules, past, self.health)
        # Bursts can make every peak look alike: a state is unbroken only if each moment of looking is in it.
        at_the_moment = grade(replace(seen, peak=seen.active), self.rules, past)
        self.before, held = seen, self.health
        if seen.borrowed != self._served.borrowed:
            self._served = seen
        self._move(found, now_s)
        if self._episode is None:
            if found.health is Health.FINE:
                self._quiet = seen
            if self.health is Health.FINE:
                return None
            self._episode = self._begin(now_s)
        self._note(self._episode, found, seen)
        if at_the_moment.health.rank < self.health.rank:
            self._episode.wavered_at_s = now_s
        elif self.health.rank < held.rank and not self._episode.has_fallen:
            # The first time that it gets milder is no wavering.
            self._episode.wavered_at_s, self._episode.has_fallen = None, True
        return self._recovered(seen, now_s) if self.health is Health.FINE else self._said(self._episode, seen, now_s)

    def _unserved_s(self, seen: PoolSnapshot, now_s: float) -> float:
        if seen.pending <= seen.waiting:
            self._unserved_since_s = None
        elif self._unserved_since_s is None or seen.borrowed != self.before.borrowed:
            self._unserved_since_s = now_s
        return 0.0 if self._unserved_since_s is None else now_s - self._unserved_since_s

    def _move(self, found: Grade, now_s: float) -> None:
        if found.health.rank > self.health.rank:
            self._fall = _Run()
            self._rise.add(found.health, now_s)
            if found.urgency or self._rise.count >= SAMPLES_TO_RISE:
                self.health = found.health
                self._rise = _Run()
            return
        self._rise = _Run()
        if found.health is self.health:
            self._fall = _Run()
            return
        self._fall.add(found.health, now_s)
        if self._fall.count >= SAMPLES_TO_FALL and now_s - self._fall.since_s >= self._patience_s:
            self.health, self._calm_since_s = self._fall.worst, self._fall.since_s
            self._fall = _Run()

    def _begin(self, now_s: float) -> _Episode:
        is_flapping = self._recovered_at_s is not None and now_s - self._recovered_at_s < FLAPPING_S
        longer_s = min(max(4 * self._patience_s, FIRST_PATIENCE_S), FLAPPING_S)
        self._patience_s = longer_s if is_flapping else 0.0
        return _Episode(since_s=now_s, base=self._quiet)

    def _note(self, episode: _Episode, found: Grade, seen: PoolSnapshot) -> None:
        episode.peak = max(episode.peak, seen.peak, seen.active)
        episode.urgency = max(episode.urgency, found.urgency)
        if found.health is not Health.FINE:
            episode.reason = found.reason

    def _said(self, episode: _Episode, seen: PoolSnapshot, now_s: float) -> Finding | None:
        rank = self.health.rank, episode.urgency
        is_news = rank > episode.said_rank
        rare_s = WAVERING * self.rules.repeat_s
        is_rare = episode.wavered_at_s is not None and now_s - episode.wavered_at_s < rare_s and not episode.urgency
        if not is_news and now_s - episode.said_at_s < (rare_s if is_rare else self.rules.repeat_s):
            return None
        finding = self._finding("entered" if is_news else "repeated", episode, seen, now_s)
        episode.said_at_s, episode.said_rank = now_s, max(rank, episode.said_rank)
        episode.base, episode.urgency = seen, 0
        return finding

    def _recovered(self, seen: PoolSnapshot, now_s: float) -> Finding:
        assert self._episode is not None, "only what is not fine recovers"
        finding = self._finding("recovered", self._episode, seen, self._calm_since_s)
        self._episode, self._recovered_at_s, self._quiet = None, now_s, seen
        return finding

    def _finding(
        self, change: Literal["entered", "repeated", "recovered"], episode: _Episode, seen: PoolSnapshot, now_s: float
    ) -> Finding:
        base = episode.base
        return Finding(
            change=change,
            health=self.health,
            reason=episode.reason if change != "recovered" else Reason.NONE,
            lasted_s=now_s - episode.since_s,
            peak=episode.peak,
            timeouts_new=max(0, seen.timeouts - base.timeouts),
            queued_new=max(0, seen.queued - base.queued),
            connect_errors_new=max(0, seen.connect_errors - base.connect_errors),
            long_waits_new=max(0, long_waits(seen) - long_waits(base)),
        )
