"""Run one batch of migrations, or revert some, as a whole; return what happened, and print nothing of it.

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
from typing import Any

import peewee
import structlog

from api.db import history
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.files import Migration
from api.db.history import Attempt, HistoryRow
from api.db.lock import exclusive_session, exclusive_transaction
from api.db.migrators import Migrator
from api.db.operations import OperationResult, Outcome
from api.db.rebuild import foreign_keys_off
from api.db.results import BatchResult, Direction, Failure, Ran, told
from api.db.session import Mark, Statements, bounded, ms_since, refuse_ended_transaction, watch
from api.exceptions import MigrationError, MigrationLockError

log = structlog.get_logger(__name__)

TRANSACTIONAL: frozenset[Engine] = frozenset({"postgres", "sqlite"})


@dataclass(frozen=True, slots=True)
class Options:
    """How long to wait, in seconds, for another migrator and for a lock that a statement needs; and what to tell."""

    lock_timeout_s: float = 600.0
    statement_lock_timeout_s: float = 30.0
    on_start: Callable[[str], None] = lambda name: None


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
    lost before a migration began; what a migration raises is in the result's *failure*. A ``KeyboardInterrupt`` is
    recorded like a failure, and goes on.
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


@dataclass(slots=True)
class _Part:
    """What one part has come to: *begun* is the migration that runs, or ran last, and what it sent."""

    transactional: bool
    ran: list[tuple[Migration, Ran]] = field(default_factory=list)
    begun: tuple[Migration, Statements] | None = None
    mark: Mark | None = None


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
        left = tuple(m.name for m in migrations if m.name not in applied) if self.failure else ()
        done = (self.batch, self.direction, tuple(self.applied), self.failure, tuple(self.rolled_back), left)
        return BatchResult(*done, ms_since(self.started))

    def part(self, migrations: Sequence[Migration]) -> None:
        """Run one part. Whatever a migration raises ends it, and is recorded after the rollback."""
        atomic = migrations[0].atomic
        part = _Part(transactional=atomic and self.engine in TRANSACTIONAL)
        hold = exclusive_transaction if atomic else exclusive_session
        timeout_s = self.options.statement_lock_timeout_s
        try:
            with (
                hold(self.database, self.engine, self.options.lock_timeout_s),
                bounded(self.database, self.engine, timeout_s, part.transactional) as part.mark,
            ):
                self._run_all(migrations, part)
        except MigrationLockError:
            raise
        except (Exception, KeyboardInterrupt) as exc:
            if part.begun is None:
                raise
            self._fail(part, *part.begun, exc)
            if isinstance(exc, KeyboardInterrupt):
                raise
        else:
            self.applied += [ran for _, ran in part.ran]

    def _run_all(self, migrations: Sequence[Migration], part: _Part) -> None:
        states = history.read_states(self.database) or {}
        for migration in migrations:
            state = states.get(migration.name)
            if (state in history.DONE) == (self.direction == "up"):
                continue  # another process did it while we waited for the lock
            with watch(self.database) as statements:
                part.begun = (migration, statements)
                ran = self._run(migration, statements, part.transactional, state)
            part.ran.append((migration, ran))
            if not part.transactional:
                self._record(part.ran)
                self.applied.append(ran)
                part.ran.clear()
        if part.ran and part.mark is not None:
            part.mark.restore()
            self._record(part.ran)

    def _run(self, migration: Migration, statements: Statements, transactional: bool, state: str | None) -> Ran:
        self.options.on_start(migration.name)
        function = migration.up if self.direction == "up" else migration.down
        reason = self._reason_to_skip(function, state)
        self.migrator.results.clear()
        if reason is None and function is not None:
            with self.database.atomic() if transactional else nullcontext():
                self._call(function, statements, transactional)
        operations = tuple(self.migrator.results)
        if reason is None and operations and not statements.number and _all_skipped(operations):
            reason = "; ".join(f"{each.table}.{each.target}: {each.reason}" for each in operations)
        return Ran(migration.name, "skipped" if reason else "success", statements.elapsed_ms(), reason)

    def _reason_to_skip(self, function: Callable[..., Any] | None, state: str | None) -> str | None:
        if self.direction == "down":
            # What it found standing is not its own to take away.
            return "it was skipped: there is nothing of its own to revert" if state == "skipped" else None
        refusal = getattr(function, "refusal", None)
        return refusal(self.database) if refusal else None

    def _call(self, function: Callable[..., Any], statements: Statements, transactional: bool) -> None:
        depth = self.database.transaction_depth()
        try:
            function(self.migrator, self.database)
            self._refuse_open_transaction(depth)
            if transactional:
                refuse_ended_transaction(self.database, self.engine)
        except SystemExit as exc:
            error = MigrationError(f"the migration called sys.exit({exc.code!r})", hint="raise an error instead")
            statements.end(error)
            raise error from exc
        except (Exception, KeyboardInterrupt) as exc:
            statements.end(exc)
            raise

    def _refuse_open_transaction(self, depth: int) -> None:
        left_open = self.database.transaction_depth() - depth
        for _ in range(left_open):
            self.database.pop_transaction()
        if left_open > 0:
            raise MigrationError(
                "the migration left a transaction open", hint="use `with db.atomic():` instead of session_start()"
            )

    def _fail(self, part: _Part, migration: Migration, statements: Statements, raised: BaseException) -> None:
        # A ROLLBACK on a lost connection raises too, and would hide why it was lost.
        cause = statements.cause or raised
        stands = part.mark is not None and part.mark.was_committed(cause)
        if stands:
            self.applied += [ran for _, ran in part.ran]
        else:
            self.rolled_back += [ran.name for _, ran in part.ran if ran.name != migration.name]
        if not isinstance(cause, Exception):
            cause = MigrationError("interrupted by the keyboard", hint="run it again")
        self.failure = Failure(
            migration,
            cause,
            statements.failed,
            statements.number,
            statements.elapsed_ms(),
            at_commit=statements.cause is None,
            stands=stands,
        )
        self._record_failure(self.failure, part.ran if stands else [])

    def _record_failure(self, failure: Failure, stands: Sequence[tuple[Migration, Ran]]) -> None:
        message, _ = told(failure.cause, self.engine, failure.statement)
        details = {"duration_ms": failure.duration_ms, "error_message": message}
        name = failure.migration.name
        attempts = [self._attempt(each, "rolled_back") for each in self.rolled_back]
        attempts.append(self._attempt(name, "failed", statement=failure.statement, **details))
        rows = [self._row(failure.migration, "failed", **details)] if self.direction == "up" else []

        def write() -> None:
            if stands:
                self._record(stands)
            history.write(self.database, rows, attempts)

        _on_a_working_connection(self.database, self.engine, failure.cause, write)

    def _record(self, ran: Sequence[tuple[Migration, Ran]]) -> None:
        attempts = [
            self._attempt(each.name, each.status, duration_ms=each.duration_ms, error_message=each.reason)
            for _, each in ran
        ]
        rows: list[HistoryRow] = []
        if self.direction == "down":
            history.delete(self.database, [each.name for _, each in ran])
        else:
            rows = [self._row(m, each.status, duration_ms=each.duration_ms, reason=each.reason) for m, each in ran]
        history.write(self.database, rows, attempts)

    def _row(self, migration: Migration, status: history.Status, **details: Any) -> HistoryRow:
        facts: dict[str, Any] = {
            "checksum": migration.checksum,
            "applied_by": f"{_user()}@{socket.gethostname()}"[:255],
        }
        return HistoryRow(migration.name, status, self.engine, history.utc_now(), **facts, **details)

    def _attempt(self, name: str, status: str, **details: Any) -> Attempt:
        who: dict[str, Any] = {"run_by": _user()[:255], "host": socket.gethostname()[:255]}
        return Attempt(name, self.direction, status, self.engine, history.utc_now(), self.batch, **who, **details)


def _all_skipped(operations: Sequence[OperationResult]) -> bool:
    return all(each.outcome is Outcome.SKIPPED for each in operations)


def _on_a_working_connection(
    database: peewee.Database, engine: Engine, cause: Exception, write: Callable[[], None]
) -> None:
    """Write the record of a failure, over a new connection where the old one is lost; never hide the failure itself."""
    try:
        write()
    except peewee.PeeweeException as lost:
        try:
            while database.transaction_depth():
                database.pop_transaction()
            database.close()
            database.connect()
            write()
        except peewee.PeeweeException as exc:
            # A server that takes no writes has just said so, as the failure itself.
            tell = log.debug if classify(exc, engine).category is classify(cause, engine).category else log.critical
            tell("the failed migration could not be recorded", reason=str(exc), before=str(lost))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container's user id without a name
