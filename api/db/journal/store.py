"""The journal's tables, and what is written there: one open batch at most, and an entry ahead of each change.

Every write is guarded by the condition of the lock that is held: a migrator that lost its lock without knowing it
writes no entry more, and so sends no journalled statement more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import pymysql

from api.db.journal.link import Link, name
from api.db.journal.snapshot import NO_SUCH_TABLE
from api.exceptions import MigrationLockError, MigrationUndoError
from api.logs import redact, storable

State = Literal["open", "undoing", "committed"]
Kind = Literal["tables", "trigger", "rows", "finish"]
# A change of what an entry means; an older release refuses to undo a newer one's batch.
FORMAT = 1
PREFIX = "_plinth"

TABLES = {
    "migration_batch": """id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, batch VARCHAR(36) NOT NULL,
        direction VARCHAR(8) NOT NULL, state VARCHAR(16) NOT NULL, format INT NOT NULL, opened_at DATETIME NOT NULL""",
    "migration_journal": """batch_id BIGINT NOT NULL, number INT NOT NULL, kind VARCHAR(16) NOT NULL,
        statement MEDIUMTEXT NOT NULL, image LONGTEXT NOT NULL, PRIMARY KEY (batch_id, number)""",
    "migration_journal_row": """batch_id BIGINT NOT NULL, number INT NOT NULL, position INT NOT NULL,
        image LONGTEXT NOT NULL, PRIMARY KEY (batch_id, number, position)""",
}
OUR_TABLES = frozenset(
    {*TABLES, "migration_history", "migration_attempt", "migration_lease", "migration_heartbeat", "migration_step"}
)
CHARACTERS = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
# A statement of rows stays well below the smallest max_allowed_packet in use (MariaDB: 16 MB).
ROWS_A_WRITE = 200
BYTES_A_WRITE = 1_000_000


@dataclass(frozen=True, slots=True)
class Guard:
    """The SQL condition that is true as long as the migration lock is held, and its parameters."""

    condition: str = "1 = 1"
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is not done: ``open`` and ``undoing`` are to be undone, ``committed`` is to be finished."""

    id: int
    batch: str
    direction: str
    state: State
    format: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What stood before one statement, written ahead of it.

    *before* holds each thing's definition, ``None`` for one that was not there. *tables* are pairs of old and new name,
    in the order in which they were renamed; *columns* maps new names to old ones, by table. *kept* maps a column whose
    type changed to the one that keeps the old values. *names* are what the statement mentions, *made* what it makes by
    name: what else there is, is somebody else's, and what else is different too, unless *whole*. *buried* tells that
    something waits under another name to be dropped. *born* are tables that this batch made itself. *newest* says of an
    entry that was read that none is newer: its statement, or that of its undo, may have been running at a crash.
    """

    number: int
    kind: Kind
    statement: str
    before: dict[str, str | None] = field(default_factory=dict)
    tables: list[tuple[str, str]] = field(default_factory=list)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    whole: bool = False
    buried: bool = False
    born: list[str] = field(default_factory=list)
    newest: bool = False

    def image(self) -> str:
        """Return what the journal keeps beside number, kind and statement, as JSON."""
        apart = ("number", "kind", "statement", "newest")
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        return json.dumps({key: value for key, value in facts.items() if value}, ensure_ascii=False)

    @classmethod
    def read(cls, number: int, kind: Kind, statement: str, image: str) -> Entry:
        """Return the entry that a row of the journal holds."""
        facts = json.loads(image)
        return cls(number, kind, statement, **facts | {"names": tuple(facts.get("names", ()))})


class Store:
    """One batch in the journal. Raises ``MigrationLockError`` when the lock was lost, PyMySQL's errors otherwise."""

    def __init__(self, link: Link, batch_id: int, guard: Guard) -> None:
        self.link = link
        self.id = batch_id
        self.guard = guard
        self.number = 0

    @classmethod
    def open(cls, link: Link, batch: str, direction: str, guard: Guard) -> Store:
        """Open *batch* in the journal, committed at once."""
        sql = f"""INSERT INTO migration_batch (batch, direction, state, format, opened_at)
                  SELECT %s, %s, 'open', {FORMAT}, UTC_TIMESTAMP() FROM DUAL WHERE {guard.condition}"""
        _refuse_lost_lock(link.execute(sql, (batch, direction, *guard.parameters)))
        return cls(link, link.connection.insert_id(), guard)

    def grave(self, number: int, kind: str) -> str:
        """Return a name for what is renamed away: of this batch alone, and short whatever the real name is."""
        return f"{PREFIX}{self.id}_{number}_{kind}"

    def next_number(self) -> int:
        """Return the number of the entry that is to be written next."""
        self.number += 1
        return self.number

    def write(self, entry: Entry) -> None:
        """Write *entry* into the transaction that is open, or by itself."""
        sql = f"""INSERT INTO migration_journal (batch_id, number, kind, statement, image)
                  SELECT %s, %s, %s, %s, %s FROM DUAL WHERE {self.guard.condition}"""
        statement = storable(redact(entry.statement))
        values = (self.id, entry.number, entry.kind, statement, entry.image(), *self.guard.parameters)
        _refuse_lost_lock(self.link.execute(sql, values))

    def rewrite(self, entry: Entry) -> None:
        """Write *entry* in the place of what was written under its number."""
        sql = f"""UPDATE migration_journal SET image = %s
                  WHERE batch_id = %s AND number = %s AND {self.guard.condition}"""
        _refuse_lost_lock(self.link.execute(sql, (entry.image(), self.id, entry.number, *self.guard.parameters)))

    def write_rows(self, number: int, images: Sequence[str]) -> None:
        """Write the rows' *images* of entry *number* into the transaction that is open."""
        at = 0
        while at < len(images):
            chunk: list[str] = []
            size = 0
            while at + len(chunk) < len(images) and len(chunk) < ROWS_A_WRITE and size < BYTES_A_WRITE:
                chunk.append(images[at + len(chunk)])
                size += len(chunk[-1])
            rows = ", ".join(["(%s, %s, %s, %s)"] * len(chunk))
            values = [value for i, image in enumerate(chunk, at) for value in (self.id, number, i, image)]
            sql = f"INSERT INTO migration_journal_row (batch_id, number, position, image) VALUES {rows}"
            self.link.execute(sql, values)
            at += len(chunk)

    def entries(self) -> list[Entry]:
        """Return the entries, newest first."""
        sql = "SELECT number, kind, statement, image FROM migration_journal WHERE batch_id = %s ORDER BY number DESC"
        found = [Entry.read(*row) for row in self.link.rows(sql, (self.id,))]
        return [replace(found[0], newest=True), *found[1:]] if found else []

    def rows(self, number: int) -> list[str]:
        """Return the rows' images of entry *number*, in the order in which they were written."""
        sql = "SELECT image FROM migration_journal_row WHERE batch_id = %s AND number = %s ORDER BY position"
        return [image for (image,) in self.link.rows(sql, (self.id, number))]

    def forget(self, number: int) -> None:
        """Delete entry *number* and then its rows: what it tells of is undone."""
        for table in ("migration_journal", "migration_journal_row"):
            self.link.execute(f"DELETE FROM {table} WHERE batch_id = %s AND number = %s", (self.id, number))

    def mark(self, state: State) -> None:
        """Set the batch's state; within a transaction this is its commit mark."""
        sql = f"UPDATE migration_batch SET state = %s WHERE id = %s AND {self.guard.condition}"
        touched = self.link.execute(sql, (state, self.id, *self.guard.parameters))
        if not touched:
            standing = self.link.rows("SELECT state FROM migration_batch WHERE id = %s", (self.id,))
            _refuse_lost_lock(int(standing == [(state,)]))

    def close(self) -> None:
        """Delete the batch and all that was written of it, in one transaction."""
        self.link.execute("BEGIN")
        for table in ("migration_journal_row", "migration_journal"):
            self.link.execute(f"DELETE FROM {table} WHERE batch_id = %s", (self.id,))
        self.link.execute("DELETE FROM migration_batch WHERE id = %s", (self.id,))
        self.link.execute("COMMIT")


