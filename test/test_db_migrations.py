"""The plan's five promises, each on every engine that the suite can start."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peewee
import pytest
import structlog
from borrowing import PATIENCE_S, held, until, waiting, watchers_of
from forking import in_child
from structlog.testing import capture_logs

from api.db import pool_health
from api.db.connection import PoolDiagnostics, open_database
from api.db.dialects.engine import server_version
from api.db.migrations import DatabaseCompat, MigrationTracker, StandardErrorHandler, migrate_db
from conftest import Backend


class TestErrorHandling:
    """An error is known by its code, and only what is expected is skipped."""

    @pytest.fixture
    def item(self, db: peewee.Database) -> peewee.Database:
        """Give the database a table with one row."""
        db.execute_sql("CREATE TABLE item (id INT PRIMARY KEY, name VARCHAR(20))")
        db.execute_sql("INSERT INTO item VALUES (1, 'abc')")
        return db

    def outcome(self, item: peewee.Database, statement: str, operation: str, engine: Any) -> tuple[Any, ...]:
        """Run *statement*, which fails; return category, expected, skipped, whether to go on, and the log level."""
        with pytest.raises(peewee.PeeweeException) as caught:
            item.execute_sql(statement)
        named = ("item", "name", operation, engine)
        with capture_logs() as lines:
            go_on = StandardErrorHandler.handle_migration_error(caught.value, *named)
        category, is_expected, should_skip = StandardErrorHandler.categorize_error(caught.value, engine)
        return category, is_expected, should_skip, go_on, lines[-1]["log_level"]

    def test_existing_column_means_look_at_the_schema(self, item: peewee.Database, backend: Any) -> None:
        """A duplicate column lets the operation look again; it is a line for debugging."""
        outcome = self.outcome(item, "ALTER TABLE item ADD COLUMN name INT", "add_column", backend.engine)
        assert outcome == ("duplicate_column", True, True, True, "debug")

    def test_missing_column_answers_a_drop(self, item: peewee.Database, backend: Any) -> None:
        """A column that is gone lets the operation that drops it look again."""
        outcome = self.outcome(item, "ALTER TABLE item DROP COLUMN gone", "drop_column", backend.engine)
        assert outcome == ("missing_column", True, True, True, "debug")

    def test_missing_table_does_not_answer_an_add(self, item: peewee.Database, backend: Any) -> None:
        """A table that is not there is no reason to go on with adding a column to it."""
        outcome = self.outcome(item, "ALTER TABLE gone ADD COLUMN name INT", "add_column", backend.engine)
        assert outcome[:4] == ("missing_table", True, True, False)
        assert outcome[4] != "debug"

    def test_duplicate_row_is_never_skipped(self, item: peewee.Database, backend: Any) -> None:
        """Two equal rows are neither a duplicate index nor a type: someone has to look at them."""
        outcome = self.outcome(item, "INSERT INTO item VALUES (1, 'abc')", "add_index", backend.engine)
        assert outcome == ("unique_violation", False, False, False, "critical")

    def test_syntax_error_is_never_expected(self, item: peewee.Database, backend: Any) -> None:
        """A statement that the server cannot read stops the migration, loudly."""
        outcome = self.outcome(item, "ALTER TABEL item ADD COLUMN more INT", "add_column", backend.engine)
        assert outcome == ("syntax_error", False, False, False, "critical")

    def test_unknown_error_stops(self, item: peewee.Database, backend: Any) -> None:
        """What the table does not list is never taken for something harmless."""
        outcome = self.outcome(item, "SELECT gone(1)", "add_column", backend.engine)
        assert outcome == ("unknown", False, False, False, "critical")

    @pytest.mark.engines("postgres", "mysql", "mariadb")
    def test_incompatible_type_is_never_skipped(self, item: peewee.Database, backend: Any) -> None:
        """Values that do not fit the new type stop the migration."""
        change = "ALTER COLUMN name TYPE INT" if backend.engine == "postgres" else "MODIFY name INT"
        outcome = self.outcome(item, f"ALTER TABLE item {change}", "column_type", backend.engine)
        assert outcome == ("incompatible_type", False, False, False, "critical")

    @pytest.mark.engines("postgres", "mysql", "mariadb")
    def test_busy_row_is_expected_but_nothing_is_skipped(self, item: peewee.Database, backend: Any) -> None:
        """What another transaction holds is a warning: run again, for nothing is done yet."""
        other = backend.database()
        with other.atomic():
            other.execute_sql("UPDATE item SET name = 'held'")
            statement = "SELECT * FROM item FOR UPDATE NOWAIT"
            outcome = self.outcome(item, statement, "add_column", backend.engine)
        assert outcome == ("lock_timeout", True, False, False, "warning")

    def test_line_says_where_what_and_what_to_do(self, item: peewee.Database, backend: Any) -> None:
        """The line names the place, the operation, the category, the server's words and the remedy."""
        with pytest.raises(peewee.PeeweeException) as caught:
            item.execute_sql("SELECT gone(1)")
        with capture_logs() as lines:
            StandardErrorHandler.handle_migration_error(caught.value, "item", "name", "add_column", backend.engine)
        assert {"table": "item", "column": "name", "operation": "add_column"}.items() <= lines[-1].items()
        assert {"category", "code", "server", "remedy"} <= lines[-1].keys()

    def test_codes_that_are_easily_mistaken(self) -> None:
        """1062 is a duplicate row, 1064 a syntax error, 42P07 a duplicate table or index; none is a type."""
        wanted: dict[Any, Any] = {"mysql": 1062, "mariadb": 1064, "postgres": "42P07"}
        found = {
            engine: [
                category
                for category, codes in StandardErrorHandler.ERROR_CODES.items()
                if code in codes.get(engine, ())
            ]
            for engine, code in wanted.items()
        }
        assert found == {
            "mysql": ["unique_violation"],
            "mariadb": ["syntax_error"],
            "postgres": ["duplicate_table", "duplicate_index"],
        }


