"""What an interrupted batch leaves on MySQL and MariaDB, who takes it back, and what can stand in the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import peewee
import pytest
import servers
from click.testing import CliRunner
from playhouse.pool import PooledMySQLDatabase
from playhouse.shortcuts import ReconnectMixin
from race import fork
from sessions import end_session, session_number
from structlog.testing import capture_logs
from test_journal import START, assert_same, journal_rows, picture, running

from api.db import cli, history
from api.db.batch import Options
from api.db.connection import open_database
from api.db.migrations import migrate_db, recover
from api.exceptions import MigrationError, MigrationFailedError, MigrationUndoError, StatementRefusedError

pytest_plugins = ("journal_fixtures",)
pytestmark = pytest.mark.engines("mariadb", "mysql")


@pytest.fixture
def crash(backend: Any) -> Callable[..., None]:
    """Return a function that sends statements as a migration, in a process that is then killed before its commit."""

    def crash(*statements: str) -> None:
        def die(migrator: Any, db: Any) -> None:
            running(*statements)(migrator, db)
            os.kill(os.getpid(), signal.SIGKILL)

        child = fork(lambda: migrate_db([("0002_b", die)], database=open_database(backend.url)))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    return crash


CHANGES = (
    "ALTER TABLE child DROP COLUMN note",
    "CREATE TABLE made (id INT PRIMARY KEY)",
    "UPDATE parent SET name = CONCAT(name, '!')",
    "DROP TABLE lone",
)


def test_the_next_boot_undoes_a_killed_batch_and_migrates(start: peewee.Database, crash: Any) -> None:
    """Nobody's hand is needed: the next `migrate_db` says what it undoes, then applies what is pending."""
    before = picture(start)
    crash(*CHANGES)
    assert picture(start) != before
    seen: list[Any] = []

    with capture_logs() as logs:
        result = migrate_db([("0002_b", lambda migrator, db: seen.append(picture(db)))], database=start)

    assert_same(seen[0], before)
    assert [ran.name for ran in result.applied] == ["0002_b"]
    (line,) = [line for line in logs if line["event"] == "an interrupted batch was undone"]
    assert (line["direction"], line["statements"]) == ("up", 4)
    assert [each.status for each in history.read_attempts(start) if each.action == "recover"] == ["undone"]
    assert journal_rows(start) == [0, 0, 0]


def test_a_boot_with_nothing_pending_undoes_a_killed_down(start: peewee.Database, crash: Any) -> None:
    """The one query of a boot also tells of an interrupted batch, whatever is pending."""
    before = picture(start)
    crash(*CHANGES)

    result = migrate_db([("0001_a", running())], database=start)

    assert result.applied == ()
    assert_same(picture(start), before)


def test_recover_undoes_and_does_not_migrate(backend: Any, start: peewee.Database, crash: Any, tmp_path: Path) -> None:
    """The command says what it did, and that there is nothing the second time."""
    before = picture(start)
    crash(*CHANGES)
    arguments = ["--database-url", backend.url, "--directory", str(tmp_path), "recover"]

    first, second = (CliRunner().invoke(cli.cli, arguments) for _ in range(2))

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "the interrupted up was undone: 4 journal entries" in first.output
    assert "nothing to recover" in second.output
    assert_same(picture(start), before)


def test_status_says_that_a_batch_was_interrupted(
    backend: Any, crash: Any, start: peewee.Database, tmp_path: Path
) -> None:
    """Exit 3 and the way out, also when every migration is applied."""
    crash(*CHANGES)
    arguments = ["--database-url", backend.url, "--directory", str(tmp_path)]

    text, document = (CliRunner().invoke(cli.cli, [*arguments, *json, "status"]) for json in ([], ["--json"]))

    assert (text.exit_code, document.exit_code) == (3, 3)
    assert "an interrupted batch is open: `up` undoes or finishes it first" in text.stdout
    assert '"interrupted": true' in document.stdout


