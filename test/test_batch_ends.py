"""How a batch ends when it does not end well: what is recorded, what is said, and that nothing true is overwritten."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peewee
import pytest
from click.testing import CliRunner
from race import fork
from sessions import SERVERS, end_session, session_number
from structlog.testing import capture_logs
from test_journal import assert_same, picture, running

from api.db import cli, history, report
from api.db.batch import Options
from api.db.connection import open_database
from api.db.files import Migration
from api.db.migrations import MigrationTracker, migrate_db, recover
from api.db.results import BatchInterrupted, BatchResult, Failure, Ran
from api.exceptions import MigrationError, MigrationFailedError
from conftest import Backend

pytest_plugins = ("journal_fixtures",)

JOURNALLED = pytest.mark.engines("mariadb", "mysql")


def failed(database: peewee.Database, *ups: Any, **options: Any) -> MigrationFailedError:
    """Migrate with *ups*, which is to fail, and return the error."""
    named = [(f"{number:04}_m", up) for number, up in enumerate(ups, 2)]
    with pytest.raises(MigrationFailedError) as caught:
        migrate_db(named, database=database, options=Options(**options))
    return caught.value


def the_state(error: MigrationFailedError) -> str:
    """Return what is told of the state after *error*."""
    return report.state_text(error.result)


# Another process was quicker -----------------------------------------------------------------------------------


@SERVERS
def test_a_loser_does_not_overwrite_what_another_process_applied(backend: Backend, db: peewee.Database) -> None:
    """Its session was ended, another one has migrated since: the history says success, the error says who did it."""

    def up(migrator: Any, database: Any) -> None:
        database.execute_sql("CREATE TABLE made (id INTEGER PRIMARY KEY)")
        end_session(backend, session_number(database))
        migrate_db([("0002_m", running("CREATE TABLE made (id INTEGER)"))], database=backend.database())
        database.execute_sql("CREATE TABLE other (id INTEGER PRIMARY KEY)")

    error = failed(db, up)

    assert history.read_states(backend.database()) == {"0002_m": "success"}
    assert the_state(error) == "rolled back here, but another process has applied 0002_m meanwhile: that stands"
    assert error.result.pending == ()
    assert "another process has done 0002_m meanwhile" in error.hint
    assert [each.status for each in history.read_attempts(db) if each.action == "up"] == ["success", "failed"]


def test_a_row_that_is_done_is_never_replaced_by_failed(db: peewee.Database) -> None:
    """The attempt is written all the same, and what is not done takes its newest state."""
    MigrationTracker.init_tracking_table(database=db)
    for name, status in (("0001_a", "success"), ("0002_b", "skipped"), ("0003_c", "failed")):
        MigrationTracker.record_migration(name, status, database=db)  # type: ignore[arg-type]
    names = ("0001_a", "0002_b", "0003_c", "0004_d")
    recorder = history.Recorder("sqlite", "up", "batch")
    rows = [recorder.row(name, None, "failed", error_message="new") for name in names]

    history.write_failure(db, rows, [recorder.attempt(name, "failed") for name in names])

    states = [(row.migration_name, row.status, row.error_message) for row in history.read_history(db)]
    assert states == [
        *(("0001_a", "success", None), ("0002_b", "skipped", None)),
        *(("0003_c", "failed", "new"), ("0004_d", "failed", "new")),
    ]
    assert len(history.read_attempts(db)) == 4


def test_indexes_of_a_first_boot_that_was_killed_are_made_by_the_next(db: peewee.Database) -> None:
    """A table that stands without its indexes gets them, the unique one first of all."""
    migrate_db([("0001_a", running())], database=db)
    tables = ("migration_history", "migration_attempt")
    before = {table: db.get_indexes(table) for table in tables}
    for table in tables:
        for index in before[table]:
            if "primary" not in index.name.lower() and "pkey" not in index.name:
                on = f" ON {table}" if isinstance(db, peewee.MySQLDatabase) else ""
                db.execute_sql(f"DROP INDEX {index.name}{on}")

    migrate_db([("0002_b", running())], database=db)

    assert {table: shapes(db, table) for table in tables} == {
        table: sorted((each.columns, each.unique) for each in before[table]) for table in tables
    }
    assert (["migration_name"], True) in shapes(db, "migration_history")


def shapes(db: peewee.Database, table: str) -> list[Any]:
    """Return the columns of each index, and whether it is unique."""
    return sorted((each.columns, each.unique) for each in db.get_indexes(table))


# The migration spoiled its own session ----------------------------------------------------------------------------


@JOURNALLED
@pytest.mark.parametrize("spoil", ["SET SESSION TRANSACTION READ ONLY", "SELECT RELEASE_ALL_LOCKS()"])
def test_a_batch_whose_session_was_spoiled_is_undone_over_a_new_one(start: peewee.Database, spoil: str) -> None:
    """Neither a read-only session nor a lock that was let go keeps what the batch did."""
    before = picture(start)

    with capture_logs() as logs:
        error = failed(start, running("ALTER TABLE child DROP COLUMN note", spoil, "DROP TABLE lone"))

    assert error.result.failure.stuck is None
    assert the_state(error) == "rolled back: schema and data are as before"
    assert not [line for line in logs if "connection was lost" in line["event"]]
    assert_same(picture(start), before)


# What is said ---------------------------------------------------------------------------------------------------


def get_stuck(backend: Backend, database: peewee.Database) -> MigrationFailedError:
    """Fail a batch whose undo another session's row stands in the way of."""

    def fail(migrator: Any, db: Any) -> None:
        backend.server.execute(f"INSERT INTO {db.database}.parent (id, name) VALUES (60, 'two')")  # type: ignore[union-attr]
        raise RuntimeError("on purpose")

    fill = running("DROP INDEX by_name ON parent", "INSERT INTO parent (id, name) VALUES (50, 'one')")
    return failed(database, fill, fail)


