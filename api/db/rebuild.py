"""SQLite: change what ALTER TABLE cannot, by building the table anew from its own text.

The steps are those of SQLite's manual (lang_altertable, section 7), with all that hangs on the table kept: rows and
their rowids, indexes, triggers, views, STRICT, WITHOUT ROWID, foreign keys, the AUTOINCREMENT counter and the
comments around the column. Not kept is what ANALYZE found out: SQLite deletes that with the table.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import peewee

from api.db.dialects.column_text import (
    ColumnText,
    edited_item,
    names_in,
    parse_definition,
    same_name,
    scan,
    split_body,
    tokens_of,
)
from api.exceptions import MigrationError, SchemaConflictError, UnsafeOperationError

Edit = Callable[[ColumnText], ColumnText | None]
# Rows that point nowhere, by child and parent. The parent is None where SQLite cannot tell: see below.
Violations = Counter[tuple[str, str | None]]

# What a column is called while SQLite is asked who names it.
GOING = "column__going"
CONSTRAINTS = ("PRIMARY", "UNIQUE", "CHECK", "FOREIGN")


@contextmanager
def foreign_keys_off(database: peewee.Database) -> Iterator[None]:
    """Switch foreign keys off for the block and back as they were in every case; opened outside a transaction.

    Inside one the pragma is a silent no-op (SQLite manual, pragma foreign_keys), and a rebuild would delete the
    children of ``ON DELETE CASCADE``.
    """
    enforced = database.pragma("foreign_keys")
    database.pragma("foreign_keys", 0)
    try:
        yield
    finally:
        database.pragma("foreign_keys", enforced)


def foreign_key_violations(database: peewee.Database) -> Violations:
    """Count the rows that point nowhere, by child and parent table.

    A child whose key refers to columns without a unique index cannot be checked ("foreign key mismatch", SQLite
    manual, foreignkeys, section 3): it counts as one violation, of the parent ``None``.
    """
    found: Violations = Counter()
    for (table,) in database.execute_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        answer = _ask(database, f"PRAGMA foreign_key_check({_quote(table)})")
        found.update([(table, None)] if isinstance(answer, str) else [(table, row[2]) for row in answer])
    return found


def refuse_new_violations(database: peewee.Database, before: Violations) -> None:
    """Raise ``MigrationError`` when more rows point nowhere than *before*; call it before COMMIT.

    All of them are counted first: a child that was renamed brings its old ones along under a new name.
    """
    after = foreign_key_violations(database)
    if after.total() <= before.total():
        return
    new = sorted((after - before).items(), key=str)
    raise MigrationError(
        f"the migration leaves rows that point to nothing: {', '.join(_described(*each) for each in new)}",
        hint="delete or mend those rows in the migration, before its last statement",
    )


def _described(key: tuple[str, str | None], count: int) -> str:
    child, parent = key
    if parent is None:
        return f"perhaps all of {child!r}, for its foreign key names columns without a unique index"
    return f"{count} of {child!r} to {parent!r}"


def rebuild_column(database: peewee.Database, table: str, column: str, edit: Edit) -> None:
    """Rebuild *table* with *column*'s definition as *edit* returns it, or without the column for ``None``.

    All of it or nothing, also inside a transaction; there foreign keys must be off already, as the runner sees to.
    A dropped column takes along the indexes it is part of, and the UNIQUE constraint and foreign key on it alone.
    Raises ``SchemaConflictError`` when table or column is missing, or when a view, a trigger, an index's WHERE, a
    CHECK, another column or another table needs the column that goes; ``UnsafeOperationError`` for a virtual table;
    ``MigrationError`` when foreign keys are on.
    """
    if database.in_transaction():
        _refuse_enforcement(database, table)
        with database.atomic():
            _rebuild(database, table, column, edit)
        return
    with foreign_keys_off(database), database.atomic("IMMEDIATE"):
        before = foreign_key_violations(database)
        _rebuild(database, table, column, edit)
        refuse_new_violations(database, before)


def _refuse_enforcement(database: peewee.Database, table: str) -> None:
    if database.pragma("foreign_keys"):
        raise MigrationError(
            f"{table!r} must be rebuilt inside this transaction while foreign keys are enforced",
            hint="switch PRAGMA foreign_keys off before BEGIN, or let migrate_db() run it",
        )


# The table's text ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text:
    """A table's CREATE TABLE: its *name*, the *items* of its body, and its *options* behind that."""

    name: str
    items: tuple[str, ...]
    options: str

    def __str__(self) -> str:
        return f"CREATE TABLE {_quote(self.name)} ({','.join(self.items)}){self.options}"

    def place(self, column: str) -> int:
        """Return which item defines *column*."""
        for at, item in enumerate(self.items):
            if not _is_constraint(item) and same_name(tokens_of(item, backslashes=False)[0], column):
                return at
        raise SchemaConflictError(f"{self.name!r} has no column {column!r}", hint="check the column's name")