def test_rows_that_others_wrote_meanwhile_are_kept(start: peewee.Database, crash: Any) -> None:
    """Undo puts back what the batch changed, and leaves a row that another session has changed since, and says so."""
    crash("UPDATE parent SET name = CONCAT(name, '!')", "ALTER TABLE parent ADD COLUMN x INT NULL")
    start.execute_sql("UPDATE parent SET name = 'mine' WHERE id = 2")
    start.execute_sql("INSERT INTO parent (name) VALUES ('new')")

    with capture_logs() as logs:
        recover(database=start)

    names = start.execute_sql("SELECT name FROM parent ORDER BY id").fetchall()
    assert names == (("one",), ("mine",), ("three",), ("new",))
    (line,) = [line for line in logs if "another session" in line["event"]]
    assert line["number"] == 1


def test_a_value_written_into_a_changed_type_is_kept(start: peewee.Database, crash: Any) -> None:
    """A lossy type comes back with its old values, but for the rows that another session wrote in the new type."""
    crash("ALTER TABLE child MODIFY ratio INT NULL")
    start.execute_sql("UPDATE child SET ratio = 7 WHERE id = 2")

    recover(database=start)

    assert start.execute_sql("SELECT ratio FROM child ORDER BY id").fetchall() == ((1.7,), (7.0,))


def test_inserts_of_old_workers_go_on_while_a_column_is_being_dropped(start: peewee.Database, crash: Any) -> None:
    """A dropped NOT NULL column asks nothing of an INSERT, and comes back NOT NULL with the rows written meanwhile."""
    crash("ALTER TABLE child DROP COLUMN note", "ALTER TABLE child DROP COLUMN kind")
    start.execute_sql(
        "INSERT INTO child (parent_id, code, price, size, day, data) VALUES (1, 'n', 1, 1, '2024-05-05', '')"
    )

    recover(database=start)

    assert start.execute_sql("SELECT note, kind FROM child ORDER BY id").fetchall()[-1] == ("", "a")


def test_an_undo_that_is_refused_waits_for_what_stands_in_the_way(backend: Any, start: peewee.Database) -> None:
    """Another session broke the old unique key: nothing is lost, the message says what, and recover works after."""
    before = picture(start)

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("DROP INDEX by_name ON parent")
        db.execute_sql("INSERT INTO parent (id, name) VALUES (50, 'one')")

    def fail(migrator: Any, db: Any) -> None:
        backend.server.execute(f"INSERT INTO {db.database}.parent (id, name) VALUES (60, 'two')")
        raise RuntimeError("on purpose")

    with pytest.raises(MigrationFailedError, match="on purpose") as caught:
        migrate_db([("0002_b", up), ("0003_c", fail)], database=start)

    stuck = caught.value.result.failure.stuck
    assert isinstance(stuck, MigrationUndoError)
    assert "1062: Duplicate entry 'two'" in stuck.message
    assert "recover" in stuck.hint
    with pytest.raises(MigrationUndoError, match="Duplicate entry 'two'"):
        recover(database=start)
    start.execute_sql("DELETE FROM parent WHERE id = 60")
    assert [each.action for each in recover(database=start)] == ["undone"]
    assert_same(picture(start), before)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("ALTER TABLE child ADD COLUMN theirs INT NULL", "ALTER TABLE child DROP COLUMN theirs"),
        ("CREATE INDEX theirs ON child (day)", "DROP INDEX theirs ON child"),
        ("ALTER TABLE child MODIFY day DATETIME NOT NULL", "ALTER TABLE child MODIFY day DATE NOT NULL"),
    ],
)
def test_what_an_administrator_changed_since_is_never_taken_back(
    start: peewee.Database, crash: Any, change: str, back: str
) -> None:
    """Recovery refuses, and names table and column or index; once that is gone it goes on."""
    before = picture(start)
    crash("ALTER TABLE child ADD COLUMN ours INT NULL")
    start.execute_sql(change)

    with pytest.raises(MigrationUndoError, match=r"somebody changed 'child' meanwhile: .*'(theirs|day)'"):
        recover(database=start)

    start.execute_sql(back)
    recover(database=start)
    assert_same(picture(start), before)


