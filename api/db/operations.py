"""What a migration may do, judged by the live schema: look first, then do only what is missing.

Each operation reads what stands and compares it with what is asked. As asked: skipped, with the reason. Half there, as
a crash on MySQL or playhouse's several statements leave it: completed. Something else: an error that names both.
So every operation may be run again, and none takes "duplicate column" for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import peewee
import structlog

from api.db.dialects.engine import Engine
from api.db.dialects.types import ColumnType, Fit, compare_types, field_type_text, parse_type
from api.db.foreign_keys import asked_foreign_key, read_foreign_keys, referred_columns, with_target_key
from api.db.migrators import Migrator, migrator_for
from api.db.schema import LiveColumn, LiveIndex, folded, has_rows, quote, read_columns, read_indexes
from api.exceptions import SchemaConflictError, UnsafeOperationError

log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """How an operation ended: it did all, it did the missing half, or there was nothing to do."""

    APPLIED = "applied"
    COMPLETED = "completed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What one operation did, and why: *reason* is for people."""

    operation: str
    table: str
    target: str
    outcome: Outcome
    reason: str


def add_column(migrator: Any, table: str, column: str, field: peewee.Field) -> OperationResult:
    """Add *column* to *table* as *field* says, with its index and foreign key; complete it where half of it stands.

    Raises ``SchemaConflictError`` when a column of that name has another type, ``UnsafeOperationError`` when rows
    would need a value that the field does not give.
    """
    ours = _ours(migrator)
    live = _columns(ours, table, column).get(column)
    if live is None:
        ours.add_column(table, column, field).run()
        return _result(ours, "add_column", table, column, Outcome.APPLIED, "added")
    return _completed(ours, "add_column", table, live, _align(ours, table, live, field))


def column_type(
    migrator: Any, table: str, column: str, field: peewee.Field, cast: str | None = None
) -> OperationResult:
    """Make *column* what *field* says: type, NULL, index. A longer type is kept, with a warning.

    *cast* is PostgreSQL's ``USING`` expression, where the server asks for one. Raises ``SchemaConflictError`` when
    there is no such column, ``UnsafeOperationError`` when NULLs stand where none may.
    """
    ours = _ours(migrator)
    live = _standing(ours, table, column)
    aligned = _align(ours, table, live, field, cast=cast, convert=True)
    return _completed(ours, "column_type", table, live, aligned)


def rename_column(migrator: Any, table: str, old: str, new: str) -> OperationResult:
    """Rename *old* to *new*; skipped when that was done. Raises ``SchemaConflictError`` when both or none stand."""
    ours = _ours(migrator)
    standing = _columns(ours, table, old, new)
    live = {each.name for each in standing.values()}
    if len(live) == 2:
        raise SchemaConflictError(
            f"{table!r} has both {old!r} and {new!r}",
            hint=f"copy what {old!r} alone holds into {new!r}, then drop {old!r}",
        )
    if not live:
        raise SchemaConflictError(f"{table!r} has neither {old!r} nor {new!r}", hint="check the column's name")
    if old not in standing or live == {new}:
        return _result(ours, "rename_column", table, old, Outcome.SKIPPED, f"it is called {new!r} already")
    ours.rename_column(table, old, new).run()
    return _result(ours, "rename_column", table, old, Outcome.APPLIED, f"renamed to {new!r}")


def add_not_null(migrator: Any, table: str, column: str) -> OperationResult:
    """Set NOT NULL on *column*. Raises ``UnsafeOperationError`` while a row holds NULL there."""
    ours = _ours(migrator)
    live = _standing(ours, table, column)
    if not live.null:
        return _result(ours, "add_not_null", table, column, Outcome.SKIPPED, "it is NOT NULL already")
    _set_not_null(ours, table, live.name)
    return _result(ours, "add_not_null", table, column, Outcome.APPLIED, "NOT NULL set")


def add_index(migrator: Any, table: str, columns: str | Sequence[str], unique: bool = False) -> OperationResult:
    """Add an index on *columns*, in that order. One that serves counts, whatever its name; so does a UNIQUE one."""
    ours = _ours(migrator)
    names = _names(columns)
    standing = _columns(ours, table, *names)
    missing = [name for name in names if name not in standing]
    if missing:
        raise SchemaConflictError(f"{table!r} has no column {missing[0]!r}", hint="add the column first")
    done = _ensure_index(ours, table, tuple(standing[name].name for name in names), unique)
    outcome = Outcome.APPLIED if done else Outcome.SKIPPED
    reason = done[0] if done else "an index on these columns stands"
    return _result(ours, "add_index", table, ", ".join(names), outcome, reason)