def _read(database: peewee.Database, table: str) -> _Text:
    sql = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower(?)"
    row = database.execute_sql(sql, (table,)).fetchone()
    if row is None:
        raise SchemaConflictError(f"there is no table {table!r}", hint="check the table's name")
    name, create = row
    if not create.upper().startswith("CREATE TABLE"):
        raise UnsafeOperationError(
            f"{name!r} is a virtual table, and its columns are its module's",
            hint="create a new one, copy the rows, drop the old one",
        )
    group = next(token for token in scan(create, backslashes=False) if token.text.startswith("("))
    return _Text(name, tuple(split_body(group.text[1:-1])), create[group.end :])


def _is_constraint(item: str) -> bool:
    """Say whether *item* is a table constraint: its first word is one of five, and not a quoted name."""
    return tokens_of(item, backslashes=False)[0].upper() in ("CONSTRAINT", *CONSTRAINTS)


def _goes_along(item: str, column: str) -> bool:
    """Say whether the constraint *item* is a foreign key or UNIQUE on *column* alone.

    The comma between two constraints may be missing: an item with two kinds of them does not go.
    """
    tokens = tokens_of(item, backslashes=False)
    kinds = [token.upper() for token in tokens if token.upper() in CONSTRAINTS]
    if not _is_constraint(item) or kinds not in (["UNIQUE"], ["FOREIGN"]):
        return False
    names = names_in(next(token for token in tokens if token.startswith("(")))
    return len(names) == 1 and same_name(names[0], column)


# The rebuild ---------------------------------------------------------------------------------------------------


def _rebuild(database: peewee.Database, table: str, column: str, edit: Edit) -> None:
    text = _read(database, table)
    at = text.place(column)
    edited = edit(parse_definition(text.items[at], named=True, backslashes=False))
    if edited is None:
        _drop(database, text, at, column)
        return
    item = edited_item(text.items[at], str(edited))
    _replace(database, text, replace(text, items=(*text.items[:at], item, *text.items[at + 1 :])))


def _drop(database: peewee.Database, text: _Text, at: int, column: str) -> None:
    gone, refused = _users(database, text, at, column)
    if refused:
        raise SchemaConflictError(
            f"{text.name}.{column} cannot be dropped: it is named by {', '.join(refused)}",
            hint="drop or rewrite what names it first, in the same migration",
        )
    before = _broken(database)
    for name in _indexes_on(database, text.name, column):
        database.execute_sql(f"DROP INDEX {_quote(name)}")
    kept = tuple(item for place, item in enumerate(text.items) if place not in gone)
    _replace(database, text, replace(text, items=kept))
    if broken := {each: words for each, words in _broken(database).items() if each not in before}:
        raise SchemaConflictError(
            f"{text.name}.{column} cannot be dropped: {'; '.join(f'{each} {broken[each]}' for each in broken)}",
            hint="drop or rewrite the view or trigger first, in the same migration",
        )


def _replace(database: peewee.Database, old: _Text, new: _Text) -> None:
    """Put *new* in the place of *old*, with its rows and what hangs on it."""
    run = database.execute_sql
    dependents = run(
        # A trigger keeps the table's name as its author wrote it.
        "SELECT sql FROM sqlite_schema WHERE lower(tbl_name) = lower(?)"
        " AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY rowid",
        (old.name,),
    ).fetchall()
    counter = _counter(database, old.name)
    temporary = replace(new, name=f"{old.name}__rebuilt")
    run(str(temporary))
    _copy(database, old, temporary)
    run(f"DROP TABLE {_quote(old.name)}")
    _rename(database, temporary.name, old.name)
    for (sql,) in dependents:
        run(sql)
    _set_counter(database, old.name, counter)


def _copy(database: peewee.Database, old: _Text, new: _Text) -> None:
    """Copy all rows, a rowid that no column holds included: other tables may refer to it, as FTS5 does."""
    rowid = _rowid(database, old, new)
    written = [_quote(row[1]) for row in _columns(database, new.name) if row[6] == 0]
    names = ", ".join([*rowid, *written])
    order = f" ORDER BY {rowid[0]}" if rowid else ""
    # OR ABORT: by a column's own ON CONFLICT the copy could leave rows out.
    database.execute_sql(
        f"INSERT OR ABORT INTO {_quote(new.name)} ({names}) SELECT {names} FROM {_quote(old.name)}{order}"
    )


def _rowid(database: peewee.Database, old: _Text, new: _Text) -> list[str]:
    """Return the name to copy the rowid by; nothing where there is none, or where *new* has it as a column.

    An INTEGER PRIMARY KEY is the rowid, and the only primary key without an index (SQLite manual, rowidtable).
    """
    keyed = any(row[5] for row in _columns(database, new.name))
    indexed = any(row[3] == "pk" for row in database.execute_sql(f"PRAGMA index_list({_quote(new.name)})").fetchall())
    without = "WITHOUT" in (token.upper() for token in tokens_of(new.options, backslashes=False))
    if without or (keyed and not indexed):
        return []
    taken = {row[1].lower() for row in _columns(database, old.name)}
    return [name for name in ("rowid", "_rowid_", "oid") if name not in taken][:1]


