"""The database as the app holds it: ``DB``, what a URL opens, and connecting with patience.

Nothing connects or starts a thread at import; the app binds ``DB`` with ``DB.initialize(open_database(url))``.
"""

from __future__ import annotations

import inspect
import random
import re
import time
import weakref
from typing import Any
from urllib.parse import unquote, urlsplit

import peewee
import psycopg2
import structlog
from playhouse import db_url
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase, PooledSqliteDatabase
from psycopg2.extensions import TRANSACTION_STATUS_INERROR, make_dsn
from pymysql.connections import Connection as PyMySQLConnection

from api.db.dialects.answering import (
    is_lost,
    libpq,
    mysql_is_clean,
    mysql_is_rolled_back,
    mysql_runs,
    postgres_is_clean,
    postgres_runs,
)
from api.db.dialects.connecting import (
    ConnectFailure,
    MySQLServer,
    SqliteFile,
    connect_failure,
    host_and_port,
    underlying,
)
from api.db.dialects.engine import engine_of, unwrap
from api.db.dialects.green import wait_greenly
from api.db.pool import InstrumentedPool, pool_limits
from api.db.pool_gate import ConnectPostponed
from api.db.pool_health import PoolDiagnostics
from api.db.pool_numbers import require_number
from api.db.pool_private import answer_limit_of
from api.db.transactions import LoggedTransactions, TransactionLogger
from api.exceptions import ConfigurationError, DatabaseUnavailableError, TransactionAbortedError

__all__ = [
    "DB",
    "MAX_RETRIES",
    "PoolDiagnostics",
    "TransactionLogger",
    "exponential_backoff",
    "get_db_connection",
    "log_connection_config",
    "open_database",
    "return_db_connection",
]

log = structlog.get_logger(__name__)

MAX_RETRIES = 15
BACKOFF_BASE_S = 0.1
BACKOFF_CAP_S = 5.0

