"""Green threads: what has to be so that a worker of gevent waits for a database with one request, not with all.

gevent replaces the standard library's ways to wait, ``select.poll`` among them. PyMySQL waits by these. psycopg2 waits
inside libpq, where no other request gets on, unless it is told how to wait; and sqlite3 has no other way.
"""

from __future__ import annotations

import math
import select
import threading
import time
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, STATUS_SETUP, parse_dsn, set_wait_callback

from api.exceptions import ConfigurationError

_EVENTS = {POLL_READ: select.POLLIN}
_LOCAL = threading.local


def wait_greenly() -> None:
    """Let psycopg2 wait as the rest of a patched process does; in any other process do nothing."""
    if select.poll.__module__ != "select":
        set_wait_callback(_wait)


def refuse_late_patch() -> None:
    """Raise ``ConfigurationError`` when gevent came after this layer: its requests would share one connection.

    What is kept for each thread was then made for real threads, and a worker of gevent has one.
    """
    if threading.local is not _LOCAL:
        raise ConfigurationError(
            "gevent has patched this process after the database layer was imported: all requests would share a session",
            hint="leave out --preload, or begin gunicorn's config file with gevent.monkey.patch_all()",
        )


def _wait(connection: Any) -> None:
    """Wait until *connection* has done what it was asked; a connect for no longer than its ``connect_timeout``.

    Of which libpq takes no care itself when another waits for it.
    """
    give_up_at = time.monotonic() + _limit_s(connection)
    while (state := connection.poll()) != POLL_OK:
        left_s = give_up_at - time.monotonic()
        # Anew each time: libpq may have gone on to another address, on another socket.
        poll = select.poll()
        poll.register(connection.fileno(), _EVENTS.get(state, select.POLLOUT))
        if left_s <= 0 or not poll.poll(None if math.isinf(left_s) else left_s * 1000):
            raise psycopg2.OperationalError("timeout expired")


def _limit_s(connection: Any) -> float:
    if connection.status != STATUS_SETUP:
        return math.inf
    return float(parse_dsn(connection.dsn).get("connect_timeout") or math.inf)
