"""The undo of what a statement did to rows: they are put back, except those that another session changed since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pymysql
from pymysql.constants import ER

from api.db.journal.going import Going
from api.db.journal.images import Change, Key, Row, Shape, exact, find
from api.db.journal.link import Link, name
from api.db.journal.shapes import Reference, referring, shape_of, split_references
from api.db.journal.steady import settings
from api.exceptions import MigrationError

ROWS_A_STATEMENT = 200
CHARACTERS_A_STATEMENT = 500_000
# Another row stands in the way, which may be one that is still to be put back itself: a unique key, a foreign key.
WAITS = (
    *(ER.DUP_ENTRY, ER.ROW_IS_REFERENCED, ER.ROW_IS_REFERENCED_2),
    *(ER.NO_REFERENCED_ROW, ER.NO_REFERENCED_ROW_2),
)
# A row's key, what it is to get (None: it is to go), and whether it stands.
Want: TypeAlias = tuple[Key, Row | None, bool]
NOTHING = Going()
THEN = "then run `python -m api.db.migrations recover`"


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done to some rows of one table, in one statement if the server agrees.

    *values* are what each row of *keys* gets: whole rows where they were deleted, the same columns for all where they
    were changed and still stand (*stands*), None where they were inserted and are to go. *staying* are, where rows of
    what the batch made may refer to these, the other foreign keys that do; None where the server checks them all.
    """

    shape: Shape
    keys: tuple[Key, ...]
    values: tuple[Row | None, ...]
    stands: bool
    staying: tuple[Reference, ...] | None = None

    def halves(self) -> Iterator[Step]:
        """Give the first and the second half of it."""
        middle = len(self.keys) // 2
        for part in (slice(None, middle), slice(middle, None)):
            yield replace(self, keys=self.keys[part], values=self.values[part])

    def sql(self) -> str:
        """Return the statement."""
        table, first = name(self.shape.table), self.values[0]
        if first is None:
            # Rows of one table refer to older ones, more often than not.
            order = ", ".join(f"{name(column)} DESC" for column in self.shape.key)
            return f"DELETE FROM {table} WHERE {self.shape.condition(self.keys)} ORDER BY {order}"
        if self.stands:
            # A column with ON UPDATE keeps its value only if it is assigned one.
            kept = {c.name: name(c.name) for c in self.shape.columns if c.stamped}
            assigned = kept | {column: self._value(column) for column in first}
            pairs = ", ".join(f"{name(column)} = {value}" for column, value in assigned.items())
            return f"UPDATE {table} SET {pairs} WHERE {self.shape.condition(self.keys)}"
        rows = ", ".join(f"({', '.join(row.values())})" for row in self.values if row is not None)
        return f"INSERT INTO {table} ({', '.join(map(name, first))}) VALUES {rows}"

    def _value(self, column: str) -> str:
        """Return what a column is to get: one value for all rows, or each row's own."""
        values = [row[column] for row in self.values if row is not None]
        if len(set(values)) == 1:
            return values[0]
        # No ELSE: the column's own type would be mixed into that of the literals.
        pairs = zip(self.keys, values, strict=True)
        return f"CASE {' '.join(f'WHEN {self.shape.condition([key])} THEN {value}' for key, value in pairs)} END"


def put_back(link: Link, changes: Sequence[Change], going: Going = NOTHING) -> list[str]:
    """Undo the *changes* that one statement made, in the transaction that is open.

    Of a changed row only the columns that the statement changed are put back. Rows of what is *going* afterwards may
    refer to those that are deleted, and stay as they are. Returns the rows that are left as they are, each with the
    reason: another session changed them since. Raises ``MigrationError`` when a row stands in the way of one that is
    to be put back, and PyMySQL's errors; the transaction must then be rolled back.
    """
    left: list[str] = []
    with exact(link):
        steps = [step for table, group in _by_table(changes) for step in _steps(link, table, group, left)]
        # What was inserted goes first, what was deleted comes last: it may need the places of the others.
        steps.sort(key=lambda step: (step.values[0] is not None, not step.stands))
        steps = [_checked(link, step, going) if step.values[0] is None else step for step in steps]
        _run(link, steps)
        for step in steps:
            _verify(link, step)
    return left


def _by_table(changes: Sequence[Change]) -> Iterator[tuple[str, list[Change]]]:
    for table in dict.fromkeys(change.table for change in changes):
        yield table, [change for change in changes if change.table == table]


def _steps(link: Link, table: str, changes: Sequence[Change], left: list[str]) -> list[Step]:
    shape = _shape(link, table, changes)
    keys = [tuple(change.key[column] for column in shape.key) for change in changes]
    current = find(link, shape, keys)
    wanted: list[Want] = []
    for key, change in zip(keys, changes, strict=True):
        values, reason = _decide(shape, change, current.get(key))
        if reason:
            left.append(f"{change}: {reason}")
        elif values != {}:
            wanted.append((key, values, key in current))
    return [step for group in _alike(wanted) for step in _chunks(shape, group)]


