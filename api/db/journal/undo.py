"""Take back what a batch did; also after a crash, also of the undo itself.

Undo goes by what the schema is and what it was, entry by entry from the newest: each step is one statement that the
server does as a whole or not at all (but for ``_lost_by_server``), and an entry is forgotten only when all it tells of
is as it was.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass

import pymysql
import structlog

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.journal import snapshot, store, triggers
from api.db.journal.changes import changes
from api.db.journal.definition import Difference, TableDefinition, differing_names, parse, same
from api.db.journal.exchanging import bring_back_kept
from api.db.journal.finishing import is_finished
from api.db.journal.going import Going
from api.db.journal.images import Change
from api.db.journal.link import Link, name
from api.db.journal.printed import columns_in
from api.db.journal.put_back import put_back
from api.db.journal.steady import settings, steady
from api.db.journal.store import PREFIX, Entry, OpenBatch, Store
from api.exceptions import MigrationError, MigrationLockError, MigrationUndoError, StatementRefusedError
from api.logs import one_line

log = structlog.get_logger(__name__)

# A foreign key may need a second ALTER, a changed character set a third (see `changes`); then a rename is one more.
PASSES = 6
# Somebody else uses the table just now: tried again in each pass.
BUSY = {Category.LOCK_TIMEOUT, Category.DEADLOCK}
# What a statement makes by name alone; the servers name constraints anew as they please.
MADE = {"column", "key"}
LOST = {Category.LOST_CONNECTION, Category.CONNECTION_REFUSED, Category.SERVER_STARTING}
AGAIN = "run `python -m api.db.migrations recover`: the batch stays open and nothing is lost"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done about one interrupted batch: it was ``undone`` or ``finished``.

    *left_alone* is the number of rows that were not put back, as other sessions changed them since.
    """

    batch: str
    direction: str
    action: str
    statements: int
    left_alone: int = 0


def recover(link: Link, engine: Engine, guard: store.Guard) -> list[Recovered]:
    """Undo or finish each batch that is not done. Call it under the migration lock.

    Raises ``MigrationUndoError`` when something stands in the way; the batch then stays open.
    """
    store.refuse_strays(link)
    if not store.unfinished(link):
        return []
    with steady(link, engine, foreign_keys=False):
        return [_recover(Store(link, found.id, guard), engine, found) for found in store.unfinished(link)]


def _recover(batch: Store, engine: Engine, found: OpenBatch) -> Recovered:
    if found.format > store.FORMAT:
        raise MigrationUndoError(
            f"batch {found.batch} was left open by a newer release, which this one cannot undo",
            hint="run `python -m api.db.migrations recover` with the release that was being deployed",
        )
    entries, left_alone = batch.entries(), 0
    told = {
        "batch": found.batch,
        "direction": found.direction,
        "statements": len(entries),
        "newest": [one_line(entry.statement, 80) for entry in entries[:5]],
    }
    if found.state == "committed":
        action = "finished" if is_finished(batch, engine) else "unfinished"
    else:
        try:
            left_alone, action = undo(batch, engine), "undone"
        except MigrationUndoError as exc:
            log.critical("an interrupted batch could not be undone", reason=exc.message, remedy=exc.hint, **told)
            raise
    log.warning("an interrupted batch was " + action, **told)
    return Recovered(found.batch, found.direction, action, len(entries), left_alone)


def undo(batch: Store, engine: Engine) -> int:
    """Take back all that the journal tells of *batch*, and close it. Raises ``MigrationUndoError``.

    Returns how many rows were left alone, as other sessions changed them since.
    """
    link = batch.link
    if link.in_transaction:
        link.execute("ROLLBACK")
    with steady(link, engine, foreign_keys=False):
        batch.mark("undoing")
        left_alone = _undo_since(batch, engine, 0)
        if left := batch.entries():
            raise MigrationUndoError(
                f"batch {batch.id} is not undone: {len(left)} entries are left, the newest being {_place(left[0])}",
                hint=AGAIN,
            )
        batch.close()
    return left_alone


def undo_since(batch: Store, engine: Engine, number: int) -> int:
    """Undo the entries from *number* on, newest first; return how many rows were left alone."""
    with steady(batch.link, engine, foreign_keys=False):
        return _undo_since(batch, engine, number)


def _undo_since(batch: Store, engine: Engine, number: int) -> int:
    entries = batch.entries()
    undone = [
        _undo_entry(batch, engine, entry, Going(entries[at + 1 :]))
        for at, entry in enumerate(entries)
        if entry.number >= number
    ]
    return sum(undone)


