"""The plan's five promises, each on every engine that the suite can start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import peewee
import pytest
from borrowing import PATIENCE_S, held, locks_held, waiting
from structlog.testing import capture_logs

from api.db.connection import PoolDiagnostics
from api.db.dialects.engine import server_version
from api.db.history import read_attempts
from api.db.migrations import (
    DatabaseCompat,
    MigrationTracker,
    StandardErrorHandler,
    alter_db_add_not_null,
    migrate_db,
)
from api.exceptions import MigrationFailedError
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
        """The plan's five keys at the top, the rest and the holders beside them."""
        database = backend.database(pool_max=4)
        with held(database, 3):
            stats = PoolDiagnostics.get_pool_stats(database)
        first = {"max": 4, "active": 3, "idle": 0, "waiting": 0, "utilization_percent": 75.0}
        assert list(stats.items())[:5] == list(first.items())
        assert (stats["borrowed"], stats["returned"], stats["timeouts"], stats["peak"]) == (3, 0, 0, 3)
        assert len(stats["holders"]) == 3

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
        one, other = PoolDiagnostics.get_pool_stats(proxy), PoolDiagnostics.get_pool_stats(db)
        assert {**one, "holders": len(one["holders"])} == {**other, "holders": 1}

    def test_a_database_without_a_pool_has_no_limit(self) -> None:
        """Nothing to run out of: no maximum, no share, always fine."""
        database = peewee.SqliteDatabase(":memory:")
        stats = PoolDiagnostics.get_pool_stats(database)
        assert (stats["max"], stats["utilization_percent"]) == (None, None)
        assert PoolDiagnostics.log_pool_health(database) == "fine"

    def test_numbers_are_read_while_peewee_holds_its_locks(self, db: peewee.Database) -> None:
        """Peewee's locks are held through a connect that hangs: whoever looks must not hang with it."""
        with ThreadPoolExecutor(max_workers=1) as threads, locks_held(db):
            assert threads.submit(PoolDiagnostics.log_pool_health, db).result(timeout=PATIENCE_S) == "fine"

    @pytest.mark.engines("postgres")
    @pytest.mark.parametrize(("active", "level"), [(15, "debug"), (16, "warning"), (18, "warning"), (19, "critical")])
    def test_the_level_follows_the_thresholds(self, backend: Any, active: int, level: str) -> None:
        """Of twenty connections, sixteen in use are a warning and nineteen critical."""
        database = backend.database(pool_max=20)
        with held(database, active), capture_logs() as lines:
            PoolDiagnostics.log_pool_health(database)
        assert (lines[0]["log_level"], lines[0]["active"]) == (level, active)

    @pytest.mark.engines("postgres")
    def test_the_thresholds_are_the_caller_s(self, backend: Any) -> None:
        """Settings may draw the lines elsewhere."""
        database = backend.database(pool_max=6)
        with held(database, 3):
            assert PoolDiagnostics.log_pool_health(database) == "fine"
            assert PoolDiagnostics.log_pool_health(database, warning=0.5) == "warning"
            assert PoolDiagnostics.log_pool_health(database, warning=0.1, critical=0.5) == "critical"

    @pytest.mark.engines("sqlite")
    def test_a_small_pool_is_judged_by_who_waits(self, backend: Any) -> None:
        """A pool of two that is full is in normal use; it is not when somebody waits."""
        database = backend.database(pool_max=2)
        with held(database, 2) as release:
            assert PoolDiagnostics.log_pool_health(database) == "fine"
            with waiting(database, 1):
                assert PoolDiagnostics.log_pool_health(database) != "fine"
                release()


