"""Run one batch of migrations, or revert some, as a whole; return what happened, and print nothing of it.

PostgreSQL and SQLite: one transaction a part, a savepoint a migration, the history rows inside. MySQL and MariaDB
commit at every DDL statement: there a part runs under the journal, which undoes it, and the history rows are written
in the transaction of its commit mark.
"""

from __future__ import annotations

import itertools
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import peewee
import structlog

from api.db import history, steps
from api.db.connection import get_db_connection
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.files import Migration
from api.db.history import Attempt, HistoryRow
from api.db.journal import session as journal
from api.db.journal.store import Guard
from api.db.journal.undo import Recovered
from api.db.lease import Lease, user_name
from api.db.lock import migrating, refuse_read_only
from api.db.migrators import Migrator
from api.db.operations import OperationResult, Outcome
from api.db.rebuild import foreign_keys_off
from api.db.results import BatchResult, Direction, Failure, Ran, told
from api.db.session import Mark, Statements, bounded, hang_up, ms_since, refuse_ended_transaction, watch
from api.exceptions import AADAPError, MigrationError

log = structlog.get_logger(__name__)

TRANSACTIONAL: frozenset[Engine] = frozenset({"postgres", "sqlite"})


@dataclass(frozen=True, slots=True)
class Options:
    """How long to wait, in seconds, for another migrator and for a lock that a statement needs; and what to tell.

    *undo_rows* is how many rows one statement may change, on MySQL and MariaDB, in tables that stood before.
    """

    lock_timeout_s: float = 600.0
    statement_lock_timeout_s: float = 30.0
    undo_rows: int = 10_000
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
    refuse_read_only(database, migrator.engine)
    run = _Batch(database, migrator, options, direction, len(migrations))
    unprotected = foreign_keys_off(database) if migrator.engine == "sqlite" else nullcontext()
    with unprotected:
        with run.held(transactional=True) as lease:
            run.prepare(lease)
        for part in parts_of(migrations):
            run.part(part)
            if run.failure is not None:
                break
    return run.result(migrations)


def recover(database: peewee.Database, migrator: Migrator, options: Options) -> list[Recovered]:
    """Undo or finish what an interrupted run left, and return what was done. On PostgreSQL and SQLite there is nothing.

    Raises ``MigrationUndoError`` when something stands in the way, and ``MigrationLockError``.
    """
    refuse_read_only(database, migrator.engine)
    run = _Batch(database, migrator, options, "up", 0)
    with run.held(transactional=True) as lease:
        return run.prepare(lease)


@dataclass(slots=True)
class _Part:
    """What one part has come to: *begun* is the migration that runs, or ran last, and what it sent.

    *atomic* parts stand or fall as a whole: by their *transaction*, or by the *journal*.
    """

    atomic: bool
    transaction: bool
    ran: list[tuple[Migration, Ran]] = field(default_factory=list)
    begun: tuple[Migration, Statements] | None = None
    mark: Mark | None = None
    journal: journal.Journal | None = None