def drop_index(migrator: Any, table: str, index: str | Sequence[str]) -> OperationResult:
    """Drop the index named *index*, or the ones on exactly the columns *index* when it is a list of them."""
    ours = _ours(migrator)
    _columns(ours, table)
    wanted = _folded(index, ours.engine)
    standing = [
        each
        for each in read_indexes(ours.database, ours.engine, table, schema=ours.schema)
        if _folded(each.name if isinstance(index, str) else each.columns, ours.engine) == wanted
    ]
    target = index if isinstance(index, str) else ", ".join(index)
    for each in standing:
        _refuse_constraint(table, each)
        ours.drop_index(table, each.name).run()
    if not standing:
        return _result(ours, "drop_index", table, target, Outcome.SKIPPED, "there is no such index")
    return _result(ours, "drop_index", table, target, Outcome.APPLIED, "dropped")


def drop_column(migrator: Any, table: str, column: str) -> OperationResult:
    """Drop *column*, its foreign keys and the indexes it is part of.

    Its data is lost; on PostgreSQL and SQLite a view on it is an error. On MySQL and MariaDB an index that a foreign
    key of another column stands on is not dropped: the server takes *column* out of it.
    """
    ours = _ours(migrator)
    live = _columns(ours, table, column).get(column)
    if live is None:
        return _result(ours, "drop_column", table, column, Outcome.SKIPPED, "there is no such column")
    if ours.engine in ("mysql", "mariadb"):
        held = _drop_foreign_keys(ours, table, live.name)
        # MySQL rebuilds the table when an indexed column goes: the index goes first.
        for each in read_indexes(ours.database, ours.engine, table, schema=ours.schema):
            if live.name in each.columns and not each.constraint and each.columns[0] not in held:
                ours.drop_index(table, each.name).run()
    ours.drop_column(table, live.name).run()
    return _result(ours, "drop_column", table, column, Outcome.APPLIED, "dropped")


# What stands ---------------------------------------------------------------------------------------------------


def _ours(migrator: Any) -> Migrator:
    """Return *migrator* if it is one of ours, else ours for the same database and schema."""
    if isinstance(migrator, Migrator):
        return migrator
    ours = migrator_for(migrator.database)
    ours.schema = migrator.schema
    return ours


def _columns(migrator: Migrator, table: str, *names: str) -> dict[str, LiveColumn]:
    columns = read_columns(migrator.database, migrator.engine, table, names=names, schema=migrator.schema)
    if columns is None:
        raise SchemaConflictError(
            f"there is no table {table!r}", hint="create it in an earlier migration, or check its name"
        )
    return columns


def _standing(migrator: Migrator, table: str, column: str) -> LiveColumn:
    live = _columns(migrator, table, column).get(column)
    if live is None:
        raise SchemaConflictError(f"{table!r} has no column {column!r}", hint="add it first, or check its name")
    return live


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _folded(names: str | Sequence[str], engine: Engine) -> tuple[str, ...]:
    return tuple(folded(name, engine) for name in _names(names))


def _fit(live: ColumnType, wanted: ColumnType, engine: Engine) -> Fit:
    """Say how *live* stands to *wanted*: MariaDB's JSON is LONGTEXT with a CHECK, and half made without it."""
    if engine == "mariadb" and "json" in (live.kind, wanted.kind) and live.kind != wanted.kind:
        return Fit.SHORTER if live.kind == "longtext" else Fit.OTHER
    return compare_types(live, wanted, engine)


# Making it so --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Aligned:
    """What was *done* to a column, and what was *kept* though it is not as asked; both in words."""

    done: list[str]
    kept: str


def _align(
    migrator: Migrator,
    table: str,
    live: LiveColumn,
    field: peewee.Field,
    *,
    cast: str | None = None,
    convert: bool = False,
) -> _Aligned:
    """Bring *live* to what *field* says; with *convert* a column of another type too."""
    field = with_target_key(field)
    wanted = parse_type(field_type_text(field, migrator.database), migrator.engine)
    fit = _fit(live.type, wanted, migrator.engine)
    kept, done = "", []
    if fit is Fit.OTHER and not convert:
        raise SchemaConflictError(f"{table}.{live.name} stands as {live.type.text!r}, asked for is {wanted.text!r}")
    if fit is Fit.LONGER:
        kept = f"it is {live.type.text}, longer than {wanted.text}, and was kept so"
        log.warning("column kept longer than asked", table=table, column=live.name, reason=kept)
    elif fit is not Fit.SAME:
        migrator.alter_column_type(table, live.name, field, cast).run()
        done = [f"type {live.type.text} changed to {wanted.text}"]
    done += _align_null(migrator, table, live, field)
    if isinstance(field, peewee.ForeignKeyField):
        done += _ensure_foreign_key(migrator, table, live.name, field)
    if field.index or field.unique:
        done += _ensure_index(migrator, table, (live.name,), field.unique, getattr(field, "index_type", None))
    return _Aligned(done, kept)