SCHEMES = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "sqlite": "sqlite",
}
# A server that vanished without a word is noticed after a minute, whether or not a query is running.
POSTGRES_DEFAULTS = {
    "application_name": "plinth",
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# What PyMySQL takes, less what this layer decides itself.
MYSQL_OPTIONS = set(inspect.signature(PyMySQLConnection).parameters) - {"autocommit", "db", "defer_connect"}


class PostgresPool(LoggedTransactions, InstrumentedPool, PooledPostgresqlDatabase):
    """PostgreSQL by psycopg2, pooled."""

    def _is_closed(self, conn: Any) -> bool:
        return not postgres_runs(conn, "SELECT 1", answer_limit_of(self))

    def _can_reuse(self, conn: Any) -> bool:
        is_clean = postgres_is_clean(conn)
        return postgres_runs(conn, "ROLLBACK", answer_limit_of(self)) if is_clean is None else is_clean

    def commit(self) -> None:
        """Commit this thread's transaction.

        Raises ``TransactionAbortedError`` when a statement failed in it and the error was swallowed: the server
        answers such a COMMIT with ROLLBACK, and neither psycopg2 nor peewee says so.
        """
        if not self.is_closed() and self.connection().get_transaction_status() == TRANSACTION_STATUS_INERROR:
            raise TransactionAbortedError(
                "nothing was committed: a statement failed earlier in this transaction, its error was swallowed"
            )
        super().commit()


class MySQLPool(LoggedTransactions, InstrumentedPool, PooledMySQLDatabase, MySQLServer):
    """MySQL or MariaDB by PyMySQL, pooled."""

    def _is_closed(self, conn: Any) -> bool:
        return not mysql_runs(conn, lambda: conn.ping(reconnect=False), answer_limit_of(self))

    def _can_reuse(self, conn: Any) -> bool:
        is_clean = mysql_is_clean(conn)
        return mysql_is_rolled_back(conn, answer_limit_of(self)) if is_clean is None else is_clean


class SqlitePool(LoggedTransactions, InstrumentedPool, PooledSqliteDatabase, SqliteFile):
    """SQLite, pooled: a connection is opened once, and used by one thread at a time."""


class _Proxy(LoggedTransactions, peewee.DatabaseProxy):
    """The database that the app binds later. peewee's own proxy makes its transactions itself, unlogged."""


DB = _Proxy()

# Why the connect failed that ended in this driver's error: who was told of it only does not ask the server himself.
_failures: weakref.WeakKeyDictionary[BaseException, ConnectFailure] = weakref.WeakKeyDictionary()


def open_database(
    url: str,
    *,
    pool_max: int = 20,
    pool_timeout_s: float = 10.0,
    connect_timeout_s: int = 5,
    validate_after_s: float = 0.5,
    max_lifetime_s: float = 1800.0,
) -> peewee.Database:
    """Return the pooled database that *url* names, not connected yet.

    A process holds at most *pool_max* connections; a borrow waits *pool_timeout_s* for one, a connect
    *connect_timeout_s* for the server. A connection idle for *validate_after_s* must answer before it is lent
    again, and none is lent that is older than *max_lifetime_s*. What *url* asks for in its query
    (``?sslmode=require``) goes to the driver, and wins. Raises ``ConfigurationError``, which holds no part of *url*
    that could be secret, and where psycopg2's libpq is not to be had.
    """
    require_number(validate_after_s=validate_after_s, least=0.0)
    require_number(pool_max=pool_max, pool_timeout_s=pool_timeout_s)
    require_number(connect_timeout_s=connect_timeout_s, max_lifetime_s=max_lifetime_s)
    scheme = _scheme(url)
    params = _parse(url, scheme)
    name = params.pop("database")
    pool = {
        "max_connections": pool_max,
        "timeout": pool_timeout_s,
        "stale_timeout": max_lifetime_s,
        "validate_after_s": validate_after_s,
    }
    if scheme == "sqlite":
        if params:
            raise ConfigurationError(
                "the sqlite URL has a host or options", hint="write sqlite:///path, or sqlite:////absolute/path"
            )
        return SqlitePool(name, pragmas={"foreign_keys": 1}, check_same_thread=False, **pool)
    if not name:
        raise ConfigurationError(f"the {scheme} URL names no database", hint="add /name after the host")
    params = {"connect_timeout": connect_timeout_s} | params
    if scheme == "mysql":
        return MySQLPool(name, **pool, **_mysql_params(params))
    libpq()
    wait_greenly()
    return PostgresPool(name, **pool, **_postgres_params(params))


def _scheme(url: str) -> str:
    match = re.match(r"([A-Za-z]+)(\+\w+)?://", url)
    scheme = match[1].lower() if match else ""
    if scheme not in SCHEMES:
        found = f"the scheme {scheme!r} is unknown" if scheme else "the database URL has no scheme"
        raise ConfigurationError(found, hint=f"begin it with one of {', '.join(SCHEMES)}, then ://")
    return SCHEMES[scheme]


def _parse(url: str, scheme: str) -> dict[str, Any]:
    try:
        plain = f"{scheme}://{url.partition('://')[2]}"
        parts = urlsplit(plain)
        params: dict[str, Any] = db_url.parse(plain, unquote_password=True, unquote_user=True)
    except ValueError:
        is_cut = True
    else:
        # A password with / ? or # in it ends the host too early: its rest must not pass for a name.
        tail = parts.path if "@" in parts.netloc else parts.path + parts.query
        is_cut = bool(parts.fragment) or (scheme != "sqlite" and "@" in tail)
    if is_cut:
        raise ConfigurationError(
            f"the {scheme} URL cannot be read",
            hint="write a special character of user, password or name as %XX, such as %40 for @ and %2F for /",
        )
    if scheme != "sqlite":
        params["database"] = unquote(params["database"])
    return params


def _mysql_params(params: dict[str, Any]) -> dict[str, Any]:
    if "passwd" in params:
        params["password"] = params.pop("passwd")
    unknown = sorted(params.keys() - MYSQL_OPTIONS)
    if unknown:
        raise ConfigurationError(f"the mysql URL has options that PyMySQL does not know: {', '.join(unknown)}")
    return {"charset": "utf8mb4"} | params


def _postgres_params(params: dict[str, Any]) -> dict[str, Any]:
    try:
        make_dsn(**params)
    except psycopg2.ProgrammingError as exc:
        raise ConfigurationError(f"the postgresql URL has an option that libpq does not know: {exc}") from exc
    return POSTGRES_DEFAULTS | params


def exponential_backoff(attempt: int) -> float:
    """Return the seconds to wait after failure *attempt* (from 1): anything up to a limit that doubles.

    Full jitter, so that workers which failed together do not come back together; at most ``BACKOFF_CAP_S``.
    """
    return random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(attempt - 1, 16)))


