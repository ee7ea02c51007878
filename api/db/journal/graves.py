"""Destroy nothing before the batch commits: what is dropped is renamed away, what loses values keeps them beside.

A name of what is renamed away (``_plinth<batch>_<number>_…``) is unique, so that it is found and dropped after the
commit wherever later statements took it. Such a column is INVISIBLE where the server knows that: ``SELECT *`` and an
INSERT without names see the table as if the column were gone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pymysql
from pymysql.constants import ER

from api.db.dialects.column_text import ColumnText, parse_definition, tokens_of
from api.db.dialects.engine import Engine
from api.db.dialects.types import parse_type
from api.db.journal.definition import Column, TableDefinition, parse
from api.db.journal.images import exact
from api.db.journal.link import Link, name
from api.db.journal.printed import columns_in
from api.db.journal.snapshot import definitions
from api.db.journal.statement import Action, AlterTable, Clause
from api.db.journal.store import PREFIX
from api.exceptions import StatementRefusedError

# A value for each type that INSERTs get which do not know the column any more; it is never kept (MySQL 8.4 manual,
# 13.6 "Data Type Default Values").
ZEROS = {
    "date": "'1970-01-02'",
    "datetime": "'1970-01-02 00:00:00'",
    "timestamp": "'1970-01-02 00:00:00'",
    "time": "'00:00:00'",
    "year": "1970",
    "bit": "b'0'",
}
NUMBERS = frozenset(
    {"tinyint", "boolean", "smallint", "mediumint", "integer", "bigint", "decimal", "float", "double", "serial"}
)
STRINGS = frozenset({"char", "varchar", "binary", "varbinary"})
LARGE = re.compile(r"(tiny|medium|long)?(text|blob)")
LONGEST_NAME = 64
COPIED_KEYS = ("PRIMARY", "UNIQUE", "KEY")
DROPS = {Action.DROP_COLUMN, Action.DROP_INDEX, Action.DROP_FOREIGN_KEY, Action.DROP_CONSTRAINT}

REFERRED = """
SELECT constraint_name, table_name FROM information_schema.key_column_usage
WHERE referenced_table_schema = DATABASE() AND referenced_table_name = %s AND referenced_column_name = %s"""
REFERRING = """
SELECT table_name, constraint_name FROM information_schema.referential_constraints
WHERE constraint_schema = DATABASE() AND referenced_table_name = %s LIMIT 9999"""


@dataclass(frozen=True, slots=True)
class Burial:
    """A dropped column's or table's replacement: the statement that renames it away, and what is left to send.

    *columns* maps the graves to the columns' own names; *names* are what *sql* names, in lower case: it changes nothing
    else. *rest* is the statement without what is done already.
    """

    sql: str
    columns: dict[str, str]
    names: frozenset[str]
    rest: str | None


def dropped_columns(alter: AlterTable, table: TableDefinition) -> list[Column]:
    """Return the columns that *alter* drops and that hold values of their own."""
    wanted = {(clause.name or "").lower() for clause in alter.clauses if clause.action is Action.DROP_COLUMN}
    return [column for column in table.columns if column.name.lower() in wanted and not column.generated]


def bury_columns(link: Link, engine: Engine, alter: AlterTable, definition: str, graves: dict[str, str]) -> Burial:
    """Return how to take the columns of *graves* (by name, their graves) out of the table that *definition* makes.

    Unless nothing else is about the columns, the real drop is tried on an empty copy first: it must not fail after the
    commit. Its result tells which indexes and checks shrink or go with the columns. Raises ``StatementRefusedError``,
    and the server's own error.
    """
    table = parse(definition)
    for column in graves:
        _refuse_tied(link, alter, table, column)
    after = table if _is_alone(alter, table, graves) else _rehearse(link, alter, table)
    clauses = [clause.text for clause in alter.clauses if clause.action in DROPS - {Action.DROP_COLUMN}]
    said = _released(alter)
    changed = _changed(table.keys, after.keys)
    clauses += [f"DROP INDEX {name(key)}" for key in changed if key.lower() not in said]
    gone = [check for check in table.checks if check not in after.checks and check.lower() not in said]
    clauses += [f"DROP CONSTRAINT {name(check)}" for check in gone]
    clauses += [f"ADD {after.keys[key]}" for key in changed if key in after.keys]
    clauses += [_burying(link, engine, table, column, grave) for column, grave in graves.items()]
    buried = {column.lower() for column in graves}
    dropped = [clause.name or "" for clause in alter.clauses if clause.action in DROPS]
    clauses += [clause.text for clause in alter.clauses if _is_drop_of_generated(clause, buried, table)]
    return Burial(
        f"ALTER TABLE {name(alter.table)} {', '.join(clauses)}",
        {grave: column for column, grave in graves.items()},
        frozenset(each.lower() for each in [*graves, *graves.values(), *dropped, *changed, *gone]),
        _rest(alter),
    )


def _is_alone(alter: AlterTable, table: TableDefinition, columns: Collection[str]) -> bool:
    """Say whether nothing of *table* is about *columns*, something visible stays, and *alter* drops nothing else."""
    stays = any(each.name not in columns and "INVISIBLE" not in each.text for each in table.columns)
    dropped = [clause for clause in alter.clauses if clause.action in DROPS]
    is_plain = not table.partitions and len(dropped) == len(columns)
    return stays and is_plain and not any(map(table.mentions, columns))


def _is_drop_of_generated(clause: Clause, buried: set[str], table: TableDefinition) -> bool:
    names = {column.name.lower() for column in table.columns}
    dropped = (clause.name or "").lower()
    return clause.action is Action.DROP_COLUMN and dropped in names - buried


def _released(alter: AlterTable) -> set[str]:
    """Return what *alter* drops beside columns, in lower case; a key may be called as a column is."""
    dropping = DROPS - {Action.DROP_COLUMN}
    return {(clause.name or "").lower() for clause in alter.clauses if clause.action in dropping}


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [key for key, line in before.items() if after.get(key) != line]


def _rest(alter: AlterTable) -> str | None:
    left = [clause.text for clause in alter.clauses if clause.action not in DROPS]
    return alter.rebuilt(left) if left else None


def _refuse_tied(link: Link, alter: AlterTable, table: TableDefinition, column: str) -> None:
    """Refuse a column whose real drop could fail after the commit, for what an empty copy does not show."""
    where = f"column {column!r} of {alter.table!r}"
    if ("key", "PRIMARY") in table.mentions(column):
        raise StatementRefusedError(f"{where} is part of the primary key: its drop cannot be undone")
    released = _released(alter)
    for kind, key in table.mentions(column):
        if kind == "foreign key" and key.lower() not in released:
            raise StatementRefusedError(
                f"{where} is needed by the foreign key {key!r}",
                hint="drop the foreign key first, in the same migration",
            )
    # What a foreign key refers to has an index, and to ask takes as long as the server has tables.
    has_index = any(kind == "key" for kind, _ in table.mentions(column))
    for key, child in link.rows(REFERRED, (alter.table, column)) if has_index else ():
        raise StatementRefusedError(
            f"{where} is needed by the foreign key {key!r} of {child!r}", hint="drop that foreign key first"
        )


def _rehearse(link: Link, alter: AlterTable, table: TableDefinition) -> TableDefinition:
    """Drop on an empty temporary copy, which no other session sees, and return what the table becomes."""
    if table.partitions:
        raise StatementRefusedError(f"{alter.table!r} is partitioned: the drop of a column cannot be tried beforehand")
    # What a temporary table cannot have: foreign keys, FULLTEXT keys (MySQL 1796), compressed rows (MariaDB 4047).
    apart = {key: line for key, line in table.keys.items() if not line.startswith(COPIED_KEYS)}
    kept = [*(line for key, line in table.keys.items() if key not in apart), *table.checks.values()]
    items = [f"{name(column.name)} {column.text}" for column in table.columns] + kept
    missing = {key.lower() for key in [*apart, *table.foreign_keys]} - {key.lower() for key in table.checks}
    clauses = [c.text for c in alter.clauses if c.action in DROPS and not _is_missing(c, missing)]
    copy = name(f"{PREFIX}_rehearsal")
    link.execute(f"DROP TEMPORARY TABLE IF EXISTS {copy}")
    with exact(link):
        link.execute(
            f"CREATE TEMPORARY TABLE {copy} ({', '.join(items)}) ENGINE=InnoDB DEFAULT CHARSET={table.charset}"
        )
    try:
        link.execute(f"ALTER TABLE {copy} {', '.join(clauses)}")
        printed = str(link.rows(f"SHOW CREATE TABLE {copy}")[0][1])
    finally:
        link.execute(f"DROP TEMPORARY TABLE {copy}")
    after = parse(printed.replace("CREATE TEMPORARY TABLE", "CREATE TABLE", 1))
    return replace(after, keys=after.keys | dict(_left_of(apart, after)))


def _is_missing(clause: Clause, missing: set[str]) -> bool:
    return clause.action is not Action.DROP_COLUMN and (clause.name or "").lower() in missing


def _left_of(keys: dict[str, str], after: TableDefinition) -> Iterator[tuple[str, str]]:
    """Yield what becomes of *keys*, by name, once a table has only the columns that *after* has."""
    for key, line in keys.items():
        columns = columns_in(line)
        left = [name(column) for column in columns if after.column(column)]
        listed = f"({','.join(map(name, columns))})"
        if left:
            yield key, line.replace(listed, f"({','.join(left)})")


def _burying(link: Link, engine: Engine, table: TableDefinition, column: str, grave: str) -> str:
    text = parse_definition(column_of(table, column).text, named=False, backslashes=True)
    return f"CHANGE COLUMN {name(column)} {name(grave)} {hidden(link, engine, str(_optional(text, engine)))}"


def column_of(table: TableDefinition, wanted: str) -> Column:
    """Return the column that the table is known to have."""
    column = table.column(wanted)
    assert column is not None, "the caller took the name from the table"
    return column


def _optional(text: ColumnText, engine: Engine) -> ColumnText:
    """Return a definition that INSERTs need not know: a value for NOT NULL, and no CHECK of its own.

    A DEFAULT, not NULL: the rows written meanwhile then let the undo restore the NOT NULL.
    """
    required = "NOT NULL" in " ".join(text.tokens).upper()
    text = _without_check(text)
    if not required or text.default is not None:
        return text
    zero = zero_of(text, engine)
    return text.with_tail(f"DEFAULT {zero}") if zero else text.with_null(True)


def _without_check(text: ColumnText) -> ColumnText:
    tokens = list(text.tokens)
    while "CHECK" in (words := [token.upper() for token in tokens]):
        at = words.index("CHECK")
        del tokens[at : at + 2]
    return ColumnText(tuple(tokens), text.start, text.kind)


def zero_of(text: ColumnText, engine: Engine) -> str | None:
    """Return a DEFAULT for the type of *text*, ``None`` where none is known to fit."""
    kind = parse_type(type_in(text), engine).kind
    if kind.startswith("enum("):
        return tokens_of(kind[5:-1], backslashes=True)[0]
    if kind in NUMBERS:
        return "0"
    if kind in STRINGS or kind.startswith("set("):
        return "''"
    if LARGE.fullmatch(kind):
        return "('')" if engine == "mysql" else "''"
    if kind == "json":
        return "('null')" if engine == "mysql" else "'null'"
    return ZEROS.get(kind)


def hidden(link: Link, engine: Engine, definition: str) -> str:
    """Return *definition* made INVISIBLE where the server can: MySQL 8.0.23, MariaDB 10.3."""
    able = link.version >= ((8, 0, 23) if engine == "mysql" else (10, 3, 0))
    return definition if not able or "INVISIBLE" in definition.upper() else f"{definition} INVISIBLE"


def type_in(text: ColumnText) -> str:
    """Return the type alone of a column's definition."""
    return " ".join(text.tokens[text.start : text.start + text.kind])