def _align_null(migrator: Migrator, table: str, live: LiveColumn, field: peewee.Field) -> list[str]:
    if live.null == field.null:
        return []
    if field.null:
        migrator.drop_not_null(table, live.name).run()
        return ["NOT NULL dropped"]
    told = live.default is None and migrator.tell_default(table, live.name, field)
    filled = ["DEFAULT set"] if told else []
    filled += _fill(migrator, table, live.name, field)
    _set_not_null(migrator, table, live.name)
    return [*filled, "NOT NULL set"]


def _fill(migrator: Migrator, table: str, column: str, field: peewee.Field) -> list[str]:
    """Give the rows that hold NULL the field's default; one value for all of them."""
    changed = 0 if field.default is None else migrator.fill(table, column, field)
    return [f"default filled into {changed} rows"] if changed else []


def _set_not_null(migrator: Migrator, table: str, column: str) -> None:
    # Asked of the rows first: with a sql_mode that is not strict MySQL and MariaDB turn NULL into '' or 0.
    if has_rows(migrator.database, table, where=f"{quote(migrator.database, column)} IS NULL", schema=migrator.schema):
        raise UnsafeOperationError(
            f"{table}.{column} holds NULL in some rows",
            hint=f"fill them first: UPDATE {table} SET {column} = … WHERE {column} IS NULL",
        )
    migrator.add_not_null(table, column).run()


def _ensure_index(
    migrator: Migrator, table: str, columns: tuple[str, ...], unique: bool, method: str | None = None
) -> list[str]:
    standing = read_indexes(migrator.database, migrator.engine, table, schema=migrator.schema)
    asked = (method or "btree").lower()
    if any(each.method == asked and _serves(each, columns, unique) for each in standing):
        return []
    name = migrator.free_index_name(table, columns, {each.name.lower() for each in standing})
    migrator.add_index(table, columns, unique, method, name=name).run()
    return [f"{'unique ' if unique else ''}index on {', '.join(columns)} added"]


def _serves(index: LiveIndex, columns: tuple[str, ...], unique: bool) -> bool:
    return index.plain and index.columns == columns and (not unique or (index.unique and index.whole))


def _ensure_foreign_key(migrator: Migrator, table: str, column: str, field: peewee.ForeignKeyField) -> list[str]:
    asked = asked_foreign_key(field, column)
    keys = read_foreign_keys(migrator.database, migrator.engine, table, schema=migrator.schema)
    standing = [each for each in keys if each.columns == (column,)]
    if any(each.means(asked, migrator.engine) for each in standing):
        return []
    if standing:
        raise SchemaConflictError(
            f"{table}.{column} refers to {standing[0]}, asked for is {asked}",
            hint="let the field say what stands, or drop that constraint earlier in the migration",
        )
    migrator.add_foreign_key_constraint(
        table,
        column,
        asked.target,
        asked.keys[0],
        on_delete=field.on_delete,
        on_update=field.on_update,
        rel_schema=field.rel_model._meta.schema,
    ).run()
    return [f"foreign key to {asked.target} added"]


def _drop_foreign_keys(migrator: Migrator, table: str, column: str) -> set[str]:
    """Drop the foreign keys that *column* is part of; return the columns that the others begin with or refer to.

    InnoDB keeps an index for each of those, and drops none that it needs (error 1553).
    """
    keys = read_foreign_keys(migrator.database, migrator.engine, table, schema=migrator.schema)
    for each in keys:
        if column in each.columns:
            migrator.drop_foreign_key_constraint(table, column).run()
    referred = referred_columns(migrator.database, table, schema=migrator.schema)
    return (referred | {each.columns[0] for each in keys if column not in each.columns}) - {column}


def _refuse_constraint(table: str, index: LiveIndex) -> None:
    if index.constraint:
        raise UnsafeOperationError(
            f"index {index.name!r} of {table!r} belongs to a constraint and cannot be dropped by itself",
            hint="drop the constraint: migrator.drop_constraint(table, name)",
        )


# Saying what was done ------------------------------------------------------------------------------------------


def _completed(migrator: Migrator, operation: str, table: str, live: LiveColumn, aligned: _Aligned) -> OperationResult:
    if not aligned.done:
        reason = aligned.kept or "it stands as asked"
        return _result(migrator, operation, table, live.name, Outcome.SKIPPED, reason)
    return _result(migrator, operation, table, live.name, Outcome.COMPLETED, "; ".join(aligned.done))


def _result(
    migrator: Migrator, operation: str, table: str, target: str, outcome: Outcome, reason: str
) -> OperationResult:
    result = OperationResult(operation, table, target, outcome, reason)
    migrator.results.append(result)
    log.debug("operation", operation=operation, table=table, target=target, outcome=str(outcome), reason=reason)
    return result
