"""Which engine a database is, and which version: the only place that tells MariaDB from MySQL."""

from __future__ import annotations

import re
from typing import Any, Literal

import peewee

Engine = Literal["postgres", "mysql", "mariadb", "sqlite"]
ENGINES: tuple[Engine, ...] = ("postgres", "mysql", "mariadb", "sqlite")


def unwrap(database: Any) -> peewee.Database:
    """Return the database behind a ``DatabaseProxy``, or *database* itself.

    Raises ``AttributeError`` when the proxy is not bound yet.
    """
    if isinstance(database, peewee.Proxy):
        if database.obj is None:
            raise AttributeError("the database proxy is not bound: call DB.initialize(database) first")
        return unwrap(database.obj)
    return database


def engine_of(database: Any) -> Engine:
    """Say which engine *database* is. MySQL and MariaDB are told apart by the server's own version text.

    Connects when the class alone cannot tell; runs no query (the version is in the server's greeting).
    """
    database = unwrap(database)
    if isinstance(database, peewee.SqliteDatabase):
        return "sqlite"
    if isinstance(database, peewee.PostgresqlDatabase):
        return "postgres"
    if isinstance(database, peewee.MySQLDatabase):
        return "mariadb" if "mariadb" in version_text(database).lower() else "mysql"
    raise TypeError(f"{type(database).__name__} is none of PostgreSQL, MySQL, MariaDB and SQLite")


def version_text(database: Any) -> str:
    """Return the server's version as it writes it, such as ``15.18`` or ``10.11.19-MariaDB-0+deb12u1``."""
    database = unwrap(database)
    if isinstance(database, peewee.SqliteDatabase):
        return ".".join(str(part) for part in database.server_version)
    connection = database.connection()
    if isinstance(database, peewee.PostgresqlDatabase):
        return str(connection.get_parameter_status("server_version"))
    # MariaDB's greeting may begin with "5.5.5-", for replicas of old: that is not its version.
    return str(connection.get_server_info()).removeprefix("5.5.5-")


def server_version(database: Any) -> tuple[int, ...]:
    """Return the server's version as numbers: ``(15, 18)``, ``(10, 11, 19)``, ``(3, 40, 1)``."""
    match = re.match(r"\d+(\.\d+)*", version_text(database))
    return tuple(int(part) for part in match.group().split(".")) if match else ()
