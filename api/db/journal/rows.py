"""The rows that a statement is about to touch, read and locked ahead of it, and what it did to them.

All reads lock (FOR UPDATE), in the transaction in which the statement runs: under REPEATABLE READ no other session
can change these rows, or add one among them, until that transaction ends. What cannot be told beforehand by the
statement's own condition is told by an image of the whole table, if it is small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pymysql
from pymysql.constants import CLIENT, ER

from api.db.journal.definition import parse
from api.db.journal.images import Change, Key, Row, Shape, exact, find
from api.db.journal.link import Link, Memory, name
from api.db.journal.reading import split
from api.db.journal.shapes import Event, shape_of
from api.db.journal.snapshot import definitions, is_table
from api.db.journal.statement import Delete, Insert, Update
from api.db.journal.touching import read_rows
from api.exceptions import StatementRefusedError

Changing: TypeAlias = Update | Delete | Insert

# Another answer each time, or an effect of its own: asked twice, such a condition finds other rows.
VOLATILE = re.compile(
    r":=|\b(?:RAND|RANDOM_BYTES|UUID\w*|SYS_GUID|SLEEP|BENCHMARK|\w+_LOCK\w*|LAST_INSERT_ID|ROW_COUNT|FOUND_ROWS"
    r"|NEXTVAL|SETVAL|SYSDATE)\s*\(",
    re.IGNORECASE,
)
OWN_LIMIT = re.compile(r"\bLIMIT\s+(\d+)\s*\Z", re.IGNORECASE)
JOINED = re.compile(r",|\bJOIN\b", re.IGNORECASE)
CONSTANT = re.compile(r"[-+]?\s*[\d.]+(?:e[-+]?\d+)?|(['\"])(?:\\.|\1\1|(?!\1)[^\\])*\1", re.IGNORECASE | re.DOTALL)
# It asks an AUTO_INCREMENT for its next number.
ZERO = re.compile(r"[-+]?\s*0|(['\"])0\1")
# The smallest max_allowed_packet in use, by far.
SHORT = 500_000
INSERTS = re.compile(r"\s*INSERT\b", re.IGNORECASE)


@dataclass(slots=True)
class Part:
    """The rows of one table: those of *where*, all where it is empty, or, where it is None, those of *before*."""

    shape: Shape
    before: dict[Key, Row]
    where: str | None = ""

    def after(self, link: Link, limit: int) -> dict[Key, Row]:
        """Read the rows again; of more than *limit* new ones, only one more."""
        if self.where is None:
            with exact(link):
                return find(link, self.shape, list(self.before))
        # The condition was written under the migration's own settings, its time zone among them.
        return _read(link, self.shape, self.where, len(self.before) + limit)

    def changes(self, after: dict[Key, Row]) -> Iterator[Change]:
        """Give what differs between the rows before and *after*."""
        for key in {**self.before, **after}:
            old, new = self.before.get(key), after.get(key)
            if old == new:
                continue
            if old is not None and new is not None:
                differing = [column for column in old if old[column] != new[column]]
                old, new = ({column: row[column] for column in differing} for row in (old, new))
            yield Change(self.shape.table, dict(zip(self.shape.key, key, strict=True)), old, new)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a statement may touch, as it was before the statement ran."""

    statement: Changing
    parts: tuple[Part, ...]
    limit: int

    def changes(self, link: Link, affected: int) -> list[Change]:
        """Read the rows again, after the statement, and return what differs.

        *affected* is the number of rows that the server says it touched. Raises ``StatementRefusedError`` when it
        touched others than were read before it, or too many: the transaction must then be rolled back.
        """
        found = [change for part in self.parts for change in part.changes(part.after(link, self.limit))]
        if len(found) > self.limit:
            raise _too_many(self.limit)
        _refuse_long(link, max((len(change.to_json()) for change in found), default=0))
        if any(part.where != "" for part in self.parts) and self._missed(link, affected, len(found)):
            raise StatementRefusedError(
                f"it touched {affected} rows, of which {len(found)} could be told before it ran: no undo is possible",
                hint="name the rows by their primary key, or in an order that leaves no choice (ORDER BY the key)",
            )
        return found

    def _missed(self, link: Link, affected: int, found: int) -> bool:
        # With this flag the server counts the rows of an UPDATE that it matched, changed or not.
        if isinstance(self.statement, Update) and link.connection.client_flag & CLIENT.FOUND_ROWS:
            return affected > sum(len(part.before) for part in self.parts)
        return affected != found


