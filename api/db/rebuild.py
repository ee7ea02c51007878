"""SQLite: change what ALTER TABLE cannot, by building the table anew from its own text.

The steps are those of SQLite's manual (lang_altertable, section 7), with all that hangs on the table kept: rows and
their rowids, indexes, triggers, views, STRICT, WITHOUT ROWID, foreign keys and the AUTOINCREMENT counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import peewee

from api.db.dialects.column_text import (
    ColumnText,
    names_in,
    parse_definition,
    same_name,
    split_body,
    tokens_of,
)
from api.exceptions import MigrationError, SchemaConflictError

Edit = Callable[[ColumnText], ColumnText | None]
Violations = Counter[tuple[str, str]]


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
    """Count the rows that point nowhere, by child and parent table."""
    rows = database.execute_sql("PRAGMA foreign_key_check").fetchall()
    return Counter((table, parent) for table, _, parent, _ in rows)


def refuse_new_violations(database: peewee.Database, before: Violations) -> None:
    """Raise ``MigrationError`` when more rows point nowhere than *before*; call it before COMMIT."""
    new = foreign_key_violations(database) - before
    if new:
        rows = ", ".join(f"{count} of {child!r} to {parent!r}" for (child, parent), count in sorted(new.items()))
        raise MigrationError(
            f"the migration leaves rows that point to nothing: {rows}",
            hint="delete or mend those rows in the migration, before its last statement",
        )


def rebuild_column(database: peewee.Database, table: str, column: str, edit: Edit) -> None:
    """Rebuild *table* with *column*'s definition as *edit* returns it, or without the column for ``None``.

    Inside a transaction foreign keys must be off already, as the runner sees to. Raises ``SchemaConflictError``
    when table or column is missing, ``MigrationError`` when foreign keys are on.
    """
    if database.in_transaction():
        _refuse_enforcement(database, table)
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


def _rebuild(database: peewee.Database, table: str, column: str, edit: Edit) -> None:
    name, create = _one(
        database, "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower(?)", table
    )
    dependents = database.execute_sql(
        "SELECT type, name, sql FROM sqlite_schema"
        " WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL",
        (name,),
    ).fetchall()
    copied = [row[1] for row in database.execute_sql(f"PRAGMA table_xinfo({_quote(name)})").fetchall() if row[6] == 0]
    body, kept = _edited_body(name, create, column, edit)
    if not kept:
        copied = [each for each in copied if not same_name(each, column)]
        dependents = [each for each in dependents if not _is_index_on(database, each[0], each[1], column)]
    names = ", ".join(_quote(each) for each in copied)
    counter = _counter(database, name)
    temporary = f"{name}__rebuilt"
    options = create[create.rindex(")") + 1 :]
    run = database.execute_sql
    run(f"CREATE TABLE {_quote(temporary)} ({body}){options}")
    run(f"INSERT INTO {_quote(temporary)} ({names}) SELECT {names} FROM {_quote(name)}")
    run(f"DROP TABLE {_quote(name)}")
    _rename(database, temporary, name)
    for _, _, sql in dependents:
        run(sql)
    if counter is not None:
        run("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
        run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, counter))


def _is_index_on(database: peewee.Database, kind: str, name: str, column: str) -> bool:
    rows = database.execute_sql(f"PRAGMA index_info({_quote(name)})").fetchall() if kind == "index" else []
    return any(row[2] and same_name(row[2], column) for row in rows)


def _rename(database: peewee.Database, old: str, new: str) -> None:
    # Without legacy_alter_table the rename checks every view, and fails on those that name the table just dropped.
    legacy = database.pragma("legacy_alter_table")
    database.pragma("legacy_alter_table", 1)
    try:
        database.execute_sql(f"ALTER TABLE {_quote(old)} RENAME TO {_quote(new)}")
    finally:
        database.pragma("legacy_alter_table", legacy)


def _counter(database: peewee.Database, name: str) -> int | None:
    if "sqlite_sequence" not in {row[0] for row in database.execute_sql("SELECT name FROM sqlite_schema")}:
        return None
    row = database.execute_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _edited_body(table: str, create: str, column: str, edit: Edit) -> tuple[str, bool]:
    """Return the new body of CREATE TABLE *create*, and whether *column* is still in it."""
    group = next(token for token in tokens_of(create, backslashes=False) if token.startswith("("))
    items, found, kept = [], False, True
    for item in split_body(group[1:-1]):
        definition = parse_definition(item, named=True, backslashes=False)
        if _is_constraint(item):
            items.append(item)
        elif same_name(definition.tokens[0], column):
            found = True
            edited = edit(definition)
            kept = edited is not None
            items.extend([str(edited)] if edited else [])
        else:
            items.append(item)
    if not found:
        raise SchemaConflictError(f"{table!r} has no column {column!r}", hint="check the column's name")
    if not kept:
        items = [item for item in items if not (_is_constraint(item) and _is_only_on(item, column))]
    return ", ".join(items), kept


def _is_constraint(item: str) -> bool:
    """Say whether *item* is a table constraint: its first word is one of five, and not a quoted name."""
    words = [token.upper() for token in tokens_of(item, backslashes=False)[:2]]
    return words[0] in ("CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN")


def _is_only_on(item: str, column: str) -> bool:
    """Say whether the constraint *item* is a foreign key or UNIQUE on *column* alone, and goes with it."""
    tokens = tokens_of(item, backslashes=False)
    words = [token.upper() for token in tokens]
    if "FOREIGN" not in words and "UNIQUE" not in words:
        return False
    group = next(token for token in tokens if token.startswith("("))
    names = names_in(group)
    return len(names) == 1 and same_name(names[0], column)


def _one(database: peewee.Database, sql: str, table: str) -> tuple[str, str]:
    row = database.execute_sql(sql, (table,)).fetchone()
    if row is None:
        raise SchemaConflictError(f"there is no table {table!r}", hint="check the table's name")
    return row[0], row[1]


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
