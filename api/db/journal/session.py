"""One batch under the journal: opened, its statements seen, committed as a whole or undone as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import peewee
import pymysql
import structlog

from api.db.dialects.engine import Engine, server_version
from api.db.dialects.errors import classify
from api.db.journal import store, undo
from api.db.journal.finishing import is_finished
from api.db.journal.hook import Hook, hooked
from api.db.journal.link import Link
from api.db.journal.store import Guard, Store
from api.db.journal.undo import Recovered
from api.db.lease import Lease
from api.exceptions import MigrationError, MigrationLockError, MigrationUndoError

log = structlog.get_logger(__name__)

# What a session that was ended still has to take back; who waits longer waits as for anybody's lock.
END_WITHIN_S = 10.0
# The first versions whose DDL statements each happen as a whole or not at all, also through a crash (MySQL 8.4 manual,
# 15.1.1 "Atomic Data Definition Statement Support"; MariaDB documentation, "Atomic DDL").
ATOMIC_DDL: dict[Engine, tuple[int, ...]] = {"mysql": (8, 0), "mariadb": (10, 6)}


class Journal:
    """The journal of one batch: *is_open* until it is known to be undone or *committed*; *stuck* says why it stays.

    *left_alone* is how many rows the undo left, as other sessions had changed them since.
    """

    def __init__(self, batch: Store, engine: Engine) -> None:
        self.store = batch
        self.engine = engine
        self.is_open = True
        self.committed = False
        self.stuck: MigrationError | None = None
        self.left_alone = 0

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
        is_finished(self.store, self.engine)

    def undo(self) -> None:
        """Take everything back. What stands in the way is in *stuck*, and the journal stays open.

        It stays open without that, too, when this connection or its lock is no good any more: over another it may go.
        Raises nothing but ``KeyboardInterrupt``.
        """
        try:
            self.left_alone = undo.undo(self.store, self.engine)
            self.is_open = False
        except MigrationUndoError as exc:
            self.stuck = exc
            log.critical("the batch could not be undone", reason=exc.message, remedy=exc.hint)
        except MigrationLockError as exc:
            log.warning("the batch is undone over another connection, under the lock", reason=exc.message)
        except pymysql.err.MySQLError as exc:
            is_lost = classify(exc, self.engine).category in undo.LOST
            why = "the connection was lost" if is_lost else "the server refused the undo on this connection"
            log.warning(f"{why}: the batch is undone over another one", reason=str(exc))
        except KeyboardInterrupt as exc:
            self.stuck = stopped(exc, self.engine)
            raise


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


def stopped(cause: BaseException, engine: Engine) -> MigrationUndoError:
    """Return, and log, that the undo stopped half-way for *cause*: a peewee error, or the keyboard's once more."""
    if isinstance(cause, KeyboardInterrupt):
        said, hint = "the undo was interrupted by the keyboard", undo.AGAIN
    else:
        found = classify(cause, engine)
        said = f"{found.code}: {found.server_message}" if found.code is not None else found.server_message
        hint = f"remove what stands in the way, then {undo.AGAIN}"
    error = MigrationUndoError(said, hint=hint)
    log.critical("the batch stays open: the next `up` undoes it before anything else", reason=said, remedy=hint)
    return error


def end_abandoned(database: peewee.Database, lost: Lease) -> None:
    """End the session that took the lease *lost* if it holds the lock yet: nobody waits for its statement any more.

    A connection that is cut while a statement runs, as the keyboard does, leaves both behind on the server.
    """
    sql = "SELECT session FROM migration_lease WHERE id = 1 AND token = %s AND session = IS_USED_LOCK(%s)"
    give_up_at = time.monotonic() + END_WITHIN_S
    while time.monotonic() < give_up_at:
        row = database.execute_sql(sql, (lost.token, lost.lock_name)).fetchone()
        if row is None:
            return
        with suppress(peewee.OperationalError):  # it has ended by itself meanwhile
            database.execute_sql("KILL %s", row)
        time.sleep(0.05)


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