def get_db_connection(database: Any = None, *, deadline_s: float = 30.0) -> Any:
    """Return this thread's driver connection of *database* (``DB``), connecting as often as it is of use.

    A server that starts, refuses, hangs up or is full, and a locked SQLite file, are tried ``MAX_RETRIES``
    times within *deadline_s* (the last attempt may outlast it by its connect timeout). Raises
    ``DatabaseUnavailableError`` after that, and at once for a wrong password, host or name. While one thread finds
    out, the others wait without dialling. A connection known to be lost is replaced, except inside a
    transaction: what came before would be missing. An exhausted pool has waited already: its ``PoolTimeout`` is
    not retried.
    """
    database = unwrap(DB if database is None else database)
    if not database.is_closed() and is_lost(database.connection()):
        if database.in_transaction():
            raise DatabaseUnavailableError(
                f"the connection to {_where(database)} was lost inside a transaction; none of it was kept",
                hint="let the error leave the transaction's block, then run the whole block again",
            )
        database.close()
    give_up_at = time.monotonic() + deadline_s
    attempt = 1
    while (has_dialled := _try_connect(database, attempt, give_up_at)) is not None:
        attempt += has_dialled
    return database.connection()


def return_db_connection(database: Any = None) -> int:
    """Return this thread's connection of *database* (``DB``) to the pool, rolling back what was left open on it.

    peewee refuses to close inside a transaction and keeps the connection, so every later request on the thread
    would fail. Its stack is emptied first; the pool then rolls the connection back before it is lent again. Returns
    how many transactions were open; without a connection it does nothing.
    """
    database = unwrap(DB if database is None else database)
    depth: int = database.transaction_depth()
    for _ in range(depth):
        database.pop_transaction()
    if not database.is_closed():
        database.close()
    return depth


def _try_connect(database: peewee.Database, attempt: int, give_up_at: float) -> bool | None:
    """Connect and return None, or wait for the next attempt and say whether this was one; raise when none is left."""
    try:
        database.connect(reuse_if_open=True)
    except ConnectPostponed as exc:
        # Another thread has dialled in vain just now, and may know by now that it always will be.
        known = _failures.get(exc.last)
        delay_s = max(exc.retry_after_s, BACKOFF_BASE_S * random.random())
        if (known and not known.can_pass) or time.monotonic() + delay_s > give_up_at:
            raise _unavailable(known or connect_failure(exc.last, database), database) from exc
        time.sleep(delay_s)
        return False
    except peewee.PeeweeException as exc:
        failure = _failures[underlying(exc)] = connect_failure(exc, database)
        delay_s = exponential_backoff(attempt)
        if not failure.can_pass or attempt >= MAX_RETRIES or time.monotonic() + delay_s > give_up_at:
            raise _unavailable(failure, database) from exc
    else:
        return None
    log.warning(
        "connect failed, trying again",
        attempt=attempt,
        delay_ms=round(delay_s * 1000),
        reason=failure.reason,
        code=failure.code,
        **_address(database),
    )
    time.sleep(delay_s)
    return True


def _unavailable(failure: ConnectFailure, database: peewee.Database) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"cannot connect to {_where(database)}: {failure.reason} ({failure.said})", hint=failure.hint
    )


def _address(database: peewee.Database) -> dict[str, Any]:
    if isinstance(database, peewee.SqliteDatabase):
        return {"engine": "sqlite", "database": database.database}
    host, port = host_and_port(database)
    return {
        # Which of the two a MySQL is, only its greeting tells.
        "engine": "postgres" if isinstance(database, peewee.PostgresqlDatabase) else "mysql or mariadb",
        "host": host,
        "port": port,
        "database": database.database,
        "user": database.connect_params.get("user"),
    }


def _where(database: peewee.Database) -> str:
    address = _address(database)
    if "host" not in address:
        return f"sqlite {address['database']!r}"
    return f"{address['engine']} {address['host']}:{address['port']}/{address['database']} as {address['user']!r}"


def log_connection_config(database: Any) -> None:
    """Log one info line: engine, host, port, database, user, the pool's size, and the timeouts; no password."""
    database = unwrap(database)
    address = _address(database)
    if not database.is_closed():
        address["engine"] = engine_of(database)
    pool_max, pool_timeout_s = pool_limits(database)
    log.info(
        "database configured",
        **address,
        pool_max=pool_max,
        pool_timeout_s=pool_timeout_s,
        connect_timeout_s=database.connect_params.get("connect_timeout"),
    )
