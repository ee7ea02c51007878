"""playhouse's migrators, mended: each operation in the statement that costs the server least and loses nothing.

A migration gets one of these as *migrator*, so that peewee's own form (``migrator.add_column(...)``) gains too. What
playhouse 4.5.3 does otherwise, each seen on a server: it adds a NOT NULL column in three passes over the table and
leaves no server DEFAULT; on MySQL a rename or a change of NULL loses DEFAULT, COMMENT and COLLATE; on PostgreSQL
DROP COLUMN takes views along; on SQLite a rebuild loses triggers and ``STRICT``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from itertools import chain, count
from typing import Any

import peewee
import structlog
from playhouse import migrate as playhouse

from api.db import rebuild
from api.db.dialects.column_text import ColumnText, parse_definition
from api.db.dialects.engine import Engine, engine_of, unwrap
from api.db.dialects.errors import classify
from api.db.dialects.literals import (
    default_literal,
    for_driver,
    literal,
    says_default,
    stored_value,
    takes_literal_default,
    with_constant_default,
    with_server_default,
)
from api.db.dialects.types import field_type_text, parse_type
from api.db.foreign_keys import with_target_key
from api.db.schema import folded, has_rows, is_index_name_taken, mysql_definitions, quote
from api.exceptions import SchemaConflictError, UnsafeOperationError

log = structlog.get_logger(__name__)

# The server names these when it cannot do an ALTER with the ALGORITHM or LOCK asked for; it has done nothing yet.
# 1221 and 1235 are older words for the same refusal; 4092 is MySQL's limit of row versions (8.4 manual, 17.12.1).
ALGORITHM_REFUSED = frozenset({1845, 1846, 1221, 1235, 4092})

# The types that may have ON UPDATE CURRENT_TIMESTAMP, and a DEFAULT of it (MySQL 8.4 manual, 13.2.5).
CLOCK_TYPES = frozenset({"datetime", "timestamp"})


class _Statement(peewee.Context):
    """A statement for a driver that formats it with ``%s``: a percent sign in a name is doubled."""

    def sql(self, obj: Any) -> Any:
        """Add *obj* to the statement."""
        if isinstance(obj, peewee.Entity):
            obj = peewee.Entity(*(part.replace("%", "%%") for part in obj._path))
        return super().sql(obj)


class _Recipes(playhouse.SchemaMigrator):
    """What the engines have in common; *results* collects what the operations of one migration did."""

    def __init__(self, database: Any, schema: str | None = None) -> None:
        super().__init__(unwrap(database), schema=schema)
        self.engine: Engine = engine_of(database)
        self.results: list[Any] = []

    def make_context(self) -> peewee.Context:
        """Return an empty statement for playhouse to write."""
        context = peewee.Context if self.engine == "sqlite" else _Statement
        return context(**self.database.get_context_options())

    @playhouse.operation
    def add_column(self, table: str, column_name: str, field: peewee.Field, allow_not_null: bool = False) -> Any:
        """Add a column by one statement, its index and its foreign key by one each.

        A constant default of a NOT NULL field stays in the server's DDL, so that INSERTs that do not know the column
        go on working. A callable default is called once: the rows that stand get that value, the DDL none. Raises
        ``UnsafeOperationError`` for NOT NULL without a default on a table that holds rows.
        """
        field = with_target_key(field)
        if field.null or allow_not_null:
            return super().add_column(table, column_name, field, allow_not_null)
        if field.default is None and not says_default(field):
            self._refuse_rows(table, column_name)
            return self._add_required(table, column_name, field)
        constant = with_constant_default(field)
        described = with_server_default(constant, self.engine)
        if says_default(field) or (says_default(described) and takes_literal_default(field, self.engine)):
            added = super().add_column(table, column_name, described, allow_not_null=True)
        else:
            added = self._add_filled(table, column_name, constant)
        stamped = callable(field.default) and says_default(described) and not says_default(field)
        return [added, self.drop_column_default(table, column_name)] if stamped else added

    @playhouse.operation
    def apply_default(self, table: str, column_name: str, field: peewee.Field) -> None:
        """Give the rows that hold NULL *field*'s default, and let the server know it."""
        self.tell_default(table, column_name, field)
        self.fill(table, column_name, field)

    def tell_default(self, table: str, column: str, field: peewee.Field) -> bool:
        """Let the server know the constant default of a NOT NULL *field*, before its rows are filled.

        Rows that come meanwhile have it, and so have those of workers that do not know the column. Returns whether
        there is such a default.
        """
        text = None if field.null or says_default(field) else default_literal(field, self.engine)
        if text is not None:
            self._set_default(table, column, text)
        return text is not None

    def _set_default(self, table: str, column: str, text: str) -> None:
        place = f"ALTER TABLE {self.name(table)} ALTER COLUMN {quote(self.database, column)}"
        self.database.execute_sql(f"{place} SET DEFAULT {for_driver(text, self.engine)}")

    def fill(self, table: str, column: str, field: peewee.Field) -> int:
        """Give the rows that hold NULL *field*'s default, one value for all, and return how many they were."""
        value = stored_value(with_constant_default(field))
        update = self.make_context().literal("UPDATE ").sql(self._table(table)).literal(" SET ")
        update.sql(peewee.Entity(column)).literal(" = ")
        update.sql(value if isinstance(value, peewee.Node) else peewee.Value(value, unpack=False))
        update.literal(" WHERE ").sql(peewee.Entity(column)).literal(" IS NULL")
        return int(self.database.execute_sql(*update.query()).rowcount)

    @playhouse.operation
    def add_index(
        self, table: str, columns: tuple[str, ...], *rest: Any, name: str | None = None, **options: Any
    ) -> Any:
        """Add an index, named as playhouse does, or differently where another table or its index has that name."""
        name = name or self.free_index_name(table, columns)
        return super().add_index(table, columns, *rest, name=name, **options)

    def free_index_name(self, table: str, columns: tuple[str, ...], taken: Collection[str] = ()) -> str:
        """Return a name for an index of *table* that is not among *taken* and that nothing else has."""
        endings = chain([()], [("idx",)], ((f"idx{number}",) for number in count(2)))
        names = (playhouse.make_index_name(table, (*columns, *ending)) for ending in endings)
        if self.engine == "postgres":
            # The server would cut a longer one itself (PostgreSQL 15 manual, 4.1.1: 63 bytes).
            names = (name.encode()[:63].decode(errors="ignore") for name in names)
        for name in names:
            elsewhere = is_index_name_taken(self.database, self.engine, table, name, schema=self.schema)
            if not elsewhere and name.lower() not in taken:
                break
        return str(name)

    def _add_required(self, table: str, column_name: str, field: peewee.Field) -> Any:
        """Add the column as NOT NULL to a table without rows."""
        return super().add_column(table, column_name, field, allow_not_null=True)

    def _add_filled(self, table: str, column_name: str, field: peewee.Field) -> Any:
        """Add the column as NULL, fill it, set NOT NULL: where a DEFAULT cannot be said, or not without a copy."""
        return super().add_column(table, column_name, field)

    def _refuse_rows(self, table: str, column: str) -> None:
        if has_rows(self.database, table, schema=self.schema):
            raise UnsafeOperationError(
                f"{table}.{column} is NOT NULL without a default, and {table!r} holds rows",
                hint="give the field a default, or add it with null=True, fill it, then alter_db_add_not_null",
            )

    def name(self, table: str) -> str:
        """Return *table*, in this migrator's schema, as a quoted name."""
        return quote(self.database, self.schema, table)