class TestMigrationTracking:
    """Each migration runs once, and the history says when, by whom and how it ended."""

    def test_the_tables_have_the_promised_columns_and_index(self, db: peewee.Database) -> None:
        """The plan's columns are there, the name is unique, and the index has its name."""
        MigrationTracker.init_tracking_table(database=db)
        MigrationTracker.init_tracking_table(database=db)

        columns = {column.name for column in db.get_columns("migration_history")}
        promised = {"id", "migration_name", "applied_at", "status", "error_message", "duration_ms", "db_type"}
        indexes = {index.name: index for index in db.get_indexes("migration_history")}
        assert promised <= columns
        assert indexes["idx_migration_status"].columns == ["migration_name", "status"]
        assert any(index.unique and index.columns == ["migration_name"] for index in indexes.values())
        assert db.table_exists("migration_attempt")

    def test_only_success_and_skipped_count_as_run(self, db: peewee.Database) -> None:
        """A failed migration is pending still, an unknown one too, also before the table exists."""
        assert not MigrationTracker.has_migration_run("a", database=db)
        MigrationTracker.record_migration("a", "success", database=db)
        MigrationTracker.record_migration("b", "skipped", database=db)
        MigrationTracker.record_migration("c", "failed", database=db)

        assert [MigrationTracker.has_migration_run(name, database=db) for name in "abcd"] == [True, True, False, False]

    def test_a_migration_has_one_row_its_latest(self, db: peewee.Database) -> None:
        """A success takes the failure's place."""
        MigrationTracker.record_migration("a", "failed", "relation ü does not exist", 12, database=db)
        MigrationTracker.record_migration("a", "success", None, 34, database=db)

        rows = MigrationTracker.get_migration_history(database=db)
        assert [(row["status"], row["error_message"], row["duration_ms"]) for row in rows] == [("success", None, 34)]

    @pytest.mark.engines("sqlite")
    def test_an_unknown_status_is_refused(self, db: peewee.Database) -> None:
        """Nothing is written."""
        with pytest.raises(ValueError, match="'done' is none of success, failed, skipped"):
            MigrationTracker.record_migration("a", "done", database=db)  # type: ignore[arg-type]

        assert MigrationTracker.get_migration_history(database=db) == []

    def test_a_decorated_function_runs_once(self, db: peewee.Database) -> None:
        """The second call does nothing; a failed first call is recorded, raised, and tried again."""
        calls: list[int] = []

        @MigrationTracker.skip_if_run("a", database=db)
        def up() -> int:
            calls.append(1)
            if len(calls) == 1:
                raise ValueError("not yet")
            return len(calls)

        with pytest.raises(ValueError, match="not yet"):
            up()
        assert MigrationTracker.get_migration_history(database=db)[0]["error_message"] == "not yet"
        assert (up(), up()) == (2, None)

    def test_no_password_gets_into_a_row(self, db: peewee.Database) -> None:
        """An error text is masked before it is stored."""
        MigrationTracker.record_migration("a", "failed", "cannot reach mysql://u:hunter2@h/d", database=db)

        assert "hunter2" not in str(MigrationTracker.get_migration_history(database=db))

    def test_a_batch_is_recorded_with_engine_and_duration(self, backend: Backend, db: peewee.Database) -> None:
        """What ``migrate_db`` applied stands in the history, and a second call applies nothing."""
        migrate_db([("a", lambda: None)], database=db)

        rows = MigrationTracker.get_migration_history(database=db)
        assert [(row["migration_name"], row["db_type"], row["status"]) for row in rows] == [
            ("a", backend.engine, "success")
        ]
        assert migrate_db([("a", lambda: None)], database=db).applied == ()