@contextmanager
def refused_for(table: TableDefinition) -> Iterator[None]:
    """Say of a statement that the server refuses for a column's type that a dropped column of *table* may be why."""
    try:
        yield
    except pymysql.err.MySQLError as exc:
        waiting = [column.name for column in table.columns if column.name.startswith(PREFIX)]
        if not waiting or exc.args[0] != ER.CHECK_NOT_IMPLEMENTED:
            raise
        raise StatementRefusedError(
            f"{table.name!r} keeps the columns that this batch dropped until it commits: {', '.join(waiting)}; "
            f"the server says: {exc.args[1]}",
            hint="do it in a migration of the next release",
        ) from exc


# Tables --------------------------------------------------------------------------------------------------------


def bury_tables(tables: dict[str, str]) -> str:
    """Return the one statement that renames *tables*, by name, to their graves."""
    return "RENAME TABLE " + ", ".join(f"{name(table)} TO {name(grave)}" for table, grave in tables.items())


def refuse_long_names(table: TableDefinition) -> None:
    """Refuse to drop a table with a foreign key or check that could not be made again by its name."""
    for key in [*table.foreign_keys, *table.checks]:
        if len(key) > LONGEST_NAME:
            raise StatementRefusedError(
                f"{key!r} of {table.name!r}, a name that the server made up, is too long to be given again",
                hint=f"rename the table to something short first, or {StatementRefusedError.default_hint}",
            )


