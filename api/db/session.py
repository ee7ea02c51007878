"""The session that migrates: how long it waits, how strict it is, whether its transaction stands, what it sent."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import peewee

from api.db.dialects.engine import Engine
from api.db.rebuild import foreign_key_violations, refuse_new_violations
from api.exceptions import MigrationError

# Not counted when a failure says "at its 3rd statement": they change nothing.
READS = re.compile(r"\s*(SELECT|SHOW|PRAGMA|EXPLAIN|DESCRIBE|DESC|SET|SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)


@contextmanager
def bounded(database: peewee.Database, engine: Engine, timeout_s: float, transactional: bool) -> Iterator[None]:
    """Bound how long a statement waits for a lock; make MySQL strict; check SQLite's foreign keys at the end."""
    if engine == "postgres" and transactional:
        database.execute_sql(f"SET LOCAL lock_timeout = {int(timeout_s * 1000)}")
        yield
        refuse_ended_transaction(database, engine)
    elif engine == "sqlite" and transactional:
        before = foreign_key_violations(database)
        yield
        refuse_new_violations(database, before)
    elif engine in ("mysql", "mariadb"):
        with _strict_session(database, timeout_s):
            yield
    else:
        yield


@contextmanager
def _strict_session(database: peewee.Database, timeout_s: float) -> Iterator[None]:
    # A server whose sql_mode is not strict cuts what does not fit, and turns NULL into '' or 0, without a word.
    names = ("sql_mode", "lock_wait_timeout", "innodb_lock_wait_timeout")
    before = database.execute_sql("SELECT " + ", ".join(f"@@SESSION.{name}" for name in names)).fetchone()
    seconds = max(1, round(timeout_s))
    strict = before[0] if "STRICT_ALL_TABLES" in before[0] else f"STRICT_ALL_TABLES,{before[0]}".strip(",")
    assign = "SET SESSION " + ", ".join(f"{name} = %s" for name in names)
    database.execute_sql(assign, (strict, seconds, seconds))
    try:
        yield
    finally:
        # A lost session needs no restoring, and its error must not hide the first one.
        with suppress(peewee.OperationalError, peewee.InterfaceError):
            database.execute_sql(assign, before)


def refuse_ended_transaction(database: peewee.Database, engine: Engine) -> None:
    """Raise when the migration swallowed an error, or committed by itself: COMMIT would then be a silent ROLLBACK."""
    connection = database.connection()
    if engine == "sqlite":
        ended, swallowed = not connection.in_transaction, False
    else:
        status = connection.get_transaction_status()
        idle, in_error = 0, 3  # libpq: PQTRANS_IDLE, PQTRANS_INERROR (PostgreSQL manual, 34.2)
        ended, swallowed = status == idle, status == in_error
    if swallowed:
        raise MigrationError(
            "a statement failed and its error was swallowed: PostgreSQL would undo all of it at COMMIT",
            hint="let the error out, or put the statement into its own `with db.atomic():`",
        )
    if ended:
        raise MigrationError(
            "the migration ended the batch's transaction by itself",
            hint="leave COMMIT and ROLLBACK out, or set `atomic = False` in the file",
        )


class Statements:
    """What this thread sent since the migration began. Other threads' statements are not counted.

    *number* counts what changes something, *failed* is the statement that failed, *cause* what the migration raised.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.started = time.monotonic()
        self.number = 0
        self.failed: str | None = None
        self.cause: Exception | None = None

    def __call__(self, event: Any) -> None:
        """Note one of peewee's query events."""
        if threading.get_ident() != self.thread:
            return
        failed = event.exception is not None
        if failed or not READS.match(event.sql):
            self.number += 1
            self.failed = event.sql if failed else None

    def elapsed_ms(self) -> int:
        """Return the milliseconds since the migration began."""
        return ms_since(self.started)


@contextmanager
def watch(database: peewee.Database) -> Iterator[Statements]:
    """Note what this thread sends to *database* during the block."""
    statements = Statements()
    database.query_hooks.append(statements)
    try:
        yield statements
    finally:
        database.query_hooks.remove(statements)


def ms_since(started: float) -> int:
    """Return the milliseconds since *started*, a reading of ``time.monotonic``."""
    return round((time.monotonic() - started) * 1000)