@pytest.mark.engines("mariadb")
def test_a_foreign_key_that_the_server_lost_is_made_again(start: peewee.Database, crash: Any) -> None:
    """A MariaDB that dies in an ALTER which copies a table loses foreign keys of the table, and nobody took them."""
    before = picture(start)
    crash("ALTER TABLE child MODIFY code CHAR(9) NOT NULL")
    start.execute_sql("ALTER TABLE child DROP FOREIGN KEY child_parent")

    with capture_logs() as logs:
        recover(database=start)

    assert_same(picture(start), before)
    assert [line["key"] for line in logs if line["event"].startswith("a foreign key is gone")] == ["child_parent"]


@pytest.mark.engines("mariadb")
def test_a_foreign_key_of_an_earlier_statements_table_was_not_lost(start: peewee.Database, crash: Any) -> None:
    """Only the last statement can have been running: elsewhere somebody dropped it, and takes that back himself."""
    before = picture(start)
    crash("ALTER TABLE child MODIFY code CHAR(9) NOT NULL", "ALTER TABLE lone ADD COLUMN ours INT NULL")
    start.execute_sql("ALTER TABLE child DROP FOREIGN KEY child_parent")

    with pytest.raises(MigrationUndoError, match="somebody changed 'child' meanwhile: foreign key 'child_parent'"):
        recover(database=start)

    start.execute_sql("ALTER TABLE child ADD CONSTRAINT child_parent FOREIGN KEY (parent_id) REFERENCES parent (id)")
    recover(database=start)
    assert_same(picture(start), before)


@pytest.mark.engines("mariadb")
def test_a_foreign_key_that_was_lost_after_the_commit_is_made_again(backend: Any, start: peewee.Database) -> None:
    """The real drop of a column may copy the table too: what the table has is written down ahead of it."""
    reader = servers.connect(backend.url)
    cursor = reader.cursor()

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("ALTER TABLE child DROP COLUMN note")
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM child")

    migrate_db([("0002_b", up)], database=start, options=Options(statement_lock_timeout_s=1))
    reader.close()
    start.execute_sql("ALTER TABLE child DROP FOREIGN KEY child_parent")

    assert [each.action for each in recover(database=start)] == ["finished"]

    assert "CONSTRAINT `child_parent` FOREIGN KEY" in picture(start)["child"][0]
    assert "_plinth" not in str(picture(start))


# What the batch did, what somebody did after the crash, with words of the batch's own, and how he takes it back.
INTRUSIONS = {
    "a column called as a keyword": (
        ("ALTER TABLE child ADD COLUMN ours DATE NULL COMMENT 'x'",),
        "ALTER TABLE child ADD COLUMN date INT NULL, ADD COLUMN comment INT NULL",
        "ALTER TABLE child DROP COLUMN date, DROP COLUMN comment",
    ),
    "an index on the batch's column": (
        ("ALTER TABLE child MODIFY code VARCHAR(90) NOT NULL",),
        "CREATE INDEX theirs ON child (code)",
        "DROP INDEX theirs ON child",
    ),
    "a column of a new table": (
        ("CREATE TABLE made (id INT PRIMARY KEY)", "ALTER TABLE made ADD COLUMN ours INT NULL"),
        "ALTER TABLE made ADD COLUMN theirs INT NULL",
        "ALTER TABLE made DROP COLUMN theirs",
    ),
    "another trigger": (
        ("CREATE TRIGGER tick BEFORE INSERT ON lone FOR EACH ROW SET NEW.v = 1", "DROP TABLE quiet"),
        "DROP TRIGGER tick; CREATE TRIGGER tick BEFORE DELETE ON lone FOR EACH ROW SET @v = 1",
        "DROP TRIGGER tick",
    ),
}