def refuse_referred(link: Link, tables: dict[str, str], engine: Engine) -> None:
    """Refuse to drop a table that another one's foreign key refers to, as the server would."""
    for at, table in enumerate(tables):
        # MariaDB drops them one by one.
        gone = [*tables][: at + 1] if engine == "mariadb" else tables
        for child, key in link.rows(REFERRING, (table,)):
            if child not in gone:
                raise StatementRefusedError(
                    f"table {table!r} cannot be dropped: the foreign key {key!r} of {child!r} refers to it",
                    hint="drop that foreign key first",
                )


def release(link: Link, grave: str, engine: Engine) -> str | None:
    """Return the statement that frees what a buried table still holds: the tables that it refers to, and names.

    Foreign keys' names are the schema's on both servers, CHECKs' on MySQL (MySQL 8.4 manual, "CHECK Constraints");
    there those that the server made up itself went with the table's name.
    """
    table = parse(str(definitions(link, [grave])[grave]))
    clauses = [f"DROP FOREIGN KEY {name(key)}" for key in table.foreign_keys]
    if engine == "mysql":
        clauses += [f"DROP CHECK {name(check)}" for check in table.checks if not check.startswith(grave)]
    return f"ALTER TABLE {name(grave)} {', '.join(clauses)}" if clauses else None
