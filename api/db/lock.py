"""One migrator at a time: the engine's own lock, held by the connection that runs the statements.

A killed migrator needs no human: PostgreSQL frees the lock with the transaction, MySQL and MariaDB with the
session (and not before an orphaned statement has ended), SQLite with the file lock. The lock is polled, never
awaited inside the server: a blocking wait on PostgreSQL deadlocks with CREATE INDEX CONCURRENTLY.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import peewee
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.exceptions import MigrationLockError

log = structlog.get_logger(__name__)

POLL_S = 0.1
SAY_EVERY_S = 5.0
KEY = "plinth:migrate"


@contextmanager
def exclusive_transaction(database: peewee.Database, engine: Engine, timeout_s: float) -> Iterator[None]:
    """Hold the migration lock, inside one transaction where the engine can undo DDL.

    PostgreSQL: a transaction-level advisory lock, right behind PgBouncer too. SQLite: ``BEGIN IMMEDIATE``.
    MySQL and MariaDB: ``GET_LOCK`` and no transaction, since every DDL statement would commit it.
    Raises ``MigrationLockError`` after *timeout_s* seconds.
    """
    if engine == "postgres":
        with database.atomic():
            _poll(lambda: _ask(database, "SELECT pg_try_advisory_xact_lock(%s)", _number()), timeout_s)
            yield
    elif engine == "sqlite":
        transaction = database.atomic("IMMEDIATE")
        busy_timeout_ms = database.pragma("busy_timeout")
        database.pragma("busy_timeout", round(POLL_S * 1000))
        try:
            _poll(lambda: _begin(transaction), timeout_s)
        finally:
            database.pragma("busy_timeout", busy_timeout_ms)
        try:
            yield
        except BaseException as exc:
            transaction.__exit__(type(exc), exc, exc.__traceback__)
            raise
        else:
            transaction.__exit__(None, None, None)
    else:
        with _named_lock(database, timeout_s):
            yield


@contextmanager
def exclusive_session(database: peewee.Database, engine: Engine, timeout_s: float) -> Iterator[None]:
    """Hold the migration lock outside any transaction, for a migration with ``atomic = False``.

    The same lock as ``exclusive_transaction``, held by the session; on SQLite, which has none, a lock on a file beside
    the database's. Raises ``MigrationLockError`` after *timeout_s* seconds.
    """
    if engine == "postgres":
        with _session_lock(database, timeout_s):
            yield
    elif engine == "sqlite":
        with _locked_file(database, timeout_s):
            yield
    else:
        with _named_lock(database, timeout_s):
            yield


@contextmanager
def _session_lock(database: peewee.Database, timeout_s: float) -> Iterator[None]:
    _poll(lambda: _ask(database, "SELECT pg_try_advisory_lock(%s)", _number()), timeout_s)
    try:
        yield
    finally:
        # A BEGIN of the migration's own may still be open, or have failed.
        if not database.is_closed() and database.connection().get_transaction_status() != TRANSACTION_STATUS_IDLE:
            with suppress(peewee.PeeweeException):
                database.rollback()
        _release(database, "SELECT pg_advisory_unlock(%s)", _number())


@contextmanager
def _locked_file(database: peewee.Database, timeout_s: float) -> Iterator[None]:
    if database.database == ":memory:":
        yield
        return
    with Path(f"{database.database}-migrate").open("w") as file:
        _poll(lambda: _lock(file), timeout_s)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number() -> int:
    """Return the lock's key as the signed 64-bit number that PostgreSQL wants; it is local to a database there."""
    return int.from_bytes(hashlib.sha256(KEY.encode()).digest()[:8], signed=True)


@contextmanager
def _named_lock(database: peewee.Database, timeout_s: float) -> Iterator[None]:
    # GET_LOCK names are server-wide and 64 characters at most (MySQL error 4163): the database's name goes in hashed.
    name = "plinth:" + hashlib.sha256(str(database.database).lower().encode()).hexdigest()[:32]
    _poll(lambda: _ask(database, "SELECT GET_LOCK(%s, 0)", name), timeout_s)
    try:
        yield
    finally:
        _release(database, "SELECT RELEASE_LOCK(%s)", name)


def _ask(database: peewee.Database, sql: str, key: int | str) -> bool:
    return bool(database.execute_sql(sql, (key,)).fetchone()[0])


def _release(database: peewee.Database, sql: str, key: int | str) -> None:
    try:
        database.execute_sql(sql, (key,))
    except peewee.PeeweeException as exc:
        # The session is gone, and the lock with it: nothing to do, and the first error is the one to show.
        log.debug("migration lock ended with its connection", reason=str(exc))


def _begin(transaction: peewee._atomic) -> bool:
    try:
        transaction.__enter__()
    except peewee.OperationalError as exc:
        if classify(exc, "sqlite").category is Category.LOCK_TIMEOUT:
            return False
        raise
    return True


def _poll(acquire: Callable[[], bool], timeout_s: float) -> None:
    started = time.monotonic()
    said = -SAY_EVERY_S
    while not acquire():
        waited_s = time.monotonic() - started
        if waited_s >= timeout_s:
            raise MigrationLockError(
                f"another process held the migration lock for {waited_s:.0f} s; nothing more ran here"
            )
        if waited_s - said >= SAY_EVERY_S:
            said = waited_s
            log.warning("waiting for another process to finish migrating", waited_s=round(waited_s, 1))
        time.sleep(POLL_S)
