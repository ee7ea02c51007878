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
from playhouse.migrate import make_index_name

from api.db.dialects.literals import stored_value, with_constant_default
from api.db.dialects.types import Fit, compare_types, field_type_text, parse_type
from api.db.migrators import Migrator, migrator_for
from api.db.schema import LiveColumn, LiveIndex, has_rows, quote, read_columns, read_indexes
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
    if old in standing and new in standing and old.lower() != new.lower():
        raise SchemaConflictError(
            f"{table!r} has both {old!r} and {new!r}",
            hint=f"copy what {old!r} alone holds into {new!r}, then drop {old!r}",
        )
    if old not in standing and new not in standing:
        raise SchemaConflictError(f"{table!r} has neither {old!r} nor {new!r}", hint="check the column's name")
    if old not in standing:
        return _result(ours, "rename_column", table, old, Outcome.SKIPPED, f"it is called {new!r} already")
    ours.rename_column(table, old, new).run()
    return _result(ours, "rename_column", table, old, Outcome.APPLIED, f"renamed to {new!r}")


def add_not_null(migrator: Any, table: str, column: str) -> OperationResult:
    """Set NOT NULL on *column*. Raises ``UnsafeOperationError`` while a row holds NULL there."""
    ours = _ours(migrator)
    live = _standing(ours, table, column)
    if not live.null:
        return _result(ours, "add_not_null", table, column, Outcome.SKIPPED, "it is NOT NULL already")
    _set_not_null(ours, table, column)
    return _result(ours, "add_not_null", table, column, Outcome.APPLIED, "NOT NULL set")


def add_index(migrator: Any, table: str, columns: str | Sequence[str], unique: bool = False) -> OperationResult:
    """Add an index on *columns*, in that order. One that serves counts, whatever its name; so does a UNIQUE one."""
    ours = _ours(migrator)
    names = _names(columns)
    missing = [name for name in names if name not in _columns(ours, table, *names)]
    if missing:
        raise SchemaConflictError(f"{table!r} has no column {missing[0]!r}", hint="add the column first")
    done = _ensure_index(ours, table, names, unique)
    outcome = Outcome.APPLIED if done else Outcome.SKIPPED
    reason = done[0] if done else "an index on these columns stands"
    return _result(ours, "add_index", table, ", ".join(names), outcome, reason)


def drop_index(migrator: Any, table: str, index: str | Sequence[str]) -> OperationResult:
    """Drop the index named *index*, or the ones on exactly the columns *index* when it is a list of them."""
    ours = _ours(migrator)
    _columns(ours, table)
    wanted = tuple(index) if not isinstance(index, str) else None
    standing = [
        each
        for each in read_indexes(ours.database, ours.engine, table, schema=ours.schema)
        if (each.columns == wanted if wanted else each.name == index)
    ]
    target = index if isinstance(index, str) else ", ".join(index)
    for each in standing:
        _refuse_constraint(table, each)
        ours.drop_index(table, each.name).run()
    if not standing:
        return _result(ours, "drop_index", table, target, Outcome.SKIPPED, "there is no such index")
    return _result(ours, "drop_index", table, target, Outcome.APPLIED, "dropped")


def drop_column(migrator: Any, table: str, column: str) -> OperationResult:
    """Drop *column* and the indexes it is part of. Its data is lost; on PostgreSQL views on it are an error."""
    ours = _ours(migrator)
    if column not in _columns(ours, table, column):
        return _result(ours, "drop_column", table, column, Outcome.SKIPPED, "there is no such column")
    for each in read_indexes(ours.database, ours.engine, table, schema=ours.schema):
        # MySQL rebuilds the table when an indexed column goes, and SQLite refuses: the index goes first.
        if column in each.columns and not each.constraint and ours.engine != "postgres":
            ours.drop_index(table, each.name).run()
    ours.drop_column(table, column).run()
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
    wanted = parse_type(field_type_text(field, migrator.database), migrator.engine)
    fit = compare_types(live.type, wanted, migrator.engine)
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
        done += _ensure_index(migrator, table, (live.name,), field.unique)
    return _Aligned(done, kept)


def _align_null(migrator: Migrator, table: str, live: LiveColumn, field: peewee.Field) -> list[str]:
    if live.null == field.null:
        return []
    if field.null:
        migrator.drop_not_null(table, live.name).run()
        return ["NOT NULL dropped"]
    filled = _fill(migrator, table, live.name, field)
    _set_not_null(migrator, table, live.name)
    return [*filled, "NOT NULL set"]


def _fill(migrator: Migrator, table: str, column: str, field: peewee.Field) -> list[str]:
    """Give the rows that hold NULL the field's default; one value for all of them."""
    if field.default is None:
        return []
    rows = peewee.Table(table, [column], schema=migrator.schema).bind(migrator.database)
    target = getattr(rows, column)
    changed = rows.update({target: stored_value(with_constant_default(field))}).where(target.is_null()).execute()
    return [f"default filled into {changed} rows"] if changed else []


def _set_not_null(migrator: Migrator, table: str, column: str) -> None:
    # Asked of the rows first: with a sql_mode that is not strict MySQL and MariaDB turn NULL into '' or 0.
    if has_rows(migrator.database, table, where=f"{quote(migrator.database, column)} IS NULL", schema=migrator.schema):
        raise UnsafeOperationError(
            f"{table}.{column} holds NULL in some rows",
            hint=f"fill them first: UPDATE {table} SET {column} = … WHERE {column} IS NULL",
        )
    migrator.add_not_null(table, column).run()


def _ensure_index(migrator: Migrator, table: str, columns: tuple[str, ...], unique: bool) -> list[str]:
    standing = read_indexes(migrator.database, migrator.engine, table, schema=migrator.schema)
    if any(_serves(each, columns, unique) for each in standing):
        return []
    migrator.add_index(table, columns, unique, name=_free_name(table, columns, standing)).run()
    return [f"{'unique ' if unique else ''}index on {', '.join(columns)} added"]


def _serves(index: LiveIndex, columns: tuple[str, ...], unique: bool) -> bool:
    return index.plain and index.columns == columns and (not unique or (index.unique and index.whole))


def _free_name(table: str, columns: tuple[str, ...], standing: Sequence[LiveIndex]) -> str | None:
    """Return ``None`` for playhouse's own name, or another when an index that does not serve has that name."""
    taken = {each.name for each in standing}
    return make_index_name(table, (*columns, "idx")) if make_index_name(table, columns) in taken else None


def _ensure_foreign_key(migrator: Migrator, table: str, column: str, field: peewee.ForeignKeyField) -> list[str]:
    target, key = field.rel_model._meta.table_name, field.rel_field.column_name
    standing = migrator.database.get_foreign_keys(table, migrator.schema)
    if any(each.column == column and each.dest_table == target for each in standing):
        return []
    migrator.add_foreign_key_constraint(table, column, target, key, on_delete=field.on_delete).run()
    return [f"foreign key to {target} added"]


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
