"""One migrator at a time: the lease says who, and the engine's own lock, on the connection that migrates, is the fence.

A killed migrator needs no human: PostgreSQL frees the lock with the transaction, MySQL and MariaDB with the
session (and not before an orphaned statement has ended), SQLite with the file. The lock is polled, never
awaited inside the server: a blocking wait on PostgreSQL deadlocks with CREATE INDEX CONCURRENTLY.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import peewee
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from api.db import lease, lock_file
from api.db.dialects.categories import TRAITS, Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.lease import Heartbeat, Holder, Lease, Run
from api.exceptions import MigrationError, MigrationLockError

log = structlog.get_logger(__name__)

T = TypeVar("T")
POLL_S = 0.1
SAY_EVERY_S = 5.0
KEY = "plinth:migrate"
UNKNOWN_VARIABLE = 1193
NUMBER = int.from_bytes(hashlib.sha256(KEY.encode()).digest()[:8], signed=True)
"""The lock's key as the signed 64-bit number that PostgreSQL wants; it is local to a database there."""


@contextmanager
def migrating(
    database: peewee.Database, engine: Engine, timeout_s: float, total: int, transactional: bool
) -> Iterator[Lease]:
    """Hold the migration lock for a batch of *total* migrations, or for a part of it.

    *transactional* opens one transaction around the block where the engine can undo DDL: PostgreSQL (always READ
    COMMITTED: who waited must see what the other did) and SQLite (``BEGIN IMMEDIATE``). Without it, and on MySQL and
    MariaDB always, the block runs outside. Raises ``MigrationLockError`` when somebody else migrates for *timeout_s*
    seconds, and when the lock turns out at the end to have been lost.
    """
    waiting = _Waiting(timeout_s)
    mine = lease.this_process(total)
    if engine == "sqlite":
        held = _on_sqlite(database, waiting, mine, transactional)
    elif engine != "postgres":
        held = _on_mysql(database, engine, waiting, mine)
    elif transactional:
        held = _on_postgres(database, waiting, mine)
    else:
        held = _beside_postgres(database, waiting, mine)
    with held as got:
        yield got
        if not got.holds():
            raise MigrationLockError(
                "the migration lock was lost while the migration ran; another process may have migrated as well",
                hint="look at what both did: `history` names the hosts; then run `status`",
            )


def refuse_read_only(database: peewee.Database, engine: Engine) -> None:
    """Raise ``MigrationError`` when the server, the session or the file takes no writes: one query, changes nothing.

    A replica is refused to an administrator too, whom MySQL would let write there.
    """
    reason = {"sqlite": _sqlite_is_read_only, "postgres": _postgres_is_read_only}.get(engine, _mysql_is_read_only)(
        database
    )
    if reason:
        raise MigrationError(
            f"nothing ran: the database is read-only ({reason})", hint=TRAITS[Category.READ_ONLY_SERVER].remedy
        )


def _postgres_is_read_only(database: peewee.Database) -> str | None:
    standby, read_only = database.execute_sql(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
    ).fetchone()
    return "it is a standby" if standby else "transaction_read_only is on" if read_only == "on" else None


def _mysql_is_read_only(database: peewee.Database) -> str | None:
    # Not @@name: MariaDB knows no super_read_only (error 1193), and has more than ON and OFF for read_only since 11.8.
    sql = (
        "SHOW VARIABLES WHERE Variable_name IN "
        "('super_read_only', 'read_only', 'innodb_read_only', 'transaction_read_only', 'tx_read_only')"
    )
    on = [name for name, value in database.execute_sql(sql).fetchall() if value.upper() not in ("OFF", "0")]
    return f"{', '.join(sorted(on))} is on" if on else None


def _sqlite_is_read_only(database: peewee.Database) -> str | None:
    if database.pragma("query_only"):
        return "PRAGMA query_only is on"
    busy_timeout_ms = database.pragma("busy_timeout")
    database.pragma("busy_timeout", 0)
    try:
        # BEGIN IMMEDIATE succeeds on a file that may only be read (SQLite 3.40); a write does not.
        database.execute_sql("BEGIN")
        try:
            database.pragma("user_version", database.pragma("user_version"))
        finally:
            database.execute_sql("ROLLBACK")
    except peewee.OperationalError as exc:
        found = classify(exc, "sqlite")
        return found.server_message if found.category is Category.READ_ONLY_SERVER else None
    finally:
        database.pragma("busy_timeout", busy_timeout_ms)
    return None