def create_tables(link: Link) -> None:
    """Create the journal's tables where they are missing. Call it under the migration lock.

    Raises ``MigrationUndoError`` when one is missing that a batch which is not done was written into.
    """
    try:
        link.rows(f"SELECT 1 FROM {', '.join(TABLES)} LIMIT 0")
    except pymysql.err.ProgrammingError as exc:
        if exc.args[0] != NO_SUCH_TABLE:
            raise
    else:
        return
    sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE %s"
    standing = {found for (found,) in link.rows(sql, ("migration\\_%",))}
    missing = [table for table in TABLES if table not in standing]
    if missing and "migration_batch" in standing and (found := unfinished(link)):
        raise MigrationUndoError(
            f"batch {found[0].batch} was interrupted, and table {missing[0]!r}, which tells how to undo it, is gone",
            hint=f"restore {missing[0]!r} from a backup; or compare the schema by hand, and then DELETE FROM "
            "migration_batch: nothing of that batch is undone any more",
        )
    for table, columns in TABLES.items():
        if table in missing:
            link.execute(f"CREATE TABLE {name(table)} ({columns}) ENGINE=InnoDB {CHARACTERS}")


def refuse_strays(link: Link) -> None:
    """Raise ``MigrationUndoError`` when there are entries of a batch that ``migration_batch`` does not know."""
    sql = """SELECT batch_id, COUNT(*) FROM migration_journal
             WHERE batch_id NOT IN (SELECT id FROM migration_batch) GROUP BY batch_id LIMIT 1"""
    for batch_id, number in link.rows(sql):
        raise MigrationUndoError(
            f"the journal has {number} entries of a batch ({batch_id}) that migration_batch does not know",
            hint="restore migration_batch from a backup; or compare the schema by hand, and then DELETE FROM "
            "migration_journal and migration_journal_row: nothing of that batch is undone any more",
        )


def unfinished(link: Link) -> list[OpenBatch]:
    """Return the batches that are not done, newest first."""
    sql = "SELECT id, batch, direction, state, format FROM migration_batch ORDER BY id DESC LIMIT 9999"
    return [OpenBatch(*row) for row in link.rows(sql)]


def _refuse_lost_lock(touched: int) -> None:
    if not touched:
        raise MigrationLockError(
            "the migration lock was lost: another process, or an administrator, ended it; nothing more runs here",
            hint="run it again: the batch is undone or finished first",
        )