class TestTransactionSafety:
    """A batch happens as a whole or not at all."""

    @pytest.fixture
    def parent(self, db: peewee.Database) -> peewee.Database:
        """Give the database a parent with one child that is deleted with it."""
        db.execute_sql("CREATE TABLE parent (id INTEGER PRIMARY KEY, name VARCHAR(20))")
        cascade = "FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE"
        db.execute_sql(f"CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER NOT NULL, {cascade})")
        db.execute_sql("INSERT INTO parent VALUES (1, 'one')")
        db.execute_sql("INSERT INTO child VALUES (1, 1)")
        return db

    def failure(self, db: peewee.Database, *functions: Any) -> MigrationFailedError:
        """Run *functions* as one batch, which fails, and return the error."""
        named = [(f"{number:04d}", function) for number, function in enumerate(functions, 1)]
        with pytest.raises(MigrationFailedError) as caught:
            migrate_db(named, database=db)
        assert not db.in_transaction()
        return caught.value

    def test_a_not_null_change_on_a_parent_keeps_every_child(self, parent: peewee.Database) -> None:
        """SQLite rebuilds the table inside the transaction: playhouse's rebuild would delete the children."""

        def up(migrator: Any, db: Any) -> None:
            alter_db_add_not_null(migrator, "parent", "name")

        migrate_db([("0001", up)], database=parent)

        assert parent.execute_sql("SELECT count(*) FROM child").fetchone()[0] == 1
        with pytest.raises(peewee.IntegrityError):
            parent.execute_sql("INSERT INTO child VALUES (2, 7)")

    @pytest.mark.engines("sqlite")
    def test_a_row_that_points_nowhere_fails_the_batch(self, parent: peewee.Database) -> None:
        """foreign_key_check runs before COMMIT; one that pointed nowhere before is not the migration's fault."""
        parent.pragma("foreign_keys", 0)
        parent.execute_sql("INSERT INTO child VALUES (8, 8)")
        parent.pragma("foreign_keys", 1)

        error = self.failure(parent, lambda migrator, db: db.execute_sql("INSERT INTO child VALUES (9, 9)"))
        migrate_db([("0002", lambda migrator, db: db.execute_sql("CREATE TABLE more (id INTEGER)"))], database=parent)

        assert "rows that point to nothing: 1 of 'child' to 'parent'" in error.message
        assert parent.pragma("foreign_keys") == 1
        assert parent.execute_sql("SELECT count(*) FROM child").fetchone()[0] == 2

    @pytest.mark.engines("sqlite", "postgres")
    def test_a_python_error_undoes_the_batch_too(self, parent: peewee.Database) -> None:
        """Not only what the server refuses."""

        def up(migrator: Any, db: Any) -> None:
            db.execute_sql("DROP TABLE child")
            raise KeyError("late")

        error = self.failure(parent, lambda migrator, db: db.execute_sql("CREATE TABLE more (id INTEGER)"), up)

        assert error.message == "0002 failed after 1 statement: KeyError: 'late'"
        assert {"parent", "child"} == {name for name in parent.get_tables() if not name.startswith("migration_")}

    @pytest.mark.engines("postgres")
    def test_a_swallowed_error_is_found_before_commit(self, parent: peewee.Database) -> None:
        """PostgreSQL would turn the COMMIT into a ROLLBACK without a word, and the history would lie."""

        def up(migrator: Any, db: Any) -> None:
            db.execute_sql("CREATE TABLE more (id INTEGER)")
            with suppress(peewee.DatabaseError):
                db.execute_sql("INSERT INTO gone VALUES (1)")

        error = self.failure(parent, up)

        assert "its error was swallowed" in error.message
        assert "more" not in parent.get_tables()

    @pytest.mark.engines("sqlite", "postgres")
    @pytest.mark.parametrize(("statement", "stands"), [("COMMIT", True), ("ROLLBACK", False)])
    def test_what_a_migration_committed_by_itself_is_told(
        self, parent: peewee.Database, statement: str, stands: bool
    ) -> None:
        """The history and the message say what really stands, not what the batch would have promised."""
        error = self.failure(
            parent,
            lambda migrator, db: db.execute_sql("CREATE TABLE more (id INTEGER)"),
            lambda migrator, db: db.execute_sql(statement),
        )

        states = {
            row["migration_name"]: row["status"] for row in MigrationTracker.get_migration_history(database=parent)
        }
        assert "ended the batch's transaction by itself" in error.message
        assert ("more" in parent.get_tables()) is stands
        assert states == ({"0001": "success", "0002": "failed"} if stands else {"0002": "failed"})
        assert error.result.failure.stands is stands
        assert error.result.rolled_back == (() if stands else ("0001",))

    def test_a_transaction_left_open_is_closed_and_told(self, parent: peewee.Database) -> None:
        """``session_start()`` without its commit would keep everything from everybody else."""
        error = self.failure(parent, lambda migrator, db: db.session_start())

        assert "left a transaction open" in error.message
        assert parent.transaction_depth() == 0

    @pytest.mark.parametrize("raised", [SystemExit(0), KeyboardInterrupt()])
    def test_an_exit_in_a_migration_is_a_failure(self, parent: peewee.Database, raised: BaseException) -> None:
        """Neither ends the program as if all were well; both leave a failed row."""

        def up(migrator: Any, db: Any) -> None:
            raise raised

        with pytest.raises(MigrationFailedError if isinstance(raised, SystemExit) else KeyboardInterrupt):
            migrate_db([("0001", up)], database=parent)

        assert MigrationTracker.get_migration_history(database=parent)[0]["status"] == "failed"
        assert not parent.in_transaction()

    def test_a_migration_that_migrates_is_refused(self, parent: peewee.Database) -> None:
        """It would run itself, over and over."""
        error = self.failure(parent, lambda migrator, db: migrate_db([("inner", lambda: None)], database=db))

        assert "a migration runs on it" in error.message

    def test_a_failure_is_recorded_without_secrets_and_whatever_its_length(self, parent: peewee.Database) -> None:
        """MySQL's TEXT ends at 64 kB: the record is cut, not lost, and holds no password."""
        filler = "x" * 70_000

        def up(migrator: Any, db: Any) -> None:
            db.execute_sql(f"INSERT INTO gone VALUES ('{filler}') /* IDENTIFIED BY 'hunter2' */")

        def down_to_earth(migrator: Any, db: Any) -> None:
            db.execute_sql("CREATE USER someone IDENTIFIED BY 'hunter2' bogus \x00")

        for name, function in (("0001", up), ("0002", down_to_earth)):
            with pytest.raises((MigrationFailedError, ValueError)):
                migrate_db([(name, function)], database=parent)

        kept = str(read_attempts(parent)) + str(MigrationTracker.get_migration_history(database=parent))
        assert kept.count("status='failed'") == 2
        assert "hunter2" not in kept

    @pytest.mark.engines("postgres")
    def test_a_constraint_that_fails_at_commit_undoes_the_batch(self, parent: peewee.Database) -> None:
        """A deferred foreign key is checked by COMMIT itself, after the last statement."""

        def up(migrator: Any, db: Any) -> None:
            db.execute_sql("ALTER TABLE child ALTER CONSTRAINT child_parent_id_fkey DEFERRABLE INITIALLY DEFERRED")
            db.execute_sql("INSERT INTO child VALUES (9, 9)")

        error = self.failure(parent, up)

        assert "failed as its batch was recorded and committed" in error.message
        assert "23503" in error.message
        assert parent.execute_sql("SELECT count(*) FROM child").fetchone()[0] == 1

    @pytest.mark.engines("postgres", "mysql", "mariadb")
    def test_the_session_is_as_it_was_before(self, backend: Backend, parent: peewee.Database) -> None:
        """Lock timeouts and sql_mode are the migration's own; the pooled connection goes back unchanged."""
        names = ["lock_timeout"] if backend.engine == "postgres" else ["lock_wait_timeout", "sql_mode"]
        show = "SHOW {}" if backend.engine == "postgres" else "SELECT @@SESSION.{}"
        before = [parent.execute_sql(show.format(name)).fetchone() for name in names]
        during: list[Any] = []

        def up(migrator: Any, db: Any) -> None:
            during.extend(db.execute_sql(show.format(name)).fetchone() for name in names)

        migrate_db([("0001", up)], database=parent)

        assert during != before
        assert [parent.execute_sql(show.format(name)).fetchone() for name in names] == before

    @pytest.mark.engines("mysql", "mariadb")
    def test_no_transaction_is_open_across_ddl(self, parent: peewee.Database) -> None:
        """Those servers would commit it, and peewee's savepoint would then hide the true error behind 1305."""
        depths: list[int] = []
        migrate_db([("0000", lambda migrator, db: depths.append(db.transaction_depth()))], database=parent)

        error = self.failure(parent, lambda migrator, db: db.execute_sql("ALTER TABLE gone ADD x INT"))

        assert depths == [0]
        assert "1146" in error.message

    @pytest.mark.engines("postgres", "mysql", "mariadb")
    def test_a_connection_lost_in_a_migration_is_recorded(self, backend: Backend, parent: peewee.Database) -> None:
        """The failed row is written over a new connection, with the error that lost the old one."""
        other = backend.database()

        def up(migrator: Any, db: Any) -> None:
            if backend.engine == "postgres":
                own = db.execute_sql("SELECT pg_backend_pid()").fetchone()[0]
                other.execute_sql(f"SELECT pg_terminate_backend({own})")
            else:
                own = db.execute_sql("SELECT CONNECTION_ID()").fetchone()[0]
                other.execute_sql(f"KILL {own}")
            db.execute_sql("CREATE TABLE more (id INTEGER)")

        with pytest.raises(MigrationFailedError):
            migrate_db([("0001", up)], database=parent)

        assert MigrationTracker.get_migration_history(database=other)[0]["status"] == "failed"


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
