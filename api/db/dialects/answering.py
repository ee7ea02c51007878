"""Whether an open connection still answers, asked within a limit: a server that is stopped keeps its connections open.

psycopg2 has no such limit. Its own waiting can be replaced for the whole process only, and neither keepalives
nor ``tcp_user_timeout`` help: the kernel of a stopped server goes on to acknowledge. So the libpq that psycopg2
has loaded is asked directly, by ``pgconn_ptr``, which psycopg2 2.8 made public for that.
"""

from __future__ import annotations

import ctypes
import math
import select
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import psycopg2
import pymysql
from psycopg2 import _psycopg
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN, libpq_version
from pymysql.constants.CR import CR_SERVER_LOST
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS

from api.exceptions import ConfigurationError

PGRES_COMMAND_OK, PGRES_TUPLES_OK = 1, 2


def is_lost(connection: Any) -> bool:
    """Say whether the driver knows that *connection* is gone (psycopg2's ``closed``, PyMySQL's ``open``)."""
    return bool(getattr(connection, "closed", False)) or not getattr(connection, "open", True)


def no_answer(connection: Any) -> Exception:
    """Return the error that the driver of *connection* raises when a server says nothing for too long."""
    if isinstance(connection, pymysql.connections.Connection):
        return pymysql.err.OperationalError(CR_SERVER_LOST, "Lost connection to MySQL server during query (timed out)")
    return psycopg2.OperationalError("timeout expired")


def listener(connection: Any) -> Callable[[], bool]:
    """Return what says, in a microsecond, whether *connection* is open and nothing has come in since its last answer.

    An idle session is silent until it ends: a restart, a kill or a hang-up is seen without a round trip. False is
    no proof, PostgreSQL also sends notifications. SQLite has nobody to listen to.
    """
    is_postgres = hasattr(connection, "pgconn_ptr")
    # PyMySQL 1.x gives its socket no public name.
    source = connection if is_postgres else getattr(connection, "_sock", None)
    if source is None:
        return lambda: True
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    if is_postgres:
        return lambda: not connection.closed and not poll.poll(0)
    return lambda: connection.open and not poll.poll(0)


def postgres_is_clean(connection: Any) -> bool | None:
    """Say whether *connection* may be lent again as it is; None: after a ROLLBACK.

    Not when somebody has turned its autocommit off: the next borrower's writes would wait for a COMMIT.
    """
    status = connection.get_transaction_status()
    if status == TRANSACTION_STATUS_UNKNOWN or not connection.autocommit:
        return False
    return True if status == TRANSACTION_STATUS_IDLE else None


def postgres_runs(connection: Any, sql: str, limit_s: float) -> bool:
    """Run *sql* on an idle *connection*, and say whether it succeeded within *limit_s*; after False, close it."""
    if connection.closed:
        return False
    pq, pointer = libpq(), connection.pgconn_ptr
    if not pq.PQsendQuery(pointer, sql.encode()):
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    give_up_at = time.monotonic() + limit_s
    is_fine = True
    while True:
        while pq.PQisBusy(pointer):
            left_s = give_up_at - time.monotonic()
            if left_s <= 0 or not poll.poll(None if math.isinf(left_s) else left_s * 1000):
                return False
            if not pq.PQconsumeInput(pointer):
                return False
        result = pq.PQgetResult(pointer)
        if not result:
            return is_fine
        is_fine = is_fine and pq.PQresultStatus(result) in (PGRES_COMMAND_OK, PGRES_TUPLES_OK)
        pq.PQclear(result)


@cache
def libpq() -> Any:
    """Return the libpq that psycopg2 uses, with the functions that it has no words for.

    Raises ``ConfigurationError`` where it cannot be had: another one would not know psycopg2's connections.
    """
    # Through psycopg2's own module, so that it is the very library that made the connection.
    library = ctypes.CDLL(_psycopg.__file__)
    refuse_another(getattr(library, "PQlibVersion", int)())
    for name, result, *arguments in (
        ("PQsendQuery", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p),
        ("PQisBusy", ctypes.c_int, ctypes.c_void_p),
        ("PQconsumeInput", ctypes.c_int, ctypes.c_void_p),
        ("PQgetResult", ctypes.c_void_p, ctypes.c_void_p),
        ("PQresultStatus", ctypes.c_int, ctypes.c_void_p),
        ("PQclear", None, ctypes.c_void_p),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def refuse_another(version: int) -> None:
    """Raise ``ConfigurationError`` unless *version*, 0 where none is found, is that of psycopg2's libpq."""
    if version != libpq_version():
        raise ConfigurationError(
            f"psycopg2 uses libpq {libpq_version()}, but beside it is found {version or 'none'}",
            hint="install psycopg2-binary, which brings its own, or one libpq only",
        )


def mysql_is_clean(connection: Any) -> bool | None:
    """Say whether *connection* may be lent again as it is; None: after a ROLLBACK.

    The server tells with most answers whether a transaction is open: without one there is nothing to send. Not
    when somebody has turned its autocommit off: the next borrower's writes would wait for a COMMIT. Nor with an
    answer not read to its end: the next borrower would get it for his own.
    """
    if not connection.open or connection.is_answering or not connection.server_status & SERVER_STATUS_AUTOCOMMIT:
        return False
    is_in_doubt = connection.is_in_doubt or connection.server_status & SERVER_STATUS_IN_TRANS
    return None if is_in_doubt else True


def mysql_is_rolled_back(connection: Any, limit_s: float) -> bool:
    """Roll *connection* back within *limit_s*, and say whether it may be lent again; after False, close it.

    What was in doubt before is then known: whether somebody has turned its autocommit off.
    """
    return mysql_runs(connection, connection.rollback, limit_s) and mysql_is_clean(connection) is True


def mysql_runs(connection: Any, command: Callable[[], object], limit_s: float) -> bool:
    """Let *connection* do *command*, and say whether it succeeded within *limit_s*; after False, close it."""
    usual_s, connection._read_timeout = connection._read_timeout, None if math.isinf(limit_s) else limit_s
    try:
        # Any: the question is only whether it succeeded, and one hung up by another thread ends in an AttributeError.
        with suppress(Exception):
            command()
            return True
        return False
    finally:
        connection._read_timeout = usual_s
