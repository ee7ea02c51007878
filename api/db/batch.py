"""Run one batch of migrations, or revert some, as a whole; return what happened, and print nothing of it.

PostgreSQL and SQLite: one transaction a part, a savepoint a migration, the history rows inside. MySQL and MariaDB
commit at every DDL statement: there a part runs under the journal, which undoes it, and the history rows are written
in the transaction of its commit mark.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import peewee
import structlog

from api.db import history, step_hooks, steps
from api.db.connection import get_db_connection
from api.db.dialects.engine import Engine
from api.db.files import Migration
from api.db.history import HistoryRow, Recorder
from api.db.journal import session as journal
from api.db.journal.store import Guard
from api.db.journal.undo import Recovered
from api.db.lease import Lease
from api.db.lock import migrating, refuse_read_only
from api.db.migrators import Migrator
from api.db.operations import OperationResult, Outcome
from api.db.rebuild import foreign_keys_off
from api.db.results import BatchInterrupted, BatchResult, Direction, Failure, Ran, told
from api.db.session import (
    Mark,
    Statements,
    bounded,
    call_migration,
    hang_up,
    ms_since,
    on_a_working_connection,
    watch,
)
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
    recorded like a failure, and goes on as ``BatchInterrupted``, with the result.
    """
    refuse_read_only(database, migrator.engine)
    run = _Batch(database, migrator, options, direction, len(migrations))
    unprotected = foreign_keys_off(database) if migrator.engine == "sqlite" else nullcontext()
    try:
        with unprotected:
            run.all(migrations)
    except KeyboardInterrupt as exc:
        if run.failure is None:
            raise
        raise BatchInterrupted(run.result(migrations)) from exc
    return run.result(migrations)


def recover(database: peewee.Database, migrator: Migrator, options: Options) -> list[Recovered]:
    """Undo or finish what an interrupted run left, and return what was done. On PostgreSQL and SQLite there is nothing.

    Raises ``MigrationUndoError`` when something stands in the way, and ``MigrationLockError``.
    """
    refuse_read_only(database, migrator.engine)
    run = _Batch(database, migrator, options, "up", 0)
    with run.held(transactional=True) as lease, run._bounded(False):
        return run.prepare(lease)