@dataclass(slots=True)
class _Batch:
    """The state of one run."""

    database: peewee.Database
    migrator: Migrator
    options: Options
    direction: Direction
    total: int
    batch: str = field(default_factory=lambda: str(uuid.uuid4()))
    applied: list[Ran] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    failure: Failure | None = None
    started: float = field(default_factory=time.monotonic)
    begun: int = 0

    @property
    def engine(self) -> Engine:
        return self.migrator.engine

    def result(self, migrations: Sequence[Migration]) -> BatchResult:
        applied = {ran.name for ran in self.applied}
        left = tuple(m.name for m in migrations if m.name not in applied) if self.failure else ()
        done = (self.batch, self.direction, tuple(self.applied), self.failure, tuple(self.rolled_back), left)
        return BatchResult(*done, ms_since(self.started))

    def held(self, *, transactional: bool) -> AbstractContextManager[Lease]:
        """Hold the migration lock for the block, in a transaction where *transactional* and the engine has them."""
        return migrating(self.database, self.engine, self.options.lock_timeout_s, self.total, transactional)

    def _bounded(self, transaction: bool) -> AbstractContextManager[Mark | None]:
        return bounded(self.database, self.engine, self.options.statement_lock_timeout_s, transaction)

    def prepare(self, lease: Lease) -> list[Recovered]:
        """Make the tables that are missing; undo or finish what an interrupted run left, and record that."""
        history.create_tables(self.database)
        if self.engine in TRANSACTIONAL:
            return []
        journal.prepare(self.database)
        return self._recover(lease)

    def _recover(self, lease: Lease) -> list[Recovered]:
        with self._bounded(False):
            recovered = journal.recover(self.database, self.engine, Guard(*lease.condition))
        attempts = [self._attempt("(interrupted batch)", each.action, action="recover") for each in recovered]
        history.write(self.database, [], attempts)
        return recovered

    def part(self, migrations: Sequence[Migration]) -> None:
        """Run one part. Whatever a migration raises ends it, and is recorded after the rollback."""
        if not self._to_do(migrations, history.read_states(self.database) or {}):
            return  # another process has done it while we waited for the lock
        atomic = migrations[0].atomic
        part = _Part(atomic, transaction=atomic and self.engine in TRANSACTIONAL)
        try:
            with (
                self.held(transactional=atomic) as lease,
                self._bounded(part.transaction) as part.mark,
            ):
                self._run_part(migrations, part, lease)
        except (Exception, KeyboardInterrupt) as exc:
            if part.begun is None:
                raise
            if part.journal is not None and part.journal.committed:
                # What is left to do after the commit mark, the next `up` does too.
                log.warning("the batch stands, but its end was disturbed", reason=str(exc))
                self.applied += [ran for _, ran in part.ran]
                return
            self._fail(part, *part.begun, exc)
            if isinstance(exc, KeyboardInterrupt):
                raise
        else:
            self.applied += [ran for _, ran in part.ran]

    def _run_part(self, migrations: Sequence[Migration], part: _Part, lease: Lease) -> None:
        if self.engine not in TRANSACTIONAL:
            self._recover(lease)  # what another process left that died while we waited
        states = history.read_states(self.database) or {}
        todo = self._to_do(migrations, states)
        if not todo:
            if part.mark is not None:
                part.mark.restore()
            return
        if not part.atomic:
            steps.create_table(self.database, self.engine)
        under = self._journalled(lease) if part.atomic and not part.transaction else nullcontext()
        with under as part.journal:
            for migration in todo:
                self._begin(migration, part, lease, states.get(migration.name))
            if not part.atomic:
                return
            if part.mark is not None:
                part.mark.restore()
            if part.journal is None:
                self._record(part.ran)
            else:
                part.journal.commit(self.database, lambda: self._record(part.ran))

    def _to_do(self, migrations: Sequence[Migration], states: dict[str, str]) -> list[Migration]:
        return [m for m in migrations if (states.get(m.name) in history.DONE) != (self.direction == "up")]

    def _journalled(self, lease: Lease) -> AbstractContextManager[journal.Journal]:
        guard = Guard(*lease.condition)
        return journal.journalled(self.database, self.engine, self.batch, self.direction, guard, self.options.undo_rows)

    def _begin(self, migration: Migration, part: _Part, lease: Lease, state: str | None) -> None:
        self.begun += 1
        lease.at(migration.name, self.begun)
        with watch(self.database) as statements:
            part.begun = (migration, statements)
            ran = self._run(migration, statements, part.transaction, state)
        part.ran.append((migration, ran))
        if not part.atomic:
            with self.database.atomic():
                self._record(part.ran)
                steps.forget(self.database, self._name_of_steps(migration))
            self.applied.append(ran)
            part.ran.clear()

    def _run(self, migration: Migration, statements: Statements, transactional: bool, state: str | None) -> Ran:
        self.options.on_start(migration.name)
        function = migration.up if self.direction == "up" else migration.down
        reason = self._reason_to_skip(function, state)
        self.migrator.results.clear()
        resumed = False
        if reason is None and function is not None:
            if not migration.atomic:
                with steps.resumable(self.database, self.engine, self._name_of_steps(migration)) as taken:
                    self._call(function, statements, transactional)
                resumed = taken.resumed
            else:
                with self.database.atomic() if transactional else nullcontext():
                    self._call(function, statements, transactional)
        operations = tuple(self.migrator.results)
        if reason is None and operations and not resumed and not statements.number and _all_skipped(operations):
            reason = "; ".join(f"{each.table}.{each.target}: {each.reason}" for each in operations)
        return Ran(migration.name, "skipped" if reason else "success", statements.elapsed_ms(), reason)

    def _name_of_steps(self, migration: Migration) -> str:
        return f"{migration.name}:{self.direction}"

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
        stuck = None
        if part.journal is not None and part.journal.is_open:
            stuck = part.journal.stuck or self._settle(part)
            if stuck is None and self._is_recorded(part):
                self.applied += [ran for _, ran in part.ran]  # the commit had reached the server
                return
        stands = part.mark is not None and part.mark.was_committed(cause)
        if stands:
            self.applied += [ran for _, ran in part.ran]
        elif part.atomic:
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
            stuck=stuck,
        )
        self._record_failure(self.failure, part.ran if stands else [])

    def _settle(self, part: _Part) -> AADAPError | None:
        """Undo or finish over a new connection what a lost one left; return why that was not possible."""
        assert part.journal is not None
        try:
            hang_up(self.database)
            get_db_connection(self.database)
            with self.held(transactional=True) as lease:
                self._recover(lease)
        except AADAPError as exc:
            return exc
        except peewee.PeeweeException as exc:
            return MigrationError(str(exc))
        part.journal.is_open = False
        return None

    def _is_recorded(self, part: _Part) -> bool:
        done = history.done_in(history.read_states(self.database) or {})
        names = {ran.name for _, ran in part.ran}
        return bool(names) and (names <= done if self.direction == "up" else not names & done)

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
            "applied_by": f"{user_name()}@{socket.gethostname()}"[:255],
        }
        return HistoryRow(migration.name, status, self.engine, history.utc_now(), **facts, **details)

    def _attempt(self, name: str, status: str, **details: Any) -> Attempt:
        who: dict[str, Any] = {"run_by": user_name()[:255], "host": socket.gethostname()[:255]}
        facts = {"action": self.direction, "db_type": self.engine, "started_at": history.utc_now(), "batch": self.batch}
        return Attempt(name, status=status, **facts | who | details)


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
            hang_up(database)
            database.connect()
            write()
        except peewee.PeeweeException as exc:
            # A server that takes no writes has just said so, as the failure itself.
            tell = log.debug if classify(exc, engine).category is classify(cause, engine).category else log.critical
            tell("the failed migration could not be recorded", reason=str(exc), before=str(lost))