def scope_of(link: Link, statement: Changing, limit: int, memory: Memory | None = None) -> Scope:
    """Read and lock the rows that *statement* may touch, in the transaction that is open, at most *limit*.

    What the tables are is asked of *memory*, which knows it if they were touched before. Raises
    ``StatementRefusedError`` with the reason where what it does could not be undone. A table that is not there, or is
    a temporary one, has no rows here: the server says of the one, and nobody undoes the other.
    """
    _refuse_weak_isolation(link)
    tables = _targets(statement)
    standing = dict.fromkeys(tables) if memory is None else definitions(link, tables)
    if memory is not None:
        for table, definition in standing.items():
            memory.compare(table, definition)
    events, assigned = _doing(statement)
    found = (
        shape_of(memory or link, table, events, assigned, is_keyed=is_keyed(definition, assigned))
        for table, definition in standing.items()
    )
    shapes = [shape for shape in found if shape is not None]
    if isinstance(statement, Insert):
        parts = [_inserted(link, statement, shape, limit) for shape in shapes]
    elif len(tables) == 1:
        parts = [_touched(link, statement, shape, limit) for shape in shapes]
    else:
        parts = [_whole(link, shape, limit) for shape in shapes]
    return Scope(statement, tuple(parts), limit)


def _refuse_weak_isolation(link: Link) -> None:
    # MariaDB 10.11 knows the older name alone, MySQL the newer.
    setting = "tx_isolation" if link.is_mariadb else "transaction_isolation"
    (level,) = link.rows(f"SELECT @@SESSION.{setting}")[0]
    if level not in ("REPEATABLE-READ", "SERIALIZABLE"):
        raise StatementRefusedError(
            f"at the isolation level {level} other sessions can add rows to those that it touches, and an undo would "
            "take them for its own",
            hint="SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ before it",
        )


def _targets(statement: Changing) -> tuple[str, ...]:
    if isinstance(statement, Insert):
        return (statement.table,)
    return tuple(dict.fromkeys(statement.tables)) if statement.target is None else (statement.target,)


def _doing(statement: Changing) -> tuple[frozenset[Event], frozenset[str] | None]:
    """Return what the statement may do to rows, and the columns that it assigns, None for any."""
    if isinstance(statement, Update):
        return frozenset({"UPDATE"}), frozenset(column.lower() for column in statement.columns)
    if isinstance(statement, Delete):
        return frozenset({"DELETE"}), None
    events: set[Event] = {"INSERT"}
    if not statement.plain:
        events |= {"UPDATE"} if INSERTS.match(statement.sql) else {"UPDATE", "DELETE"}
    return frozenset(events), None


def is_keyed(definition: str | None, assigned: frozenset[str] | None) -> bool:
    """Say whether a foreign key may refer to one of the columns *assigned*: such a one has an index, or feeds one."""
    if assigned is None or definition is None or not is_table(definition):
        return True
    return any(map(parse(definition).mentions, assigned))


def _touched(link: Link, statement: Update | Delete, shape: Shape, limit: int) -> Part:
    assigned = {column.lower() for column in statement.columns} if isinstance(statement, Update) else set()
    moves = not assigned.isdisjoint(column.lower() for column in shape.key)
    if moves or VOLATILE.search(statement.tables_text + statement.scope):
        return _whole(link, shape, limit)
    scope, most = statement.scope, limit + 1
    if own := OWN_LIMIT.search(scope):
        scope, most = scope[: own.start()], min(most, int(own[1]))
    # A join meets a row as often as it has partners.
    distinct = "DISTINCT " if JOINED.search(statement.tables_text) else ""
    source = f"{distinct}{shape.select(statement.alias)} FROM {statement.tables_text} {scope}"
    try:
        rows = link.rows(f"SELECT {source}\nLIMIT {most} FOR UPDATE")
    except pymysql.err.ProgrammingError as exc:
        if exc.args[0] != ER.PARSE_ERROR:
            raise
        raise StatementRefusedError(
            "the rows that it will touch cannot be read beforehand", hint="write it as a plain UPDATE or DELETE"
        ) from exc
    return Part(shape, _bounded(shape, rows, limit), None)


