"""Migrate a database as its app boots: ``migrate_db()``; by hand: ``python -m api.db.migrations``.

This file holds policy: which errors are expected (``StandardErrorHandler``), what counts as done
(``MigrationTracker``), what an engine can keep (``DatabaseCompat``). The facts stand in ``dialects``, the work is done
by ``operations`` and ``batch``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, cast, get_args

import peewee
import structlog

from api.db import batch, files, history, operations
from api.db.batch import Options, run_batch
from api.db.connection import DB, get_db_connection
from api.db.dialects import capabilities, equivalence, errors, validation
from api.db.dialects.engine import Engine, engine_of, server_version, unwrap, version_text
from api.db.files import Function, Migration, MigrationFile
from api.db.journal.undo import Recovered
from api.db.migrators import DatabaseMigrator as DatabaseMigrator
from api.db.migrators import migrator_for
from api.db.results import BatchResult, batch_error
from api.db.session import is_migrating, ms_since
from api.exceptions import MigrationError, MigrationFileError

log = structlog.get_logger(__name__)

P = ParamSpec("P")
VERSIONS = Path(__file__).parent / "versions"


class StandardErrorHandler:
    """Decide what an error of a migration means; the codes are facts of ``dialects``, the decision is made here."""

    ERROR_CODES = errors.ERROR_CODES
    ERROR_MESSAGES = errors.ERROR_MESSAGES

    @classmethod
    def categorize_error(cls, exception: BaseException, db_type: Engine = "postgres") -> tuple[str, bool, bool]:
        """Return ``(category, is_expected, should_skip)`` for what the driver raised on *db_type*.

        *should_skip* means "look at the live schema, it may be as asked", never "done".
        """
        found = errors.classify(exception, db_type)
        return str(found.category), found.is_expected, found.should_skip

    @classmethod
    def handle_migration_error(
        cls, exception: BaseException, table: str, column: str | None, operation: str, db_type: Engine
    ) -> bool:
        """Log the error and return whether to look again.

        The log is debug if so, a warning for an error that a healthy fleet meets, else critical.
        """
        found = errors.classify(exception, db_type)
        look_again = errors.may_skip(found, operation)
        loud = log.warning if found.is_expected else log.critical
        (log.debug if look_again else loud)(
            "migration operation failed",
            operation=operation,
            table=table,
            column=column,
            category=str(found.category),
            code=found.code,
            server=found.server_message,
            remedy=found.remedy,
        )
        return look_again


class MigrationTracker:
    """Know which migrations ran. *database* is ``DB`` unless given."""

    @classmethod
    def init_tracking_table(cls, *, database: Any = None) -> None:
        """Create ``migration_history`` and ``migration_attempt`` where they are missing."""
        history.create_tables(unwrap(database or DB))

    @classmethod
    def has_migration_run(cls, name: str, *, database: Any = None) -> bool:
        """Say whether *name* is done: it succeeded, or was skipped for good reason. One query."""
        return name in history.done_in(history.read_states(unwrap(database or DB)) or {})

    @classmethod
    def record_migration(
        cls,
        name: str,
        status: history.Status,
        error: str | None = None,
        duration_ms: int | None = None,
        *,
        database: Any = None,
    ) -> None:
        """Write *name*'s latest state, in place of the one before. Raises ``ValueError`` on another *status*."""
        if status not in get_args(history.Status):
            raise ValueError(f"status {status!r} is none of {', '.join(get_args(history.Status))}")
        db = unwrap(database or DB)
        cls.init_tracking_table(database=db)
        row = history.HistoryRow(name, status, engine_of(db), history.utc_now(), duration_ms, error)
        history.write(db, [row], [])

    @classmethod
    def get_migration_history(cls, *, database: Any = None) -> list[dict[str, Any]]:
        """Return a dict a migration, by name: the columns of ``migration_history`` but its id."""
        return [asdict(row) for row in history.read_history(unwrap(database or DB))]

    @classmethod
    def skip_if_run(cls, name: str, *, database: Any = None) -> Callable[[Function], Function]:
        """Decorate a function that is to run once: later calls return ``None``.

        A failure is raised, and recorded unless it is inside a transaction, which undoes all of it.
        """

        def decorate(function: Function) -> Function:
            @functools.wraps(function)
            def once(*args: Any, **kwargs: Any) -> Any:
                if cls.has_migration_run(name, database=database):
                    log.debug("migration has run", migration=name)
                    return None
                started = time.monotonic()
                try:
                    result = function(*args, **kwargs)
                except Exception as exc:
                    # Inside a transaction the row would be undone with it, and on PostgreSQL hide the error.
                    if not unwrap(database or DB).in_transaction():
                        cls.record_migration(name, "failed", str(exc), ms_since(started), database=database)
                    raise
                cls.record_migration(name, "success", None, ms_since(started), database=database)
                return result

            return once

        return decorate


