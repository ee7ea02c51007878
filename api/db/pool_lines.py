"""The lines about a pool: each is one event with fields of fixed names, and says where to look.

docs/CONNECTION_POOL.md shows a real example of each line, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from api.db.pool_judge import Finding, Grade, Health, Reason
from api.db.pool_leaks import current_stack
from api.db.pool_numbers import Borrow, PoolSnapshot

log = structlog.get_logger(__name__)

HOLDERS_SHOWN = 5

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: dict[Health, Level] = {Health.FINE: "debug", Health.WARNING: "warning", Health.CRITICAL: "critical"}
LOOK_AT = {
    Reason.NONE: "nothing to do",
    Reason.BUSY: "only busy, nobody waits: nothing to do unless it lasts, then compare the holders' ages",
    Reason.SATURATED: (
        "saturated, threads wait for a connection: see what the holders do, the oldest first; slow statements and "
        "network calls inside a transaction hold longest"
    ),
    Reason.SLOW: (
        "the database is slow, the pool is not too small: threads wait for a connect or its check; see the server's "
        "load and the network"
    ),
    Reason.FAILING: "connects fail, the pool is not too small: see last_connect_error",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line to be logged."""

    level: Level
    event: str
    fields: dict[str, Any]


def write(line: Line) -> None:
    """Log *line*."""
    getattr(log, line.level)(line.event, **line.fields)


def figures(now: PoolSnapshot) -> dict[str, Any]:
    """Return the numbers that every line about a pool's state carries, under their fixed names."""
    return {
        "pool": now.name,
        "pid": now.pid,
        "max": now.max,
        "active": now.active,
        "idle": now.idle,
        "total": now.total,
        "waiting": now.waiting,
        "pending": now.pending,
        "utilization_percent": utilization_percent(now),
        "oldest_wait_s": round(now.oldest_wait_s, 3),
        "timeouts": now.timeouts,
        "connect_errors": now.connect_errors,
        "last_connect_error": now.last_connect_error,
    }


def utilization_percent(now: PoolSnapshot) -> float | None:
    """Return the share of the pool that is in use, of 100; None without a limit."""
    return round(100 * now.active / now.max, 1) if now.max else None


def holders(borrows: Sequence[Borrow], now_s: float) -> list[str]:
    """Return the oldest of *borrows* as text: endpoint, correlation id, thread, age."""
    return [borrow.with_age(now_s) for borrow in borrows[:HOLDERS_SHOWN]]


def state_line(found: Grade, now: PoolSnapshot, borrows: Sequence[Borrow], now_s: float) -> Line:
    """Return the line that a single look deserves, debug when all is fine."""
    fields = figures(now) | {"reason": str(found.reason), "look_at": LOOK_AT[found.reason]}
    return Line(LEVELS[found.health], _event(found), fields | {"holders": holders(borrows, now_s)})


def change_line(finding: Finding, now: PoolSnapshot, borrows: Sequence[Borrow], now_s: float) -> Line:
    """Return the line of a state that began, lasts or ended."""
    more: dict[str, Any] = {
        "peak": finding.peak,
        "lasted_s": round(finding.lasted_s, 1),
        "timeouts_new": finding.timeouts_new,
        "queued_new": finding.queued_new,
        "long_waits_new": finding.long_waits_new,
        "connect_errors_new": finding.connect_errors_new,
    }
    if finding.change == "recovered":
        return Line("info", "pool has recovered", figures(now) | more)
    line = state_line(Grade(finding.health, finding.reason), now, borrows, now_s)
    return Line(line.level, line.event, line.fields | more)


def _event(found: Grade) -> str:
    if found.health is Health.FINE:
        return "pool is fine"
    if found.reason is Reason.SLOW:
        return "connecting to the database is slow"
    if found.reason is Reason.FAILING:
        return "connecting to the database fails"
    return "pool is used up" if found.health is Health.CRITICAL else "pool is nearly used up"


def leak_line(borrow: Borrow, now: PoolSnapshot, now_s: float) -> Line:
    """Return the line of a connection that a living thread has held for too long, with where that thread is."""
    look_at = "the last lines of stack: what the holder does now; it keeps its connection"
    fields = _borrow_fields(borrow, now, now_s) | {"stack": "\n".join(current_stack(borrow)), "look_at": look_at}
    return Line("warning", "connection held for too long", fields)


def back_line(borrow: Borrow, now: PoolSnapshot, now_s: float) -> Line:
    """Return the line of a connection that was said to be held for too long, and was returned after all."""
    return Line("info", "connection held for too long was returned", _borrow_fields(borrow, now, now_s))


def orphan_line(borrow: Borrow, now: PoolSnapshot, now_s: float) -> Line:
    """Return the line of a connection that was taken back from a thread that ended without returning it."""
    look_at = (
        "the code of this thread: it borrows, by a query maybe, and ends without close(); use connection_context()"
    )
    fields = _borrow_fields(borrow, now, now_s) | {"look_at": look_at}
    return Line("error", "connection of a dead thread was reclaimed", fields)


def late_line(late_s: float, now: PoolSnapshot) -> Line:
    """Return the line of a watch that slept longer than it meant to."""
    look_at = (
        "the process was stopped or got no CPU, one call held Python's lock, or a log handler took this long: waits "
        "and timeouts of this time may come from there"
    )
    return Line("warning", "pool watch woke late", {"late_s": round(late_s, 1), **figures(now), "look_at": look_at})


def probe_line(now: PoolSnapshot, reason: str | None, code: int | str | None, hint: str | None) -> Line:
    """Return the line of a server that stopped taking a connect apart from the pool, or takes it again: no *reason*."""
    fields = {"pool": now.name, "pid": now.pid, "active": now.active}
    if reason is None:
        return Line("info", "database answers the probe again", fields)
    return Line(
        "warning", "database does not answer the probe", fields | {"reason": reason, "code": code, "look_at": hint}
    )


def _borrow_fields(borrow: Borrow, now: PoolSnapshot, now_s: float) -> dict[str, Any]:
    return {
        "pool": now.name,
        "pid": now.pid,
        "age_s": round(now_s - borrow.since_s, 1),
        "thread": borrow.thread.name,
        "endpoint": borrow.endpoint,
        "correlation_id": borrow.correlation_id,
        "max": now.max,
        "active": now.active,
    }
