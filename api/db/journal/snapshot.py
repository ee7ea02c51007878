"""Read from the server what stands: the definition of a table or a view, as the server itself prints it."""

from __future__ import annotations

from collections.abc import Iterable

import pymysql

from api.db.journal.link import Link, name
from api.exceptions import MigrationError

# MySQL and MariaDB error number.
NO_SUCH_TABLE = 1146


def definitions(link: Link, tables: Iterable[str]) -> dict[str, str | None]:
    """Return what SHOW CREATE TABLE prints for each of *tables* or views; ``None`` for one that is not there."""
    return {table: _definition(link, table) for table in tables}


def _definition(link: Link, table: str) -> str | None:
    try:
        text = str(link.rows(f"SHOW CREATE TABLE {name(table)}")[0][1])
    except pymysql.err.ProgrammingError as exc:
        if exc.args[0] == NO_SUCH_TABLE:
            return None
        raise
    if text.startswith("CREATE TEMPORARY"):
        raise MigrationError(
            f"a temporary table hides what {table!r} really is", hint="a new connection sees it: run it again"
        )
    return text


def standing(found: dict[str, str | None]) -> set[str]:
    """Return the tables and views of *found*, a ``definitions``, that are there."""
    return {table for table, text in found.items() if text is not None}


def renamed(tables: set[str], pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Return the names of *tables* after the renames *pairs*, of an old and a new name each, one after the other."""
    for old, new in pairs:
        tables = tables - {old} | {new}
    return tables


def is_table(definition: str) -> bool:
    """Say whether *definition* is a table's, not a view's."""
    return definition.startswith("CREATE TABLE")
