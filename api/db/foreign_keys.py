"""Read the foreign keys that stand, and tell whether one is what a field asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import peewee

from api.db.dialects.engine import Engine
from api.db.schema import folded, quote, regclass

POSTGRES = """
SELECT k.oid, k.conname, a.attname, t.relname, b.attname, k.confdeltype, k.confupdtype
FROM pg_catalog.pg_constraint k
CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY u(own, theirs, position)
JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.own
JOIN pg_catalog.pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.theirs
JOIN pg_catalog.pg_class t ON t.oid = k.confrelid
WHERE k.contype = 'f' AND k.conrelid = CAST(%s AS regclass)
ORDER BY k.conname, k.oid, u.position"""
POSTGRES_ACTIONS = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

MYSQL = """
SELECT k.constraint_name, k.constraint_name, k.column_name, k.referenced_table_name, k.referenced_column_name,
       r.delete_rule, r.update_rule
FROM information_schema.key_column_usage k
JOIN information_schema.referential_constraints r
  ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
 AND r.table_name = k.table_name
WHERE k.table_schema = COALESCE(%s, DATABASE()) AND k.table_name = %s AND k.referenced_table_name IS NOT NULL
ORDER BY k.constraint_name, k.ordinal_position"""
MYSQL_REFERRED = """
SELECT DISTINCT referenced_column_name FROM information_schema.key_column_usage
WHERE referenced_table_schema = COALESCE(%s, DATABASE()) AND referenced_table_name = %s"""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key: *columns* refer to *keys* of the table *target*. SQLite's have no *name* to be told."""

    name: str
    columns: tuple[str, ...]
    target: str
    keys: tuple[str, ...]
    on_delete: str
    on_update: str

    def __str__(self) -> str:
        return f"{self.target} ({', '.join(self.keys)}) ON DELETE {self.on_delete} ON UPDATE {self.on_update}"

    def means(self, other: ForeignKey, engine: Engine) -> bool:
        """Say whether both are the same but for their names, as *engine* compares them."""
        return self._folded(engine) == other._folded(engine)

    def _folded(self, engine: Engine) -> ForeignKey:
        def action(text: str) -> str:
            # One and the same to InnoDB, which checks at once (MySQL 8.4 manual, "FOREIGN KEY Constraints").
            return "NO ACTION" if engine in ("mysql", "mariadb") and text == "RESTRICT" else text

        return ForeignKey(
            "",
            tuple(folded(column, engine) for column in self.columns),
            folded(self.target, engine),
            tuple(folded(key, engine) for key in self.keys),
            action(self.on_delete),
            action(self.on_update),
        )


def read_foreign_keys(
    database: peewee.Database, engine: Engine, table: str, *, schema: str | None = None
) -> list[ForeignKey]:
    """Return the foreign keys of *table*, their own columns written as the table writes them."""
    if engine == "sqlite":
        rows = database.execute_sql(f"PRAGMA foreign_key_list({quote(database, table)})").fetchall()
        ordered = sorted(rows, key=lambda row: (row[0], row[1]))
        return _grouped((row[0], "", row[3], row[2], _sqlite_key(database, row), row[6], row[5]) for row in ordered)
    if engine == "postgres":
        return _grouped(database.execute_sql(POSTGRES, (regclass(database, schema, table),)).fetchall())
    return _grouped(database.execute_sql(MYSQL, (schema, table)).fetchall())


def referred_columns(database: peewee.Database, table: str, *, schema: str | None = None) -> set[str]:
    """Return the columns of *table* that foreign keys refer to, on MySQL and MariaDB."""
    return {name for (name,) in database.execute_sql(MYSQL_REFERRED, (schema, table)).fetchall()}


def asked_foreign_key(field: peewee.ForeignKeyField, column: str) -> ForeignKey:
    """Return the foreign key that *field* asks for on *column*."""
    return ForeignKey(
        "",
        (column,),
        field.rel_model._meta.table_name,
        (field.rel_field.column_name,),
        (field.on_delete or "NO ACTION").upper(),
        (field.on_update or "NO ACTION").upper(),
    )


def with_target_key(field: peewee.Field) -> peewee.Field:
    """Return *field*, a foreign key with the field that it refers to: outside a model it may not know that one yet."""
    if not isinstance(field, peewee.ForeignKeyField) or isinstance(field.rel_field, peewee.Field):
        return field
    target = field.rel_model._meta
    resolved = field.clone()
    resolved.rel_field = target.fields[field.rel_field] if field.rel_field else target.primary_key
    return resolved


def _grouped(rows: Iterable[Any]) -> list[ForeignKey]:
    """Return the keys of *rows*, one row a column: identity, name, column, target, key, on delete, on update."""
    keys: dict[Any, ForeignKey] = {}
    for identity, name, column, target, key, on_delete, on_update in rows:
        before = keys.get(identity) or ForeignKey(
            name,
            (),
            target,
            (),
            POSTGRES_ACTIONS.get(on_delete, on_delete),
            POSTGRES_ACTIONS.get(on_update, on_update),
        )
        keys[identity] = replace(before, columns=(*before.columns, column), keys=(*before.keys, key))
    return list(keys.values())


def _sqlite_key(database: peewee.Database, row: Any) -> str:
    """Return the column that *row* refers to: a bare ``REFERENCES parent`` means the parent's primary key."""
    _, position, target, _, key = row[:5]
    if key is not None:
        return str(key)
    primary = database.get_primary_keys(target)
    return str(primary[position]) if position < len(primary) else ""
