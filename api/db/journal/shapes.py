"""What a table is as far as its rows are concerned, and why what is done to them could not be undone.

Read from information_schema, which shows a user only the triggers that it may see (TRIGGER privilege).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from api.db.journal.going import Going
from api.db.journal.images import FORMS, Column, Key, Shape
from api.db.journal.link import Link, Memory, name
from api.db.journal.rights import Grants
from api.exceptions import StatementRefusedError

Event: TypeAlias = Literal["INSERT", "UPDATE", "DELETE"]

# A LIMIT of their own: sql_select_limit would cut them without a word.
TABLE = """SELECT table_type, engine FROM information_schema.tables
           WHERE table_schema = DATABASE() AND table_name = %s"""
# No word of column_key: where there is no primary key it is PRI for a unique one.
COLUMNS = """SELECT column_name, data_type, character_set_name, extra, generation_expression,
                    column_name IN (SELECT column_name FROM information_schema.key_column_usage WHERE constraint_schema
                        = DATABASE() AND table_name = %s AND constraint_name = 'PRIMARY') AS in_primary_key
             FROM information_schema.columns
             WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position LIMIT 9999"""
TRIGGERS = """SELECT trigger_name, event_manipulation FROM information_schema.triggers
              WHERE event_object_schema = DATABASE() AND event_object_table = %s LIMIT 9999"""
REFERRING = """SELECT constraint_schema, table_name, constraint_name, delete_rule, update_rule
               FROM information_schema.referential_constraints
               WHERE unique_constraint_schema = DATABASE() AND referenced_table_name = %s
                 AND (%s OR delete_rule LIKE 'CASCADE' OR delete_rule LIKE 'SET%%'
                      OR update_rule LIKE 'CASCADE' OR update_rule LIKE 'SET%%') LIMIT 9999"""
REFERENCE = """SELECT column_name, referenced_column_name FROM information_schema.key_column_usage
               WHERE constraint_schema = %s AND table_name = %s AND constraint_name = %s
                 AND referenced_column_name IS NOT NULL ORDER BY ordinal_position LIMIT 9999"""
SPLIT = "do it in a migration of its own with `atomic = False`"


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of *table* that follows what is done to the rows that it refers to.

    *columns* are pairs of the table's column and the one it refers to; *rules* say what it does at which event.
    """

    schema: str
    table: str
    constraint: str
    columns: tuple[tuple[str, str], ...]
    rules: dict[Event, str]

    def follows(self, events: frozenset[Event], assigned: frozenset[str] | None) -> str | None:
        """Return the rule that acts at one of *events*, an UPDATE of the columns *assigned* (None: any) among them."""
        for event in sorted(events & self.rules.keys()):
            touched = {column.lower() for _, column in self.columns}
            acts = self.rules[event].startswith(("CASCADE", "SET"))
            if acts and (event == "DELETE" or assigned is None or assigned & touched):
                return f"ON {event} {self.rules[event]}"
        return None


def shape_of(
    link: Link | Memory,
    table: str,
    events: frozenset[Event] = frozenset(),
    assigned: frozenset[str] | None = None,
    *,
    is_keyed: bool = True,
) -> Shape | None:
    """Read what *table* is, or know it from before; None where there is no such table that lasts.

    Without *is_keyed* no foreign key refers to what is assigned: to ask for them takes as long as there are tables.

    Raises ``StatementRefusedError`` when *events*, an UPDATE of the columns *assigned* (None: any) among them, could
    not be undone there: a view, another engine than InnoDB, no primary key, a trigger, a foreign key that follows.
    """
    found = link.rows(TABLE, (table,))
    if not found:
        return None
    _refuse_kind(table, *found[0])
    shape = _shape(table, link.rows(COLUMNS, (table, table)))
    watched = _with_undo(shape, events, assigned)
    if watched:
        _refuse_unseen_triggers(link, table)
    for trigger, event in link.rows(TRIGGERS, (table,)) if watched else ():
        if event in watched:
            raise StatementRefusedError(
                f"the trigger {trigger!r} runs at every {event} of {table!r}, and what it does could not be undone",
                hint=f"drop the trigger before and create it after, or {SPLIT}",
            )
    if is_keyed and events & {"UPDATE", "DELETE"}:
        _refuse_references(table, references(link, table), events, assigned)
    return shape


def _refuse_unseen_triggers(link: Link | Memory, table: str) -> None:
    """Refuse a table whose triggers MySQL does not show to this account; MariaDB shows them to everybody."""
    if link.is_mariadb:
        return
    grants = Grants(link)
    if not grants.granted("TRIGGER", table):
        raise StatementRefusedError(
            f"{grants.user} has no right TRIGGER on {table!r}, so MySQL does not show it the triggers there, and what "
            "they do could not be undone",
            hint=f"GRANT TRIGGER ON `{grants.schema}`.* to it, or {SPLIT}",
        )


