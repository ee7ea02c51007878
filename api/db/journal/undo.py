"""Take back what a batch did, or finish what it had committed; also after a crash, also of the undo itself.

Undo goes by what the schema is and what it was, entry by entry from the newest: each step is one statement that the
server does as a whole or not at all, and an entry is forgotten only when all it tells of is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pymysql
import structlog

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.journal import graves, snapshot, store, triggers
from api.db.journal.changes import changes
from api.db.journal.definition import TableDefinition, differing_names, parse, same
from api.db.journal.images import Change
from api.db.journal.link import Link, name
from api.db.journal.put_back import put_back
from api.db.journal.store import PREFIX, Entry, OpenBatch, Store
from api.exceptions import MigrationUndoError
from api.logs import redact

log = structlog.get_logger(__name__)

# A foreign key may need a second ALTER, a changed character set a third (see `changes`); then a rename is one more.
PASSES = 6
LOST = {Category.LOST_CONNECTION, Category.CONNECTION_REFUSED, Category.SERVER_STARTING}
RECOVER = "then run `python -m api.db.migrations recover`: the batch stays open and nothing is lost"
# Strict, so that no value is cut silently; but what stood before may stand again, zero dates too.
SESSION: dict[str, Any] = {
    "sql_mode": "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES",
    "foreign_key_checks": 0,
}
# MariaDB checks all rows at each ALTER that copies, also those that broke a CHECK before it was made.
MARIADB_SESSION: dict[str, Any] = SESSION | {"check_constraint_checks": 0}


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done about one interrupted batch: it was ``undone`` or ``finished``."""

    batch: str
    direction: str
    action: str
    statements: int


def recover(link: Link, engine: Engine, guard: store.Guard) -> list[Recovered]:
    """Undo or finish each batch that is not done. Call it under the migration lock.

    Raises ``MigrationUndoError`` when something stands in the way; the batch then stays open.
    """
    return [_recover(Store(link, found.id, guard), engine, found) for found in store.unfinished(link)]


def _recover(batch: Store, engine: Engine, found: OpenBatch) -> Recovered:
    if found.format > store.FORMAT:
        raise MigrationUndoError(
            f"batch {found.batch} was left open by a newer release, which this one cannot undo",
            hint="run `python -m api.db.migrations recover` with the release that was being deployed",
        )
    entries = batch.entries()
    if found.state == "committed":
        finish(batch, entries)
        action = "finished"
    else:
        undo(batch, engine)
        action = "undone"
    log.warning(
        "an interrupted batch was " + action, batch=found.batch, direction=found.direction, statements=len(entries)
    )
    return Recovered(found.batch, found.direction, action, len(entries))


def finish(batch: Store, entries: list[Entry]) -> None:
    """Drop what a committed batch renamed away, and close it."""
    if any(entry.buried for entry in entries):
        graves.drop_buried(batch.link, f"{PREFIX}{batch.id}_")
    batch.close()


def undo(batch: Store, engine: Engine) -> None:
    """Take back all that the journal tells of *batch*, and close it. Raises ``MigrationUndoError``."""
    link = batch.link
    if link.in_transaction:
        link.execute("ROLLBACK")
    batch.mark("undoing")
    for entry in batch.entries():
        undo_entry(batch, engine, entry)
    batch.close()


@contextmanager
def _session(link: Link, engine: Engine) -> Iterator[None]:
    wanted = MARIADB_SESSION if engine == "mariadb" else SESSION
    before = link.rows("SELECT " + ", ".join(f"@@SESSION.{variable}" for variable in wanted))[0]
    assign = "SET SESSION " + ", ".join(f"{variable} = %s" for variable in wanted)
    link.execute(assign, tuple(wanted.values()))
    try:
        yield
    finally:
        # A lost session needs no restoring.
        with suppress(pymysql.err.MySQLError):
            link.execute(assign, before)


def undo_entry(batch: Store, engine: Engine, entry: Entry) -> None:
    """Bring what *entry* tells of back to what it was, and forget the entry. Raises ``MigrationUndoError``."""
    try:
        with _session(batch.link, engine):
            if entry.kind == "rows":
                _undo_rows(batch, entry)
            else:
                _undo_structure(batch, engine, entry)
    except pymysql.err.MySQLError as exc:
        found = classify(exc, engine, statement=entry.statement)
        if found.category in LOST:
            raise
        raise MigrationUndoError(
            f"{_place(entry)} could not be undone: {found.code}: {found.server_message}",
            hint=f"remove what stands in the way ({found.remedy}), {RECOVER}",
        ) from exc


