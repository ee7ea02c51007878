"""Errors that take more than a statement to provoke: two connections, another user, a server that goes away.

Each function meets the error and lets it out as peewee raised it; its docstring is what ``docs/ERRORS.md`` says.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import peewee

from api.db.connection import open_database

if TYPE_CHECKING:
    from conftest import Backend

NAMES = count(1)


def connect_with_wrong_password(backend: Backend) -> None:
    """connect with a wrong password"""
    _connect(_url(backend, password="wrong"))


def connect_to_missing_database(backend: Backend) -> None:
    """connect to a database that is not there"""
    _connect(_url(backend, path="/plinth_gone"))


def connect_to_folder(backend: Backend) -> None:
    """connect to a folder instead of a file"""
    _connect(backend.url.rpartition("/")[0])


def connect_to_other_file(backend: Backend) -> None:
    """connect to a file that is not a database"""
    other = f"{backend.url}.txt"
    Path(other.removeprefix("sqlite:///")).write_text("not a database " * 100, encoding="ascii")
    _connect(other)


def connect_to_closed_port(backend: Backend) -> None:
    """connect to a port that nobody listens on"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        _connect(_url(backend, port=taken.getsockname()[1]))


def connect_during_shutdown(backend: Backend) -> None:
    """connect to a server that shuts down and still has a client"""
    pid = backend.database().execute_sql("SELECT pg_read_file('postmaster.pid')").fetchone()[0].split()[0]
    os.kill(int(pid), signal.SIGTERM)
    try:
        while True:
            _connect(backend.url)
    finally:
        backend.private.kill()


def connect_over_role_limit(backend: Backend) -> None:
    """connect as a role with CONNECTION LIMIT 0"""
    with _user(backend, "CREATE ROLE {} LOGIN CONNECTION LIMIT 0 PASSWORD 'x'", "DROP ROLE {}") as url:
        _connect(url)


def connect_over_user_limit(backend: Backend) -> None:
    """connect twice as a user WITH MAX_USER_CONNECTIONS 1"""
    with _mysql_user(backend, "WITH MAX_USER_CONNECTIONS 1") as url, _opened(url) as first:
        first.connect()
        _connect(url)


def use_terminated_backend(backend: Backend) -> None:
    """use a connection after pg_terminate_backend"""
    database = backend.database()
    pid = database.connection().get_backend_pid()
    backend.database().execute_sql(f"SELECT pg_terminate_backend({pid})")
    database.execute_sql("SELECT 1")


def use_killed_connection(backend: Backend) -> None:
    """KILL the connection, then use it"""
    database = backend.database()
    with suppress(peewee.OperationalError):
        database.execute_sql("KILL CONNECTION_ID()")
    database.execute_sql("SELECT 1")


def use_closed_connection(backend: Backend) -> None:
    """use a connection that was closed behind peewee's back"""
    database = backend.database()
    database.connection().close()
    database.execute_sql("SELECT 1")


def wait_for_locked_table(backend: Backend) -> None:
    """SET a short lock timeout; ALTER TABLE what another transaction has read"""
    timeout = "SET lock_timeout = '20ms'" if backend.engine == "postgres" else "SET lock_wait_timeout = 1"
    reader, writer = backend.database(), backend.database()
    with reader.atomic():
        reader.execute_sql("SELECT * FROM item").fetchall()
        writer.execute_sql(timeout)
        writer.execute_sql("ALTER TABLE item ADD COLUMN more INT")


def ask_for_locked_row(backend: Backend) -> None:
    """SELECT ... FOR UPDATE NOWAIT what another transaction has updated"""
    first, second = backend.database(), backend.database()
    with first.atomic():
        first.execute_sql("UPDATE item SET amount = 1 WHERE id = 1")
        second.execute_sql("SELECT * FROM item WHERE id = 1 FOR UPDATE NOWAIT")


def write_to_locked_file(backend: Backend) -> None:
    """PRAGMA busy_timeout = 1; INSERT while another connection is in BEGIN IMMEDIATE"""
    first, second = backend.database(), backend.database()
    with first.atomic("IMMEDIATE"):
        second.execute_sql("PRAGMA busy_timeout = 1")
        second.execute_sql("INSERT INTO parent (id) VALUES (9)")


def write_after_stale_read(backend: Backend) -> None:
    """BEGIN; SELECT; another connection commits an INSERT; INSERT (write-ahead log)"""
    first, second = backend.database(), backend.database()
    with first.atomic():
        first.execute_sql("SELECT * FROM parent").fetchall()
        second.execute_sql("INSERT INTO parent (id) VALUES (8)")
        first.execute_sql("INSERT INTO parent (id) VALUES (9)")