@pytest.mark.parametrize("case", INTRUSIONS)
def test_a_word_in_common_does_not_make_it_the_batchs_own(start: peewee.Database, crash: Any, case: str) -> None:
    """What somebody made is his, though the batch names the same column; nothing of it is dropped."""
    statements, change, back = INTRUSIONS[case]
    before = picture(start)
    crash(*statements)
    for sql in change.split("; "):
        start.execute_sql(sql)

    with pytest.raises(MigrationUndoError, match="cannot be undone"):
        recover(database=start)

    start.execute_sql(back)
    recover(database=start)
    assert_same(picture(start), before)


def test_a_committed_batch_that_cannot_be_finished_holds_up_nobody(backend: Any, start: peewee.Database) -> None:
    """Another session reads the table whose old column waits to be dropped: boots go on, and a later one drops it."""
    reader = servers.connect(backend.url)
    cursor = reader.cursor()

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("ALTER TABLE child DROP COLUMN note")
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM child")

    quick = Options(statement_lock_timeout_s=1)
    first = migrate_db([("0002_b", up)], database=start, options=quick)
    second = migrate_db([("0001_a", running()), ("0002_b", up)], database=start, options=quick)
    assert ([ran.name for ran in first.applied], second.failure) == (["0002_b"], None)
    assert journal_rows(start)[0] == 1

    reader.close()
    migrate_db([("0001_a", running()), ("0002_b", up)], database=start)
    assert journal_rows(start) == [0, 0, 0]
    assert "_plinth" not in str(picture(start))


def test_entries_of_a_batch_that_nobody_knows_stop_everything(start: peewee.Database, crash: Any) -> None:
    """`migration_batch` was lost while a batch was open: nothing migrates on a half-made schema."""
    crash("ALTER TABLE child ADD COLUMN ours INT NULL")
    start.execute_sql("DROP TABLE migration_batch")

    with pytest.raises(MigrationUndoError, match="migration_batch does not know"):
        migrate_db([("0003_c", running())], database=start)


def test_a_table_that_somebody_dropped_is_an_error_not_a_guess(start: peewee.Database, crash: Any) -> None:
    """What the journal knows of and does not find is said, and the batch stays open."""
    crash("ALTER TABLE lone ADD COLUMN ours INT NULL")
    start.execute_sql("RENAME TABLE lone TO hidden")

    with pytest.raises(MigrationUndoError, match="somebody dropped or renamed table 'lone'"):
        recover(database=start)

    start.execute_sql("RENAME TABLE hidden TO lone")
    recover(database=start)
    assert journal_rows(start) == [0, 0, 0]


def test_the_lock_that_was_lost_stops_the_batch(backend: Any, start: peewee.Database) -> None:
    """An administrator ends the migrating session between two statements: the batch is undone over another one."""
    before = picture(start)

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("ALTER TABLE child DROP COLUMN note")
        end_session(backend, session_number(db))
        db.execute_sql("ALTER TABLE child DROP COLUMN kind")

    with pytest.raises(MigrationFailedError) as caught:
        migrate_db([("0002_b", up)], database=start)

    assert caught.value.result.failure.stuck is None
    assert_same(picture(start), before)


def test_a_migration_that_opens_another_connection_is_stopped(start: peewee.Database) -> None:
    """Closing the connection ends lock and journal with it: nothing more is sent, and all is undone."""
    before = picture(start)

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("ALTER TABLE child DROP COLUMN note")
        db.close()
        db.execute_sql("ALTER TABLE child DROP COLUMN kind")

    with pytest.raises(MigrationFailedError, match="connection was closed"):
        migrate_db([("0002_b", up)], database=start)

    assert_same(picture(start), before)


class Reconnecting(ReconnectMixin, peewee.MySQLDatabase):
    """A database that connects again by itself when its connection is lost."""