def _undo_structure(batch: Store, engine: Engine, entry: Entry) -> None:
    step = _trigger_step if entry.kind == "trigger" else _table_step
    refused = ""
    for _ in range(PASSES):
        try:
            is_done = not step(batch.link, engine, entry)
        except pymysql.err.MySQLError as exc:
            # An error does not say that nothing happened: MySQL 9.7 answers 1146 to an ALTER that it has done.
            if str(exc) == refused or classify(exc, engine).category in LOST:
                raise
            refused, is_done = str(exc), False
        if is_done:
            batch.forget(entry.number)
            return
    raise MigrationUndoError(
        f"{_place(entry)} could not be undone: {_differences(batch.link, entry)}",
        hint="compare the definitions by hand, mend the table, " + RECOVER,
    )


def _place(entry: Entry) -> str:
    line = redact(" ".join(entry.statement.split()))
    return f"the journal's entry {entry.number}, `{line[:200]}`,"


# Tables and views ----------------------------------------------------------------------------------------------


def _table_step(link: Link, engine: Engine, entry: Entry) -> bool:
    """Do the next thing that brings the tables of *entry* back; return whether there was one."""
    current = snapshot.definitions(link, entry.before)
    if all(_equal(current[table], text) for table, text in entry.before.items()):
        return False
    if _rename_back(link, entry, current):
        return True
    graves_of_tables = {new for _, new in entry.tables}
    for table, was in entry.before.items():
        now = current[table]
        if now is None and was is not None:
            _make_again(link, entry, table, was)
        elif was is None and now is not None and table not in graves_of_tables:
            _drop_made(link, entry, table, now)
        elif now is not None and was is not None and not _equal(now, was):
            _change_back(link, engine, entry, table, now, was)
    return True


def _equal(now: str | None, was: str | None) -> bool:
    if now is None or was is None:
        return now is was
    if snapshot.is_table(now) and snapshot.is_table(was):
        return same(now, was)
    return now == was


def _rename_back(link: Link, entry: Entry, current: dict[str, str | None]) -> bool:
    standing = {table for table, text in current.items() if text is not None}
    if not entry.tables or standing == {table for table, text in entry.before.items() if text is not None}:
        return False
    pairs = [f"{name(new)} TO {name(old)}" for old, new in reversed(entry.tables)]
    link.execute("RENAME TABLE " + ", ".join(pairs))
    return True


def _make_again(link: Link, entry: Entry, table: str, was: str) -> None:
    if snapshot.is_table(was):
        raise MigrationUndoError(
            f"{_place(entry)} cannot be undone: somebody dropped table {table!r} meanwhile",
            hint="restore the table from a backup, " + RECOVER,
        )
    link.execute(was)


def _drop_made(link: Link, entry: Entry, table: str, now: str) -> None:
    if not snapshot.is_table(now):
        link.execute(f"DROP VIEW {name(table)}")
        return
    foreign = [column.name for column in parse(now).columns if column.name.lower() not in entry.names]
    if foreign and not entry.whole:
        raise MigrationUndoError(
            f"{_place(entry)} cannot be undone: table {table!r} has columns that the statement did not make: {foreign}",
            hint="rename that table if it is somebody else's, " + RECOVER,
        )
    link.execute(f"DROP TABLE {name(table)}")


def _change_back(link: Link, engine: Engine, entry: Entry, table: str, now: str, was: str) -> None:
    if not snapshot.is_table(now) or not snapshot.is_table(was):
        link.execute(re.sub(r"\ACREATE ", "CREATE OR REPLACE ", was))
        return
    _refuse_foreign_changes(entry, table, now, was)
    if _bring_back_kept(link, entry, table, now, was):
        return
    for sql in changes(now, was, entry.columns.get(table, {})):
        # A key that comes back is checked: other sessions wrote meanwhile.
        checked = re.search(r"ADD CONSTRAINT .* FOREIGN KEY", sql) is not None
        link.execute(f"SET SESSION foreign_key_checks = {int(checked)}")
        link.execute(sql)
    link.execute("SET SESSION foreign_key_checks = 0")