class PostgresMigrator(_Recipes, playhouse.PostgresqlMigrator):
    """PostgreSQL: constants are metadata only; nothing is dropped that was not named."""

    @playhouse.operation
    def drop_column(self, table: str, column_name: str, cascade: bool = False) -> Any:
        """Drop a column; what depends on it, such as a view, is an error unless *cascade*."""
        return super().drop_column(table, column_name, cascade=cascade)


class MySQLMigrator(_Recipes, playhouse.MySQLMigrator):
    """MySQL and MariaDB: a column is changed by its own text, and the cheapest ALGORITHM is asked for by name.

    When the server cannot do it that way it says so before it begins; then the statement runs as the server likes,
    with a warning, for it may copy the table. RENAME COLUMN needs MySQL 8.0 or MariaDB 10.5.2.
    """

    # playhouse builds CHANGE from DESCRIBE; the standard's RENAME COLUMN keeps the definition, and is metadata only.
    rename_column = playhouse.SchemaMigrator.rename_column

    @playhouse.operation
    def alter_add_column(self, table: str, column_name: str, field: peewee.Field, allow_not_null: bool = False) -> None:
        """Add a column with ALGORITHM=INSTANT."""
        inner = super().alter_add_column(table, column_name, field, allow_not_null)
        sql, parameters = inner.fn(self, *inner.args, **inner.kwargs).query()
        self._online(sql, "INSTANT", parameters)

    @playhouse.operation
    def add_index(self, table: str, columns: tuple[str, ...], *rest: Any, **options: Any) -> None:
        """Add an index with ALGORITHM=INPLACE, LOCK=NONE: readers and writers go on."""
        inner = playhouse.MySQLMigrator.add_index(self, table, columns, *rest, **options)
        sql, parameters = inner.fn(self, *inner.args, **inner.kwargs).query()
        self._online(sql, "INPLACE, LOCK=NONE", parameters, glue=" ")

    @playhouse.operation
    def add_not_null(self, table: str, column: str) -> None:
        """Set NOT NULL and keep all else of the definition."""
        self._modify(table, column, lambda text: text.with_null(False))

    @playhouse.operation
    def drop_not_null(self, table: str, column: str) -> None:
        """Allow NULL and keep all else of the definition."""
        self._modify(table, column, lambda text: text.with_null(True))

    @playhouse.operation
    def alter_column_type(self, table: str, column: str, field: peewee.Field, cast: str | None = None) -> None:
        """Change the type only: NULL, DEFAULT, COMMENT and the rest stay where the new type can have them."""
        if cast is not None:
            raise UnsafeOperationError(
                f"{table}.{column}: {self.engine} has no cast in ALTER TABLE",
                hint="add a new column, fill it by UPDATE, then drop the old one and rename",
            )
        self._modify(table, column, lambda text: self._retyped(text, field))

    def _retyped(self, text: ColumnText, field: peewee.Field) -> ColumnText:
        kind = field_type_text(field, self.database)
        wanted = parse_type(kind, self.engine).kind
        if wanted not in CLOCK_TYPES:
            text = text.without_clock()
        if wanted != "json":
            text = text.without_json_check()
        if not takes_literal_default(field, self.engine):
            text = text.with_default_as_expression()
        return text.with_type(kind)

    def _set_default(self, table: str, column: str, text: str) -> None:
        # By MODIFY: SET DEFAULT takes no expression, and MySQL keeps nothing else for TEXT. Alone it is metadata.
        self._modify(table, column, lambda old: old.without_default().with_tail(f"DEFAULT {text}"), "INSTANT")

    def _modify(
        self,
        table: str,
        column: str,
        edit: Callable[[ColumnText], ColumnText],
        algorithm: str = "INPLACE, LOCK=NONE",
    ) -> None:
        definitions = mysql_definitions(self.database, table, self.schema)
        text = {folded(name, self.engine): each for name, each in definitions.items()}.get(folded(column, self.engine))
        if text is None:
            raise SchemaConflictError(f"{table!r} has no column {column!r}", hint="check the column's name")
        edited = for_driver(str(edit(parse_definition(text, named=False, backslashes=True))), self.engine)
        sql = f"ALTER TABLE {self.name(table)} MODIFY {quote(self.database, column)} {edited}"
        self._online(sql, algorithm)

    def _online(self, sql: str, algorithm: str, parameters: Any = (), *, glue: str = ", ") -> None:
        try:
            self.database.execute_sql(f"{sql}{glue}ALGORITHM={algorithm.replace(', ', glue)}", parameters)
        except peewee.DatabaseError as exc:
            if classify(exc, self.engine).code not in ALGORITHM_REFUSED:
                raise
            log.warning("the server cannot do this online and may copy the table", asked=algorithm, statement=sql)
            self.database.execute_sql(sql, parameters)