def cross_two_updates(backend: Backend) -> None:
    """two transactions UPDATE the same two rows, in opposite order"""
    both_hold_one = threading.Barrier(2, timeout=30)
    errors: list[peewee.PeeweeException] = []

    def update(own: int, other: int) -> None:
        with _opened(backend.url) as database:
            try:
                with database.atomic():
                    database.execute_sql(f"UPDATE item SET amount = 7 WHERE id = {own}")
                    both_hold_one.wait()
                    database.execute_sql(f"UPDATE item SET amount = 7 WHERE id = {other}")
            except peewee.PeeweeException as exc:
                errors.append(exc)

    threads = [threading.Thread(target=update, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raise errors[0]


def go_on_after_error(backend: Backend) -> None:
    """BEGIN; a statement that fails; any other"""
    database = backend.database()
    with database.atomic():
        with suppress(peewee.ProgrammingError):
            database.execute_sql("SELEC 1")
        database.execute_sql("SELECT 1")


def interrupt_query(backend: Backend) -> None:
    """interrupt the connection while it runs a query"""
    database = backend.database()
    database.connection().set_progress_handler(lambda: 1, 1)
    database.execute_sql("SELECT * FROM item").fetchall()


def alter_as_other_role(backend: Backend) -> None:
    """ALTER TABLE as a role that does not own it"""
    with _user(backend, "CREATE ROLE {} LOGIN PASSWORD 'x'", "DROP ROLE {}") as url:
        _run_on(url, "ALTER TABLE item ADD COLUMN more INT")


def alter_as_reader(backend: Backend) -> None:
    """ALTER TABLE as a user that may only SELECT"""
    with _mysql_user(backend) as url:
        _run_on(url, "ALTER TABLE item ADD COLUMN more INT")


def be_refused_by_authorizer(backend: Backend) -> None:
    """ALTER TABLE under an authorizer that denies it"""
    database = backend.database()
    database.connection().set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    database.execute_sql("ALTER TABLE item ADD COLUMN more INT")


def write_to_read_only_server(backend: Backend) -> None:
    """SET GLOBAL read_only = 1; INSERT as a user without READ_ONLY ADMIN"""
    with _mysql_user(backend, grant="ALL") as url:
        backend.private.execute("SET GLOBAL read_only = 1")
        try:
            _run_on(url, "INSERT INTO parent (id) VALUES (9)")
        finally:
            backend.private.execute("SET GLOBAL read_only = 0")


def write_to_read_only_file(backend: Backend) -> None:
    """INSERT into a file opened with mode=ro"""
    path = backend.url.removeprefix("sqlite:///")
    with closing(peewee.SqliteDatabase(f"file:{path}?mode=ro", uri=True)) as database:
        database.execute_sql("INSERT INTO parent (id) VALUES (9)")


@contextmanager
def _opened(url: str) -> Iterator[peewee.Database]:
    """Give a database whose connections are really closed, not returned to its pool."""
    database = open_database(url)
    try:
        yield database
    finally:
        database.close_all()


def _connect(url: str) -> None:
    _run_on(url, "SELECT 1")


def _run_on(url: str, statement: str) -> None:
    with _opened(url) as database:
        database.execute_sql(statement)


def _url(backend: Backend, *, user: str = "", password: str = "", port: int = 0, path: str = "") -> str:
    """The backend's URL with some parts replaced; as written there, quoted."""
    parts = urlsplit(backend.url)
    account = f"{user or parts.username}:{password or parts.password or ''}"
    place = f"{account}@{parts.hostname}:{port or parts.port}"
    return parts._replace(netloc=place, path=path or parts.path).geturl()


@contextmanager
def _user(backend: Backend, create: str, drop: str) -> Iterator[str]:
    """Give a URL with a user of its own, made by *create*, removed by *drop*; ``{}`` stands for the name."""
    name = f"plinth_{os.getpid()}_{next(NAMES)}"
    with _opened(backend.url) as admin:
        admin.execute_sql(create.format(name))
        try:
            yield _url(backend, user=name, password="x")
        finally:
            admin.execute_sql(drop.format(name))


@contextmanager
def _mysql_user(backend: Backend, limit: str = "", *, grant: str = "SELECT") -> Iterator[str]:
    create = f"CREATE USER {{0}}@'127.0.0.1' IDENTIFIED BY 'x' {limit}"
    with (
        _user(backend, create, "DROP USER {}@'127.0.0.1'") as url,
        _opened(backend.url) as admin,
    ):
        user = urlsplit(url).username
        admin.execute_sql(f"GRANT {grant} ON {urlsplit(url).path.strip('/')}.* TO {user}@'127.0.0.1'")
        yield url