def _refuse_foreign_changes(entry: Entry, table: str, now: str, was: str) -> None:
    """Refuse to take back what somebody else changed meanwhile: what no word of the statement explains."""
    if entry.whole:
        return
    names = set(entry.names)
    foreign = [
        each
        for each in differing_names(now, was)
        if not names & {word.lower() for word in each.identifiers} and not each.name.startswith(PREFIX)
    ]
    if foreign:
        raise MigrationUndoError(
            f"{_place(entry)} cannot be undone: somebody changed {table!r} meanwhile: "
            + "; ".join(f"{each.kind} {each.name!r}" for each in foreign),
            hint="take that change back (it may be made again afterwards), " + RECOVER,
        )


def _differences(link: Link, entry: Entry) -> str:
    current = snapshot.definitions(link, entry.before) if entry.kind == "tables" else {}
    told = []
    for table, text in current.items():
        was = entry.before[table]
        if not _equal(text, was):
            told.append(f"{table!r} is\n{text}\nand was\n{was}")
    return "\n".join(told) or "it is not as it was"


# Columns whose old values were kept beside -----------------------------------------------------------------------


def _bring_back_kept(link: Link, entry: Entry, table: str, now: str, was: str) -> bool:
    """Put the column that kept the old values in the place of the changed one; return whether that was to be done.

    A row whose new value is not what the server made of the old one was written by another session meanwhile: its
    value is taken over first. The table is locked from then until the columns are exchanged.
    """
    current = parse(now)
    standing = {column.name: column for column in current.columns}
    for column, grave in entry.kept.items():
        if grave in standing and not standing[grave].generated and column in standing:
            _exchange(link, current, parse(was), column, grave)
            return True
    return False


def _exchange(link: Link, current: TableDefinition, before: TableDefinition, column: str, grave: str) -> None:
    probe, quoted = f"{grave}_now", name(current.name)
    if probe in current.column_names:
        link.execute(f"ALTER TABLE {quoted} DROP COLUMN {name(probe)}")
    changed = current.column(column)
    assert changed is not None, "the caller saw that it stands"
    kind = graves.type_of(changed)
    link.execute(f"ALTER TABLE {quoted} ADD COLUMN {name(probe)} {kind} GENERATED ALWAYS AS ({name(grave)}) VIRTUAL")
    # A column with ON UPDATE keeps its value only if it is assigned one.
    clocks = [each.name for each in before.columns if "ON UPDATE" in each.text.upper() and each.name != column]
    held = "".join(f", {name(clock)} = {name(clock)}" for clock in clocks)
    written = f"NOT (CAST({name(column)} AS BINARY) <=> CAST({name(probe)} AS BINARY))"
    link.execute(f"LOCK TABLES {quoted} WRITE")
    try:
        link.execute(f"UPDATE {quoted} SET {name(grave)} = {name(column)}{held} WHERE {written}")
        link.execute(f"ALTER TABLE {quoted} {', '.join(_exchanging(current, before, column, grave, probe))}")
    finally:
        link.execute("UNLOCK TABLES")


def _exchanging(
    current: TableDefinition, before: TableDefinition, column: str, grave: str, probe: str
) -> Iterator[str]:
    # MariaDB drops no column of a composite UNIQUE key (error 1072): the keys come again in the same statement.
    for kind, key in current.mentions(column):
        if kind == "key":
            yield f"DROP INDEX {name(key)}"
            if key in before.keys:
                yield f"ADD {before.keys[key]}"
    yield from (f"DROP COLUMN {name(each)}" for each in (probe, column))
    at = before.column_names.index(column)
    place = f"AFTER {name(before.column_names[at - 1])}" if at else "FIRST"
    yield f"CHANGE COLUMN {name(grave)} {name(column)} {before.columns[at].text} {place}"


# Triggers and rows ---------------------------------------------------------------------------------------------


def _trigger_step(link: Link, engine: Engine, entry: Entry) -> bool:
    stands = True
    for trigger, was in entry.before.items():
        now = triggers.definition(link, trigger)
        if now == was:
            continue
        stands = False
        if now is not None:
            link.execute(f"DROP TRIGGER {name(trigger)}")
        if was is not None:
            triggers.make(link, was)
    return not stands


def _undo_rows(batch: Store, entry: Entry) -> None:
    """Put the rows of *entry* back and forget it, in one transaction; say which rows others changed since."""
    link = batch.link
    link.execute("BEGIN")
    try:
        changed = [Change.from_json(image) for image in batch.rows(entry.number)]
        left_alone = put_back(link, changed)
        batch.forget(entry.number)
    except BaseException:
        link.execute("ROLLBACK")
        raise
    link.execute("COMMIT")
    if left_alone:
        log.critical(
            "rows were left as another session wrote them meanwhile",
            rows=left_alone[:20],
            number=len(left_alone),
        )