class SqliteMigrator(_Recipes, playhouse.SqliteMigrator):
    """SQLite: what ALTER TABLE cannot do is done by a rebuild that keeps all that hangs on the table."""

    def _add_required(self, table: str, column_name: str, field: peewee.Field) -> Any:
        # ADD COLUMN refuses NOT NULL without a default even on an empty table.
        nullable = field.clone()
        nullable.null = True
        return [
            playhouse.SchemaMigrator.add_column(self, table, column_name, nullable),
            self.add_not_null(table, column_name),
        ]

    @playhouse.operation
    def add_not_null(self, table: str, column: str, legacy: bool = False) -> None:
        """Set NOT NULL."""
        self._edit(table, column, lambda text: text.with_null(False))

    @playhouse.operation
    def drop_not_null(self, table: str, column: str, legacy: bool = False) -> None:
        """Allow NULL."""
        self._edit(table, column, lambda text: text.with_null(True))

    @playhouse.operation
    def alter_column_type(self, table: str, column: str, field: peewee.Field, cast: str | None = None) -> None:
        """Change the declared type; the values take its affinity as they are copied.

        In an INTEGER column the text ``01234`` becomes the number 1234 (SQLite manual, datatype3, section 3).
        """
        kind = field_type_text(field, self.database)
        self._edit(table, column, lambda text: text.with_type(kind))

    @playhouse.operation
    def drop_column_default(self, table: str, column: str) -> None:
        """Drop the column's DEFAULT."""
        self._edit(table, column, lambda text: text.without_default())

    @playhouse.operation
    def add_column_default(self, table: str, column: str, default: Any) -> None:
        """Give the column a DEFAULT, a constant."""
        self._set_default(table, column, str(literal(default, self.engine)))

    @playhouse.operation
    def add_foreign_key_constraint(
        self,
        table: str,
        column_name: str,
        rel: str,
        rel_column: str,
        on_delete: str | None = None,
        on_update: str | None = None,
        **_: Any,
    ) -> None:
        """Let *column_name* refer to *rel_column* of the table *rel*."""
        actions = f"{f' ON DELETE {on_delete}' if on_delete else ''}{f' ON UPDATE {on_update}' if on_update else ''}"
        target = f"REFERENCES {self.name(rel)} ({quote(self.database, rel_column)}){actions}"
        self._edit(table, column_name, lambda text: text.with_tail(target))

    @playhouse.operation
    def drop_column(self, table: str, column_name: str, cascade: bool = False, legacy: bool = False) -> None:
        """Drop a column, with the indexes it is part of and the constraints that are on it alone.

        Raises ``SchemaConflictError`` when something else names it: a view, a trigger, a CHECK, a partial index.
        """
        self._edit(table, column_name, lambda text: None)

    def _set_default(self, table: str, column: str, text: str) -> None:
        self._edit(table, column, lambda old: old.without_default().with_tail(f"DEFAULT {text}"))

    def _edit(self, table: str, column: str, edit: rebuild.Edit) -> None:
        rebuild.rebuild_column(self.database, table, column, edit)


class DatabaseMigrator(Enum):
    """The migrator of each engine: ``DatabaseMigrator["POSTGRES"].value(DB)``."""

    POSTGRES = PostgresMigrator
    MYSQL = MySQLMigrator
    MARIADB = MySQLMigrator
    SQLITE = SqliteMigrator


Migrator = PostgresMigrator | MySQLMigrator | SqliteMigrator


def migrator_for(database: Any) -> Migrator:
    """Return the migrator of *database*'s engine."""
    migrator: Migrator = DatabaseMigrator[engine_of(database).upper()].value(unwrap(database))
    return migrator