# Waiting -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Waiting:
    """The patience for one lock: how long in all, and when it was last said whom we wait for."""

    timeout_s: float
    started: float = field(default_factory=time.monotonic)
    said_s: float = -SAY_EVERY_S

    def until(
        self, acquire: Callable[[], T | None], look: Callable[[], Holder | None], lock: str = "the migration lock"
    ) -> T:
        """Call *acquire* until it returns something; tell every few seconds, and at the end, whom *look* sees."""
        while (got := acquire()) is None:
            waited_s = time.monotonic() - self.started
            if waited_s >= self.timeout_s:
                raise MigrationLockError(
                    f"{look() or 'another process'} held {lock} for {waited_s:.0f} s; nothing more ran here"
                )
            if waited_s - self.said_s >= SAY_EVERY_S:
                self.said_s = waited_s
                holder = look()
                facts = {f"holder_{name}": value for name, value in lock_file.facts(holder).items()} if holder else {}
                log.warning(
                    "waiting for another process to finish migrating",
                    holder=str(holder) if holder else None,
                    waited_s=round(waited_s, 1),
                    **facts,
                )
            time.sleep(POLL_S)
        return got


# PostgreSQL ----------------------------------------------------------------------------------------------------


@contextmanager
def _on_postgres(database: peewee.Database, waiting: _Waiting, mine: Holder) -> Iterator[Lease]:
    run = database.execute_sql
    with _fenced(run, run, lambda: database.atomic("READ COMMITTED"), waiting, mine) as token:
        # The transaction is the fence: without it nothing can be committed.
        yield Lease(mine, lambda holder: lease.tell_by_name(run, holder), lambda: True, token)


@contextmanager
def _beside_postgres(database: peewee.Database, waiting: _Waiting, mine: Holder) -> Iterator[Lease]:
    """Hold the lock in an idle transaction of a second connection: a session's lock excludes nobody behind PgBouncer.

    It is READ COMMITTED and so keeps no snapshot: CREATE INDEX CONCURRENTLY would wait for one for ever.
    """
    with peewee.__exception_wrapper__:
        connection = lease.dial(database)
    with closing(connection):
        run = lease.sender(connection)
        with _fenced(database.execute_sql, run, lambda: _transaction(run), waiting, mine) as token:
            try:
                yield Lease(mine, lambda holder: lease.tell_by_name(run, holder), lambda: _answers(run), token)
            finally:
                _end_transaction(database)


@contextmanager
def _fenced(
    run: Run, fence_run: Run, begin: Callable[[], AbstractContextManager[object]], waiting: _Waiting, mine: Holder
) -> Iterator[int]:
    lease.create_tables(run, "postgres")
    token = 0
    try:
        with ExitStack() as held:

            def acquire() -> int | None:
                nonlocal token
                announced = lease.announce(run, mine, NUMBER)
                if announced is None:
                    return None
                token = announced
                with ExitStack() as attempt:
                    attempt.enter_context(begin())
                    if not lease.fence(fence_run, token, NUMBER):
                        return None
                    held.enter_context(attempt.pop_all())
                return token

            yield waiting.until(acquire, lambda: lease.read_by_lock(run, NUMBER))
    finally:
        lease.clear(fence_run, token)


