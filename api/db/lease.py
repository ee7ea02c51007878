"""Who migrates, as others can read it: the lease row, its token, the progress, and on MySQL and MariaDB a heartbeat.

The lease alone excludes nobody; ``lock`` adds the engine's own lock as the fence. *token* grows by one at each taking:
who still writes with an older one has been replaced. On SQLite there is no table: ``lock`` keeps the same in a file.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import peewee
import pymysql
import structlog
from playhouse.pool import PooledDatabase

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify

log = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0
STALE_S = 15
# What two takings at once do to each other: not acquired, and no more than that.
CONTENDED = frozenset({Category.DEADLOCK, Category.LOCK_TIMEOUT})

Run = Callable[..., Any]
"""Sends (sql, parameters) on one connection, and returns the cursor: ``execute_sql``, or a bare connection's."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that migrates: who, *since* when (UTC, the server's clock), and at which migration of how many."""

    host: str
    pid: int
    run_by: str
    since: dt.datetime
    migration: str | None = None
    number: int = 0
    total: int = 0

    def __str__(self) -> str:
        text = f"host {self.host}, pid {self.pid}, since {self.since:%H:%M:%S}"
        return text + (f", at {self.migration} ({self.number} of {self.total})" if self.migration else "")


@dataclass(slots=True)
class Lease:
    """The right to migrate, as ``lock.migrating`` gives it. *lock_name* is GET_LOCK's, empty on other engines."""

    holder: Holder
    tell: Callable[[Holder], None]
    check: Callable[[], bool]
    token: int = 0
    lock_name: str = ""

    def at(self, migration: str, number: int) -> None:
        """Let waiters know that *migration*, the *number*-th of all, runs now. At most one round trip."""
        self.holder = replace(self.holder, migration=migration, number=number)
        self.tell(self.holder)

    def holds(self) -> bool:
        """Ask the server whether the lease and its fence are still ours."""
        return self.check()

    @property
    def condition(self) -> tuple[str, tuple[Any, ...]]:
        """A SQL condition, with its parameters, that holds only while the lease and its fence are ours.

        Inside a transaction on MySQL and MariaDB it locks the lease row against another taking; the heartbeat has a
        row of its own, and goes on.
        """
        conditions: list[str] = []
        parameters: list[Any] = []
        if self.lock_name:
            conditions.append("IS_USED_LOCK(%s) = CONNECTION_ID()")
            parameters.append(self.lock_name)
        if self.token:
            conditions.append("EXISTS (SELECT 1 FROM migration_lease WHERE id = 1 AND token = %s)")
            parameters.append(self.token)
        return " AND ".join(conditions) or "1 = 1", tuple(parameters)


def this_process(total: int) -> Holder:
    """Return this process as the holder of a batch of *total* migrations; *since* is now."""
    since = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    return Holder(socket.gethostname()[:255], os.getpid(), user_name()[:255], since, total=total)


def user_name() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container's user id without a name


def dial(database: peewee.Database) -> Any:
    """Return a driver connection of its own to where *database* leads, past its pool. Raises the driver's errors."""
    # The pool's _connect counts, and lends idle ones; what stands behind it in the bases really connects.
    behind: Any = super(PooledDatabase, database) if isinstance(database, PooledDatabase) else database
    return behind._connect()


def sender(connection: Any) -> Run:
    """Return what sends on the driver's *connection* as ``execute_sql`` does on a database, with peewee's errors."""

    def run(sql: str, parameters: Sequence[Any] = ()) -> Any:
        with peewee.__exception_wrapper__:
            cursor = connection.cursor()
            cursor.execute(sql, tuple(parameters) or None)
            return cursor

    return run


# The tables ----------------------------------------------------------------------------------------------------

# `session` is the number of the holder's connection on MySQL and MariaDB.
COLUMNS = (
    "id SMALLINT PRIMARY KEY, token BIGINT NOT NULL, host VARCHAR(255), pid BIGINT, run_by VARCHAR(255), "
    "since {time}, total INTEGER, session BIGINT"
)
# Not in the lease row: a transaction of the holder's that checks the token keeps that row locked while it is open.
HEARTBEAT_COLUMNS = (
    "id SMALLINT PRIMARY KEY, token BIGINT NOT NULL, heartbeat_at {time}, migration VARCHAR(255), number INTEGER"
)
CREATIONS: dict[bool, tuple[str, ...]] = {
    # Sent at once, they are one transaction: who finds the table finds the row.
    True: (
        f"CREATE TABLE IF NOT EXISTS migration_lease ({COLUMNS.format(time='TIMESTAMP')}); "
        "INSERT INTO migration_lease (id, token) VALUES (1, 0) ON CONFLICT DO NOTHING",
    ),
    False: (
        f"CREATE TABLE IF NOT EXISTS migration_lease ({COLUMNS.format(time='DATETIME(6)')}) "
        "ENGINE=InnoDB CHARACTER SET utf8mb4",
        f"CREATE TABLE IF NOT EXISTS migration_heartbeat ({HEARTBEAT_COLUMNS.format(time='DATETIME(6)')}) "
        "ENGINE=InnoDB CHARACTER SET utf8mb4",
        "INSERT IGNORE INTO migration_heartbeat (id, token) VALUES (1, 0)",
        "INSERT IGNORE INTO migration_lease (id, token) VALUES (1, 0)",
    ),
}