class TestPoolDiagnostics:
    """The pool says what it is doing, and reading it costs nobody anything."""

    def test_the_numbers_of_a_pool_in_use(self, backend: Any) -> None:
        """The plan's five keys at the top, the totals beside them."""
        database = backend.database(pool_max=4)
        with held(database, 3):
            stats = PoolDiagnostics.get_pool_stats(database)
        assert stats == {
            **{"max": 4, "active": 3, "idle": 0, "waiting": 0, "utilization_percent": 75.0},
            **{"borrowed": 3, "returned": 0, "timeouts": 0},
        }

    def test_who_waits_is_counted(self, backend: Any) -> None:
        """Threads behind a full pool are waiting, and no longer when they are served."""
        database = backend.database(pool_max=1)
        with held(database, 1) as release, waiting(database, 2):
            assert PoolDiagnostics.get_pool_stats(database)["waiting"] == 2
            release()
        assert PoolDiagnostics.get_pool_stats(database)["waiting"] == 0

    def test_a_proxy_is_looked_through(self, db: peewee.Database) -> None:
        """The app's ``DB`` and what it is bound to give the same numbers."""
        proxy = peewee.DatabaseProxy()
        proxy.initialize(db)
        assert PoolDiagnostics.get_pool_stats(proxy) == PoolDiagnostics.get_pool_stats(db)

    def test_a_database_without_a_pool_has_no_limit(self) -> None:
        """Nothing to run out of: no maximum, no share, always fine."""
        database = peewee.SqliteDatabase(":memory:")
        stats = PoolDiagnostics.get_pool_stats(database)
        assert (stats["max"], stats["utilization_percent"]) == (None, None)
        assert PoolDiagnostics.log_pool_health(database) == "fine"

    def test_numbers_are_read_while_peewee_holds_its_locks(self, db: peewee.Database) -> None:
        """Peewee's locks are held through a connect that hangs: whoever looks must not hang with it."""
        locked, release = threading.Event(), threading.Event()

        def hang() -> None:
            with db._lock, db._pool_lock:
                locked.set()
                release.wait()

        with ThreadPoolExecutor(max_workers=2) as threads:
            threads.submit(hang)
            locked.wait()
            try:
                assert threads.submit(PoolDiagnostics.log_pool_health, db).result(timeout=PATIENCE_S) == "fine"
            finally:
                release.set()

    @pytest.mark.engines("sqlite")
    @pytest.mark.parametrize(("active", "level"), [(15, "debug"), (16, "warning"), (18, "warning"), (19, "critical")])
    def test_the_level_follows_the_thresholds(self, backend: Any, active: int, level: str) -> None:
        """Of twenty connections, sixteen in use are a warning and nineteen critical."""
        database = backend.database(pool_max=20)
        with held(database, active), capture_logs() as lines:
            PoolDiagnostics.log_pool_health(database)
        assert (lines[0]["log_level"], lines[0]["active"]) == (level, active)

    @pytest.mark.engines("sqlite")
    def test_the_thresholds_are_the_caller_s(self, backend: Any) -> None:
        """Settings may draw the lines elsewhere."""
        database = backend.database(pool_max=4)
        with held(database, 2):
            stats = PoolDiagnostics.get_pool_stats(database)
        assert PoolDiagnostics.judge(stats) == "fine"
        assert PoolDiagnostics.judge(stats, warning=0.5) == "warning"
        assert PoolDiagnostics.judge(stats, warning=0.1, critical=0.5) == "critical"

    @pytest.mark.engines("sqlite")
    def test_a_small_pool_is_judged_by_who_waits(self, backend: Any) -> None:
        """A pool of two that is full is in normal use; one waiting is a warning, two are critical."""
        database = backend.database(pool_max=2)
        with held(database, 2) as release:
            assert PoolDiagnostics.log_pool_health(database) == "fine"
            with waiting(database, 1):
                assert PoolDiagnostics.log_pool_health(database) == "warning"
                with waiting(database, 2, beside=1):
                    assert PoolDiagnostics.log_pool_health(database) == "critical"
                    release()

    @pytest.mark.engines("sqlite")
    def test_the_thread_says_what_changes(self, backend: Any) -> None:
        """One line when the pool is used up, one when it has recovered, none between."""
        database = backend.database(pool_max=4)
        with capture_logs() as lines:
            PoolDiagnostics.start_health_monitoring(database, interval=0.005)
            with held(database, 4):
                until(lambda: len(lines) == 1)
            until(lambda: len(lines) >= 2)
            PoolDiagnostics.stop_health_monitoring(database)
        assert [(line["log_level"], line["event"]) for line in lines] == [
            ("critical", "pool is used up"),
            ("info", "pool has recovered"),
        ]

    @pytest.mark.engines("sqlite")
    def test_a_state_that_lasts_is_said_again(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every ``HEALTH_CHECK_INTERVAL`` seconds, with how long it has lasted."""
        assert PoolDiagnostics.HEALTH_CHECK_INTERVAL == 60
        monkeypatch.setattr(PoolDiagnostics, "HEALTH_CHECK_INTERVAL", 0)
        database = backend.database(pool_max=4)
        with held(database, 4), capture_logs() as lines:
            PoolDiagnostics.start_health_monitoring(database, interval=0.005)
            until(lambda: len(lines) >= 3)
            PoolDiagnostics.stop_health_monitoring(database)
        assert {line["event"] for line in lines} == {"pool is used up"}
        assert all("lasted_s" in line for line in lines)

    def test_there_is_one_thread_a_database(self, backend: Any) -> None:
        """Asking again, also from many threads at once, starts no second one; stopping ends it; it can start anew."""
        database = backend.database()
        with ThreadPoolExecutor(max_workers=8) as threads:
            for _ in range(40):
                threads.submit(PoolDiagnostics.start_health_monitoring, database)
        assert len(watchers_of(database)) == 1
        PoolDiagnostics.stop_health_monitoring(database)
        assert watchers_of(database) == []
        PoolDiagnostics.start_health_monitoring(database)
        assert len(watchers_of(database)) == 1
        PoolDiagnostics.stop_health_monitoring(database)
        PoolDiagnostics.stop_health_monitoring(database)
        assert database.snapshot().borrowed == 0

    def test_the_thread_ends_with_its_database(self, tmp_path: Path) -> None:
        """The watch keeps no database alive, and does not outlive it."""
        database = open_database(f"sqlite:///{tmp_path}/x.db", pool_max=4)
        with capture_logs() as lines, held(database, 4):
            PoolDiagnostics.start_health_monitoring(database, interval=0.005)
            until(lambda: len(lines) > 0)
        (thread,) = watchers_of(database)
        database.close_all()
        gone = weakref.ref(database)
        del database
        until(lambda: gc.collect() >= 0 and gone() is None and not thread.is_alive())

    @pytest.mark.engines("sqlite")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_forked_worker_gets_a_thread_of_its_own(self, backend: Any) -> None:
        """No thread survives a fork, and a lock held at the fork does not keep the child from starting its own."""
        database = backend.database()
        PoolDiagnostics.start_health_monitoring(database)

        def start_again() -> str:
            before = len(watchers_of(database))
            PoolDiagnostics.start_health_monitoring(database)
            return f"{before} before, {len(watchers_of(database))} after"

        with pool_health._starting():
            assert in_child(start_again) == "0 before, 1 after"
        assert len(watchers_of(database)) == 1
        PoolDiagnostics.stop_health_monitoring(database)

    @pytest.mark.engines("sqlite")
    def test_a_log_that_fails_does_not_end_the_watch(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next look is taken all the same."""
        monkeypatch.setattr(PoolDiagnostics, "HEALTH_CHECK_INTERVAL", 0)
        database = backend.database(pool_max=4)
        written: list[str] = []

        def fail(_: Any, __: str, line: Any) -> Any:
            written.append(line["event"])
            raise OSError("the disk is full")

        with capture_logs(), held(database, 4):
            structlog.configure(processors=[fail])
            PoolDiagnostics.start_health_monitoring(database, interval=0.005)
            until(lambda: len(written) >= 5)
            PoolDiagnostics.stop_health_monitoring(database)


class TestMigrationTracking:
    """Each migration runs once, and the history says when, by whom and how it ended."""


class TestTransactionSafety:
    """A batch happens as a whole or not at all."""


class TestDatabaseCompat:
    """What an engine can do is known beforehand, and said with its reason."""

    def test_matrix_has_the_same_questions_for_all_four_engines(self) -> None:
        """The plan's capabilities, and every other, are answered for each engine."""
        matrix = DatabaseCompat.CAPABILITIES
        asked = {"full_text_search", "json_functions", "auto_increment"}
        asked |= {"sequence_support", "type_casting", "max_varchar"}
        assert set(matrix) == {"postgres", "mysql", "mariadb", "sqlite"}
        assert all(asked <= set(row) == set(matrix["postgres"]) for row in matrix.values())

    def test_mysql_and_mariadb_are_told_apart(self) -> None:
        """Sequences are MariaDB's, an index on an expression is MySQL's."""
        can = DatabaseCompat.is_capable
        assert (can("mysql", "sequence_support"), can("mariadb", "sequence_support")) == (False, True)
        assert (can("mysql", "expression_indexes"), can("mariadb", "expression_indexes")) == (True, False)

    def test_capability_is_what_the_server_does(self, backend: Backend, db: peewee.Database) -> None:
        """Where a partial index is said to be possible the server makes one, and nowhere else."""
        db.execute_sql("CREATE TABLE item (id INT PRIMARY KEY, open INT)")
        statement = "CREATE INDEX item_open ON item (open) WHERE open = 1"
        if DatabaseCompat.is_capable(backend.engine, "partial_indexes"):
            db.execute_sql(statement)
        else:
            with pytest.raises(peewee.DatabaseError):
                db.execute_sql(statement)

    def test_equivalent_type_is_taken_by_the_server(self, backend: Backend, db: peewee.Database) -> None:
        """What PostgreSQL keeps as JSONB has a column type everywhere."""
        text = DatabaseCompat.get_equivalent_type("JSONB", "postgres", backend.engine)
        db.execute_sql(f"CREATE TABLE item (a {text})")
        assert text == {"postgres": "JSONB", "sqlite": "TEXT"}.get(backend.engine, "JSON")

    def test_field_that_the_server_refuses_has_its_reason(self, backend: Backend, db: peewee.Database) -> None:
        """20000 characters of utf8mb4 are over the row limit of MySQL and MariaDB, and of no other engine."""
        wide: Any = type("Wide", (peewee.Model,), {"a": peewee.CharField(20000)})
        reasons = DatabaseCompat.validate_field_for_db(wide._meta.fields["a"], backend.engine)
        with wide.bind_ctx(db):
            if reasons:
                with pytest.raises(peewee.DatabaseError):
                    db.create_tables([wide])
            else:
                db.create_tables([wide])
        assert bool(reasons) is (backend.engine in ("mysql", "mariadb"))

    def test_migration_is_skipped_where_the_engine_lacks_what_it_requires(
        self, backend: Backend, db: peewee.Database
    ) -> None:
        """It runs where the capability is, and is recorded as skipped with engine and version elsewhere."""
        ran = []

        @DatabaseCompat.requires(None, "partial_indexes")
        def up(migrator: Any, database: Any) -> None:
            ran.append(backend.engine)

        migrate_db([("0001_partial", up)], database=db)
        (row,) = MigrationTracker.get_migration_history(database=db)
        if backend.engine in ("postgres", "sqlite"):
            assert (ran, row["status"]) == ([backend.engine], "success")
        else:
            assert (ran, row["status"]) == ([], "skipped")
            assert f"needs partial_indexes; this is {backend.engine}" in row["reason"]
            assert ".".join(map(str, server_version(db))) in row["reason"]

    def test_requiring_an_unknown_capability_fails_at_once(self) -> None:
        """A typing mistake is no reason to skip a migration."""
        with pytest.raises(ValueError, match="did you mean 'window_functions'"):
            DatabaseCompat.requires("postgres", "window_function")