@JOURNALLED
def test_a_batch_that_is_stuck_is_nowhere_called_rolled_back(backend: Backend, start: peewee.Database) -> None:
    """The document has the undo's own error; the attempts are interrupted ones."""
    error = get_stuck(backend, start)
    document = report.batch_document(error.result, error)

    assert document["rolled_back"] == []
    assert "Duplicate entry 'two'" in document["stuck"]["message"]
    assert "recover" in document["stuck"]["hint"]
    attempts = {each.migration_name: each.status for each in history.read_attempts(start)}
    assert attempts == {"0001_a": "success", "0002_m": "interrupted", "0003_m": "failed"}


@JOURNALLED
def test_what_keeps_a_batch_from_being_undone_is_told_first(backend: Backend, start: peewee.Database) -> None:
    """The rows name the undo's remedy, then the migration's."""
    error = get_stuck(backend, start)
    rows = {row[0]: row[1] for row in report.failure_rows(error)}

    assert rows["state"].startswith("NOT undone yet")
    assert "recover" in rows["what to do"]
    assert rows["then"] == error.hint


@JOURNALLED
def test_rows_that_were_left_alone_are_told(backend: Backend, start: peewee.Database) -> None:
    """A row that another session changed since stays as that one left it: nobody says "as before" without it."""

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("UPDATE parent SET name = CONCAT(name, '!')")
        backend.server.execute(f"UPDATE {db.database}.parent SET name = 'mine' WHERE id = 2")  # type: ignore[union-attr]
        raise RuntimeError("on purpose")

    error = failed(start, up)

    assert error.result.failure.left_alone == 1
    assert the_state(error).endswith("as before, but for 1 row that another session has changed since: see the log")


@JOURNALLED
def test_recover_and_plan_tell_of_an_interrupted_batch(
    backend: Backend, start: peewee.Database, tmp_path: Path
) -> None:
    """`plan` says that it is open and exits 3, `recover` how many rows it left, and the attempt bears its number."""

    def die(migrator: Any, db: Any) -> None:
        db.execute_sql("UPDATE parent SET name = CONCAT(name, '!')")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(lambda: migrate_db([("0002_b", die)], database=open_database(backend.url))), 0)
    start.execute_sql("UPDATE parent SET name = 'mine' WHERE id = 2")
    ((batch,),) = start.execute_sql("SELECT batch FROM migration_batch").fetchall()
    arguments = ["--database-url", backend.url, "--directory", str(tmp_path)]

    plan, document, recovered = (
        CliRunner().invoke(cli.cli, [*arguments, *words]) for words in (["plan"], ["--json", "plan"], ["recover"])
    )

    assert (plan.exit_code, document.exit_code, recovered.exit_code) == (3, 3, 0)
    assert plan.stdout.startswith("nothing is pending\nan interrupted batch is open: `up` undoes or finishes it first")
    assert '"interrupted": true' in document.stdout
    assert "but for 1 row that another session has changed since" in recovered.stdout
    assert [each.batch for each in history.read_attempts(start) if each.action == "recover"] == [batch]


