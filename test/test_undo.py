"""The undo of a batch on MySQL and MariaDB: under any settings of the session, and beside what others did since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import peewee
import pymysql
import pytest
from sessions import lose_to_a_deadlock

from api.db.journal import session
from api.db.journal.hook import Hook, hooked
from api.db.journal.link import Link
from api.db.journal.reading import read
from api.db.journal.rights import Rights, refuse_missing_rights, require
from api.db.journal.shapes import Event, reaches_further, shape_of
from api.db.journal.snapshot import definitions
from api.db.journal.store import Guard, Store
from api.db.journal.undo import Recovered
from api.exceptions import MigrationUndoError, StatementRefusedError

pytestmark = pytest.mark.engines("mariadb", "mysql")

START = (
    "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a INT NOT NULL DEFAULT 0, b VARCHAR(20), KEY by_b (b, a))",
    "INSERT INTO t (a, b) VALUES (5000, 'x'), (2, 'y'), (3, 'z')",
    "CREATE TABLE o (id INT PRIMARY KEY)",
    "INSERT INTO o VALUES (1)",
)


@pytest.fixture
def start(db: peewee.Database) -> peewee.Database:
    """Give the database the tables and rows of START, and the journal's tables."""
    for sql in START:
        db.execute_sql(sql)
    session.prepare(db)
    return db


@pytest.fixture
def crash(backend: Any, start: peewee.Database) -> Callable[..., None]:
    """Return a function that sends statements as a batch, over a connection that then ends without a word."""

    def crash(*statements: str) -> None:
        database = backend.database()
        database.connect()
        store = Store.open(Link(database.connection()), "0001", "up", Guard())
        with hooked(database, Hook(store, backend.engine, 1000)):
            for sql in statements:
                database.execute_sql(sql)
        database.close()

    return crash


