"""One batch under the journal: opened, its statements seen, committed as a whole or undone as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import peewee
import pymysql
import structlog

from api.db.dialects.engine import Engine, server_version
from api.db.journal import store, undo
from api.db.journal.hook import Hook, hooked
from api.db.journal.link import Link
from api.db.journal.store import Guard, Store
from api.db.journal.undo import Recovered
from api.exceptions import MigrationError, MigrationLockError, MigrationUndoError

log = structlog.get_logger(__name__)

# The first versions whose DDL statements each happen as a whole or not at all, also through a crash (MySQL 8.4 manual,
# 15.1.1 "Atomic Data Definition Statement Support"; MariaDB documentation, "Atomic DDL").
ATOMIC_DDL: dict[Engine, tuple[int, ...]] = {"mysql": (8, 0), "mariadb": (10, 6)}


class Journal:
    """The journal of one batch: *is_open* until it is known to be undone or *committed*; *stuck* says why it stays."""

    def __init__(self, batch: Store, engine: Engine) -> None:
        self.store = batch
        self.engine = engine
        self.is_open = True
        self.committed = False
        self.stuck: MigrationError | None = None

    def commit(self, database: peewee.Database, record: Callable[[], None]) -> None:
        """Write the history rows, by *record*, and the commit mark in one transaction: the batch then stands."""
        link = self.store.link
        link.own = True
        try:
            with database.atomic():
                record()
                self.store.mark("committed")
        finally:
            link.own = False
        self.is_open, self.committed = False, True

    def finish(self) -> None:
        """Drop what was renamed away, and close. What cannot be dropped now waits for the next ``up``."""
        try:
            undo.finish(self.store, self.store.entries())
        except pymysql.err.MySQLError as exc:
            log.warning("the batch stands, but what it dropped is still there under other names", reason=str(exc))

    def undo(self) -> None:
        """Take everything back. Never raises: what stands in the way is in *stuck*, and the journal stays open."""
        try:
            undo.undo(self.store, self.engine)
            self.is_open = False
        except (MigrationUndoError, MigrationLockError) as exc:
            self.stuck = exc
            log.critical("the batch could not be undone", reason=exc.message, remedy=exc.hint)
        except pymysql.err.MySQLError as exc:
            log.warning("the connection was lost: the batch is undone over another one", reason=str(exc))


@contextmanager
def journalled(
    database: peewee.Database, engine: Engine, batch: str, direction: str, guard: Guard, undo_rows: int
) -> Iterator[Journal]:
    """Run the block under the journal; undo what it did when it raises, unless it was committed.

    Raises ``MigrationError`` on a server whose DDL statements are not atomic by themselves.
    """
    _refuse_old(database, engine)
    link = Link(database.connection())
    with peewee.__exception_wrapper__:
        journal = Journal(Store.open(link, batch, direction, guard), engine)
    try:
        with hooked(database, Hook(journal.store, engine, undo_rows)):
            yield journal
    except BaseException:
        if journal.is_open:
            journal.undo()
        raise
    journal.finish()


def _refuse_old(database: peewee.Database, engine: Engine) -> None:
    version = server_version(database)
    if version < ATOMIC_DDL[engine]:
        raise MigrationError(
            f"{engine} {'.'.join(map(str, version))} can leave a DDL statement half done: a batch could not be undone",
            hint=f"upgrade to {engine} {'.'.join(map(str, ATOMIC_DDL[engine]))}, or set `atomic = False` in every file",
        )


def prepare(database: peewee.Database) -> None:
    """Create the journal's tables where they are missing. Call it under the migration lock. Raises peewee's errors."""
    with peewee.__exception_wrapper__:
        store.create_tables(Link(database.connection()))


def recover(database: peewee.Database, engine: Engine, guard: Guard) -> list[Recovered]:
    """Undo or finish what an interrupted run left. Call it under the migration lock.

    Raises ``MigrationUndoError`` when something stands in the way, and peewee's errors.
    """
    with peewee.__exception_wrapper__:
        return undo.recover(Link(database.connection()), engine, guard)