def create_tables(run: Run, engine: Engine) -> None:
    """Create what is missing of the lease's tables and their one row. Others may do the same at this moment."""
    if has_row(run, engine):
        return
    try:
        for sql in CREATIONS[engine == "postgres"]:
            run(sql)
    except peewee.PeeweeException:
        # CREATE TABLE IF NOT EXISTS races on PostgreSQL (42P07, 23505, XX000): what counts is the outcome.
        if not has_row(run, engine):
            raise


def has_row(run: Run, engine: Engine) -> bool:
    """Say whether the lease's table and its row are there."""
    try:
        return run("SELECT 1 FROM migration_lease WHERE id = 1").fetchone() is not None
    except peewee.PeeweeException as exc:
        if classify(exc, engine).category is Category.MISSING_TABLE:
            return False
        raise


def clear(run: Run, token: int) -> None:
    """Say that nobody migrates, unless somebody has taken the lease meanwhile. The token stays."""
    try:
        run("UPDATE migration_lease SET host = NULL WHERE id = 1 AND token = %s", (token,))
    except peewee.PeeweeException as exc:
        # The connection is lost. The row outlives us, and is shown only while somebody else holds the lock.
        log.debug("the lease was not cleared", reason=str(exc))


# PostgreSQL ----------------------------------------------------------------------------------------------------