def standing(db: peewee.Database) -> dict[str, Any]:
    """Return the tables' definitions, without their counters, and rows."""
    tables = [table for (table,) in db.execute_sql("SHOW TABLES") if not table.startswith("migration_")]
    texts = {table: db.execute_sql(f"SHOW CREATE TABLE {table}").fetchone()[1] for table in tables}
    rows = {table: sorted(db.execute_sql(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
    return {table: (texts[table].split(" ENGINE")[0], rows[table]) for table in tables}


def undone(backend: Any, *statements: str, then: Callable[[], Any] = bool) -> session.Journal:
    """Send *statements* as a batch that fails after *then*, and return its journal."""
    database = backend.database()
    database.connect()
    found: list[session.Journal] = []
    with (
        suppress(ZeroDivisionError),
        session.journalled(database, backend.engine, "0001", "up", Guard(), 1000) as journal,
    ):
        found.append(journal)
        for sql in statements:
            database.execute_sql(sql)
        then()
        raise ZeroDivisionError
    return found[0]


SETTINGS = {
    "one row of each answer": ("SET sql_select_limit = 1", "ALTER TABLE t ADD c1 INT", "ALTER TABLE t ADD c2 INT"),
    "no update without a key": ("SET sql_safe_updates = 1", "ALTER TABLE t MODIFY b VARCHAR(5)"),
    "no word of values that are cut": ("SET sql_mode = ''", "ALTER TABLE t MODIFY a TINYINT"),
    "no commit by itself": ("SET autocommit = 0", "ALTER TABLE t ADD c1 INT", "UPDATE t SET a = 1", "DROP TABLE o"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_no_setting_of_the_migration_stops_the_undo(backend: Any, start: peewee.Database, case: str) -> None:
    """Whatever the migration made of its session, the undo works to its end."""
    before = standing(start)

    journal = undone(backend, *SETTINGS[case])

    assert (journal.stuck, journal.is_open) == (None, False)
    assert standing(start) == before


def test_a_deadlock_that_a_migration_swallows_ends_its_transaction(backend: Any, start: peewee.Database) -> None:
    """No error tells that the transaction is gone: the next change and its entry are one transaction all the same."""
    before, migrating = standing(start), backend.database()
    migrating.connect()
    with (
        suppress(ZeroDivisionError),
        session.journalled(migrating, backend.engine, "0001", "up", Guard(), 1000) as journal,
    ):
        lose_to_a_deadlock(backend.url, migrating)
        migrating.execute_sql("UPDATE t SET a = 1 WHERE id = 3")
        (kept,) = start.execute_sql("SELECT COUNT(*) FROM migration_journal_row").fetchone()
        raise ZeroDivisionError

    assert (kept, journal.stuck) == (1, None)
    assert standing(start) == before


BORN = {
    "a table": (
        "CREATE TABLE n (id INT PRIMARY KEY, t_id INT, FOREIGN KEY (t_id) REFERENCES t (id))",
        "INSERT INTO t (id, a) VALUES (9, 9)",
        "INSERT INTO n VALUES (1, 9)",
    ),
    "a table that follows": (
        "CREATE TABLE n (id INT PRIMARY KEY, t_id INT, FOREIGN KEY (t_id) REFERENCES t (id) ON DELETE CASCADE)",
        "INSERT INTO t (id, a) VALUES (9, 9)",
        "INSERT INTO n VALUES (1, 9)",
        "RENAME TABLE n TO m",
    ),
    "a column": (
        "ALTER TABLE o ADD COLUMN t_id INT, ADD CONSTRAINT fk FOREIGN KEY (t_id) REFERENCES t (id)",
        "INSERT INTO t (id, a) VALUES (9, 9)",
        "UPDATE o SET t_id = 9",
    ),
    "a column that follows": (
        "ALTER TABLE o ADD COLUMN x INT, ADD CONSTRAINT fk FOREIGN KEY (x) REFERENCES t (id) ON DELETE CASCADE",
        "ALTER TABLE o RENAME COLUMN x TO y",
        "INSERT INTO t (id, a) VALUES (9, 9)",
        "UPDATE o SET y = 9",
    ),
}


@pytest.mark.parametrize("case", BORN)
def test_rows_that_only_the_batch_refers_to_are_deleted(backend: Any, start: peewee.Database, case: str) -> None:
    """What an older entry takes away neither holds an inserted row nor takes a row along."""
    before = standing(start)

    assert undone(backend, *BORN[case]).stuck is None

    assert standing(start) == before


def test_a_row_that_refers_and_stays_stops_the_undo(backend: Any, start: peewee.Database) -> None:
    """A foreign key of what the batch made opens no way around one that another session relies on."""
    start.execute_sql("CREATE TABLE s (id INT PRIMARY KEY, t_id INT, FOREIGN KEY (t_id) REFERENCES t (id))")

    journal = undone(backend, *BORN["a table"], then=lambda: start.execute_sql("INSERT INTO s VALUES (1, 9)"))

    assert journal.stuck is not None
    assert "rows of 's' refer to it" in journal.stuck.message
    start.execute_sql("DELETE FROM s")
    assert [each.action for each in session.recover(start, backend.engine, Guard())] == ["undone"]
    assert sorted(standing(start)) == ["o", "s", "t"]


STUCK = {
    "somebody changed 't' meanwhile: column 'mine'": ("ALTER TABLE t DROP COLUMN b", "ALTER TABLE t ADD mine INT"),
    "somebody changed 't' meanwhile: key 'mine'": ("ALTER TABLE t DROP COLUMN b", "CREATE INDEX mine ON t (a)"),
    "somebody dropped or renamed column '_plinth1_1_c0' of 't', which held what 'b' was,": (
        "ALTER TABLE t DROP COLUMN b",
        "ALTER TABLE t DROP COLUMN _plinth1_1_c0",
    ),
    "somebody dropped or renamed column '_plinth1_1_c0' of 't', which held what 'a' was,": (
        "ALTER TABLE t MODIFY a SMALLINT",
        "ALTER TABLE t DROP COLUMN _plinth1_1_c0",
    ),
    "somebody dropped or renamed table '_plinth1_1_t0', which held what 'o' was,": (
        "DROP TABLE o",
        "DROP TABLE _plinth1_1_t0",
    ),
    "somebody dropped or renamed table 'o' meanwhile": ("ALTER TABLE o ADD c INT", "RENAME TABLE o TO away"),
    "batch 0001 was interrupted, and table 'migration_journal', which tells": (
        "DROP TABLE o",
        "DROP TABLE migration_journal",
    ),
}


def boot(db: peewee.Database, backend: Any) -> list[Recovered]:
    """Do what the next boot does first."""
    session.prepare(db)
    return session.recover(db, backend.engine, Guard())


@pytest.mark.parametrize("said", STUCK)
def test_what_somebody_did_since_is_not_destroyed(backend: Any, start: peewee.Database, crash: Any, said: str) -> None:
    """Recovery stops, says who stands in the way and by what name, and keeps the batch open."""
    ours, theirs = STUCK[said]
    crash(ours)
    start.execute_sql(theirs)
    before = standing(start)

    with pytest.raises(MigrationUndoError) as caught:
        boot(start, backend)

    assert said in caught.value.message
    assert "correct the" not in caught.value.hint
    assert standing(start) == before
    assert start.execute_sql("SELECT COUNT(*) FROM migration_batch").fetchone() == (1,)


def test_recovery_counts_the_rows_that_it_left_alone(backend: Any, start: peewee.Database, crash: Any) -> None:
    """Whoever reads the result learns that rows are not as they were before the batch."""
    crash("UPDATE t SET a = a + 1")
    start.execute_sql("UPDATE t SET a = 77 WHERE id > 1")

    (recovered,) = session.recover(start, backend.engine, Guard())

    assert (recovered.action, recovered.left_alone) == ("undone", 2)
    assert start.execute_sql("SELECT a FROM t ORDER BY id").fetchall() == ((5000,), (77,), (77,))


@pytest.mark.engines("mariadb")
def test_a_statement_that_a_dropped_column_is_in_the_way_of_is_refused(backend: Any, start: peewee.Database) -> None:
    """The reason is a column that nobody sees any more, so it is told by its name."""
    start.execute_sql("ALTER TABLE o ADD place POINT NULL")
    before = standing(start)

    with pytest.raises(StatementRefusedError, match=r"'o' keeps the columns .*_plinth1_1_c0.*GEOMETRY"):
        undone(backend, "ALTER TABLE o DROP COLUMN place", "ALTER TABLE o PARTITION BY KEY (id) PARTITIONS 2")

    assert standing(start) == before


# Rights --------------------------------------------------------------------------------------------------------


@contextmanager
def account(backend: Any, *rights: str) -> Iterator[Link]:
    """Give a session of an account that has *rights*, each ``PRIVILEGES ON what``, {} being the database."""
    place = urlsplit(backend.url)
    owner = backend.database()
    owner.connect()
    schema, user = place.path[1:], f"u{abs(hash(backend.url)) % 10**9}"
    owner.execute_sql(f"CREATE USER '{user}'@'%%' IDENTIFIED BY 'Sesame-1'")
    try:
        for right in rights:
            owner.execute_sql(f"GRANT {right.format(schema)} TO '{user}'@'%%'")
        connection = pymysql.connect(
            host=str(place.hostname), port=place.port or 3306, user=user, password="Sesame-1", database=schema
        )
        yield Link(connection)
        connection.close()
    finally:
        owner.execute_sql(f"DROP USER '{user}'@'%%'")


LACKING = {
    "DROP": ("CREATE TABLE n (id INT PRIMARY KEY)", "SELECT, CREATE ON {}.*"),
    "ALTER": ("CREATE INDEX i ON t (a)", "SELECT, INDEX ON {}.*"),
    "DELETE": ("INSERT INTO t (a) VALUES (1)", "SELECT, INSERT ON {}.*"),
    "INSERT": ("DELETE FROM t WHERE id = 1", "SELECT, DELETE ON {}.t"),
    "CREATE VIEW": ("DROP VIEW v", "SELECT, SHOW VIEW, DROP ON {}.*"),
}


@pytest.mark.parametrize("right", LACKING)
def test_a_statement_is_refused_whose_undo_the_account_may_not_do(
    backend: Any, start: peewee.Database, right: str
) -> None:
    """It is refused before it runs, by the name of the right; with the right it is not."""
    start.execute_sql("CREATE SQL SECURITY INVOKER VIEW v AS SELECT id FROM o")
    sql, rights = LACKING[right]
    with account(backend, rights) as link, pytest.raises(StatementRefusedError, match=f"the right {right} on"):
        refuse_missing_rights(Rights(link), read(sql), definitions(link, ["v"]) if right == "CREATE VIEW" else {})
    if right != "CREATE VIEW":
        with account(backend, rights, f"{right} ON {{}}.*") as link:
            refuse_missing_rights(Rights(link), read(sql), {})


@pytest.mark.engines("mysql")
def test_the_rows_of_a_new_column_are_refused_whose_triggers_are_not_shown(
    backend: Any, start: peewee.Database
) -> None:
    """MySQL shows triggers only to those with the right TRIGGER: what one does would stay after the undo."""
    with (
        account(backend, "SELECT, ALTER, UPDATE ON {}.*") as link,
        pytest.raises(StatementRefusedError, match="TRIGGER"),
    ):
        reaches_further(link, "t", by_clock=True, is_keyed=False)
    with account(backend, "ALL ON {}.*") as link:
        assert not reaches_further(link, "t", by_clock=True, is_keyed=False)


def test_a_lossy_change_asks_for_the_right_to_lock(backend: Any, start: peewee.Database) -> None:
    """The server itself is asked where no grant tells."""
    with account(backend, "SELECT, ALTER ON {}.*") as link, pytest.raises(StatementRefusedError, match="LOCK TABLES"):
        require(Rights(link), "LOCK TABLES", "t")
    with account(backend, "ALL ON {}.*") as link:
        require(Rights(link), "LOCK TABLES", "t")


@pytest.mark.engines("mysql")
def test_rows_are_refused_whose_triggers_are_not_shown(backend: Any, start: peewee.Database) -> None:
    """MySQL shows triggers to those with the right TRIGGER alone."""
    events: frozenset[Event] = frozenset({"INSERT"})
    refused = pytest.raises(StatementRefusedError, match="no right TRIGGER on 't'")
    with account(backend, "SELECT, INSERT, DELETE ON {}.*") as link, refused:
        shape_of(link, "t", events)
    with account(backend, "SELECT, INSERT, DELETE ON {}.*", "TRIGGER ON {}.t") as link:
        assert shape_of(link, "t", events) is not None


def test_a_view_of_another_account_is_not_dropped(backend: Any, start: peewee.Database) -> None:
    """It could not be made again as it was."""
    start.execute_sql("CREATE SQL SECURITY INVOKER VIEW v AS SELECT id FROM o")
    with account(backend, "ALL ON {}.*") as link, pytest.raises(StatementRefusedError, match="it belongs to"):
        refuse_missing_rights(Rights(link), read("DROP VIEW v"), definitions(link, ["v"]))
