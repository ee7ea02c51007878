"""What a batch did, as plain data, and the error that tells where it failed and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify, driver_error
from api.db.files import Migration
from api.exceptions import AADAPError, MigrationFailedError
from api.logs import redact

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Ran:
    """A migration that ran to its end. *reason* says why it was skipped."""

    name: str
    status: Literal["success", "skipped"]
    duration_ms: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a batch stopped: *statement* is the one that failed, the migration's *number*-th that changes something.

    *statement* is ``None`` when Python failed, after *number* statements. *at_commit* means that every migration had
    ended by then. *stands* means that the migration itself committed what it had done so far. *stuck* is why the batch
    is not undone yet; *left_alone* is how many rows the undo left, as other sessions had changed them since.
    *elsewhere* are those of its part that another process has done since the lock was lost.
    """

    migration: Migration
    cause: Exception
    statement: str | None
    number: int
    duration_ms: int
    at_commit: bool = False
    stands: bool = False
    stuck: AADAPError | None = None
    left_alone: int = 0
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch did. *applied* stands, *rolled_back* ran and was undone, *pending* is what is left to do."""

    batch: str
    direction: Direction = "up"
    applied: tuple[Ran, ...] = ()
    failure: Failure | None = None
    rolled_back: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    duration_ms: int = 0


class BatchInterrupted(KeyboardInterrupt):
    """The keyboard ended a batch, which was then undone like a failed one; *result* says what stands."""

    def __init__(self, result: BatchResult) -> None:
        super().__init__("interrupted by the keyboard")
        self.result = result


def batch_error(result: BatchResult, engine: Engine) -> MigrationFailedError:
    """Return *result*'s failure as an error: which migration, at which statement, what the server said, what to do."""
    failure = result.failure
    assert failure is not None
    said, hint = told(failure.cause, engine, failure.statement)
    if failure.elsewhere:
        hint = (
            f"run it again: another process has done {', '.join(failure.elsewhere)} meanwhile; `status` tells the rest"
        )
    error = MigrationFailedError(f"{failure.migration.name} failed {_place(failure)}: {said}", result=result, hint=hint)
    error.__cause__ = failure.cause
    return error


def told(cause: BaseException, engine: Engine, statement: str | None) -> tuple[str, str]:
    """Return what *cause* says, without secrets, and what to do about it."""
    if isinstance(cause, AADAPError):
        return redact(cause.message), cause.hint
    if driver_error(cause, engine) is None:
        return redact(f"{type(cause).__name__}: {cause}"), "correct the migration's code at that line"
    found = classify(cause, engine, statement=statement or "")
    code = f"{found.code}: " if found.code is not None else ""
    return f"{code}{found.server_message}", found.remedy


def _place(failure: Failure) -> str:
    if failure.at_commit:
        return "as its batch was recorded and committed, through it or one before it"
    if failure.statement is None:
        return f"after {failure.number} statements" if failure.number != 1 else "after 1 statement"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(failure.number % 10 * (failure.number // 10 % 10 != 1), "th")
    return f"at its {failure.number}{ending} statement"
