"""Sessions on a server: which one a thread has, and how an administrator ends it."""

from __future__ import annotations

import threading
import time
from typing import Any

import peewee
import pytest
import servers

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


LOCK_WAITS = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"


def lose_to_a_deadlock(url: str, database: peewee.Database) -> None:
    """Let *database*, on rows 2 and 1 of ``t (id, a)``, be the victim of a deadlock, whose error nobody sees.

    The other session wrote more, into ``o (id)``, so that the server ends this one; then it is rolled back.
    """
    other, watching = servers.connect(url).cursor(), servers.connect(url).cursor()
    watching.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    for sql in ("BEGIN", "INSERT INTO o VALUES (5), (6), (7), (8), (9)", "UPDATE t SET a = 100 WHERE id = 1"):
        other.execute(sql)
    waiting = threading.Thread(target=other.execute, args=("UPDATE t SET a = 100 WHERE id = 2",))
    database.execute_sql("BEGIN")
    database.execute_sql("UPDATE t SET a = 1 WHERE id = 2")
    waiting.start()
    while True:
        # The server takes a new look for who has not asked for 0.1 s (MySQL manual, 17.15.2.3).
        time.sleep(0.15)
        watching.execute(LOCK_WAITS)
        if watching.fetchone() != (0,):
            break
        assert waiting.is_alive()
    with pytest.raises(peewee.OperationalError, match="1213"):
        database.execute_sql("UPDATE t SET a = 1 WHERE id = 1")
    waiting.join()
    other.execute("ROLLBACK")
