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

from api.db.dialects.engine import Engine
from api.db.dialects.types import ColumnType, parse_type

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
    """An index as it stands. *plain* is false when it is partial, on an expression, invalid or on chosen prefixes.

    *constraint* is true when it belongs to a PRIMARY KEY or UNIQUE constraint and cannot be dropped by itself.
    *whole* is false when the server cut a key to a prefix: it then serves as an index, not as uniqueness.
    """

    name: str
    columns: tuple[str, ...]
    unique: bool
    plain: bool = True
    constraint: bool = False
    whole: bool = True


def quote(database: peewee.Database, *parts: str | None) -> str:
    """Return *parts*, without those that are ``None``, as one quoted name."""
    sql, _ = database.get_sql_context().sql(peewee.Entity(*(part for part in parts if part))).query()
    return str(sql)


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
    # Names of columns ignore case except on PostgreSQL; the result is keyed as the caller writes them.
    by_key = columns if engine == "postgres" else {name.lower(): column for name, column in columns.items()}
    keys = {name: name if engine == "postgres" else name.lower() for name in wanted}
    return {name: by_key[key] for name, key in keys.items() if key in by_key}


def read_indexes(
    database: peewee.Database, engine: Engine, table: str, *, schema: str | None = None
) -> list[LiveIndex]:
    """Return the indexes of *table*, the primary key's among them."""
    read = {"postgres": _postgres_indexes, "sqlite": _sqlite_indexes}.get(engine, _mysql_indexes)
    return read(database, table, schema)


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
       i.indisunique, i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid,
       EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x'))
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = pg_catalog.to_regclass(%s) ORDER BY c.relname"""


def _postgres_columns(
    database: peewee.Database, engine: Engine, table: str, names: Sequence[str], schema: str | None
) -> dict[str, LiveColumn] | None:
    chosen = "AND a.attname = ANY (%s)" if names else ""
    parameters = (quote(database, schema, table), *([list(names)] if names else ()))
    rows = database.execute_sql(POSTGRES_COLUMNS.format(chosen=chosen), parameters).fetchall()
    if rows[0][0] is None:
        return None
    return {
        name: LiveColumn(name, parse_type(kind, engine), null, default)
        for _, name, kind, null, default in rows
        if name is not None
    }


def _postgres_indexes(database: peewee.Database, table: str, schema: str | None) -> list[LiveIndex]:
    rows = database.execute_sql(POSTGRES_INDEXES, (quote(database, schema, table),)).fetchall()
    return [
        LiveIndex(name, tuple(columns), unique, plain and None not in columns, constraint)
        for name, columns, unique, plain, constraint in rows
    ]


# MySQL and MariaDB ---------------------------------------------------------------------------------------------

# SHOW CREATE TABLE is the one place where both servers write a column whole: DEFAULT expressions, ON UPDATE,
# COMMENT, COLLATE, generated columns and MariaDB's own CHECKs. A line a column, two spaces in front.
DEFINITION = re.compile(r"^  `((?:[^`]|``)+)` (.*?),?$", re.MULTILINE)


def mysql_definitions(database: peewee.Database, table: str, schema: str | None = None) -> dict[str, str]:
    """Return each column's own definition, without its name, as SHOW CREATE TABLE writes it."""
    row = database.execute_sql(f"SHOW CREATE TABLE {quote(database, schema, table)}").fetchone()
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
        columns[name] = LiveColumn(
            name,
            parse_type(kind, engine),
            null == "YES",
            None if nothing else str(default),
            definitions.get(name),
        )
    return columns


def _mysql_indexes(database: peewee.Database, table: str, schema: str | None) -> list[LiveIndex]:
    sql = """SELECT s.index_name, s.non_unique, s.column_name, s.sub_part, c.data_type,
                    COALESCE(c.character_octet_length DIV NULLIF(c.character_maximum_length, 0), 1)
             FROM information_schema.statistics s
             LEFT JOIN information_schema.columns c
               ON c.table_schema = s.table_schema AND c.table_name = s.table_name AND c.column_name = s.column_name
             WHERE s.table_schema = COALESCE(%s, DATABASE()) AND s.table_name = %s
             ORDER BY s.index_name, s.seq_in_index"""
    indexes: dict[str, LiveIndex] = {}
    for name, non_unique, column, prefix, kind, char_bytes in database.execute_sql(sql, (schema, table)).fetchall():
        imposed = prefix is None or _is_imposed(int(prefix), str(kind), int(char_bytes))
        before = indexes.get(name)
        indexes[name] = LiveIndex(
            name,
            (*(before.columns if before else ()), column or ""),
            not non_unique,
            plain=imposed and column is not None and (before is None or before.plain),
            constraint=name == "PRIMARY",
            whole=prefix is None and (before is None or before.whole),
        )
    return list(indexes.values())


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
    return [_sqlite_index(database, *row[1:5]) for row in rows]


def _sqlite_index(database: peewee.Database, name: str, unique: int, origin: str, partial: int) -> LiveIndex:
    rows = database.execute_sql(f"PRAGMA index_info({quote(database, name)})").fetchall()
    columns = tuple(column for _, _, column in rows)
    return LiveIndex(
        name,
        tuple(column or "" for column in columns),
        bool(unique),
        plain=not partial and None not in columns,
        constraint=origin != "c",
    )