@pytest.mark.parametrize("kind", [peewee.MySQLDatabase, PooledMySQLDatabase, Reconnecting])
def test_any_peewee_database_is_journalled(backend: Any, start: peewee.Database, kind: Any) -> None:
    """Not only ours: the hook sits on the driver's connection, and no reconnect goes round it."""
    before = picture(start)
    database = kind(start.database, **start.connect_params)

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("DROP TABLE lone")
        end_session(backend, session_number(db))
        db.execute_sql("ALTER TABLE child DROP COLUMN note")

    with pytest.raises(MigrationFailedError) as caught:
        migrate_db([("0002_b", up)], database=database)

    assert caught.value.result.failure.stuck is None
    assert_same(picture(start), before)
    database.close()


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("TRUNCATE lone", "TRUNCATE"),
        ("CREATE TABLE made (id INT); DROP TABLE lone", "several statements"),
        ("RENAME TABLE lone TO x, parent TO lone, x TO parent", "swaps tables"),
        ("UPDATE keyless SET v = 2", "no primary key"),
        ("UPDATE parent SET name = CONCAT('', name, '!')", "more than 2 rows"),
        ("ALTER TABLE child DROP COLUMN id", "primary key"),
        ("DROP TABLE parent", "foreign key 'child_parent' of 'child' refers to it"),
        ("DELETE FROM other_database.t", "another database"),
        ("ALTER TABLE isam ADD COLUMN x INT", "MyISAM"),
    ],
)
def test_what_could_not_be_undone_is_refused_before_it_runs(start: peewee.Database, sql: str, says: str) -> None:
    """The message says what and why, the hint what to do instead; the batch so far is undone."""
    start.execute_sql("CREATE TABLE keyless (v INT)")
    start.execute_sql("INSERT INTO keyless VALUES (1)")
    start.execute_sql("CREATE TABLE isam (id INT) ENGINE=MyISAM")
    before = picture(start)

    with pytest.raises(MigrationFailedError, match=says) as caught:
        migrate_db(
            [("0002_b", running("ALTER TABLE child ADD COLUMN ours INT NULL", sql))],
            database=start,
            options=Options(undo_rows=2),
        )

    assert caught.value.hint
    assert_same(picture(start), before)


# Each makes a row or table that stood look like one of the batch's own, or like a temporary one.
MEAN = {
    "a cascade from a new parent": (
        "CREATE TABLE p (id INT PRIMARY KEY)",
        "INSERT INTO p VALUES (1), (2)",
        "ALTER TABLE lone ADD CONSTRAINT theirs FOREIGN KEY (v) REFERENCES p (id) ON DELETE CASCADE",
        "DELETE FROM p",
    ),
    "a trigger on a new table": (
        "CREATE TABLE p (id INT PRIMARY KEY)",
        "CREATE TRIGGER tick AFTER INSERT ON p FOR EACH ROW UPDATE lone SET v = 100",
        "INSERT INTO p VALUES (1)",
    ),
    "a dropped temporary table": (
        "CREATE TEMPORARY TABLE lone (id INT PRIMARY KEY)",
        "DROP TABLE lone",
        "UPDATE lone SET v = 99",
    ),
    "a renamed temporary table": (
        "CREATE TEMPORARY TABLE x (id INT PRIMARY KEY)",
        "ALTER TABLE x RENAME TO y",
        "RENAME TABLE lone TO x",
        "UPDATE x SET v = 99",
    ),
    "a table under a temporary one": (
        "CREATE TEMPORARY TABLE z (id INT PRIMARY KEY)",
        "CREATE TABLE z (id INT PRIMARY KEY)",
    ),
    "a temporary table in a real one's place": ("RENAME TABLE lone TO x", "CREATE TEMPORARY TABLE lone (id INT)"),
    "a temporary table after a drop": ("DROP TABLE lone", "CREATE TEMPORARY TABLE lone (id INT)"),
    "a table of the journal's own": ("DELETE FROM migration_journal",),
}