def _columns(database: peewee.Database, table: str) -> list[Any]:
    rows: list[Any] = database.execute_sql(f"PRAGMA table_xinfo({_quote(table)})").fetchall()
    return rows


def _rename(database: peewee.Database, old: str, new: str) -> None:
    # Without legacy_alter_table the rename checks every view, and fails on those that name the table just dropped.
    legacy = database.pragma("legacy_alter_table")
    database.pragma("legacy_alter_table", 1)
    try:
        database.execute_sql(f"ALTER TABLE {_quote(old)} RENAME TO {_quote(new)}")
    finally:
        database.pragma("legacy_alter_table", legacy)


def _counter(database: peewee.Database, name: str) -> list[Any]:
    """Return AUTOINCREMENT's counter of the table *name*, if it has one."""
    if not database.execute_sql("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
        return []
    rows = database.execute_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)).fetchall()
    return [seq for (seq,) in rows]


def _set_counter(database: peewee.Database, name: str, counter: list[Any]) -> None:
    # The copy set one too: to the highest rowid it saw, or to 0 where there was no row and no counter.
    if _counter(database, name) != counter:
        database.execute_sql("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
        for seq in counter:
            database.execute_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, seq))


# Who needs a column --------------------------------------------------------------------------------------------


def _users(database: peewee.Database, text: _Text, at: int, column: str) -> tuple[set[int], list[str]]:
    """Return which items of *text* go with *column*, its item *at*, and what else names it, in words.

    SQLite itself is asked, by a rename that is undone: it rewrites whatever names the column. To drop it and wait
    for an error is not enough: a ``CHECK ("n" > 0)`` without its column is no error but compares the text 'n'
    (SQLite manual, quirks, section 8).
    """
    with database.savepoint() as asking:
        rename = f"ALTER TABLE {_quote(text.name)} RENAME COLUMN {_quote(column)} TO {GOING}"
        answer = _ask(database, rename)
        if isinstance(answer, str):
            raise SchemaConflictError(
                f"{text.name}.{column} cannot be dropped: {answer}",
                hint="mend or drop the view or trigger that is named there first, in the same migration",
            )
        named = database.execute_sql(
            "SELECT type, name FROM sqlite_schema WHERE instr(sql, ?) AND name <> ?", (GOING, text.name)
        ).fetchall()
        renamed = _read(database, text.name).items
        indexes = _indexes_on(database, text.name, GOING)
        asking.rollback()
    places = {place for place, item in enumerate(renamed) if GOING in item}
    gone = {at} | {place for place in places if _goes_along(text.items[place], column)}
    inside = [" ".join(text.items[place].split()) for place in sorted(places - gone)]
    outside = [f"{kind} {name!r}" for kind, name in named if not (kind == "index" and name in indexes)]
    return gone, inside + outside


def _indexes_on(database: peewee.Database, table: str, column: str) -> list[str]:
    """Return the indexes that *column* is part of; not those of constraints, which nobody can drop."""
    sql = """SELECT i.name FROM pragma_index_list(?) i JOIN pragma_index_info(i.name) c
             WHERE i.origin = 'c' AND lower(c.name) = lower(?)"""
    return list(dict.fromkeys(name for (name,) in database.execute_sql(sql, (table, column)).fetchall()))


def _broken(database: peewee.Database) -> dict[str, str]:
    """Return the views that cannot be read and the triggers' tables that cannot be written, with SQLite's words.

    What names no column still counts them: ``INSERT INTO t VALUES (1, 2)``, ``CREATE VIEW v (a, b) AS SELECT *``.
    """
    views = database.execute_sql("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
    tables = database.execute_sql("SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    asked = {f"SELECT FROM {name!r}": f"SELECT * FROM {_quote(name)}" for (name,) in views}
    for (name,) in tables:
        asked[f"INSERT INTO {name!r}"] = f"INSERT INTO {_quote(name)} DEFAULT VALUES"
        asked[f"DELETE FROM {name!r}"] = f"DELETE FROM {_quote(name)}"
        changes = ", ".join(f"{_quote(row[1])} = NULL" for row in _columns(database, name) if row[6] == 0)
        asked[f"UPDATE {name!r}"] = f"UPDATE {_quote(name)} SET {changes}"
    answers = {label: _ask(database, f"EXPLAIN {sql}") for label, sql in asked.items()}
    return {label: f"fails: {answer}" for label, answer in answers.items() if isinstance(answer, str)}


def _ask(database: peewee.Database, sql: str) -> list[Any] | str:
    """Return the rows of *sql*, or SQLite's words when it says that this cannot be done.

    Asked past peewee, whose hooks would count a refusal as a statement of the migration that failed.
    """
    try:
        return list(database.connection().execute(sql).fetchall())
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise peewee.OperationalError(*exc.args) from exc
        return str(exc)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