# Within a transaction its row changes are nobody's to see; the name that its session goes by is.
PROGRESS = re.compile(r"plinth (\d+)/\d+ (.*)")
# NAMEDATALEN: 63 bytes, and anything but ASCII becomes a question mark.
NAME_BYTES = 63
# No limit of the role's may end a long migration; a client that is gone is noticed, in a long statement too.
FENCE_SETTINGS = {
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


def announce(run: Run, mine: Holder, key: int) -> int | None:
    """Take the lease on PostgreSQL if the advisory lock *key* is free, and return the token; commits by itself.

    This does not hold the lock: ``fence`` does, in the transaction that follows.
    """
    sql = (
        "UPDATE migration_lease SET token = token + 1, host = %s, pid = %s, run_by = %s, total = %s, "
        "since = clock_timestamp() AT TIME ZONE 'UTC' WHERE pg_try_advisory_xact_lock(%s) "
        "AND id IN (SELECT id FROM migration_lease WHERE id = 1 FOR UPDATE SKIP LOCKED) RETURNING token"
    )
    try:
        row = run(sql, (mine.host, mine.pid, mine.run_by, mine.total, key)).fetchone()
    except peewee.PeeweeException as exc:
        if classify(exc, "postgres").category in CONTENDED:
            return None
        raise
    return row[0] if row else None


def fence(run: Run, token: int, key: int) -> bool:
    """Hold the advisory lock *key* and the lease row until the open transaction ends; False if *token* is outdated."""
    sql = (
        "SELECT token FROM migration_lease WHERE id = 1 AND token = %s AND pg_try_advisory_xact_lock(%s) "
        "FOR UPDATE SKIP LOCKED"
    )
    if run(sql, (token, key)).fetchone() is None:
        return False
    # Joined, because an older server does not know them all.
    values = ", ".join(["(%s, %s)"] * len(FENCE_SETTINGS))
    sql = f"SELECT set_config(name, wanted, true) FROM (VALUES {values}) w (name, wanted) JOIN pg_settings USING (name)"
    run(sql, [each for pair in FENCE_SETTINGS.items() for each in pair])
    return True


def tell_by_name(run: Run, holder: Holder) -> None:
    """Show the progress as the name of this session, until the transaction ends."""
    text = f"plinth {holder.number}/{holder.total} {holder.migration}"
    run("SELECT set_config('application_name', %s, true)", (text[:NAME_BYTES],))


def read_by_lock(run: Run, key: int) -> Holder | None:
    """Return who holds the advisory lock *key* on PostgreSQL, with its progress where the server shows us that."""
    sql = (
        "SELECT host, lease.pid, run_by, since, total, "
        "(SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
        "AND granted AND classid::bigint = %s AND objid::bigint = %s AND objsubid = 1 "
        "AND datname = current_database() LIMIT 1) FROM migration_lease AS lease WHERE id = 1 AND host IS NOT NULL"
    )
    row = run(sql, (key >> 32 & 0xFFFFFFFF, key & 0xFFFFFFFF)).fetchone()
    if row is None:
        return None
    host, pid, run_by, since, total, name = row
    found = PROGRESS.fullmatch(name or "")
    return Holder(host, pid, run_by, since, found and found[2], int(found[1]) if found else 0, total)


# MySQL and MariaDB ---------------------------------------------------------------------------------------------


# The taking itself counts as a sign of life: the heartbeat comes after it.
ALIVE = "GREATEST(l.since, COALESCE(h.heartbeat_at, l.since)) > UTC_TIMESTAMP(6) - INTERVAL %s SECOND"


def take(run: Run, mine: Holder, *, cluster: bool) -> int | None:
    """Take the lease under GET_LOCK and return the token; ``None`` when another was quicker.

    *cluster*: GET_LOCK excludes on this node only (Galera), so who gave a sign of life elsewhere is left alone.
    """
    sql = (
        f"SELECT l.token, host IS NOT NULL AND {ALIVE} "
        "FROM migration_lease l LEFT JOIN migration_heartbeat h USING (token) WHERE l.id = 1"
    )
    token, is_alive = run(sql, (STALE_S,)).fetchone()
    if cluster and is_alive:
        return None
    sql = (
        "UPDATE migration_lease SET token = token + 1, host = %s, pid = %s, run_by = %s, total = %s, "
        "since = UTC_TIMESTAMP(6), session = CONNECTION_ID() WHERE id = 1 AND token = %s"
    )
    try:
        taken = run(sql, (mine.host, mine.pid, mine.run_by, mine.total, token)).rowcount == 1
        if taken:
            run(
                "REPLACE INTO migration_heartbeat (id, token, heartbeat_at) VALUES (1, %s, UTC_TIMESTAMP(6))",
                (token + 1,),
            )
    except peewee.PeeweeException as exc:
        if classify(exc, "mysql").category not in CONTENDED:
            raise
        taken = False
    return token + 1 if taken else None


def read_by_row(run: Run) -> Holder | None:
    """Return whom the lease row of MySQL or MariaDB names, with the progress of the heartbeat."""
    sql = (
        "SELECT host, pid, run_by, since, migration, COALESCE(number, 0), total "
        "FROM migration_lease l LEFT JOIN migration_heartbeat h USING (token) WHERE l.id = 1 AND host IS NOT NULL"
    )
    row = run(sql).fetchone()
    return Holder(*row) if row else None


# MySQL's information_schema.processlist fails as a whole (error 3854) while any session runs an emoji (MySQL 9.7).
SESSIONS: dict[str, str] = {"mysql": "performance_schema.processlist", "mariadb": "information_schema.processlist"}


def end_frozen(run: Run, engine: Engine, lock_name: str) -> None:
    """End the session that holds GET_LOCK *lock_name* if it is idle and its process gave no sign of life of late.

    Its process is frozen, or its host is gone without a word. A session with a statement running is left alone: the
    statement ends by itself, and only then is the schema at rest.
    """
    sql = (
        f"SELECT p.id FROM {SESSIONS[engine]} p "
        "WHERE p.id = IS_USED_LOCK(%s) AND p.command = 'Sleep' AND p.time >= %s AND NOT EXISTS ("
        "SELECT 1 FROM migration_lease l LEFT JOIN migration_heartbeat h USING (token) "
        f"WHERE l.session = p.id AND {ALIVE})"
    )
    row = run(sql, (lock_name, STALE_S, STALE_S)).fetchone()
    if row is None:
        return
    log.warning("the process that migrates gives no sign of life: ending its session", session=row[0], after_s=STALE_S)
    # 1094: it has ended by itself meanwhile.
    with suppress(peewee.OperationalError):
        run("KILL %s", (row[0],))


class Heartbeat:
    """Says every second that this process lives, and how far it is, over a connection of its own."""

    def __init__(self, database: peewee.Database, token: int) -> None:
        self._database = database
        self._token = token
        self._progress: tuple[str | None, int] = (None, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="migration-heartbeat", daemon=True)
        self._thread.start()

    def tell(self, holder: Holder) -> None:
        """Let waiters know the progress with the next beat: a write for each migration would cost it a flush."""
        self._progress = (holder.migration, holder.number)

    def end(self) -> None:
        """Stop. A server that does not answer keeps the thread, but not the caller for long."""
        self._ended.set()
        self._thread.join(STALE_S)

    def _beat(self) -> None:
        # Who took the lease has just given a sign of life; many find nothing to do and are gone before the next.
        self._ended.wait(HEARTBEAT_S)
        while not self._ended.is_set():
            try:
                with closing(dial(self._database)) as connection:
                    self._beat_on(sender(connection))
            except (peewee.PeeweeException, pymysql.MySQLError, OSError) as exc:
                # A second connection cannot be had. Idle for STALE_S seconds, we would be taken for dead.
                log.warning("the heartbeat of the migration was not written", reason=str(exc))
                self._ended.wait(HEARTBEAT_S)

    def _beat_on(self, run: Run) -> None:
        sql = (
            "UPDATE migration_heartbeat SET heartbeat_at = UTC_TIMESTAMP(6), migration = %s, number = %s "
            "WHERE id = 1 AND token = %s"
        )
        while not self._ended.is_set():
            run(sql, (*self._progress, self._token))
            self._ended.wait(HEARTBEAT_S)