@contextmanager
def _transaction(run: Run) -> Iterator[None]:
    run("BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        yield
    finally:
        # Whatever became of the block, this transaction only held a lock. A lost connection has ended it.
        with suppress(peewee.PeeweeException):
            run("ROLLBACK")


def _end_transaction(database: peewee.Database) -> None:
    # A BEGIN of the migration's own may still be open, or have failed.
    if not database.is_closed() and database.connection().get_transaction_status() != TRANSACTION_STATUS_IDLE:
        with suppress(peewee.PeeweeException):
            database.rollback()


def _answers(run: Run) -> bool:
    try:
        run("SELECT 1")
    except peewee.PeeweeException:
        return False
    return True


# MySQL and MariaDB ---------------------------------------------------------------------------------------------


@contextmanager
def _on_mysql(database: peewee.Database, engine: Engine, waiting: _Waiting, mine: Holder) -> Iterator[Lease]:
    run = database.execute_sql
    # GET_LOCK names are server-wide and 64 characters at most (MySQL error 4163): the database's name goes in hashed.
    name = "plinth:" + hashlib.sha256(str(database.database).lower().encode()).hexdigest()[:32]
    cluster = _is_in_cluster(run, engine)
    # An earlier part may have switched it off: nobody would see the lease.
    run("SET SESSION autocommit = 1")

    def look() -> Holder | None:
        if not lease.has_row(run, engine):
            return None
        lease.end_frozen(run, engine, name)
        return lease.read_by_row(run)

    with _in_step(run) if cluster else nullcontext():
        token = waiting.until(lambda: _acquire(run, name, mine, cluster), look)
        heartbeat = Heartbeat(database, token)
        got = Lease(mine, heartbeat.tell, lambda: _is_true(run, *got.condition), token, name)
        try:
            yield got
        finally:
            heartbeat.end()
            lease.clear(run, token)
            _release(run, name)


def _is_in_cluster(run: Run, engine: Engine) -> bool:
    try:
        return bool(run("SELECT @@SESSION.wsrep_on").fetchone()[0])
    except peewee.PeeweeException as exc:
        if classify(exc, engine).code == UNKNOWN_VARIABLE:
            return False
        raise


@contextmanager
def _in_step(run: Run) -> Iterator[None]:
    """Let each statement wait until this node of a Galera cluster has applied what the others have committed."""
    (before,) = run("SELECT @@SESSION.wsrep_sync_wait").fetchone()
    run("SET SESSION wsrep_sync_wait = 15")
    try:
        yield
    finally:
        with suppress(peewee.PeeweeException):
            run("SET SESSION wsrep_sync_wait = %s", (before,))


def _acquire(run: Run, name: str, mine: Holder, cluster: bool) -> int | None:
    if run("SELECT GET_LOCK(%s, 0)", (name,)).fetchone()[0] != 1:
        return None
    token = None
    try:
        lease.create_tables(run, "mysql")
        token = lease.take(run, mine, cluster=cluster)
    finally:
        if token is None:
            _release(run, name)
    return token


def _is_true(run: Run, condition: str, parameters: tuple[object, ...]) -> bool:
    try:
        return bool(run(f"SELECT {condition}", parameters).fetchone()[0])
    except peewee.PeeweeException:
        return False


def _release(run: Run, name: str) -> None:
    try:
        run("SELECT RELEASE_LOCK(%s)", (name,))
    except peewee.PeeweeException as exc:
        # The session is gone, and the lock with it: nothing to do, and the first error is the one to show.
        log.debug("migration lock ended with its connection", reason=str(exc))


# SQLite --------------------------------------------------------------------------------------------------------


@contextmanager
def _on_sqlite(database: peewee.Database, waiting: _Waiting, mine: Holder, transactional: bool) -> Iterator[Lease]:
    _, _, path = database.execute_sql("PRAGMA database_list").fetchone()
    with ExitStack() as held:
        got = Lease(mine, lambda holder: None, lambda: True)
        if path:
            file = held.enter_context(_locked_file(f"{path}-migrate", waiting))
            got.tell = lambda holder: lock_file.write_holder(file, holder)
            got.tell(mine)
        if transactional:
            held.enter_context(_immediate(database, waiting))
        yield got


@contextmanager
def _locked_file(path: str, waiting: _Waiting) -> Iterator[int]:
    """Lock the file at *path*, made for it and removed afterwards; yields its descriptor."""
    try:
        file = waiting.until(lambda: lock_file.take(path), lambda: lock_file.read_holder(path))
    except OSError as exc:
        raise lock_file.refusal(path, exc) from exc
    try:
        yield file
    finally:
        # Removed while it is locked: who has opened it meanwhile sees that, and opens the next one.
        with suppress(OSError):
            os.unlink(path)
        os.close(file)


@contextmanager
def _immediate(database: peewee.Database, waiting: _Waiting) -> Iterator[None]:
    busy_timeout_ms = database.pragma("busy_timeout")
    database.pragma("busy_timeout", round(POLL_S * 1000))
    try:
        transaction = waiting.until(lambda: _begin(database), lambda: None, "the file's write lock")
    finally:
        database.pragma("busy_timeout", busy_timeout_ms)
    with transaction:
        yield


def _begin(database: peewee.Database) -> AbstractContextManager[object] | None:
    begun = ExitStack()
    try:
        begun.enter_context(database.atomic("IMMEDIATE"))
    except peewee.OperationalError as exc:
        if classify(exc, "sqlite").category is Category.LOCK_TIMEOUT:
            return None
        raise
    return begun
