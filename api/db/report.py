"""Results as plain rows and documents, for the terminal, for JSON and for a page alike. Pure: no input, no output."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from api.db.files import Migration, line_in
from api.db.history import Attempt
from api.db.journal.undo import Recovered
from api.db.results import BatchResult, Failure, Ran
from api.db.status import MigrationState
from api.exceptions import AADAPError, MigrationFailedError
from api.logs import one_line

STATEMENT_LENGTH = 500
TO_DO = frozenset({"pending", "failed"})
Row = tuple[str, ...]


def batch_document(result: BatchResult, error: AADAPError | None = None) -> dict[str, Any]:
    """Return what ``up --json`` prints: *result* as a document, and the *error* that it ended with.

    ``{"batch", "applied", "failed", "stuck", "rolled_back", "pending", "duration_ms"}``; *stuck* is the error that
    keeps the batch from being undone: none of it is rolled back yet then.
    """
    stuck = result.failure.stuck if result.failure else None
    return {
        "batch": result.batch or None,
        "applied": [_ran_document(ran) for ran in result.applied],
        "failed": _failed_document(result, error),
        "stuck": stuck.as_dict() if stuck else None,
        "rolled_back": list(result.rolled_back),
        "pending": list(result.pending),
        "duration_ms": result.duration_ms,
    }


def _ran_document(ran: Ran) -> dict[str, Any]:
    document: dict[str, Any] = {"name": ran.name, "status": ran.status, "duration_ms": ran.duration_ms}
    return document | ({"reason": ran.reason} if ran.reason else {})


def _failed_document(result: BatchResult, error: AADAPError | None) -> dict[str, Any] | None:
    if result.failure is None or error is None:
        return None
    return {"name": result.failure.migration.name, "error": error.as_dict()}


def status_document(states: Sequence[MigrationState], interrupted: bool) -> dict[str, Any]:
    """Return ``{"migrations": [{"name", "state", "applied_at", "duration_ms", "error"}], "pending", "interrupted"}``.

    *pending* is how many are; *interrupted* says whether a batch waits to be undone or finished.
    """
    migrations = [
        {
            "name": each.name,
            "state": each.state,
            "applied_at": _iso(each.applied_at),
            "duration_ms": each.duration_ms,
            "error": each.error,
        }
        for each in states
    ]
    pending = sum(each.state in TO_DO for each in states)
    return {"migrations": migrations, "pending": pending, "interrupted": interrupted}


def history_document(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return ``{"attempts": [{"name", "action", "status", "started_at", "duration_ms", …}]}``, oldest first."""
    return {
        "attempts": [
            {
                "name": each.migration_name,
                "action": each.action,
                "status": each.status,
                "started_at": _iso(each.started_at),
                "duration_ms": each.duration_ms,
                "error": each.error_message,
                "statement": each.statement,
                "run_by": each.run_by,
                "host": each.host,
                "batch": each.batch,
            }
            for each in attempts
        ]
    }


def plan_document(parts: Sequence[Sequence[Migration]], interrupted: bool) -> dict[str, Any]:
    """Return ``{"migrations": [{"name", "part", "atomic"}], "interrupted"}``: the order, and what runs as a whole."""
    return {
        "migrations": [
            {"name": migration.name, "part": number, "atomic": migration.atomic}
            for number, part in enumerate(parts, 1)
            for migration in part
        ],
        "interrupted": interrupted,
    }


def recovered_document(recovered: Sequence[Recovered]) -> dict[str, Any]:
    """Return ``{"recovered": [{"batch", "direction", "action", "statements", "left_alone"}]}``.

    *action* is undone or finished; *left_alone* is how many rows were not put back.
    """
    return {"recovered": [asdict(each) for each in recovered]}


def applied_rows(result: BatchResult) -> list[Row]:
    """Return ``(migration, status, milliseconds, reason)`` for each that stands."""
    return [(ran.name, ran.status, str(ran.duration_ms), ran.reason or "") for ran in result.applied]


def status_rows(states: Sequence[MigrationState]) -> list[Row]:
    """Return ``(migration, state, applied at, milliseconds, error or reason)``."""
    return [
        (each.name, each.state, _iso(each.applied_at) or "", _text(each.duration_ms), each.error or "")
        for each in states
    ]


def history_rows(attempts: Sequence[Attempt]) -> list[Row]:
    """Return ``(started at, migration, action, status, milliseconds, by, error or reason)``."""
    return [
        (
            _iso(each.started_at) or "",
            each.migration_name,
            each.action,
            each.status,
            _text(each.duration_ms),
            f"{each.run_by}@{each.host}",
            each.error_message or "",
        )
        for each in attempts
    ]


def plan_rows(parts: Sequence[Sequence[Migration]]) -> list[Row]:
    """Return ``(migration, part, kind)``."""
    return [
        (migration.name, str(number), "as a whole" if migration.atomic else "atomic = False")
        for number, part in enumerate(parts, 1)
        for migration in part
    ]


def failure_rows(error: MigrationFailedError) -> list[Row]:
    """Return ``(label, text)``: where it failed, what stands now, what to do."""
    result: BatchResult = error.result
    failure = result.failure
    assert failure is not None
    rows = [("file", _where(failure.migration.path, failure.cause))] if failure.migration.path else []
    if failure.statement:
        rows.append(("statement", one_line(failure.statement, STATEMENT_LENGTH)))
    rows.append(("state", state_text(result)))
    # First what keeps the batch from being undone, then what made it fail.
    hints = [failure.stuck.hint, error.hint] if failure.stuck else [error.hint]
    return [*rows, *zip(("what to do", "then"), hints, strict=False)]


def state_text(result: BatchResult) -> str:
    """Say what stands after a failure, without pretending."""
    failure = result.failure
    assert failure is not None
    before = [ran for ran in result.applied if ran.name != failure.migration.name]
    stands = f"{len(before)} applied before it stand; " if before else ""
    return stands + (_what_stays(result, failure) or _what_is_undone(result, failure))


def _what_stays(result: BatchResult, failure: Failure) -> str | None:
    name = failure.migration.name
    if failure.elsewhere:
        done = "applied" if result.direction == "up" else "reverted"
        ours = "rolled back here, but " if failure.migration.atomic else ""
        return f"{ours}another process has {done} {', '.join(failure.elsewhere)} meanwhile: that stands"
    if failure.stands:
        return f"NOT rolled back: {name} committed by itself; what it did before that stands"
    if not failure.migration.atomic:
        if name in {ran.name for ran in result.applied}:
            return f"{name} ran to its end, stands and is recorded"
        return f"{name} has `atomic = False`: what it did stays, and is not sent again"
    if failure.stuck is not None:
        return f"NOT undone yet: {failure.stuck.message}; the next `up` tries again before anything else"
    return None


def _what_is_undone(result: BatchResult, failure: Failure) -> str:
    undone = f", {len(result.rolled_back)} with it" if result.rolled_back else ""
    return f"rolled back{undone}: schema and data are as before{left_alone_text(failure.left_alone)}"


def left_alone_text(number: int) -> str:
    """Say how many rows an undo did not put back; nothing when it put back all."""
    rows = "1 row that another session has" if number == 1 else f"{number} rows that other sessions have"
    return f", but for {rows} changed since: see the log" if number else ""


def _where(path: Path | None, cause: BaseException) -> str:
    line = line_in(path, cause)
    return f"{path}, line {line}" if line else str(path)


def _iso(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
