"""Read a live schema: the columns and indexes that stand, as the server itself reports them.

Every function reads and changes nothing. On PostgreSQL one query a call, on ``pg_catalog``: the standard's
``information_schema`` views cost five to ten times as much there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import peewee

from api.db.dialects.column_text import parse_definition, split_body, tokens_of, unquote
from api.db.dialects.engine import Engine, engine_of
from api.db.dialects.literals import for_driver
from api.db.dialects.types import ColumnType, parse_type
from api.exceptions import SchemaConflictError

# InnoDB keys end at 3072 bytes a column (767 with the row formats REDUNDANT and COMPACT); a server whose sql_mode
# is not strict cuts a longer one to the most characters that fit (MySQL 8.4 manual, 17.22 InnoDB limits).
KEY_BYTES = (3072, 767)


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column as it stands. *default* is SQL as the server writes it; *definition* is MySQL's and MariaDB's own."""

    name: str
    type: ColumnType
    null: bool
    default: str | None
    definition: str | None = None


@dataclass(frozen=True, slots=True)
class LiveIndex:
    """An index as it stands. *method* is how it is kept, in small letters: ``btree``, ``gin``, ``fulltext``.

    *plain* is false when a query on its columns cannot count on it: it is partial, on an expression or a chosen
    prefix, has an operator class or collation that is not the column's own, is invalid, or hidden from the optimizer.
    *constraint* is true when it belongs to a PRIMARY KEY or UNIQUE constraint and cannot be dropped by itself.
    *whole* is false when the server cut a key to a prefix, or checks uniqueness only at COMMIT: it then serves as
    an index, not as uniqueness.
    """

    name: str
    columns: tuple[str, ...]
    unique: bool
    plain: bool = True
    constraint: bool = False
    whole: bool = True
    method: str = "btree"


def quote(database: peewee.Database, *parts: str | None) -> str:
    """Return *parts*, without those that are ``None``, as one quoted name to stand in a statement for the driver."""
    return for_driver(regclass(database, *parts), engine_of(database))


def regclass(database: peewee.Database, *parts: str | None) -> str:
    """Return the same as a value to pass to PostgreSQL's ``to_regclass``, no percent sign doubled."""
    sql, _ = database.get_sql_context().sql(peewee.Entity(*(part for part in parts if part))).query()
    return str(sql)


def folded(name: str, engine: Engine) -> str:
    """Return *name* as *engine* compares names of columns: without case, except on PostgreSQL."""
    return name if engine == "postgres" else name.lower()


def read_columns(
    database: peewee.Database,
    engine: Engine,
    table: str,
    *,
    names: Iterable[str] = (),
    schema: str | None = None,
) -> dict[str, LiveColumn] | None:
    """Return the columns of *table* by name, in their order, or ``None`` when there is no such table.

    With *names*, only those of them that stand: on PostgreSQL that reads less.
    """
    read = {"postgres": _postgres_columns, "sqlite": _sqlite_columns}.get(engine, _mysql_columns)
    wanted = tuple(names)
    columns = read(database, engine, table, wanted, schema)
    if columns is None or not wanted:
        return columns
    # The result is keyed as the caller writes the names.
    by_key = {folded(name, engine): column for name, column in columns.items()}
    return {name: by_key[folded(name, engine)] for name in wanted if folded(name, engine) in by_key}


def read_indexes(
    database: peewee.Database, engine: Engine, table: str, *, schema: str | None = None
) -> list[LiveIndex]:
    """Return the indexes of *table*, the primary key's among them."""
    read = {"postgres": _postgres_indexes, "sqlite": _sqlite_indexes}.get(engine, _mysql_indexes)
    return read(database, table, schema)


def is_index_name_taken(
    database: peewee.Database, engine: Engine, table: str, name: str, *, schema: str | None = None
) -> bool:
    """Say whether a new index of *table* cannot be called *name* because of something else than *table*'s indexes.

    On PostgreSQL and SQLite indexes and tables of one schema share their names; on MySQL each table has its own.
    """
    if engine == "postgres":
        # ::name cuts to 63 bytes, as the server will cut the new index's name.
        table_name = regclass(database, schema, table)
        return database.execute_sql(POSTGRES_TAKEN, (name, table_name, table_name)).fetchone() is not None
    if engine == "sqlite":
        sql = "SELECT 1 FROM sqlite_schema WHERE lower(name) = ? AND (type <> 'index' OR lower(tbl_name) <> ?)"
        return database.execute_sql(sql, (name.lower(), table.lower())).fetchone() is not None
    return False


def has_rows(database: peewee.Database, table: str, *, where: str = "", schema: str | None = None) -> bool:
    """Say whether *table* holds a row, or one for which *where*, a condition in SQL, is true."""
    condition = f" WHERE {where}" if where else ""
    sql = f"SELECT 1 FROM {quote(database, schema, table)}{condition} LIMIT 1"
    return database.execute_sql(sql).fetchone() is not None