class DatabaseCompat:
    """Know beforehand what an engine can do and keep; every cell of ``CAPABILITIES`` is proven on a server."""

    CAPABILITIES = capabilities.CAPABILITIES

    @classmethod
    def validate_field_for_db(cls, field: peewee.Field, db_type: Engine) -> list[str]:
        """Return the reasons why *db_type* cannot keep *field*; empty when it can."""
        return validation.validate_field(field, db_type)

    @classmethod
    def get_equivalent_type(cls, field_type: str, source_db: Engine, target_db: Engine) -> str:
        """Return the column type of *target_db* that keeps what *field_type* keeps on *source_db*."""
        return equivalence.get_equivalent_type(field_type, source_db, target_db)

    @classmethod
    def is_capable(cls, db_type: Engine, capability: str, version: tuple[int, ...] | None = None) -> bool:
        """Say whether *db_type* has *capability*, in *version* or else in the oldest version that we support."""
        return capabilities.is_capable(db_type, capability, version)

    @classmethod
    def requires(cls, db_type: Engine | None, capability: str) -> Callable[[Function], Function]:
        """Decorate an ``up`` that needs *capability*, and *db_type* unless that is ``None``.

        Elsewhere the migration is skipped and recorded so, with engine and version as the reason. Raises
        ``ValueError`` at once when there is no such capability.
        """
        capabilities.is_capable(db_type or "postgres", capability)

        def refusal(database: Any) -> str | None:
            engine = engine_of(database)
            fits = db_type in (None, engine) and cls.is_capable(engine, capability, server_version(database))
            wanted = f"{capability} on {db_type}" if db_type else capability
            return None if fits else f"needs {wanted}; this is {engine} {version_text(database)}"

        def decorate(function: Function) -> Function:
            function.refusal = refusal  # type: ignore[attr-defined]
            return function

        return decorate


# Operations, with the standard error handling ------------------------------------------------------------------


def _handled(
    operation: Callable[P, operations.OperationResult],
) -> Callable[P, operations.OperationResult]:
    """Let *operation* look once more when its statement met what another session made since it looked.

    Not inside a PostgreSQL transaction: the error has ended that already, and the next ``up`` looks anew.
    """

    @functools.wraps(operation)
    def run(*args: P.args, **kwargs: P.kwargs) -> operations.OperationResult:
        try:
            return operation(*args, **kwargs)
        except peewee.DatabaseError as exc:
            migrator, table, target = cast("tuple[Any, str, Any]", args[:3])
            db = unwrap(migrator.database)
            ended = isinstance(db, peewee.PostgresqlDatabase) and db.in_transaction()
            found = errors.classify(exc, engine_of(db))
            if ended or not errors.may_skip(found, operation.__name__):
                raise
            StandardErrorHandler.handle_migration_error(exc, table, str(target), operation.__name__, engine_of(db))
            return operation(*args, **kwargs)

    return run


alter_db_add_column = _handled(operations.add_column)
alter_db_column_type = _handled(operations.column_type)
alter_db_rename_column = _handled(operations.rename_column)
alter_db_add_not_null = _handled(operations.add_not_null)
alter_db_add_index = _handled(operations.add_index)
alter_db_drop_index = _handled(operations.drop_index)
alter_db_drop_column = _handled(operations.drop_column)


# Running migrations --------------------------------------------------------------------------------------------


def migrate_db(
    migrations: Sequence[tuple[str, Function]] | None = None,
    *,
    directory: Path | None = None,
    database: Any = None,
    target: str | None = None,
    options: Options | None = None,
) -> BatchResult:
    """Apply what is pending in *directory*, or of the list *migrations*, to *database*: all of it or nothing.

    With nothing pending it runs one query and opens no file. *target* is the last migration to apply. Raises
    ``MigrationFileError`` before anything runs, ``MigrationLockError``, ``MigrationUndoError`` when an interrupted
    batch cannot be undone first, and ``MigrationFailedError``, whose *result* says what stands.
    """
    db = unwrap(database or DB)
    with connected(db):
        states, interrupted = history.look(db)
        if interrupted:
            batch.recover(db, migrator_for(db), options or Options())
            states, _ = history.look(db)
        done = history.done_in(states)
        if migrations is None and target is None and files.hold_exactly(_folder(directory), done):
            return BatchResult(batch="")
        source = files.from_functions(migrations) if migrations is not None else _files(directory)
        names = _up_to(target, _pending(done, source))
        _warn_of_odd_order(done, source)
        if not names:
            return BatchResult(batch="")
        loaded = files.load_named(source, names)
        log.info("migrating", pending=len(loaded), first=names[0], last=names[-1])
        _tell_parts(loaded)
        result = run_batch(db, migrator_for(db), loaded, options or Options())
        for ran in result.applied:
            why = {"reason": ran.reason} if ran.reason else {}
            log.info("migration recorded", name=ran.name, status=ran.status, duration_ms=ran.duration_ms, **why)
        if result.failure:
            raise batch_error(result, engine_of(db))
        log.info("migrated", applied=len(result.applied), duration_ms=result.duration_ms)
        return result