def _undo_entry(batch: Store, engine: Engine, entry: Entry, going: Going) -> int:
    """Bring what *entry* tells of back to what it was, and forget the entry. Raises ``MigrationUndoError``.

    *going* is what older entries take away afterwards. Returns how many rows were left alone.
    """
    try:
        if entry.kind == "rows":
            return _undo_rows(batch, entry, going)
        _undo_structure(batch, engine, entry)
        return 0
    except (MigrationUndoError, MigrationLockError):
        raise
    except StatementRefusedError as exc:
        # Its hint is for who writes the statement.
        hint = f"what stands in the way: {exc.message}; remove it, then {AGAIN}"
        raise MigrationUndoError(f"{_place(entry)} could not be undone: {exc.message}", hint=hint) from exc
    except MigrationError as exc:
        raise MigrationUndoError(f"{_place(entry)} could not be undone: {exc.message}", hint=exc.hint) from exc
    except pymysql.err.MySQLError as exc:
        found = classify(exc, engine, statement=entry.statement)
        if found.category in LOST:
            raise
        raise MigrationUndoError(
            f"{_place(entry)} could not be undone: {found.code}: {found.server_message}",
            hint=f"what stands in the way: {found.server_message}; remove it, then {AGAIN}",
        ) from exc


def _undo_structure(batch: Store, engine: Engine, entry: Entry) -> None:
    step = _trigger_step if entry.kind == "trigger" else _table_step
    refused: pymysql.err.MySQLError | None = None
    for _ in range(PASSES):
        try:
            is_done = not step(batch.link, engine, entry)
        except pymysql.err.MySQLError as exc:
            # An error does not say that nothing happened: MySQL 9.7 answers 1146 to an ALTER that it has done.
            found = classify(exc, engine).category
            if found in LOST or (str(exc) == str(refused) and found not in BUSY):
                raise
            refused, is_done = exc, False
        if is_done:
            batch.forget(entry.number)
            return
    if refused is not None:
        raise refused
    raise MigrationUndoError(
        f"{_place(entry)} could not be undone: {_differences(batch.link, entry)}",
        hint="compare the definitions by hand, mend the table, then " + AGAIN,
    )


def _place(entry: Entry) -> str:
    return f"the journal's entry {entry.number}, `{one_line(entry.statement, 200)}`,"


# Tables and views ----------------------------------------------------------------------------------------------


def _table_step(link: Link, engine: Engine, entry: Entry) -> bool:
    """Do the next thing that brings the tables of *entry* back; return whether there was one."""
    current = snapshot.definitions(link, entry.before)
    if all(_stands(entry, table, now) for table, now in current.items()):
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
        elif now is not None and was is not None and not _stands(entry, table, now):
            _change_back(link, engine, entry, table, now, was)
    return True


def _stands(entry: Entry, table: str, now: str | None) -> bool:
    """Say whether *table* is as before the statement; of one that the batch made, whether it is there."""
    was = entry.before[table]
    return (now is None) == (was is None) if table in entry.born else _equal(now, was)


def _equal(now: str | None, was: str | None) -> bool:
    if now is None or was is None:
        return now is was
    if snapshot.is_table(now) and snapshot.is_table(was):
        return same(now, was)
    return now == was


def _rename_back(link: Link, entry: Entry, current: dict[str, str | None]) -> bool:
    standing, before = snapshot.standing(current), snapshot.standing(entry.before)
    if not entry.tables or standing == before:
        return False
    if missing := sorted(snapshot.renamed(before, entry.tables) - standing):
        raise _gone(entry, f"table {missing[0]!r}", {new: old for old, new in entry.tables}.get(missing[0]))
    pairs = [f"{name(new)} TO {name(old)}" for old, new in reversed(entry.tables)]
    link.execute("RENAME TABLE " + ", ".join(pairs))
    return True


def _make_again(link: Link, entry: Entry, table: str, was: str) -> None:
    if snapshot.is_table(was):
        raise _gone(entry, f"table {table!r}")
    link.execute(was)


def _gone(entry: Entry, what: str, own: str | None = None) -> MigrationUndoError:
    held = f", which held what {own!r} was," if own and own not in what else ""
    return MigrationUndoError(
        f"{_place(entry)} cannot be undone: somebody dropped or renamed {what}{held} meanwhile",
        hint=f"give it its name again, or restore it from a backup under that name, then {AGAIN}",
    )


def _drop_made(link: Link, entry: Entry, table: str, now: str) -> None:
    if not snapshot.is_table(now):
        link.execute(f"DROP VIEW {name(table)}")
        return
    foreign = [column.name for column in parse(now).columns if column.name.lower() not in entry.names]
    if foreign and not entry.whole:
        raise MigrationUndoError(
            f"{_place(entry)} cannot be undone: table {table!r} has columns that the statement did not make: {foreign}",
            hint="rename that table if it is somebody else's, then " + AGAIN,
        )
    link.execute(f"DROP TABLE {name(table)}")


def _change_back(link: Link, engine: Engine, entry: Entry, table: str, now: str, was: str) -> None:
    if snapshot.is_table(now) != snapshot.is_table(was):
        raise _gone(entry, f"{table!r}")
    if not snapshot.is_table(now):
        link.execute(re.sub(r"\ACREATE ", "CREATE OR REPLACE ", was))
        return
    _refuse_missing(entry, table, parse(now), parse(was))
    _refuse_foreign_changes(engine, entry, table, now, was)
    if bring_back_kept(link, entry, table, now, was):
        return
    for sql in changes(now, was, entry.columns.get(table, {})):
        # A key that comes back is checked: other sessions wrote meanwhile.
        checked = re.search(r"ADD CONSTRAINT .* FOREIGN KEY", sql) is not None
        with settings(link, {"foreign_key_checks": 1}) if checked else nullcontext():
            link.execute(sql)


