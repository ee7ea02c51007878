"""Run one batch of migrations, or revert some, as a whole; return what happened, print and log nothing of it.

PostgreSQL and SQLite: one transaction a part, a savepoint a migration, the history rows inside. MySQL and MariaDB
commit at every DDL statement: no transaction is open across one, and each migration is recorded as it ends.
"""

from __future__ import annotations

import getpass
import itertools
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import peewee

from api.db import history
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify, driver_error
from api.db.files import Migration
from api.db.history import Attempt, HistoryRow
from api.db.lock import exclusive_session, exclusive_transaction
from api.db.migrators import Migrator
from api.db.operations import OperationResult, Outcome
from api.db.rebuild import foreign_keys_off
from api.db.session import Statements, bounded, ms_since, refuse_ended_transaction, watch
from api.exceptions import AADAPError, MigrationFailedError, MigrationLockError
from api.logs import redact

Direction = Literal["up", "down"]
TRANSACTIONAL: frozenset[Engine] = frozenset({"postgres", "sqlite"})


@dataclass(frozen=True, slots=True)
class Options:
    """How long to wait, in seconds, for another migrator and for a lock that a statement needs; and what to tell."""

    lock_timeout_s: float = 600.0
    statement_lock_timeout_s: float = 30.0
    on_start: Callable[[str], None] = lambda name: None