def _with_undo(shape: Shape, events: frozenset[Event], assigned: frozenset[str] | None) -> frozenset[Event]:
    """Return *events* and those of the undo: a row that was inserted is deleted, and a key that was changed is both."""
    moves = "UPDATE" in events and (assigned is None or any(column.lower() in assigned for column in shape.key))
    return events | {"INSERT", "DELETE"} if moves or events & {"INSERT", "DELETE"} else events


def references(link: Link | Memory, table: str, *, every: bool = False) -> list[Reference]:
    """Return the foreign keys that change or delete rows of their own when those of *table* are; or *every* one."""
    return [
        Reference(
            schema,
            child,
            constraint,
            tuple(link.rows(REFERENCE, (schema, child, constraint))),
            {"DELETE": on_delete, "UPDATE": on_update},
        )
        for schema, child, constraint, on_delete, on_update in link.rows(REFERRING, (table, int(every)))
    ]


def reaches_further(link: Link | Memory, table: str, *, by_clock: bool, is_keyed: bool = True) -> bool:
    """Say whether a change of *table*'s rows changes more than it says: by a trigger, or a foreign key that follows.

    Or, *by_clock*, by a column ON UPDATE CURRENT_TIMESTAMP. *is_keyed* as in ``shape_of``. Raises
    ``StatementRefusedError`` where this account is not shown the triggers.
    """
    _refuse_unseen_triggers(link, table)
    if link.rows(TRIGGERS, (table,)) or (is_keyed and references(link, table)):
        return True
    return by_clock and any("on update" in row[3].lower() for row in link.rows(COLUMNS, (table, table)))


def split_references(link: Link, table: str, going: Going) -> tuple[list[Reference], list[Reference]]:
    """Return every foreign key that refers to *table*: those that stay, and those of what is *going*."""
    ((schema,),) = link.rows("SELECT DATABASE()")
    groups: tuple[list[Reference], list[Reference]] = [], []
    for reference in references(link, table, every=True):
        columns = [column for column, _ in reference.columns]
        groups[reference.schema == schema and going.takes(reference.table, columns)].append(reference)
    return groups


def referring(link: Link, shape: Shape, keys: Sequence[Key], found: Sequence[Reference]) -> str | None:
    """Return the name of a table with a row that refers to one of *keys* by a key of *found*; None if there is none.

    Rows of *keys* themselves do not count. Locks what it reads, so that no such row comes into being in this
    transaction.
    """
    for reference in found:
        child, parent = f"{name(reference.schema)}.{name(reference.table)}", name(shape.table)
        matches = " AND ".join(f"c.{name(one)} = {parent}.{name(other)}" for one, other in reference.columns)
        sql = f"SELECT 1 FROM {child} AS c JOIN {parent} ON {matches} WHERE {shape.condition(keys)}"
        if reference.table == shape.table:
            sql += f" AND NOT ({replace(shape, table='c').condition(keys)})"
        if link.rows(f"{sql} LIMIT 1 FOR UPDATE"):
            return reference.table
    return None


def _refuse_kind(table: str, kind: str, engine: str | None) -> None:
    if kind != "BASE TABLE":
        raise StatementRefusedError(
            f"{table!r} is a {kind.lower()}, and what is done to its rows could not be undone",
            hint="name the table behind it" if kind == "VIEW" else SPLIT,
        )
    if str(engine).lower() != "innodb":
        raise StatementRefusedError(
            f"{table!r} is kept by the storage engine {engine}, which knows no transactions", hint=SPLIT
        )


def _shape(table: str, rows: Sequence[tuple[Any, ...]]) -> Shape:
    columns, key, counting = [], [], None
    for column, kind, charset, extra, expression, is_key in rows:
        if is_key:
            key.append(column)
            counting = column if "auto_increment" in extra.lower() else counting
        if not expression:
            _refuse_type(table, column, kind)
            columns.append(Column(column, kind.lower(), charset, "on update" in extra.lower()))
        elif is_key:
            raise StatementRefusedError(
                f"the primary key of {table!r} is generated, so no row can be named", hint=SPLIT
            )
    if not key:
        raise StatementRefusedError(
            f"{table!r} has no primary key, so that its rows cannot be told apart",
            hint=f"give it a primary key first, or {SPLIT}",
        )
    return Shape(table, tuple(columns), tuple(key), counting if len(key) == 1 else None)


def _refuse_type(table: str, column: str, kind: str) -> None:
    if kind.lower() not in FORMS:
        raise StatementRefusedError(f"no exact copy of {table}.{column} can be made, its type is {kind}", hint=SPLIT)


def _refuse_references(
    table: str, found: Sequence[Reference], events: frozenset[Event], assigned: frozenset[str] | None
) -> None:
    for reference in found:
        if rule := reference.follows(events, assigned):
            raise StatementRefusedError(
                f"{reference.table!r} refers to {table!r} with {rule} ({reference.constraint}), and what that does "
                "could not be undone",
                hint=f"change the rows of {reference.table!r} first and by name, or {SPLIT}",
            )
