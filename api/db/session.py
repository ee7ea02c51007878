"""The session that migrates: how long it waits, how strict it is, whether its transaction stands, what it sent."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import peewee
import pymysql
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.rebuild import foreign_key_violations, refuse_new_violations
from api.exceptions import MigrationError

log = structlog.get_logger(__name__)

# Not counted when a failure says "at its 3rd statement": they change nothing.
READS = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:SELECT|SHOW|PRAGMA|EXPLAIN|DESCRIBE|DESC|SET|SAVEPOINT|RELEASE|ROLLBACK)\b",
    re.IGNORECASE | re.DOTALL,
)
# Modes in which a server reads our statements otherwise than they are written.
FOREIGN_MODES = frozenset({"ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ORACLE", "ANSI", "PIPES_AS_CONCAT"})


class TransactionEndedError(MigrationError):
    """The migration ended the batch's transaction by itself."""


class Mark:
    """What tells, after a transaction was ended by somebody else, whether it was committed; and its search path."""

    def __init__(self, database: peewee.Database, engine: Engine) -> None:
        self._database = database
        self._engine = engine

    def set(self, timeout_s: float) -> None:
        """Mark the transaction that is open, and bound how long its statements wait for a lock."""
        if self._engine == "postgres":
            sql = "SELECT txid_current(), current_setting('search_path'), set_config('lock_timeout', %s, true)"
            row = self._database.execute_sql(sql, (str(int(timeout_s * 1000)),)).fetchone()
            self._number, self._search_path, _ = row
        else:
            self._database.execute_sql("CREATE TEMP TABLE plinth_mark (id)")

    def restore(self) -> None:
        """Undo what would hide the history from us: a dump empties the search path for its session."""
        if self._engine == "postgres":
            self._database.execute_sql("SELECT set_config('search_path', %s, true)", (self._search_path,))
        else:
            self._database.execute_sql("DROP TABLE temp.plinth_mark")

    def was_committed(self, cause: BaseException) -> bool:
        """Say whether what led to *cause* was committed by the migration itself; asks the server only if it may be."""
        ended = isinstance(cause, TransactionEndedError) or (
            isinstance(cause, peewee.PeeweeException)
            and classify(cause, self._engine).category is Category.TRANSACTION_ENDED
        )
        return ended and self._stands()

    def _stands(self) -> bool:
        with suppress(peewee.PeeweeException):
            if self._engine == "postgres":
                answer = self._database.execute_sql("SELECT txid_status(%s)", (self._number,)).fetchone()
                return bool(answer[0] == "committed")
            self._database.execute_sql("DROP TABLE temp.plinth_mark")
            return True
        return False


@contextmanager
def bounded(database: peewee.Database, engine: Engine, timeout_s: float, transactional: bool) -> Iterator[Mark | None]:
    """Bound how long a statement waits for a lock; make MySQL strict; check SQLite's foreign keys at the end.

    Yields the mark of the transaction, ``None`` where there is none.
    """
    if engine in ("mysql", "mariadb"):
        with _strict_session(database, engine, timeout_s):
            yield None
        return
    if not transactional:
        yield None
        return
    mark = Mark(database, engine)
    mark.set(timeout_s)
    before = foreign_key_violations(database) if engine == "sqlite" else None
    yield mark
    if before is not None:
        refuse_new_violations(database, before)
    refuse_ended_transaction(database, engine)


@contextmanager
def _strict_session(database: peewee.Database, engine: Engine, timeout_s: float) -> Iterator[None]:
    # A server whose sql_mode is not strict cuts what does not fit, and turns NULL into '' or 0, without a word. At a
    # weaker isolation other sessions' rows slip in between the journal's look at the rows and the statement.
    isolation = "transaction_isolation" if engine == "mysql" else "tx_isolation"
    names = ("sql_mode", "lock_wait_timeout", "innodb_lock_wait_timeout", "sql_quote_show_create", isolation)
    before = database.execute_sql("SELECT " + ", ".join(f"@@SESSION.{name}" for name in names)).fetchone()
    seconds = max(1, round(timeout_s))
    modes = [mode for mode in before[0].split(",") if mode and mode not in FOREIGN_MODES]
    strict = ",".join(dict.fromkeys(["STRICT_ALL_TABLES", *modes]))
    assign = "SET SESSION " + ", ".join(f"{name} = %s" for name in names)
    database.execute_sql(assign, (strict, seconds, seconds, 1, "REPEATABLE-READ"))
    try:
        yield
    finally:
        # A lost session needs no restoring, and its error must not hide the first one.
        with suppress(peewee.PeeweeException):
            database.execute_sql(assign, before)


