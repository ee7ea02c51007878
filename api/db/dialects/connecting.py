"""How each engine is dialled, and why dialling fails: whether the reason can pass by itself, and what to do.

Reasons are told by errno and SQLSTATE. PostgreSQL needs care: libpq gives a failed connect no SQLSTATE
(psycopg2 2.9: ``pgcode`` is None), only a text in the server's language. So the server is asked once more
without a driver, and the text decides only what it said after the login.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import peewee
import pymysql
from pymysql.connections import Connection

from api.db.dialects import postgres
from api.db.dialects.categories import TRAITS, TRANSIENT, Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify

PROBE_TIMEOUT_S = 1.0
# What PostgreSQL says before the login, whatever the encryption: stopping, starting, full.
BEFORE_LOGIN = frozenset({"57P01", "57P02", "57P03", "53300"})
IN_MEMORY = ":memory:"
# MySQL manual, "Client Error Message Reference": no server sends one of these.
CLIENT_ERRORS = range(2000, 3000)


class SqliteFile(peewee.SqliteDatabase):
    """SQLite in a file: write-ahead log, foreign keys on, the file's folder made on the first connect.

    A file or folder that may only be read opens for reading. SQLite 3.40 answers ``journal_mode = wal`` there
    with SQLITE_READONLY; and a file already in WAL mode, in a folder where its ``-shm`` cannot be made, answers
    every statement with SQLITE_READONLY_DIRECTORY unless it is opened as immutable.
    """

    def _connect(self) -> Any:
        path = Path(self.database)
        if self.database != IN_MEMORY:
            # What stands in the way is SQLite's to say: its "unable to open" is the error that callers expect.
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
        connection = super()._connect()
        try:
            self._ask_for_wal(connection)
        except sqlite3.OperationalError as exc:
            connection.close()
            if exc.sqlite_errorcode != sqlite3.SQLITE_READONLY_DIRECTORY or has_unread_log(self.database):
                raise
            return self._connect_immutable(path)
        return connection

    @staticmethod
    def _ask_for_wal(connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "delete":
            return
        try:
            connection.execute("PRAGMA journal_mode = wal")
        except sqlite3.OperationalError as exc:
            # Read-only, or in use at this moment: the rollback journal serves too, and the next connect asks.
            if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY):
                raise

    def _connect_immutable(self, path: Path) -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?immutable=1"
        connection = sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None, **self.connect_params)
        self._add_conn_hooks(connection)
        return connection


def has_unread_log(database: str) -> bool:
    """Say whether rows wait in the log of this SQLite file: an immutable connection would not see them."""
    log_file = Path(f"{database}-wal")
    return log_file.exists() and log_file.stat().st_size > 0


class _Connection(Connection):
    """PyMySQL's (1.2), which also knows what its last answer is worth.

    *is_answering*: something was sent, and its answer not read to the end; the next one read would be that one.
    *is_in_doubt*: whether a transaction is open, or autocommit off, is not known: the server does not say it with
    an error, nor with rows. A TLS context of no options, which checks no certificate, is made once: 20 ms.
    """

    _plain: ClassVar[Any] = None
    _result: Any
    _is_due = False
    _has_failed = False

    @property
    def is_answering(self) -> bool:
        """Whether something that was sent has not been answered to the end."""
        return self._is_due or (self._result is not None and self._result.unbuffered_active)

    @property
    def is_in_doubt(self) -> bool:
        """Whether ``server_status`` may be out of date: since an error, or before a procedure's last answer."""
        # None: its rows had no end, for an error came in their midst.
        return self._has_failed or (self._result is not None and self._result.has_next != 0)

    def show_warnings(self) -> Any:
        """Return what the server warns of: its answer passes all that is overridden here."""
        warned = super().show_warnings()  # type: ignore[no-untyped-call]
        self._is_due = False
        return warned

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Send SET NAMES, as each connect does: its answer passes all that is overridden here."""
        super().set_character_set(charset, collation)
        self._is_due = False

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        last = self._result
        try:
            super()._execute_command(command, sql)  # type: ignore[misc]
        finally:
            # Dropped by now, its rows without an end; PyMySQL swallows a timeout among those that it read here.
            if last is not None and last.has_next is None:
                self._has_failed = True

    def _write_bytes(self, data: bytes) -> None:
        self._is_due = True
        super()._write_bytes(data)  # type: ignore[misc]

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        self._is_due = True
        try:
            touched = super()._read_query_result(unbuffered)  # type: ignore[misc]
        except pymysql.MySQLError as exc:
            self._note(exc)
            raise
        self._is_due = False
        if self._result.server_status is not None:
            self._has_failed = False
        return touched

    def _read_ok_packet(self) -> Any:
        try:
            answer = super()._read_ok_packet()  # type: ignore[misc]
        except pymysql.MySQLError as exc:
            self._note(exc)
            raise
        self._is_due = self._has_failed = False
        return answer

    def _note(self, error: pymysql.MySQLError) -> None:
        self._has_failed = True
        # The server's own error is a whole answer; one that PyMySQL finds itself may come in the midst of one.
        self._is_due = not error.args or error.args[0] in CLIENT_ERRORS

    def _force_close(self) -> None:
        if self._result is not None:
            # What is left of it is never read: it would try to, when it is freed, and fail.
            self._result.unbuffered_active = False
        super()._force_close()  # type: ignore[misc]

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        make = super()._create_ssl_ctx  # type: ignore[misc]
        if sslp:
            return make(sslp)
        _Connection._plain = _Connection._plain or make({})
        return _Connection._plain


class MySQLServer(peewee.MySQLDatabase):
    """MySQL or MariaDB by PyMySQL, with *connect_timeout* holding for the whole handshake.

    PyMySQL's own ends when the socket is open: a stopped server would hold the caller for ever. Once connected
    the limit is lifted, for a long ALTER must not be cut.
    """

    def _connect(self) -> Any:
        params = self.connect_params
        # Both: a TLS handshake waits for as long as the last write might have.
        limits = dict.fromkeys(("read_timeout", "write_timeout"), params.get("connect_timeout"))
        connection = _Connection(database=self.database, autocommit=True, **(params | limits))
        for name in limits:
            setattr(connection, f"_{name}", params.get(name))
        return connection

    def _set_server_version(self, conn: Any) -> None:
        # peewee 4.5.3 writes JSON as CAST(... AS JSON), which MariaDB refuses (1064), unless this says what it is.
        self.mariadb = "mariadb" in conn.get_server_info().lower()
        super()._set_server_version(conn)


@dataclass(frozen=True, slots=True)
class ConnectFailure:
    """Why a connect failed, what to do, whether it can pass by itself, and the server's or system's code.

    *said* is what the server or driver said, secrets masked.
    """

    reason: str
    hint: str
    can_pass: bool
    code: str | int | None
    said: str


NOT_RUNNING = ("nothing listens there", "start the server, or correct host and port in DATABASE_URL")
NO_ANSWER = ("no answer in time", "check that the host runs, and that no firewall stands between")
UNKNOWN_HOST = ("no such host name", "correct the host in DATABASE_URL, or the name service")
CANNOT_OPEN = (Category.MISSING_DATABASE, Category.READ_ONLY_SERVER)
UNREAD_LOG = "open it once where its folder may be written, or copy it together with its -wal file"
UNKNOWN = "read what the server said; check DATABASE_URL and the server's log"


def connect_failure(exc: BaseException, database: peewee.Database) -> ConnectFailure:
    """Tell why a connect of *database* ended in *exc*, an error of peewee or of the driver.

    On PostgreSQL this may dial the server once more, for a second at the most.
    """
    classified = classify(exc, _family(database))
    category, code, said = classified.category, classified.code, classified.server_message
    met: OSError | str | None = getattr(underlying(exc), "original_exception", None)
    if isinstance(database, peewee.PostgresqlDatabase):
        met = _ask_postgres(database)
    if isinstance(met, OSError) and (failure := _os_failure(met, said)):
        return failure
    if isinstance(met, str):
        category, code = next(kind for kind, codes in postgres.ERROR_CODES.items() if met in codes), met
    hint = UNKNOWN if category is Category.UNKNOWN else TRAITS[category].remedy
    if isinstance(database, peewee.SqliteDatabase):
        code = driver_code(exc)
        hint = UNREAD_LOG if category in CANNOT_OPEN and has_unread_log(database.database) else hint
    return ConnectFailure(category.replace("_", " "), hint, category in TRANSIENT, code, said)


def host_and_port(database: peewee.Database) -> tuple[str, Any]:
    """Return the host, or socket, and the port that *database*, of a server, leads to."""
    params = database.connect_params
    port = 5432 if isinstance(database, peewee.PostgresqlDatabase) else 3306
    return params.get("host") or params.get("unix_socket") or "localhost", params.get("port", port)


def _family(database: peewee.Database) -> Engine:
    # Only its greeting tells a MariaDB, and what differs between the two is not met before that.
    families: dict[Engine, Any] = {"sqlite": peewee.SqliteDatabase, "postgres": peewee.PostgresqlDatabase}
    return next((engine for engine, family in families.items() if isinstance(database, family)), "mysql")


def underlying(exc: BaseException) -> BaseException:
    """Return the driver's own error behind peewee's *exc*, or *exc* itself."""
    return getattr(exc, "orig", None) or exc


def driver_code(exc: BaseException) -> str | int | None:
    """Return the server's code for *exc*: SQLSTATE, errno, or SQLite's name of it; None when there is none."""
    cause = underlying(exc)
    code = getattr(cause, "pgcode", None) or getattr(cause, "sqlite_errorname", None)
    if code is None and isinstance(cause, pymysql.MySQLError) and cause.args:
        code = cause.args[0]
    return code if isinstance(code, str | int) else None


def _ask_postgres(database: peewee.Database) -> OSError | str | None:
    """Begin a session without a driver; return the error met, or the SQLSTATE of a refusal before the login.

    Only those in ``BEFORE_LOGIN``: what else it says to a plain connection need not be what the driver met. None
    when it went on to the login, or no host is named.
    """
    params = database.connect_params
    host, port = str(params.get("host", "")), str(params.get("port", 5432))
    if not host or "," in host or not port.isdigit():
        return None
    fields = ("user", params.get("user", ""), "database", database.database, "", "")
    body = struct.pack("!i", 3 << 16) + "\0".join(map(str, fields)).encode()[:-1] + b"\0"
    try:
        with _dial(host, int(port)) as connection:
            connection.sendall(struct.pack("!i", len(body) + 4) + body)
            reply = connection.recv(4096)
    except OSError as exc:
        return exc
    refusal = re.search(rb"\0C([0-9A-Z]{5})\0", reply) if reply.startswith(b"E") else None
    code = refusal[1].decode() if refusal else None
    return code if code in BEFORE_LOGIN else None


def _dial(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PROBE_TIMEOUT_S)
    try:
        connection.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        connection.close()
        raise
    return connection


def _os_failure(met: OSError, said: str) -> ConnectFailure | None:
    code = errno.errorcode.get(met.errno or 0)
    if isinstance(met, socket.gaierror):
        return ConnectFailure(*UNKNOWN_HOST, can_pass=False, code=None, said=said)
    if isinstance(met, ConnectionRefusedError | FileNotFoundError):
        return ConnectFailure(*NOT_RUNNING, can_pass=True, code=code, said=said)
    if isinstance(met, TimeoutError) or met.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return ConnectFailure(*NO_ANSWER, can_pass=True, code=code, said=said)
    return None