def _shape(link: Link, table: str, changes: Sequence[Change]) -> Shape:
    """Read the table again: somebody may have altered it since."""
    shape = shape_of(link, table)
    recorded = {column for change in changes for row in (change.old, change.new) for column in row or ()}
    if shape is None or shape.key != tuple(changes[0].key) or not recorded <= {each.name for each in shape.columns}:
        raise MigrationError(
            f"{table!r} is not what it was: its rows had the key {tuple(changes[0].key)} and the columns "
            f"{sorted(recorded)}, and cannot be put back",
            hint="give the table these columns again, then run `python -m api.db.migrations recover`",
        )
    return shape


def _decide(shape: Shape, change: Change, current: Row | None) -> tuple[Row | None, str | None]:
    """Return what the row must get, nothing ({}) if it stands as it was, or why it is left alone."""
    if change.old is None:
        if current is None:
            return {}, None
        return None, None if _is(current, change.new) else "changed since"
    if change.new is None:
        if current is None:
            return change.old, None
        return {}, None if _is(current, change.old) else "another row has its key"
    if current is None:
        return {}, "deleted since"
    return _decide_columns(shape, change.old, change.new, current)


def _decide_columns(shape: Shape, old: Row, new: Row, current: Row) -> tuple[Row, str | None]:
    # Whoever changed another column of the row changed these as well, without a word.
    stamped = {column.name for column in shape.columns if column.stamped}
    said = [column for column in new if column not in stamped] or list(new)
    if all(current[column] == old[column] for column in said):
        return {}, None
    if any(current[column] != new[column] for column in said):
        return {}, "changed since"
    return {column: value for column, value in old.items() if current[column] == new[column]}, None


def _is(current: Row, image: Row | None) -> bool:
    return image is not None and current.items() >= image.items()


def _alike(wanted: Iterable[Want]) -> Iterable[list[Want]]:
    """Put together what one statement can do: all rows that go, or come, and those that get the same columns."""
    groups: dict[object, list[Want]] = {}
    for want in wanted:
        _, values, stands = want
        groups.setdefault(tuple(values) if values and stands else values is None, []).append(want)
    return groups.values()


def _chunks(shape: Shape, wanted: Sequence[Want]) -> Iterator[Step]:
    chunk: list[Want] = []
    size = 0
    for want in wanted:
        length = sum(map(len, want[0])) + sum(map(len, (want[1] or {}).values()))
        if chunk and (len(chunk) == ROWS_A_STATEMENT or size + length > CHARACTERS_A_STATEMENT):
            yield _step(shape, chunk)
            chunk, size = [], 0
        chunk.append(want)
        size += length
    yield _step(shape, chunk)


def _step(shape: Shape, chunk: Sequence[Want]) -> Step:
    keys, values, stands = zip(*chunk, strict=True)
    return Step(shape, keys, values, stands[0])


def _checked(link: Link, step: Step, going: Going) -> Step:
    """Return *step*, which deletes, with what it must heed. Refuses it when rows that stay would go with its own."""
    staying, taken = split_references(link, step.shape.table, going)
    follow = [each for each in staying if each.follows(frozenset({"DELETE"}), None)]
    if table := referring(link, step.shape, step.keys, follow):
        raise MigrationError(
            f"rows of {table!r} refer to a row of {step.shape.table!r} that is to be deleted, and would go with it",
            hint=f"delete them or let them refer to another row, {THEN}",
        )
    return replace(step, staying=tuple(staying)) if taken else step


def _run(link: Link, steps: Sequence[Step]) -> None:
    """Send each step, and those that were refused again as long as fewer of them are."""
    pending = list(steps)
    while pending:
        refused = [each for step in pending for each in _send(link, step)]
        if sum(len(step.keys) for step in pending) == len(refused):
            step, error = refused[0]
            raise MigrationError(
                f"a row of {step.shape.table!r} cannot be put back: {error.args[1]}",
                hint=f"delete or change the row that stands in the way, {THEN}",
            ) from error
        pending = [step for step, _ in refused]


def _send(link: Link, step: Step) -> Iterator[tuple[Step, pymysql.err.IntegrityError]]:
    """Send *step*, in ever smaller parts where it is refused; give the rows that are, each with the server's reason."""
    try:
        _do(link, step)
    except pymysql.err.IntegrityError as exc:
        if exc.args[0] not in WAITS:
            raise
        if len(step.keys) == 1:
            yield step, exc
            return
        for half in step.halves():
            yield from _send(link, half)


def _do(link: Link, step: Step) -> None:
    if step.staying is None:
        link.execute(step.sql())
        return
    if table := referring(link, step.shape, step.keys, step.staying):
        raise pymysql.err.IntegrityError(ER.ROW_IS_REFERENCED_2, f"rows of {table!r} refer to it")
    # What else refers to them is dropped by older entries, and must neither hold them nor be followed.
    with settings(link, {"foreign_key_checks": 0}):
        link.execute(step.sql())


def _verify(link: Link, step: Step) -> None:
    current = find(link, step.shape, step.keys)
    for key, values in zip(step.keys, step.values, strict=True):
        row = current.get(key)
        gone = row is None or tuple(row[column] for column in step.shape.key) != key
        if gone if values is None else row is not None and _is(row, values):
            continue
        change = Change(step.shape.table, dict(zip(step.shape.key, key, strict=True)), values, row)
        raise MigrationError(
            f"{change} was put back, and is not what it was",
            hint=f"compare the column's type with the statement's and mend it, {THEN}",
        )