@dataclass(slots=True)
class _Part:
    """What one part has come to: *begun* is the migration that runs, or ran last, and what it sent; *todo* are all.

    *atomic* parts stand or fall as a whole: by their *transaction*, or by the *journal*.
    """

    atomic: bool
    transaction: bool
    lease: Lease | None = None
    todo: list[Migration] = field(default_factory=list)
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
    prepared: bool = False

    @property
    def engine(self) -> Engine:
        return self.migrator.engine

    @property
    def recorder(self) -> Recorder:
        return Recorder(self.engine, self.direction, self.batch)

    def all(self, migrations: Sequence[Migration]) -> None:
        """Run the parts one by one, and stop at the first failure."""
        if self.engine in TRANSACTIONAL:
            with self.held(transactional=True) as lease:
                self.prepare(lease)
        for part in parts_of(migrations):
            self.part(part)
            if self.failure is not None:
                break

    def result(self, migrations: Sequence[Migration]) -> BatchResult:
        failure = self.failure
        stand = {ran.name for ran in self.applied} | set(failure.elsewhere if failure else ())
        left = tuple(m.name for m in migrations if m.name not in stand) if failure else ()
        undone = () if failure and failure.stuck else tuple(self.rolled_back)
        facts = (self.batch, self.direction, tuple(self.applied), failure, undone, left)
        return BatchResult(*facts, ms_since(self.started))

    def held(self, *, transactional: bool) -> AbstractContextManager[Lease]:
        """Hold the migration lock for the block, in a transaction where *transactional* and the engine has them."""
        return migrating(self.database, self.engine, self.options.lock_timeout_s, self.total, transactional)

    def _bounded(self, transaction: bool) -> AbstractContextManager[Mark | None]:
        return bounded(self.database, self.engine, self.options.statement_lock_timeout_s, transaction)

    def prepare(self, lease: Lease) -> list[Recovered]:
        """Make the tables that are missing; undo or finish what an interrupted run left, and record that."""
        if not self.prepared:
            history.create_tables(self.database)
            if self.engine not in TRANSACTIONAL:
                journal.prepare(self.database)
            self.prepared = True
        return [] if self.engine in TRANSACTIONAL else self._recover(lease)

    def _recover(self, lease: Lease) -> list[Recovered]:
        recovered = journal.recover(self.database, self.engine, Guard(*lease.condition))
        if recovered:
            attempt = partial(self.recorder.attempt, "(interrupted batch)", action="recover")
            history.write(self.database, [], [attempt(status=each.action, batch=each.batch) for each in recovered])
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
                part.lease = lease
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
            # One lock for this and the part itself; another process may have left something that died meanwhile.
            self.prepare(lease)
        states = history.read_states(self.database) or {}
        part.todo = self._to_do(migrations, states)
        if not part.todo:
            if part.mark is not None:
                part.mark.restore()
            return
        if not part.atomic:
            steps.create_table(self.database, self.engine)
        under = self._journalled(lease) if part.atomic and not part.transaction else nullcontext()
        with under as part.journal:
            for migration in part.todo:
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
            ran = self._run(migration, statements, lease, state)
        part.ran.append((migration, ran))
        if not part.atomic:
            with self.database.atomic():
                self._record(part.ran)
                steps.forget(self.database, self._name_of_steps(migration))
            self.applied.append(ran)
            part.ran.clear()

    def _run(self, migration: Migration, statements: Statements, lease: Lease, state: str | None) -> Ran:
        self.options.on_start(migration.name)
        function = migration.up if self.direction == "up" else migration.down
        reason = self._reason_to_skip(function, state)
        self.migrator.results.clear()
        resumed = False
        if reason is None and function is not None:
            facts = (self.migrator, self.database, self.engine, statements)
            if migration.atomic:
                transactional = self.engine in TRANSACTIONAL
                with self.database.atomic() if transactional else nullcontext():
                    call_migration(function, *facts, transactional)
            else:
                name = self._name_of_steps(migration)
                with step_hooks.resumable(self.database, self.engine, name, lease) as taken:
                    call_migration(taken.explaining(function), *facts, False)
                resumed = taken.resumed
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

    def _fail(self, part: _Part, migration: Migration, statements: Statements, raised: BaseException) -> None:
        # A ROLLBACK on a lost connection raises too, and would hide why it was lost.
        cause = statements.cause or raised
        stuck = None
        if part.journal is not None and part.journal.is_open:
            stuck = part.journal.stuck or self._settle(part.journal, part.lease)
            if stuck is None and statements.cause is None and len(self._done_of(part)) == len(part.todo):
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
            left_alone=part.journal.left_alone if part.journal else 0,
        )
        self._record_failure(self.failure, part)

    def _settle(self, open_journal: journal.Journal, lost: Lease | None) -> AADAPError | None:
        """Undo or finish over a new connection what a *lost* lock left; return why that was not possible."""
        try:
            hang_up(self.database)
            get_db_connection(self.database)
            if lost is not None:
                journal.end_abandoned(self.database, lost)
            with self.held(transactional=True) as lease, self._bounded(False):
                recovered = self._recover(lease)
        except AADAPError as exc:
            return exc
        except (peewee.PeeweeException, KeyboardInterrupt) as exc:
            return journal.stopped(exc, self.engine)
        open_journal.left_alone += sum(each.left_alone for each in recovered if each.batch == self.batch)
        open_journal.is_open = False
        return None

    def _done_of(self, part: _Part) -> list[str]:
        """Return which of *part* the history says to be as wanted, whoever did it."""
        to_do = self._to_do(part.todo, history.read_states(self.database) or {})
        return [migration.name for migration in part.todo if migration not in to_do]

    def _record_failure(self, failure: Failure, part: _Part) -> None:
        message, _ = told(failure.cause, self.engine, failure.statement)
        details = {"duration_ms": failure.duration_ms, "error_message": message}
        migration, recorder = failure.migration, self.recorder
        undone = "interrupted" if failure.stuck else "rolled_back"
        attempts = [recorder.attempt(each, undone) for each in self.rolled_back]
        attempts.append(recorder.attempt(migration.name, "failed", statement=failure.statement, **details))
        is_up = self.direction == "up"
        rows = [recorder.row(migration.name, migration.checksum, "failed", **details)] if is_up else []
        ours = {ran.name for ran in self.applied}

        def write() -> None:
            if failure.stands and part.ran:
                self._record(part.ran)
            history.write_failure(self.database, rows, attempts)
            elsewhere = tuple(name for name in self._done_of(part) if name not in ours)
            self.failure = replace(failure, elsewhere=elsewhere)

        on_a_working_connection(self.database, self.engine, failure.cause, write)

    def _record(self, ran: Sequence[tuple[Migration, Ran]]) -> None:
        recorder = self.recorder
        attempts = [
            recorder.attempt(each.name, each.status, duration_ms=each.duration_ms, error_message=each.reason)
            for _, each in ran
        ]
        rows: list[HistoryRow] = []
        if self.direction == "down":
            history.delete(self.database, [each.name for _, each in ran])
        else:
            rows = [
                recorder.row(m.name, m.checksum, each.status, duration_ms=each.duration_ms, reason=each.reason)
                for m, each in ran
            ]
        history.write(self.database, rows, attempts)


def _all_skipped(operations: Sequence[OperationResult]) -> bool:
    return all(each.outcome is Outcome.SKIPPED for each in operations)