# PostgreSQL ----------------------------------------------------------------------------------------------------

POSTGRES_COLUMNS = """
SELECT t.oid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d
        WHERE d.adrelid = t.oid AND d.adnum = a.attnum)
FROM (SELECT pg_catalog.to_regclass(%s) AS oid) t
LEFT JOIN pg_catalog.pg_attribute a
       ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped {chosen}
ORDER BY a.attnum"""

POSTGRES_INDEXES = """
SELECT c.relname,
       ARRAY(SELECT a.attname::text FROM generate_series(0, i.indnkeyatts - 1) k
             LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
             ORDER BY k),
       i.indisunique,
       i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
       AND NOT EXISTS (SELECT FROM generate_series(0, i.indnkeyatts - 1) k
                       JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[k]
                       JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
                       WHERE NOT o.opcdefault OR i.indcollation[k] <> a.attcollation),
       EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')),
       i.indimmediate, m.amname
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = c.relam
WHERE i.indrelid = pg_catalog.to_regclass(%s) ORDER BY c.relname"""

POSTGRES_TAKEN = """
SELECT FROM pg_catalog.pg_class c
WHERE c.relname = %s::name
  AND c.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                  WHERE i.indexrelid = c.oid AND i.indrelid = pg_catalog.to_regclass(%s))"""


def _postgres_columns(
    database: peewee.Database, engine: Engine, table: str, names: Sequence[str], schema: str | None
) -> dict[str, LiveColumn] | None:
    chosen = "AND a.attname = ANY (%s)" if names else ""
    parameters = (regclass(database, schema, table), *([list(names)] if names else ()))
    rows = database.execute_sql(POSTGRES_COLUMNS.format(chosen=chosen), parameters).fetchall()
    if rows[0][0] is None:
        return None
    return {
        name: LiveColumn(name, parse_type(kind, engine), null, default)
        for _, name, kind, null, default in rows
        if name is not None
    }


def _postgres_indexes(database: peewee.Database, table: str, schema: str | None) -> list[LiveIndex]:
    rows = database.execute_sql(POSTGRES_INDEXES, (regclass(database, schema, table),)).fetchall()
    return [
        LiveIndex(name, tuple(columns), unique, plain and None not in columns, constraint, immediate, method)
        for name, columns, unique, plain, constraint, immediate, method in rows
    ]


# MySQL and MariaDB ---------------------------------------------------------------------------------------------

# SHOW CREATE TABLE is the one place where both servers write a column whole: DEFAULT expressions, ON UPDATE,
# COMMENT, COLLATE, generated columns and MariaDB's own CHECKs. A line a column, two spaces in front.
DEFINITION = re.compile(r"^  `((?:[^`]|``)+)` (.*?),?$", re.MULTILINE)

# What makes a LONGTEXT of MariaDB's JSON (MariaDB documentation, "JSON Data Type").
JSON_CHECK = re.compile(r"\bCHECK \(json_valid\(`(?:[^`]|``)+`\)\)", re.IGNORECASE)


def mysql_definitions(database: peewee.Database, table: str, schema: str | None = None) -> dict[str, str]:
    """Return each column's own definition, without its name, as SHOW CREATE TABLE writes it.

    Raises ``SchemaConflictError`` for a view, whose columns have no definition of their own.
    """
    cursor = database.execute_sql(f"SHOW CREATE TABLE {quote(database, schema, table)}")
    if cursor.description[0][0] == "View":
        raise SchemaConflictError(f"{table!r} is a view, not a table", hint="change the tables that it reads")
    row = cursor.fetchone()
    return {name.replace("``", "`"): text for name, text in DEFINITION.findall(row[1])}


def _mysql_columns(
    database: peewee.Database, engine: Engine, table: str, names: Sequence[str], schema: str | None
) -> dict[str, LiveColumn] | None:
    sql = """SELECT column_name, column_type, is_nullable, column_default
             FROM information_schema.columns
             WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s ORDER BY ordinal_position"""
    rows = database.execute_sql(sql, (schema, table)).fetchall()
    if not rows:
        return None
    definitions = mysql_definitions(database, table, schema)
    columns = {}
    for name, kind, null, default in rows:
        nothing = default is None or (engine == "mariadb" and default == "NULL")
        definition = definitions.get(name)
        is_json = engine == "mariadb" and kind == "longtext" and JSON_CHECK.search(definition or "")
        columns[name] = LiveColumn(
            name,
            parse_type("json" if is_json else kind, engine),
            null == "YES",
            None if nothing else str(default),
            definition,
        )
    return columns