def test_a_migration_that_is_recorded_is_not_counted_as_one_before_itself() -> None:
    """An `atomic = False` that ended and then lost the lock stands, and so do those before it."""
    migration = Migration("0001_a", running(), atomic=False)
    failure = Failure(migration, MigrationError("lost"), None, 1, 1)
    ran = Ran("0001_a", "success", 1)

    alone = report.state_text(BatchResult("b", applied=(ran,), failure=failure))
    second = report.state_text(BatchResult("b", applied=(Ran("0000_z", "success", 1), ran), failure=failure))

    assert alone == "0001_a ran to its end, stands and is recorded"
    assert second == f"1 applied before it stand; {alone}"


# The keyboard ---------------------------------------------------------------------------------------------------


@contextmanager
def interrupting_when(backend: Backend, doing: str) -> Any:
    """Press Ctrl-C as soon as a session of the test's database is *doing* that, by the server's own word."""
    name, ended = backend.url.rpartition("/")[2], threading.Event()

    def press() -> None:
        look = backend.database()
        with look.connection_context():
            while not ended.wait(0.05):
                sessions = look.execute_sql("SHOW FULL PROCESSLIST").fetchall()
                if any(each[3] == name and each[6] == doing for each in sessions):
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_batch_ended_by_the_keyboard_says_what_stands(
    backend: Backend, db: peewee.Database, tmp_path: Path, json: list[str]
) -> None:
    """Not only "Aborted!": the batch is undone, exit 1, and text or document say so."""
    (tmp_path / "0001_a.py").write_text(
        "def up(migrator, db):\n    db.execute_sql('CREATE TABLE made (id INTEGER)')\n    raise KeyboardInterrupt\n"
    )

    done = CliRunner().invoke(cli.cli, ["--database-url", backend.url, "--directory", str(tmp_path), *json, "up"])

    assert done.exit_code == 1
    assert "interrupted: rolled back: schema and data are as before" in done.stderr or json
    assert '"message": "0001_a failed after 1 statement: interrupted by the keyboard"' in done.stdout or not json
    assert not db.table_exists("made")


@JOURNALLED
def test_a_statement_that_the_keyboard_left_behind_keeps_nobody_waiting(
    backend: Backend, start: peewee.Database
) -> None:
    """The session that still runs it is ended: the undo does not wait for its own process."""
    before = picture(start)
    up = running("ALTER TABLE child DROP COLUMN note", "SELECT SLEEP(300)")

    with capture_logs() as logs, interrupting_when(backend, "User sleep"), pytest.raises(BatchInterrupted) as caught:
        migrate_db([("0002_m", up)], database=start)

    assert report.state_text(caught.value.result) == "rolled back: schema and data are as before"
    assert not [line for line in logs if line["event"].startswith("waiting for another process")]
    assert_same(picture(start), before)


@JOURNALLED
def test_the_keyboard_ends_an_undo_too_and_says_that_the_batch_is_open(
    backend: Backend, start: peewee.Database
) -> None:
    """Whoever presses Ctrl-C while the undo waits gets out; the log says what is left, and `recover` does it."""
    before = picture(start)
    blocker = backend.database()
    blocker.connect()

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("ALTER TABLE lone ADD COLUMN ours INT NULL")
        blocker.execute_sql("BEGIN")
        blocker.execute_sql("SELECT * FROM lone").fetchall()
        raise RuntimeError("on purpose")

    waiting = interrupting_when(backend, "Waiting for table metadata lock")
    with capture_logs() as logs, waiting, pytest.raises(BatchInterrupted) as caught:
        migrate_db([("0002_m", up)], database=start, options=Options(statement_lock_timeout_s=300))

    (line,) = [line for line in logs if line["event"].startswith("the batch stays open: the next `up` undoes it")]
    assert (line["log_level"], "recover" in line["remedy"]) == ("critical", True)
    assert report.state_text(caught.value.result).startswith("NOT undone yet: the undo was interrupted")
    blocker.execute_sql("ROLLBACK")
    assert [each.action for each in recover(database=start)] == ["undone"]
    assert_same(picture(start), before)
