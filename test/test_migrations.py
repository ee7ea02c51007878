"""Running migrations: order, history, parts, files that cannot be used, and what a failure leaves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db import history
from api.db.batch import Options
from api.db.dialects.engine import Engine
from api.db.migrations import (
    DatabaseCompat,
    MigrationTracker,
    alter_db_add_column,
    migrate_db,
    pending_migrations,
    revert,
)
from api.db.status import migration_status
from api.exceptions import MigrationError, MigrationFailedError, MigrationFileError
from conftest import Backend

ROOT = Path(__file__).parent.parent
CREATE = """
def up(migrator, db):
    db.execute_sql("CREATE TABLE {table} (id INTEGER PRIMARY KEY, n INTEGER)")


def down(migrator, db):
    db.execute_sql("DROP TABLE {table}")
"""

Write = Callable[..., Path]


@pytest.fixture(name="versions")
def _versions(tmp_path: Path) -> Path:
    directory = tmp_path / "versions"
    directory.mkdir()
    return directory


@pytest.fixture(name="write")
def _write(versions: Path) -> Write:
    def write(name: str, text: str = CREATE, **words: str) -> Path:
        path = versions / f"{name}.py"
        path.write_text(text.format(**words) if words else text, encoding="utf-8")
        return path

    return write


@pytest.fixture(name="_logs")
def _log_to_pytest() -> Iterator[None]:
    """Let structlog's lines pass through the standard library, where caplog sees them."""
    from api.logs import configure_logging

    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logging("INFO")
    yield
    root.handlers[:] = before
    root.setLevel(level)


def _states(database: Any) -> dict[str, str]:
    return history.read_states(database) or {}


def test_pending_migrations_run_in_the_order_of_their_numbers(
    db: peewee.Database, write: Write, versions: Path
) -> None:
    """9 comes before 10, and each is recorded once."""
    for name in ("0010_b", "0009_a"):
        write(name, table=f"t{name[:4]}")

    result = migrate_db(directory=versions, database=db)

    assert [ran.name for ran in result.applied] == ["0009_a", "0010_b"]
    assert _states(db) == {"0009_a": "success", "0010_b": "success"}


def test_second_boot_is_one_query_and_opens_no_file(backend: Backend, write: Write, versions: Path) -> None:
    """Nothing pending: the history is read once, and a file that would not even parse is not looked into."""
    db = backend.database()
    path = write("0001_a", table="a")
    migrate_db(directory=versions, database=db)
    path.write_text("def up(:")
    statements: list[str] = []
    db.query_hooks.append(lambda event: statements.append(event.sql))

    result = migrate_db(directory=versions, database=db)

    assert result.applied == ()
    assert len(statements) == 1
    assert db.is_closed()


def test_a_target_is_the_last_to_run(db: peewee.Database, write: Write, versions: Path) -> None:
    """What comes after it stays pending."""
    for letter in "abc":
        write(f"000{'abc'.index(letter) + 1}_{letter}", table=letter)

    migrate_db(directory=versions, database=db, target="0002_b")

    assert pending_migrations(versions, db) == ["0003_c"]


def test_peewees_own_form_runs_unchanged(db: peewee.Database, write: Write, versions: Path) -> None:
    """A file as ``pwmigrate generate`` writes it, with operations given to ``migrator.migrate``."""
    write("0001_a", table="a")
    write(
        "0002_b",
        """
import peewee as pw

def up(migrator, db):
    migrator.migrate(migrator.add_column('a', 'label', pw.CharField(max_length=9, default='x')))

def down(migrator, db):
    migrator.migrate(migrator.drop_column('a', 'label'))
""",
    )

    migrate_db(directory=versions, database=db)
    revert(directory=versions, database=db)

    assert [column.name for column in db.get_columns("a")] == ["id", "n"]


def test_a_list_of_functions_runs_like_files(db: peewee.Database) -> None:
    """``(name, callable)`` pairs, with two arguments or none."""
    ran: list[str] = []

    migrate_db([("a", lambda: ran.append("a")), ("b", lambda migrator, db: ran.append("b"))], database=db)
    migrate_db([("a", lambda: ran.append("again"))], database=db)

    assert ran == ["a", "b"]


