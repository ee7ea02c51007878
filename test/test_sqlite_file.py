"""SQLite opens as a server would have it, and also where nothing may be written."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import peewee
import pytest
from borrowing import at_the_first
from forking import in_child
from structlog.testing import capture_logs

from api.db.connection import SqlitePool, get_db_connection, open_database
from api.exceptions import DatabaseUnavailableError


@contextmanager
def read_only_file(journal: str, read_only: str, *, is_crashed: bool = False) -> Iterator[Path]:
    """Give a database with one row that others may read only; *is_crashed* leaves that row in its log."""
    with tempfile.TemporaryDirectory() as top, closing(sqlite3.connect(f"{top}/made.db")) as maker:
        maker.executescript(f"PRAGMA journal_mode = {journal}; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        if not is_crashed:
            maker.close()
        folder = Path(top, "folder")
        folder.mkdir()
        for made in Path(top).glob("made.db*"):
            if not made.name.endswith("-shm"):
                shutil.copy(made, folder)
        Path(top).chmod(0o755)
        folder.chmod(0o555 if read_only == "folder" else 0o777)
        (folder / "made.db").chmod(0o444 if read_only == "file" else 0o666)
        try:
            yield folder / "made.db"
        finally:
            folder.chmod(0o755)


class TestSqliteFile:
    """SQLite opens as a server would have it, and also where nothing may be written."""

    @pytest.mark.engines("sqlite")
    def test_it_has_a_log_foreign_keys_and_patience(self, db: peewee.Database) -> None:
        """WAL, foreign keys, five seconds of waiting for a lock."""
        answers = [db.pragma(name) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
        assert answers == ["wal", 1, 5000]

    def test_its_folder_is_made_on_connect(self, tmp_path: Path) -> None:
        """Opening touches nothing; the first connect makes what is missing."""
        database = open_database(f"sqlite:///{tmp_path}/a/b/c.db")
        assert not (tmp_path / "a").exists()
        with database:
            assert (tmp_path / "a/b/c.db").exists()
        database.close_all()

    def test_memory_keeps_its_tables_between_borrows(self) -> None:
        """One thread's database in memory stays while its connection is in the pool."""
        database = open_database("sqlite://")
        with database.connection_context():
            database.execute_sql("CREATE TABLE t (a)")
        with database.connection_context():
            assert database.get_tables() == ["t"]
        database.close_all()

    @pytest.mark.engines("sqlite")
    def test_one_connection_serves_several_threads(self, backend: Any) -> None:
        """A connection made by one thread is borrowed by the next."""
        database = backend.database(pool_max=1)

        def borrow() -> Any:
            with database.connection_context():
                return database.execute_sql("SELECT 1").fetchone()

        for _ in range(2):
            with ThreadPoolExecutor(max_workers=1) as thread:
                assert thread.submit(borrow).result() == (1,)

    @pytest.mark.parametrize("journal", ["delete", "wal"])
    @pytest.mark.parametrize("read_only", ["file", "folder"])
    def test_what_may_only_be_read_opens_for_reading(self, journal: str, read_only: str) -> None:
        """Neither a read-only file nor a read-only folder keeps anyone from reading, in either journal mode."""

        def read_and_write() -> str:
            database = open_database(f"sqlite:///{file}")
            (row,) = database.execute_sql("SELECT a FROM t").fetchall()
            with pytest.raises(peewee.OperationalError, match="readonly database"):
                database.execute_sql("INSERT INTO t VALUES (2)")
            return str(row)

        with read_only_file(journal, read_only) as file:
            assert in_child(read_and_write, unprivileged=True) == "(1,)"

    def test_rows_in_a_log_that_cannot_be_read_are_not_overlooked(self) -> None:
        """A log left behind in a read-only folder is an error with its remedy, never an older state of the data."""

        def read() -> str:
            with pytest.raises(DatabaseUnavailableError) as caught:
                get_db_connection(open_database(f"sqlite:///{file}"))
            return caught.value.hint

        with read_only_file("wal", "folder", is_crashed=True) as file:
            assert "copy it together with its -wal file" in in_child(read, unprivileged=True)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (Path.mkdir, r"missing database \(unable to open database file\)"),
            (lambda path: path.write_text("x" * 99), r"missing database \(file is not a database\)"),
        ],
    )
    def test_what_is_no_database_is_said_to_be_none(self, tmp_path: Path, make: Any, reason: str) -> None:
        """A folder or another file in its place is one clear error."""
        make(tmp_path / "odd")
        with pytest.raises(DatabaseUnavailableError, match=reason):
            get_db_connection(open_database(f"sqlite:///{tmp_path}/odd"))

    def test_a_locked_file_is_waited_for(self, tmp_path: Path) -> None:
        """Whoever holds the file for a moment costs a retry, not an error."""
        holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
        holder.execute("CREATE TABLE t (a)")
        holder.execute("BEGIN EXCLUSIVE")
        database = open_database(f"sqlite:///{tmp_path}/x.db")
        database.timeout = 0.05
        with capture_logs() as lines, at_the_first(lines, holder.rollback):
            get_db_connection(database)
        assert lines[0]["code"] == "SQLITE_BUSY"
        holder.close()
        database.close_all()

    def test_a_set_up_that_fails_is_no_connection(self, tmp_path: Path) -> None:
        """A session whose first statements fail is given up, and set up anew by the next attempt."""
        done: list[bool] = []

        class WithSetUp(SqlitePool):
            def _initialize_connection(self, conn: sqlite3.Connection) -> None:
                conn.execute("BEGIN IMMEDIATE")
                conn.execute("ROLLBACK")
                done.append(True)

        database = WithSetUp(str(tmp_path / "x.db"), check_same_thread=False)
        database.timeout = 0.05
        holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with capture_logs() as lines, at_the_first(lines, holder.rollback):
            get_db_connection(database)
        assert (done, database.snapshot().active) == ([True], 1)
        holder.close()
        database.close_all()
