"""Columns whose old values were kept beside: the one that kept them takes the place of the changed one again."""

from __future__ import annotations

from collections.abc import Iterator

import pymysql

from api.db.journal import losing
from api.db.journal.changes import is_cut
from api.db.journal.definition import TableDefinition, parse
from api.db.journal.link import Link, name
from api.db.journal.steady import settings
from api.db.journal.store import Entry
from api.exceptions import MigrationUndoError

# As a session that cuts values made the new ones.
CUTTING = {"sql_mode": "NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES"}


def bring_back_kept(link: Link, entry: Entry, table: str, now: str, was: str) -> bool:
    """Put the column that kept the old values in the place of the changed one; return whether that was to be done.

    A row whose new value is not what the server made of the old one was written by another session meanwhile: its
    value is taken over first. The table is locked from then until the columns are exchanged.
    """
    current = parse(now)
    standing = {column.name: column for column in current.columns}
    for column, grave in entry.kept.items():
        if grave in standing and not standing[grave].generated and column in standing:
            # As its columns are called yet: the statement may have renamed others.
            names = {old: new for new, old in entry.columns.get(table, {}).items() if new in standing}
            _exchange(link, current, parse(was).with_renamed(names), column, grave)
            return True
    return False


def _exchange(link: Link, current: TableDefinition, before: TableDefinition, column: str, grave: str) -> None:
    probe, quoted = f"{grave}_now", name(current.name)
    if probe in current.column_names:
        link.execute(f"ALTER TABLE {quoted} DROP COLUMN {name(probe)}")
    changed = current.column(column)
    assert changed is not None, "the caller saw that it stands"
    kind = losing.type_of(changed)
    with settings(link, CUTTING):
        link.execute(
            f"ALTER TABLE {quoted} ADD COLUMN {name(probe)} {kind} GENERATED ALWAYS AS ({name(grave)}) VIRTUAL"
        )
    link.execute(f"LOCK TABLES {quoted} WRITE")
    try:
        _take_over(link, before, column, grave, probe)
        # Not by the ALTER that follows: MySQL 9.7 would compute it once more, and refuse a value that was cut.
        with settings(link, CUTTING):
            link.execute(f"ALTER TABLE {quoted} DROP COLUMN {name(probe)}")
        link.execute(f"ALTER TABLE {quoted} {', '.join(_exchanging(current, before, column, grave))}")
    finally:
        link.execute("UNLOCK TABLES")


def _take_over(link: Link, before: TableDefinition, column: str, grave: str, probe: str) -> None:
    """Let *grave* have the values that other sessions wrote into *column*, those that are not as in *probe*."""
    table = name(before.name)
    # A column with ON UPDATE keeps its value only if it is assigned one.
    clocks = [each.name for each in before.columns if "ON UPDATE" in each.text.upper() and each.name != column]
    held = "".join(f", {name(clock)} = {name(clock)}" for clock in clocks)
    written = f"NOT (CAST({name(column)} AS BINARY) <=> CAST({name(probe)} AS BINARY))"
    update = f"UPDATE {table} SET {name(grave)} = {name(column)}{held} WHERE {written}"
    try:
        link.execute(update)
        return
    except (pymysql.err.DataError, pymysql.err.OperationalError, pymysql.err.InternalError) as exc:
        # Either an old value is cut in the probe, as the migration's session cut it, or one that was written since.
        refused = exc
    with settings(link, CUTTING):
        link.execute(update)
        cut = link.rows(f"SELECT 1 FROM {table} WHERE {written} LIMIT 1")
    if cut:
        raise MigrationUndoError(
            f"a value that another session wrote into {column!r} of {before.name!r} does not fit the column's old "
            f"type: {refused.args[1]}",
            hint="change that value, then run `python -m api.db.migrations recover`",
        ) from refused


def _exchanging(current: TableDefinition, before: TableDefinition, column: str, grave: str) -> Iterator[str]:
    # MariaDB drops no column of a composite UNIQUE key (error 1072): the keys come again in the same statement.
    for kind, key in current.mentions(column):
        if kind == "key":
            yield f"DROP INDEX {name(key)}"
            if key in before.keys:
                yield f"ADD {before.keys[key]}"
    yield f"DROP COLUMN {name(column)}"
    at = before.column_names.index(column)
    place = f"AFTER {name(before.column_names[at - 1])}" if at else "FIRST"
    yield f"CHANGE COLUMN {name(grave)} {name(column)} {before.columns[at].text} {place}"
    if is_cut(column):
        yield "ALGORITHM=COPY"
