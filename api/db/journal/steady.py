"""The settings of a session under which a batch is undone or finished, whatever the migration made of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql

from api.db.dialects.engine import Engine
from api.db.journal.link import Link

# Strict, so that no value is cut silently; but what stood before may stand again, zero dates too. The journal is read
# to its end, and each write is its own transaction.
SETTINGS: dict[str, Any] = {
    "sql_mode": "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES",
    "autocommit": 1,
    "sql_select_limit": 2**64 - 1,
    "sql_safe_updates": 0,
    "sql_quote_show_create": 1,
}
# MariaDB checks all rows at each ALTER that copies, also those that broke a CHECK before it was made.
APART: dict[Engine, dict[str, Any]] = {
    "mariadb": {"check_constraint_checks": 0, "max_statement_time": 0},
    "mysql": {"max_execution_time": 0},
}


@contextmanager
def steady(link: Link, engine: Engine, *, foreign_keys: bool) -> Iterator[None]:
    """Give the session these settings for the block, and let it check *foreign_keys* or not; restore it afterwards."""
    with settings(link, SETTINGS | APART[engine] | {"foreign_key_checks": int(foreign_keys)}):
        yield


@contextmanager
def settings(link: Link, wanted: dict[str, Any]) -> Iterator[None]:
    """Give the session the settings *wanted* for the block, and those that it had afterwards."""
    before = link.rows("SELECT " + ", ".join(f"@@SESSION.{variable}" for variable in wanted))[0]
    assign = "SET SESSION " + ", ".join(f"{variable} = %s" for variable in wanted)
    link.execute(assign, tuple(wanted.values()))
    try:
        yield
    except BaseException:
        # A lost session needs no restoring, and its error must not hide the first one.
        with suppress(pymysql.err.MySQLError):
            link.execute(assign, before)
        raise
    link.execute(assign, before)