def test_a_failed_batch_leaves_everything_as_before(db: peewee.Database, write: Write, versions: Path) -> None:
    """The third statement of the second migration fails: the first migration is undone with it."""
    write("0001_a", table="a")
    write(
        "0002_b",
        """
def up(migrator, db):
    db.execute_sql("CREATE TABLE b (id INTEGER)")
    db.execute_sql("INSERT INTO a VALUES (1, 1)")
    db.execute_sql("INSERT INTO gone VALUES (1)")
""",
    )

    with pytest.raises(MigrationFailedError, match="0002_b failed at its 3rd statement") as caught:
        migrate_db(directory=versions, database=db)

    assert [table for table in db.get_tables() if not table.startswith("migration_")] == []
    assert caught.value.result.rolled_back == ("0001_a",)
    assert caught.value.result.pending == ("0001_a", "0002_b")
    assert _states(db) == {"0002_b": "failed"}
    attempts = [(each.migration_name, each.status, each.statement) for each in history.read_attempts(db)]
    assert attempts == [("0001_a", "rolled_back", None), ("0002_b", "failed", "INSERT INTO gone VALUES (1)")]


def test_a_failed_migration_runs_again_once_mended(db: peewee.Database, write: Write, versions: Path) -> None:
    """``failed`` is pending still; the next success takes its place."""
    path = write("0001_a", "def up(migrator, db):\n    raise ValueError('not yet')\n")
    with pytest.raises(MigrationFailedError, match="failed after 0 statements: ValueError: not yet"):
        migrate_db(directory=versions, database=db)
    path.write_text(CREATE.format(table="a"))

    migrate_db(directory=versions, database=db)

    assert _states(db) == {"0001_a": "success"}
    assert [each.status for each in history.read_attempts(db)] == ["failed", "success"]


def test_a_migration_whose_operations_were_all_done_is_skipped(
    db: peewee.Database, write: Write, versions: Path
) -> None:
    """The row says ``skipped`` and why, and counts as done."""
    db.execute_sql("CREATE TABLE a (id INTEGER, kind INTEGER)")
    write(
        "0001_a",
        "import peewee\nfrom api.db.migrations import alter_db_add_column\n\n"
        "def up(migrator, db):\n"
        "    alter_db_add_column(migrator, 'a', 'kind', peewee.IntegerField(null=True))\n",
    )

    result = migrate_db(directory=versions, database=db)

    assert result.applied[0].reason == "a.kind: it stands as asked"
    assert MigrationTracker.get_migration_history(database=db)[0]["reason"] == "a.kind: it stands as asked"
    assert pending_migrations(versions, db) == []


def test_a_migration_that_needs_another_engine_is_skipped(backend: Backend, db: peewee.Database) -> None:
    """``requires`` says no: the reason names what was needed, the engine and its version."""
    other: Engine = "sqlite" if backend.engine != "sqlite" else "postgres"
    ran: list[str] = []

    @DatabaseCompat.requires(other, "transactional_ddl")
    def up(migrator: Any, db: Any) -> None:
        ran.append("ran")

    result = migrate_db([("0001_a", up)], database=db)

    assert ran == []
    assert result.applied[0].status == "skipped"
    assert f"needs transactional_ddl on {other}; this is {backend.engine}" in (result.applied[0].reason or "")