def _mysql_indexes(database: peewee.Database, table: str, schema: str | None) -> list[LiveIndex]:
    sql = """SELECT s.index_name, s.non_unique, s.index_type, s.column_name, s.sub_part, c.data_type,
                    COALESCE(c.character_octet_length DIV NULLIF(c.character_maximum_length, 0), 1)
             FROM information_schema.statistics s
             LEFT JOIN information_schema.columns c
               ON c.table_schema = s.table_schema AND c.table_name = s.table_name AND c.column_name = s.column_name
             WHERE s.table_schema = COALESCE(%s, DATABASE()) AND s.table_name = %s
             ORDER BY s.index_name, s.seq_in_index"""
    rows = database.execute_sql(sql, (schema, table)).fetchall()
    hidden = _mysql_hidden(database, table, schema) if rows else set()
    indexes: dict[str, LiveIndex] = {}
    for name, non_unique, method, column, prefix, kind, char_bytes in rows:
        imposed = prefix is None or _is_imposed(int(prefix), str(kind), int(char_bytes))
        serves = imposed and column is not None and name not in hidden
        before = indexes.get(name)
        indexes[name] = LiveIndex(
            name,
            (*(before.columns if before else ()), column or ""),
            not non_unique,
            plain=serves and (before is None or before.plain),
            constraint=name == "PRIMARY",
            whole=prefix is None and (before is None or before.whole),
            # MariaDB keeps a UNIQUE on a long text by hashes.
            method="btree" if method == "HASH" else method.lower(),
        )
    return list(indexes.values())


def _mysql_hidden(database: peewee.Database, table: str, schema: str | None) -> set[str]:
    """Return the indexes that the optimizer may not use: MySQL's INVISIBLE and MariaDB's IGNORED ones."""
    cursor = database.execute_sql(f"SHOW INDEX FROM {quote(database, schema, table)}")
    titles = [column[0] for column in cursor.description]
    rows = [dict(zip(titles, row, strict=True)) for row in cursor.fetchall()]
    return {row["Key_name"] for row in rows if row.get("Visible") == "NO" or row.get("Ignored") == "YES"}


def _is_imposed(prefix: int, kind: str, char_bytes: int) -> bool:
    """Say whether the server, not a person, chose this prefix: it is the longest that fits into a key."""
    if kind.endswith(("text", "blob")):
        char_bytes = 4 if kind.endswith("text") else 1
    return any(limit - char_bytes < prefix * char_bytes <= limit for limit in KEY_BYTES)


# SQLite --------------------------------------------------------------------------------------------------------


def _sqlite_columns(
    database: peewee.Database, engine: Engine, table: str, names: Sequence[str], schema: str | None
) -> dict[str, LiveColumn] | None:
    # table_xinfo, not table_info: that one hides generated columns. hidden = 1 marks a virtual table's own.
    rows = database.execute_sql(f"PRAGMA table_xinfo({quote(database, table)})").fetchall()
    columns = {
        name: LiveColumn(name, parse_type(kind, engine), not (required or key), default)
        for _, name, kind, required, default, key, hidden in rows
        if hidden != 1
    }
    return columns or None


def _sqlite_indexes(database: peewee.Database, table: str, schema: str | None) -> list[LiveIndex]:
    rows: list[Any] = database.execute_sql(f"PRAGMA index_list({quote(database, table)})").fetchall()
    collations = _sqlite_collations(database, table) if rows else {}
    return [_sqlite_index(database, collations, *row[1:5]) for row in rows]


def _sqlite_index(
    database: peewee.Database, collations: dict[str, str], name: str, unique: int, origin: str, partial: int
) -> LiveIndex:
    rows = database.execute_sql(f"PRAGMA index_xinfo({quote(database, name)})").fetchall()
    keys = [(column, collation) for _, _, column, _, collation, is_key in rows if is_key]
    return LiveIndex(
        name,
        tuple(column or "" for column, _ in keys),
        bool(unique),
        plain=not partial and all(column and collations[column] == collation.upper() for column, collation in keys),
        constraint=origin != "c",
    )


def _sqlite_collations(database: peewee.Database, table: str) -> dict[str, str]:
    """Return each column's own collation; no pragma tells it, so it is read from the table's text."""
    columns = _sqlite_columns(database, "sqlite", table, (), None) or {}
    sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = ?"
    create = database.execute_sql(sql, (table.lower(),)).fetchone()[0]
    body = next(token for token in tokens_of(create, backslashes=False) if token.startswith("("))
    said = {}
    for item in split_body(body[1:-1]):
        tokens = parse_definition(item, named=True, backslashes=False).tokens
        words = [token.upper() for token in tokens]
        if "COLLATE" in words:
            said[unquote(tokens[0]).lower()] = unquote(words[words.index("COLLATE") + 1])
    return {name: said.get(name.lower(), "BINARY") for name in columns}