@dataclass(frozen=True, slots=True)
class Ran:
    """A migration that ran to its end. *reason* says why it was skipped; *operations* what each operation did."""

    name: str
    status: Literal["success", "skipped"]
    duration_ms: int
    reason: str | None = None
    operations: tuple[OperationResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a batch stopped: *statement* is the one that failed, the migration's *number*-th that changes something.

    *statement* is ``None`` when Python failed, after *number* statements.
    """

    migration: Migration
    cause: Exception
    statement: str | None
    number: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch did. *applied* stands, *rolled_back* ran and was undone, *pending* is what is left to do."""

    batch: str
    applied: tuple[Ran, ...] = ()
    failure: Failure | None = None
    rolled_back: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    duration_ms: int = 0


def parts_of(migrations: Sequence[Migration]) -> list[list[Migration]]:
    """Split a batch where ``atomic = False`` splits it: such a migration is a part of its own."""
    numbered = enumerate(migrations)
    groups = itertools.groupby(numbered, key=lambda item: (item[1].atomic, item[1].atomic or item[0]))
    return [[migration for _, migration in group] for _, group in groups]


def run_batch(
    database: peewee.Database,
    migrator: Migrator,
    migrations: Sequence[Migration],
    options: Options,
    direction: Direction = "up",
) -> BatchResult:
    """Run *migrations* in the order given and record them; stop at the first failure.

    Raises ``MigrationLockError`` when another process migrates for too long, and peewee's errors when the server is
    lost before a migration began; what a migration raises is in the result's *failure*.
    """
    run = _Batch(database, migrator, options, direction)
    unprotected = foreign_keys_off(database) if migrator.engine == "sqlite" else nullcontext()
    with unprotected:
        with exclusive_transaction(database, migrator.engine, options.lock_timeout_s):
            history.create_tables(database)
        for part in parts_of(migrations):
            run.part(part)
            if run.failure is not None:
                break
    return run.result(migrations)


def batch_error(result: BatchResult, engine: Engine) -> MigrationFailedError:
    """Return *result*'s failure as an error: which migration, at which statement, what the server said, what to do."""
    failure = result.failure
    assert failure is not None
    said, hint = _told(failure.cause, engine, failure.statement)
    error = MigrationFailedError(f"{failure.migration.name} failed {_place(failure)}: {said}", result=result, hint=hint)
    error.__cause__ = failure.cause
    return error


def _told(cause: Exception, engine: Engine, statement: str | None) -> tuple[str, str]:
    """Return what *cause* says, without secrets, and what to do about it."""
    if isinstance(cause, AADAPError):
        return cause.message, cause.hint
    if driver_error(cause, engine) is None:
        return redact(f"{type(cause).__name__}: {cause}"), "correct the migration's code at that line"
    found = classify(cause, engine, statement=statement or "")
    code = f"{found.code}: " if found.code is not None else ""
    return f"{code}{found.server_message}", found.remedy


def _place(failure: Failure) -> str:
    if failure.statement is None:
        return f"after {failure.number} statements" if failure.number != 1 else "after 1 statement"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(failure.number % 10 * (failure.number // 10 % 10 != 1), "th")
    return f"at its {failure.number}{ending} statement"


@dataclass(slots=True)
class _Batch:
    """The state of one run."""

    database: peewee.Database
    migrator: Migrator
    options: Options
    direction: Direction
    batch: str = field(default_factory=lambda: str(uuid.uuid4()))
    applied: list[Ran] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    failure: Failure | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def engine(self) -> Engine:
        return self.migrator.engine

    def result(self, migrations: Sequence[Migration]) -> BatchResult:
        applied = {ran.name for ran in self.applied}
        left = (m.name for m in migrations if m.name not in applied) if self.failure else ()
        return BatchResult(
            self.batch,
            tuple(self.applied),
            self.failure,
            tuple(self.rolled_back),
            tuple(left),
            ms_since(self.started),
        )

    def part(self, part: Sequence[Migration]) -> None:
        """Run one part. Whatever a migration raises ends it, and is recorded after the rollback."""
        ran: list[Ran] = []
        begun: list[tuple[Migration, Statements]] = []
        transactional = self.engine in TRANSACTIONAL and part[0].atomic
        hold = exclusive_transaction if part[0].atomic else exclusive_session
        try:
            with (
                hold(self.database, self.engine, self.options.lock_timeout_s),
                bounded(self.database, self.engine, self.options.statement_lock_timeout_s, transactional),
            ):
                self._run_all(part, ran, begun, transactional)
        except MigrationLockError:
            raise
        except Exception as exc:
            if not begun:
                raise
            self._fail(begun[-1], exc, ran if transactional else [])
        else:
            self.applied += ran

    def _run_all(
        self, part: Sequence[Migration], ran: list[Ran], begun: list[tuple[Migration, Statements]], transactional: bool
    ) -> None:
        states = history.read_states(self.database) or {}
        for migration in part:
            if (states.get(migration.name) in history.DONE) == (self.direction == "up"):
                continue  # another process did it while we waited for the lock
            with watch(self.database) as statements:
                begun.append((migration, statements))
                ran.append(self._run(migration, statements, transactional))
            if not transactional:
                self._record([(migration, ran[-1])])
                self.applied.append(ran.pop())
        if transactional and ran:
            by_name = {migration.name: migration for migration in part}
            self._record([(by_name[each.name], each) for each in ran])

    def _run(self, migration: Migration, statements: Statements, transactional: bool) -> Ran:
        self.options.on_start(migration.name)
        function = migration.up if self.direction == "up" else migration.down
        refusal = getattr(function, "refusal", None)
        reason = refusal(self.database) if refusal else None
        self.migrator.results.clear()
        if reason is None and function is not None:
            with self.database.atomic() if transactional else nullcontext():
                self._call(function, statements, transactional)
        operations = tuple(self.migrator.results)
        if reason is None and operations and not statements.number and _all_skipped(operations):
            reason = "; ".join(f"{each.table}.{each.target}: {each.reason}" for each in operations)
        return Ran(migration.name, "skipped" if reason else "success", statements.elapsed_ms(), reason, operations)

    def _call(self, function: Callable[..., Any], statements: Statements, transactional: bool) -> None:
        try:
            function(self.migrator, self.database)
            if transactional:
                refuse_ended_transaction(self.database, self.engine)
        except Exception as exc:
            statements.cause = exc
            raise

    def _fail(self, begun: tuple[Migration, Statements], raised: Exception, undone: Sequence[Ran]) -> None:
        migration, statements = begun
        # A ROLLBACK on a lost connection raises too, and would hide why it was lost.
        exc, statement = statements.cause or raised, statements.failed
        self.failure = Failure(migration, exc, statement, statements.number, statements.elapsed_ms())
        self.rolled_back += [ran.name for ran in undone if ran.name != migration.name]
        attempts = [self._attempt(name, "rolled_back") for name in self.rolled_back]
        message, _ = _told(exc, self.engine, statement)
        row = self._row(migration, "failed", self.failure.duration_ms, error_message=message)
        attempts.append(
            self._attempt(
                migration.name,
                "failed",
                duration_ms=self.failure.duration_ms,
                error_message=message,
                statement=statement,
            )
        )
        rows = [row] if self.direction == "up" else []
        _write_after_failure(self.database, rows, attempts)

    def _record(self, ran: Sequence[tuple[Migration, Ran]]) -> None:
        attempts = [
            self._attempt(each.name, each.status, duration_ms=each.duration_ms, error_message=each.reason)
            for _, each in ran
        ]
        if self.direction == "down":
            history.delete(self.database, [each.name for _, each in ran])
            history.write(self.database, [], attempts)
            return
        rows = [self._row(migration, each.status, each.duration_ms, reason=each.reason) for migration, each in ran]
        history.write(self.database, rows, attempts)

    def _row(self, migration: Migration, status: history.Status, duration_ms: int, **texts: str | None) -> HistoryRow:
        return HistoryRow(
            migration.name,
            status,
            self.engine,
            history.utc_now(),
            duration_ms,
            checksum=migration.checksum,
            applied_by=_who(),
            **texts,
        )

    def _attempt(self, name: str, status: str, **details: Any) -> Attempt:
        return Attempt(
            name,
            self.direction,
            status,
            self.engine,
            history.utc_now(),
            self.batch,
            run_by=_user(),
            host=socket.gethostname(),
            **details,
        )


def _all_skipped(operations: Sequence[OperationResult]) -> bool:
    return all(each.outcome is Outcome.SKIPPED for each in operations)


def _write_after_failure(database: peewee.Database, rows: Sequence[HistoryRow], attempts: Sequence[Attempt]) -> None:
    """Record a failure in a transaction of its own, on a new connection where the old one is lost."""
    try:
        history.write(database, rows, attempts)
    except (peewee.OperationalError, peewee.InterfaceError):
        if database.in_transaction():
            raise
        database.close()
        database.connect()
        history.write(database, rows, attempts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container's user id without a name


def _who() -> str:
    return f"{_user()}@{socket.gethostname()}"[:255]