def _inserted(link: Link, statement: Insert, shape: Shape, limit: int) -> Part:
    named = {column.lower() for column in statement.columns}
    counts_up = statement.plain and shape.auto_increment is not None
    if counts_up and named and shape.key[0].lower() not in named:
        return _above(link, shape, limit)
    if statement.plain and (keys := _written_keys(statement, shape)):
        where = shape.condition(keys)
        return Part(shape, _read(link, shape, where, limit), where)
    if not counts_up:
        return _whole(link, shape, limit)
    try:
        return _whole(link, shape, limit)
    except StatementRefusedError:
        return _above(link, shape, limit)


def _whole(link: Link, shape: Shape, limit: int) -> Part:
    return Part(shape, _bounded_read(link, shape, "", limit))


def _above(link: Link, shape: Shape, limit: int) -> Part:
    """Return the part above the highest number so far; the lock on that gap keeps other sessions' rows out."""
    key = name(shape.key[0])
    highest = link.rows(f"SELECT {key} FROM {name(shape.table)} ORDER BY {key} DESC LIMIT 1 FOR UPDATE")
    if not highest:
        return _whole(link, shape, limit)
    where = f"{key} > {highest[0][0]}"
    return Part(shape, _bounded_read(link, shape, where, limit), where)


def _written_keys(statement: Insert, shape: Shape) -> list[Key]:
    """Return the keys of an INSERT that writes them as constants in its VALUES; none if it does not."""
    named = [column.lower() for column in statement.columns]
    if statement.from_select or not {column.lower() for column in shape.key} <= set(named):
        return []
    try:
        rows = read_rows(split(statement.sql))
    except StatementRefusedError:
        return []
    at = [named.index(column.lower()) for column in shape.key]
    keys = [tuple(row[i] for i in at) for row in rows if len(row) == len(named)]
    is_constant = all(CONSTANT.fullmatch(value) and not ZERO.fullmatch(value) for key in keys for value in key)
    return keys if is_constant and len(keys) == len(rows) else []


def _read(link: Link, shape: Shape, where: str, limit: int) -> dict[Key, Row]:
    condition = f" WHERE {where}" if where else ""
    sql = f"SELECT {shape.select()} FROM {name(shape.table)}{condition} LIMIT {limit + 1} FOR UPDATE"
    return shape.by_key(link.rows(sql))


def _bounded_read(link: Link, shape: Shape, where: str, limit: int) -> dict[Key, Row]:
    rows = _read(link, shape, where, limit)
    if len(rows) > limit:
        raise _too_many(limit)
    return rows


def _bounded(shape: Shape, rows: list[tuple[Any, ...]], limit: int) -> dict[Key, Row]:
    if len(rows) > limit:
        raise _too_many(limit)
    return shape.by_key(rows)


def _refuse_long(link: Link, length: int) -> None:
    # The driver's quoting lengthens it, and a longer packet ends the connection.
    if length > SHORT and length > link.rows("SELECT @@max_allowed_packet")[0][0] * 0.9:
        raise StatementRefusedError(
            f"a row's copy of {length} characters does not pass max_allowed_packet, so none can be kept",
            hint="raise max_allowed_packet on the server, or set `atomic = False` in the migration's file",
        )


def _too_many(limit: int) -> StatementRefusedError:
    return StatementRefusedError(
        f"it would touch more than {limit} rows of a table that stood before, too many to copy for an undo",
        hint="raise MIGRATION_UNDO_ROWS, or do it in a migration of its own with `atomic = False`",
    )
