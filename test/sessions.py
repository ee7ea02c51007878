"""Sessions on a server: which one a thread has, and how an administrator ends it."""

from __future__ import annotations

from typing import Any

import peewee
import pytest

from api.db.dialects.engine import engine_of

SERVERS = pytest.mark.engines("postgres", "mariadb", "mysql")


def session_number(database: peewee.Database) -> int:
    """Return the number by which the server can be told to end this thread's connection."""
    query = "SELECT pg_backend_pid()" if engine_of(database) == "postgres" else "SELECT CONNECTION_ID()"
    return int(database.execute_sql(query).fetchone()[0])


def end_session(backend: Any, number: int) -> None:
    """End session *number* as an administrator would, and return when it is gone."""
    if backend.engine == "postgres":
        backend.server.execute(f"SELECT pg_terminate_backend({number}, 5000)")
    else:
        backend.server.execute(f"KILL {number}")