def _refuse_open_transaction(database: peewee.Database, depth: int) -> None:
    """Raise when the migration left open what it had begun: more transactions than *depth*, which are forgotten."""
    left_open = database.transaction_depth() - depth
    for _ in range(left_open):
        database.pop_transaction()
    if left_open > 0:
        raise MigrationError(
            "the migration left a transaction open", hint="use `with db.atomic():` instead of session_start()"
        )


def refuse_ended_transaction(database: peewee.Database, engine: Engine) -> None:
    """Raise when the migration swallowed an error, or committed by itself: COMMIT would then be a silent ROLLBACK."""
    connection = database.connection()
    if engine == "sqlite":
        ended, swallowed = not connection.in_transaction, False
    else:
        status = connection.get_transaction_status()
        ended, swallowed = status == TRANSACTION_STATUS_IDLE, status == TRANSACTION_STATUS_INERROR
    if swallowed:
        raise MigrationError(
            "a statement failed and its error was swallowed: PostgreSQL would undo all of it at COMMIT",
            hint="let the error out, or put the statement into its own `with db.atomic():`",
        )
    if ended:
        raise TransactionEndedError(
            "the migration ended the batch's transaction by itself",
            hint="leave COMMIT and ROLLBACK out, or set `atomic = False` in the file",
        )


def call_migration(
    function: Callable[..., Any],
    migrator: Any,
    database: peewee.Database,
    engine: Engine,
    statements: Statements,
    transactional: bool,
) -> None:
    """Call a migration's *function*, and note in *statements* what it raised. Raises when it left a transaction odd."""
    depth = database.transaction_depth()
    try:
        function(migrator, database)
        _refuse_open_transaction(database, depth)
        if transactional:
            refuse_ended_transaction(database, engine)
    except SystemExit as exc:
        error = MigrationError(f"the migration called sys.exit({exc.code!r})", hint="raise an error instead")
        statements.end(error)
        raise error from exc
    except (Exception, KeyboardInterrupt) as exc:
        statements.end(exc)
        raise


class Statements:
    """What this thread sent since the migration began. Other threads' statements are not counted.

    *number* counts what changes something, *failed* is the statement that failed, *cause* what the migration raised.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.started = time.monotonic()
        self.number = 0
        self.failed: str | None = None
        self.cause: BaseException | None = None
        self._error: BaseException | None = None

    def __call__(self, event: Any) -> None:
        """Note one of peewee's query events."""
        if threading.get_ident() != self.thread or self.cause is not None:
            return
        if event.exception is not None or not READS.match(event.sql):
            self.number += 1
            self.failed, self._error = event.sql, event.exception

    def end(self, cause: BaseException) -> None:
        """Note that the migration raised *cause*; what is sent from now on is the rollback's, not its own."""
        self.cause = cause
        chain: BaseException | None = cause
        while chain is not None and chain is not self._error:
            chain = chain.__cause__
        if chain is None or self._error is None:
            self.failed = None

    def elapsed_ms(self) -> int:
        """Return the milliseconds since the migration began."""
        return ms_since(self.started)


def is_migrating(database: peewee.Database) -> bool:
    """Say whether this thread runs a migration on *database* just now."""
    hooks = [hook for hook in database.query_hooks if isinstance(hook, Statements)]
    return any(hook.thread == threading.get_ident() for hook in hooks)


@contextmanager
def watch(database: peewee.Database) -> Iterator[Statements]:
    """Note what this thread sends to *database* during the block."""
    statements = Statements()
    database.query_hooks.append(statements)
    try:
        yield statements
    finally:
        database.query_hooks.remove(statements)


def hang_up(database: peewee.Database) -> None:
    """Close this thread's connection, lost as it may be, whatever transaction peewee believes to be open.

    A pool does not get it back: what the migration set in that session would meet the next borrower.
    """
    while database.transaction_depth():
        database.pop_transaction()
    # The migration may have closed the driver's connection by itself, which closes only once.
    with suppress(peewee.PeeweeException, pymysql.err.Error):
        getattr(database, "manual_close", database.close)()


def on_a_working_connection(
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


def ms_since(started: float) -> int:
    """Return the milliseconds since *started*, a reading of ``time.monotonic``."""
    return round((time.monotonic() - started) * 1000)