def revert(
    target: str | None = None,
    *,
    directory: Path | None = None,
    database: Any = None,
    options: Options | None = None,
) -> BatchResult:
    """Revert the newest applied migration, or all back through *target*, in one batch.

    Raises ``MigrationFileError`` when one of them has no file or no ``down``; nothing was reverted then.
    """
    db = unwrap(database or DB)
    with connected(db):
        if history.look(db)[1]:
            batch.recover(db, migrator_for(db), options or Options())
        names = revertible(target, database=db)
        loaded = files.load_named(_files(directory), names)
        without = [migration.name for migration in loaded if migration.down is None]
        if without:
            raise MigrationFileError(f"{without[0]} has no function down(migrator, db)", hint="define down() in it")
        result = run_batch(db, migrator_for(db), loaded, options or Options(), "down")
        if result.failure:
            raise batch_error(result, engine_of(db))
        return result


def recover(*, database: Any = None, options: Options | None = None) -> list[Recovered]:
    """Undo or finish what an interrupted run left, without migrating; empty when there was nothing.

    Raises ``MigrationUndoError`` when something stands in the way: the batch stays open and nothing is lost.
    """
    db = unwrap(database or DB)
    with connected(db):
        if not history.look(db)[1]:
            return []
        return batch.recover(db, migrator_for(db), options or Options())


def revertible(target: str | None = None, *, database: Any = None) -> list[str]:
    """Return what ``revert`` would revert, newest first. Raises ``MigrationFileError`` for another *target*."""
    done = history.done_in(history.read_states(unwrap(database or DB)) or {})
    applied = sorted(done, key=files.order_of, reverse=True)
    if target is not None and target not in applied:
        raise MigrationFileError(f"no applied migration is called {target!r}", hint="`status` lists them")
    return applied[: applied.index(target) + 1] if target else applied[:1]


def pending_migrations(directory: Path | None = None, database: Any = None) -> list[str]:
    """Return the names that ``migrate_db`` would apply, in their order. One query, no file opened."""
    return pending_and_interrupted(directory, database or DB)[0]


def pending_and_interrupted(directory: Path | None, database: Any, target: str | None = None) -> tuple[list[str], bool]:
    """Return those names, and whether a batch waits to be undone: the schema may be between two releases. One query."""
    states, interrupted = history.look(unwrap(database))
    return _up_to(target, _pending(history.done_in(states), _files(directory))), interrupted


def migration_parts(directory: Path | None, names: Sequence[str]) -> list[list[Migration]]:
    """Load *names* and return the parts in which they would run: ``atomic = False`` splits a batch."""
    return batch.parts_of(files.load_named(_files(directory), names))


@contextmanager
def connected(database: peewee.Database, deadline_s: float = 30.0) -> Iterator[None]:
    """Hold this thread's connection for the block, trying for *deadline_s* seconds to get one.

    Raises ``MigrationError`` inside an open transaction, ``DatabaseUnavailableError`` without a connection.
    """
    if database.in_transaction() or is_migrating(database):
        raise MigrationError(
            "a transaction is open on this connection, or a migration runs on it",
            hint="call it outside `with db.atomic():` and outside a migration",
        )
    opened = database.is_closed()
    get_db_connection(database, deadline_s=deadline_s)
    try:
        yield
    finally:
        if opened and not database.is_closed():
            database.close()


# What there is to run ------------------------------------------------------------------------------------------


def _files(directory: Path | None) -> list[MigrationFile]:
    return files.list_files(_folder(directory))


def _folder(directory: Path | None) -> Path:
    return Path(directory or VERSIONS)


def _pending(done: set[str], source: files.Source) -> list[str]:
    return [each.name for each in source if each.name not in done]


def _warn_of_odd_order(done: set[str], source: files.Source) -> None:
    known = {each.name for each in source}
    if done - known:
        log.warning("history has migrations without a file: is this an older release?", missing=sorted(done - known))
    newest = max(done & known, default="", key=files.order_of)
    late = sorted(name for name in known - done if files.order_of(name) < files.order_of(newest))
    if late:
        log.warning("pending migrations are numbered below the newest applied", late=late, newest=newest)


def _tell_parts(migrations: Sequence[Migration]) -> None:
    parts = batch.parts_of(migrations)
    if len(parts) > 1:
        names = [[migration.name for migration in part] for part in parts]
        log.warning("`atomic = False` splits the batch: each part commits by itself", parts=names)


def _up_to(target: str | None, pending: list[str]) -> list[str]:
    if target is None:
        return pending
    if target not in pending:
        raise MigrationFileError(f"no pending migration is called {target!r}", hint="`status` lists them")
    return pending[: pending.index(target) + 1]


if __name__ == "__main__":
    from api.db import cli

    raise SystemExit(cli.main())