def _refuse_missing(entry: Entry, table: str, current: TableDefinition, before: TableDefinition) -> None:
    """Refuse when a column that holds old values is gone: made again, it would be empty."""
    for new, old in entry.columns.get(table, {}).items():
        if before.column(old) and not current.column(new) and not current.column(old):
            raise _gone(entry, f"column {new!r} of {table!r}", old)
    for column, grave in entry.kept.items():
        own, changed = before.column(column), current.column(column)
        if own and not current.column(grave) and (changed is None or changed.meaning != own.meaning):
            raise _gone(entry, f"column {grave!r} of {table!r}", column)


def _refuse_foreign_changes(engine: Engine, entry: Entry, table: str, now: str, was: str) -> None:
    """Refuse to take back what somebody else made or changed meanwhile: what the statement does not explain."""
    names = set(entry.names)
    keys = [(key.lower(), line) for text in (now, was) for key, line in parse(text).foreign_keys.items()]
    # An index that a foreign key made goes and comes with it, under another name.
    foreign_keys = {key for key, _ in keys}
    names.update(column.lower() for key, line in keys if key in entry.names for column in columns_in(line))
    foreign = [
        each
        for each in differing_names(now, was, entry.columns.get(table, {}))
        if not _is_own(entry, table, each, names)
        and not (each.kind == "key" and each.name.lower() in foreign_keys)
        and not _lost_by_server(engine, entry, table, each)
    ]
    if foreign:
        raise MigrationUndoError(
            f"{_place(entry)} cannot be undone: somebody changed {table!r} meanwhile: "
            + "; ".join(f"{each.kind} {each.name!r}" for each in foreign),
            hint="take that change back (it may be made again afterwards), then " + AGAIN,
        )


def _lost_by_server(engine: Engine, entry: Entry, table: str, difference: Difference) -> bool:
    """Say whether *difference* is a foreign key that a MariaDB lost which died in an ALTER that copies the table.

    Only the newest entry's ALTER, or that of its undo, can have been running then (seen on 10.11).
    """
    if engine != "mariadb" or not entry.newest or difference.kind != "foreign key" or difference.current is not None:
        return False
    log.warning("a foreign key is gone, as a dying server loses it: it is made again", table=table, key=difference.name)
    return True


def _is_own(entry: Entry, table: str, difference: Difference, names: set[str]) -> bool:
    """Say whether the statement explains *difference*: what is too much it makes, by name or as the server names it."""
    own = difference.name.lower()
    if difference.kind == "check" and difference.current and difference.wanted:
        return True  # MySQL prints it in other words once the table was copied
    if difference.kind not in MADE or not difference.is_extra:
        return entry.whole or own.startswith(PREFIX) or bool(names & {word.lower() for word in difference.identifiers})
    plain = re.sub(r"_\d+\Z", "", own)
    if own.startswith(PREFIX) or own in entry.made or plain in entry.made:
        return True
    by_server = re.fullmatch(rf"{re.escape(table.lower())}_ibfk_\d+", own) or {own, plain} & names
    return difference.kind == "key" and "" in entry.made and bool(by_server)


def _differences(link: Link, entry: Entry) -> str:
    current = snapshot.definitions(link, entry.before) if entry.kind == "tables" else {}
    told = []
    for table, text in current.items():
        was = entry.before[table]
        if not _stands(entry, table, text):
            told.append(f"{table!r} is\n{text}\nand was\n{was}")
    return "\n".join(told) or "it is not as it was"


# Triggers and rows ---------------------------------------------------------------------------------------------


def _trigger_step(link: Link, engine: Engine, entry: Entry) -> bool:
    stands = True
    for trigger, was in entry.before.items():
        now = triggers.definition(link, trigger)
        if now == was:
            continue
        stands = False
        if now is not None and not triggers.is_made_by(now, entry.statement):
            raise MigrationUndoError(
                f"{_place(entry)} cannot be undone: somebody made another trigger {trigger!r} meanwhile",
                hint="give his trigger another name, then " + AGAIN,
            )
        if now is not None:
            link.execute(f"DROP TRIGGER {name(trigger)}")
        if was is not None:
            triggers.make(link, was)
    return not stands


def _undo_rows(batch: Store, entry: Entry, going: Going) -> int:
    """Put the rows of *entry* back and forget it, in one transaction; say which rows others changed since."""
    link = batch.link
    link.execute("BEGIN")
    try:
        changed = [Change.from_json(image) for image in batch.rows(entry.number)]
        left_alone = put_back(link, changed, going)
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
    return len(left_alone)