@pytest.mark.parametrize("case", MEAN)
def test_what_only_looks_like_the_batchs_own_is_undone_or_refused(start: peewee.Database, case: str) -> None:
    """Whatever the statements do to each other, rows and tables that stood are as they were."""
    before = picture(start)

    with pytest.raises(MigrationFailedError):
        migrate_db([("0002_b", running(*MEAN[case], "SELECT no_such_column"))], database=start)

    assert_same(picture(start), before)


def test_a_refusal_that_the_migration_swallows_leaves_nothing(start: peewee.Database) -> None:
    """The statement that turned out to touch too many rows is taken back within the migration's own transaction."""
    before = picture(start)

    def up(migrator: Any, db: Any) -> None:
        with db.atomic():
            db.execute_sql("INSERT INTO parent (name) VALUES ('four')")
            with suppress(StatementRefusedError):
                db.execute_sql("INSERT INTO parent (name) SELECT CONCAT(name, '!') FROM parent")
        raise RuntimeError("on purpose")

    with pytest.raises(MigrationFailedError, match="on purpose"):
        migrate_db([("0002_b", up)], database=start, options=Options(undo_rows=2))

    assert_same(picture(start), before)


def test_many_rows_by_one_call_of_the_driver(start: peewee.Database) -> None:
    """PyMySQL makes one INSERT of `executemany`, and sends it as a bytearray."""

    def up(migrator: Any, db: Any) -> None:
        db.connection().cursor().executemany("INSERT INTO parent (name) VALUES (%s)", [("four",), ("five",)])

    migrate_db([("0002_b", up)], database=start)

    assert start.execute_sql("SELECT COUNT(*) FROM parent").fetchone()[0] == 5


class Folding(servers.MariaDBServer):
    """A server to which the case of a table's name says nothing."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--lower-case-table-names=1"]


@pytest.mark.engines("mariadb")
def test_names_are_folded_where_the_server_folds_them(backend: Any) -> None:
    """A table is the same one under another case: its rows are copied."""
    server = Folding()
    try:
        db = open_database(server.create_database("folding"))
        for sql in START:
            db.execute_sql(sql)
        before = picture(db)
        statements = ("CREATE TABLE Foo (id INT PRIMARY KEY)", "DROP TABLE foo", "RENAME TABLE lone TO FOO")
        with pytest.raises(MigrationFailedError):
            migrate_db([("a", running(*statements, "UPDATE Foo SET v = 9", "SELECT no_such_column"))], database=db)
        assert_same(picture(db), before)
        db.close_all()
    finally:
        server.stop()


def test_a_user_who_may_not_create_the_journal_is_told_so(backend: Any, start: peewee.Database) -> None:
    """Nothing runs, and the message names the right that is missing."""
    name = start.database
    user = f"u{os.getpid()}"
    host = "127.0.0.1" if backend.engine == "mariadb" else "%"
    for table in ("migration_batch", "migration_journal", "migration_journal_row"):
        start.execute_sql(f"DROP TABLE {table}")
    backend.server.execute(f"CREATE USER {user}@'{host}' IDENTIFIED BY 'pw'")
    backend.server.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, ALTER ON {name}.* TO {user}@'{host}'")
    limited = open_database(f"{backend.engine}://{user}:pw@{backend.url.rpartition('@')[2]}")

    try:
        with pytest.raises((MigrationError, peewee.DatabaseError), match="CREATE command denied"):
            migrate_db([("0002_b", running("ALTER TABLE child ADD COLUMN ours INT NULL"))], database=limited)
    finally:
        limited.close_all()
        backend.server.execute(f"DROP USER {user}@'{host}'")
    assert "ours" not in {column.name for column in start.get_columns("child")}


def test_running_out_of_memory_between_two_statements_is_undone(start: peewee.Database) -> None:
    """Whatever Python raises, the batch is taken back."""
    before = picture(start)

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("DROP TABLE lone")
        bytearray(2**62)

    with pytest.raises(MigrationFailedError, match="MemoryError"):
        migrate_db([("0002_b", up)], database=start)

    assert_same(picture(start), before)