@pytest.mark.usefixtures("_logs")
def test_atomic_false_splits_the_batch(
    db: peewee.Database, write: Write, versions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What precedes commits first; it runs outside any transaction; the parts are told before anything runs."""
    write("0001_a", table="a")
    write(
        "0002_b",
        "atomic = False\n\n"
        "def up(migrator, db):\n"
        "    assert not db.in_transaction()\n"
        "    db.execute_sql('CREATE TABLE b (id INTEGER)')\n",
    )
    write("0003_c", "def up(migrator, db):\n    raise ValueError\n")

    with pytest.raises(MigrationFailedError):
        migrate_db(directory=versions, database=db)

    assert _states(db) == {"0001_a": "success", "0002_b": "success", "0003_c": "failed"}
    assert "[['0001_a'], ['0002_b'], ['0003_c']]" in caplog.text


@pytest.mark.engines("postgres")
def test_an_index_is_built_concurrently_outside_the_transaction(
    db: peewee.Database, write: Write, versions: Path
) -> None:
    """PostgreSQL refuses CREATE INDEX CONCURRENTLY inside one, and the migration lock does not deadlock with it."""
    write("0001_a", table="a")
    text = "def up(migrator, db):\n    db.execute_sql('CREATE INDEX CONCURRENTLY a_n ON a (n)')\n"
    write("0002_b", "atomic = False\n\n" + text)

    migrate_db(directory=versions, database=db)

    assert "a_n" in {index.name for index in db.get_indexes("a")}


def test_down_reverts_the_newest_or_back_through_a_target(db: peewee.Database, write: Write, versions: Path) -> None:
    """Their history rows go, their attempts stay."""
    for letter in "abc":
        write(f"000{'abc'.index(letter) + 1}_{letter}", table=letter)
    migrate_db(directory=versions, database=db)

    newest = revert(directory=versions, database=db)
    through = revert("0001_a", directory=versions, database=db)

    assert [ran.name for ran in newest.applied] == ["0003_c"]
    assert [ran.name for ran in through.applied] == ["0002_b", "0001_a"]
    assert _states(db) == {}
    assert [each.action for each in history.read_attempts(db)] == ["up"] * 3 + ["down"] * 3


def test_down_needs_a_down_in_each(db: peewee.Database, write: Write, versions: Path) -> None:
    """Nothing is reverted when one of them cannot be."""
    write("0001_a", "def up(migrator, db):\n    pass\n")
    write("0002_b", table="b")
    migrate_db(directory=versions, database=db)

    with pytest.raises(MigrationFileError, match="0001_a has no function down"):
        revert("0001_a", directory=versions, database=db)

    assert len(_states(db)) == 2


def test_down_takes_the_newest_by_number(db: peewee.Database, write: Write, versions: Path) -> None:
    """10 was applied after 9, whatever the alphabet says."""
    for name in ("9_a", "10_b"):
        write(name, table=f"t{name[-1]}")
    migrate_db(directory=versions, database=db)

    assert [ran.name for ran in revert(directory=versions, database=db).applied] == ["10_b"]


def test_down_of_a_skipped_migration_takes_nothing_away(db: peewee.Database, write: Write, versions: Path) -> None:
    """What it found standing was not its own."""
    db.execute_sql("CREATE TABLE a (id INTEGER, kind INTEGER)")
    write(
        "0001_a",
        "import peewee\nfrom api.db.migrations import alter_db_add_column, alter_db_drop_column\n\n"
        "def up(migrator, db):\n    alter_db_add_column(migrator, 'a', 'kind', peewee.IntegerField(null=True))\n\n"
        "def down(migrator, db):\n    alter_db_drop_column(migrator, 'a', 'kind')\n",
    )
    migrate_db(directory=versions, database=db)

    (ran,) = revert(directory=versions, database=db).applied

    assert ran.status == "skipped"
    assert [column.name for column in db.get_columns("a")] == ["id", "kind"]
    assert _states(db) == {}


def test_a_history_of_the_plans_columns_only_is_completed(db: peewee.Database) -> None:
    """An older release made the table: what it lacks is added before anything runs."""
    number = "SERIAL" if isinstance(db, peewee.PostgresqlDatabase) else "INTEGER"
    columns = "migration_name VARCHAR(255) UNIQUE, applied_at TIMESTAMP NULL, status VARCHAR(16), error_message TEXT"
    db.execute_sql(
        f"CREATE TABLE migration_history (id {number} PRIMARY KEY, {columns}, duration_ms INTEGER, db_type VARCHAR(16))"
        if number == "SERIAL" or isinstance(db, peewee.SqliteDatabase)
        else f"CREATE TABLE migration_history (id INTEGER AUTO_INCREMENT PRIMARY KEY, {columns}, duration_ms INTEGER, "
        "db_type VARCHAR(16))"
    )

    migrate_db([("a", lambda: None)], database=db)

    assert MigrationTracker.get_migration_history(database=db)[0]["applied_by"]


def test_names_are_told_apart_by_every_letter(db: peewee.Database) -> None:
    """MySQL's and MariaDB's own collations would take "a" and "A" for one, and run both at every boot."""
    listed = [("0001_a", lambda: None), ("0001_A", lambda: None)]
    migrate_db(listed, database=db)

    assert migrate_db(listed, database=db).applied == ()


@pytest.mark.engines("postgres")
def test_a_begin_of_its_own_that_failed_leaves_no_lock(backend: Backend, write: Write, versions: Path) -> None:
    """The failure is recorded, and the next boot gets the lock."""
    text = "def up(migrator, db):\n    db.execute_sql('BEGIN')\n    db.execute_sql('SELECT gone')\n"
    path = write("0001_a", "atomic = False\n\n" + text)
    with pytest.raises(MigrationFailedError, match="42703"):
        migrate_db(directory=versions, database=backend.database())
    path.write_text(CREATE.format(table="a"))

    assert migrate_db(directory=versions, database=backend.database(), options=Options(lock_timeout_s=1)).applied


@pytest.mark.engines("postgres")
def test_an_emptied_search_path_does_not_hide_the_history(db: peewee.Database) -> None:
    """As every dump of pg_dump empties it."""

    def up(migrator: Any, db: Any) -> None:
        db.execute_sql("SELECT set_config('search_path', '', false)")
        db.execute_sql("CREATE TABLE public.a (id INTEGER)")

    assert migrate_db([("a", up)], database=db).applied


@pytest.mark.engines("mysql", "mariadb")
def test_a_servers_odd_sql_mode_changes_nothing(db: peewee.Database) -> None:
    """Under ANSI_QUOTES and NO_BACKSLASH_ESCAPES a column's own text would be read otherwise."""
    db.execute_sql("CREATE TABLE a (id INTEGER PRIMARY KEY, n VARCHAR(9) DEFAULT 'x')")
    db.execute_sql("SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")

    def up(migrator: Any, db: Any) -> None:
        alter_db_add_column(migrator, "a", "n", peewee.CharField(max_length=9, default="a\\b"))

    assert migrate_db([("a", up)], database=db).applied[0].status == "success"
    assert db.execute_sql("SELECT @@SESSION.sql_mode").fetchone()[0] == "ANSI_QUOTES,NO_BACKSLASH_ESCAPES"


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def up(:\n", r"0001_a\.py, line 1: "),
        ("x = 1\n", r"0001_a\.py: has no function up"),
        ("import no_such_module\n\ndef up(migrator, db): ...\n", r"0001_a\.py, line 1: ModuleNotFoundError"),
        ("raise SystemExit(0)\n", r"0001_a\.py, line 1: SystemExit"),
        ("return 1\n", r"0001_a\.py, line 1: 'return' outside function"),
        ("async def up(migrator, db): ...\n", r"up\(\) is async or has a yield"),
        ("def up(migrator, db):\n    yield\n", r"up\(\) is async or has a yield"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_anything_runs(
    db: peewee.Database, write: Write, versions: Path, text: str, message: str
) -> None:
    """File and line are named, and the good migration before it did not run."""
    write("0000_good", table="good")
    write("0001_a", text)

    with pytest.raises(MigrationFileError, match=message):
        migrate_db(directory=versions, database=db)

    assert db.get_tables() == []


@pytest.mark.engines("sqlite")
def test_a_file_that_is_not_utf8_is_refused_with_its_line(db: peewee.Database, versions: Path) -> None:
    """The line that holds the first bad byte is named."""
    (versions / "0001_a.py").write_bytes(b"# one\n# caf\xe9\ndef up(migrator, db): ...\n")

    with pytest.raises(MigrationFileError, match=r"0001_a\.py, line 2: not UTF-8"):
        migrate_db(directory=versions, database=db)


@pytest.mark.engines("sqlite")
def test_a_repeated_number_is_refused_while_one_of_the_two_is_pending(
    db: peewee.Database, write: Write, versions: Path
) -> None:
    """Both files are named; once both are applied there is nothing to refuse."""
    write("0001_a", table="a")
    write("0001_b", table="b")

    with pytest.raises(MigrationFileError, match=r"1 is used twice: '0001_a.py' and '0001_b.py'"):
        migrate_db(directory=versions, database=db)
    for name in ("0001_a", "0001_b"):
        MigrationTracker.record_migration(name, "success", database=db)

    assert migrate_db(directory=versions, database=db).applied == ()


@pytest.mark.engines("sqlite")
def test_a_name_that_cannot_be_ordered_is_refused(db: peewee.Database, write: Write, versions: Path) -> None:
    """``0001 copy.py`` is told apart from a migration."""
    write("0001 copy", table="a")

    with pytest.raises(MigrationFileError, match=r"'0001 copy.py' .* is not a migration's name"):
        migrate_db(directory=versions, database=db)


@pytest.mark.engines("sqlite")
def test_status_knows_changed_and_missing_files(db: peewee.Database, write: Write, versions: Path) -> None:
    """By the checksum that was recorded; line ends do not count as a change."""
    paths = {name: write(name, table=name[-1]) for name in ("0001_a", "0002_b", "0003_c")}
    migrate_db(directory=versions, database=db)
    paths["0001_a"].write_bytes(paths["0001_a"].read_bytes().replace(b"\n", b"\r\n"))
    paths["0002_b"].write_text("def up(migrator, db): ...\n")
    paths["0003_c"].unlink()

    found = {each.name: each.state for each in migration_status(versions, db)}

    assert found == {"0001_a": "applied", "0002_b": "changed", "0003_c": "missing"}


@pytest.mark.engines("sqlite")
@pytest.mark.usefixtures("_logs")
def test_old_code_serves_on_a_newer_database(
    db: peewee.Database, write: Write, versions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A history row without its file is one warning, no error."""
    write("0001_a", table="a")
    migrate_db(directory=versions, database=db)
    (versions / "0001_a.py").unlink()

    caplog.clear()
    result = migrate_db(directory=versions, database=db)

    assert result.applied == ()
    assert len(caplog.records) == 1
    assert "0001_a" in caplog.text


@pytest.mark.engines("sqlite")
@pytest.mark.usefixtures("_logs")
def test_a_late_number_runs_and_is_said(
    db: peewee.Database, write: Write, versions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A branch merged late brings a number below the newest applied."""
    write("0002_b", table="b")
    migrate_db(directory=versions, database=db)
    write("0001_a", table="a")

    result = migrate_db(directory=versions, database=db)

    assert [ran.name for ran in result.applied] == ["0001_a"]
    assert "below the newest applied" in caplog.text


def test_inside_an_open_transaction_nothing_is_migrated(db: peewee.Database, versions: Path) -> None:
    """The batch needs a transaction of its own."""
    with db.atomic(), pytest.raises(MigrationError, match="a transaction is open"):
        migrate_db(directory=versions, database=db)


def test_an_applied_migration_is_recorded_with_who_and_what(
    backend: Backend, db: peewee.Database, write: Write, versions: Path
) -> None:
    """Engine, duration, checksum and account are in the history; user, host and batch in the attempt."""
    write("0001_a", table="a")

    migrate_db(directory=versions, database=db)

    row = MigrationTracker.get_migration_history(database=db)[0]
    assert row["db_type"] == backend.engine
    assert len(row["checksum"]) == 64
    assert "@" in row["applied_by"]
    assert row["duration_ms"] >= 0
    attempt = history.read_attempts(db)[0]
    assert attempt.run_by
    assert attempt.host
    assert len(attempt.batch) == 36


# Killed by the system ------------------------------------------------------------------------------------------


def _start(backend: Backend, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "api.db.migrations", "--json", "--database-url", backend.url]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--directory", str(directory)], cwd=ROOT, **pipes)


@pytest.mark.engines("sqlite", "postgres")
def test_a_migrator_killed_half_way_leaves_the_old_schema(
    backend: Backend, db: peewee.Database, write: Write, versions: Path
) -> None:
    """SIGKILL between two statements: neither stands, the lock is free, the next boot migrates."""
    db.execute_sql("CREATE TABLE a (id INTEGER)")
    path = write(
        "0001_a",
        "import os\n\n"
        "def up(migrator, db):\n"
        "    db.execute_sql('CREATE TABLE half (id INTEGER)')\n"
        "    db.execute_sql('ALTER TABLE a ADD COLUMN kind INTEGER')\n"
        "    os.kill(os.getpid(), 9)\n",
    )
    boot = _start(backend, versions)
    boot.communicate(timeout=60)

    assert boot.returncode == -9
    assert [column.name for column in db.get_columns("a")] == ["id"]
    assert "half" not in db.get_tables()
    path.write_text(CREATE.format(table="b"))
    assert migrate_db(directory=versions, database=db, options=Options(lock_timeout_s=30)).applied
