"""A transaction is committed or it is an error, and the log says why one ended."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import peewee
import pytest
from borrowing import until
from sessions import SERVERS, end_session, session_number
from structlog.testing import capture_logs

from api.db.connection import DB, TransactionLogger, open_database
from api.db.dialects.categories import Category
from api.db.dialects.connecting import underlying
from api.db.dialects.errors import classify
from api.exceptions import TransactionAbortedError

LEVELS = {
    "sqlite": "serializable",
    "postgres": "read committed",
    "mariadb": "repeatable read",
    "mysql": "repeatable read",
}

# What PostgreSQL says to a session that is ended.
ENDED = "terminating connection due to administrator command"
ALIVE = "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = {}"


class Numbers(peewee.Model):
    """A table to write into."""

    n = peewee.IntegerField()


@pytest.fixture
def numbers(db: peewee.Database) -> peewee.Database:
    """Give the test a connected database with the table of ``Numbers``."""
    Numbers.bind(db)
    db.create_tables([Numbers])
    return db


class TestTransactions:
    """A transaction is committed or it is an error, and the log says why one ended."""

    @pytest.mark.engines("postgres")
    def test_a_swallowed_error_is_not_a_commit(self, numbers: peewee.Database) -> None:
        """PostgreSQL would answer the COMMIT with a silent ROLLBACK."""

        def write_and_swallow() -> None:
            Numbers.create(n=1)
            with suppress(peewee.ProgrammingError):
                numbers.execute_sql("SELECT * FROM nowhere")

        with pytest.raises(TransactionAbortedError, match="its error was swallowed"), numbers.atomic():
            write_and_swallow()
        assert Numbers.select().count() == 0
        assert not numbers.in_transaction()

    def test_an_error_in_a_savepoint_of_its_own_may_be_swallowed(self, numbers: peewee.Database) -> None:
        """What stands around the savepoint is committed."""
        with numbers.atomic():
            Numbers.create(n=1)
            with suppress(peewee.DatabaseError), numbers.atomic():
                numbers.execute_sql("SELECT * FROM nowhere")
        assert Numbers.select().count() == 1

    def test_begin_and_commit_are_logged_with_the_level(
        self, db: peewee.Database, backend: Any, debug_on: None
    ) -> None:
        """The level is the server's own answer."""
        with capture_logs() as lines, db.atomic():
            db.execute_sql("SELECT 1")
        operations = [(line["operation"], line["isolation_level"]) for line in lines]
        assert operations == [("begin", LEVELS[backend.engine]), ("commit", LEVELS[backend.engine])]

    @SERVERS
    def test_the_level_is_asked_for_once_a_connection(
        self, db: peewee.Database, asked: list[str], debug_on: None
    ) -> None:
        """Three transactions on one connection ask once; another connection asks for itself."""
        for _ in range(3):
            with db.atomic():
                pass
        assert len(asked) == 1
        db.manual_close()
        with db.atomic():
            pass
        assert len(asked) == 2

    def test_with_debug_off_nothing_is_asked_or_logged(self, db: peewee.Database, asked: list[str]) -> None:
        """Whoever does not read the lines does not pay for them."""
        with capture_logs() as lines, db.atomic():
            pass
        assert (asked, lines) == ([], [])

    @pytest.mark.engines("postgres", "mysql", "mariadb")
    def test_a_level_asked_for_is_the_one_logged(self, db: peewee.Database, debug_on: None) -> None:
        """A transaction with a level of its own does not show the connection's."""
        with capture_logs() as lines, db.atomic("SERIALIZABLE"):
            pass
        assert lines[0]["isolation_level"] == "serializable"

    def test_a_rollback_names_its_reason(self, numbers: peewee.Database, debug_on: None) -> None:
        """The kind of error and the server's code, where there is one; never its text."""
        with capture_logs() as lines, pytest.raises(ValueError, match="SECRET"), numbers.atomic():
            raise ValueError("SECRET")
        assert (lines[-1]["operation"], lines[-1]["reason"], lines[-1]["reason_code"]) == (
            "rollback",
            "ValueError",
            None,
        )
        with capture_logs() as lines, pytest.raises(peewee.IntegrityError), numbers.atomic():
            Numbers.insert_many([{"id": 1, "n": 1}, {"id": 1, "n": 2}]).execute()
        assert lines[-1]["reason_code"] in ("23505", 1062, "SQLITE_CONSTRAINT_PRIMARYKEY")
        assert "SECRET" not in str(lines)

    @SERVERS
    @pytest.mark.parametrize("depth", [1, 3])
    def test_a_lost_transaction_ends_in_the_server_s_reason(
        self, backend: Any, db: peewee.Database, depth: int
    ) -> None:
        """Not in the rollback that could not be sent, which the log has beside it; also out of nested blocks."""

        def lose_the_session(inner: int) -> None:
            if inner:
                with db.atomic():
                    lose_the_session(inner - 1)
            else:
                end_session(backend, session_number(db))
                db.execute_sql("SELECT 1")

        with capture_logs() as lines, pytest.raises(peewee.OperationalError) as caught:
            lose_the_session(depth)
        (line,) = lines
        assert (line["log_level"], line["reason"], line["rollback"]) == (
            "warning",
            "OperationalError",
            "InterfaceError",
        )
        if backend.engine == "postgres":
            assert line["reason_text"] == ENDED
            assert str(caught.value).count(ENDED) == 1
        else:
            assert line["reason_code"] == caught.value.args[0]
            assert line["reason_code"] in (1927, 2013)
        assert not db.in_transaction()

    @SERVERS
    def test_a_commit_that_is_lost_ends_in_the_server_s_reason(self, backend: Any, db: peewee.Database) -> None:
        """The block did nothing wrong: the COMMIT met the end of the session."""
        with pytest.raises(peewee.OperationalError) as caught, db.atomic():
            end_session(backend, session_number(db))
        if backend.engine == "postgres":
            assert str(caught.value).count(ENDED) == 1
        else:
            assert caught.value.args[0] in (1927, 2013)
        db.close()
        assert db.snapshot().closed["lost"] == 1

    @pytest.mark.engines("postgres")
    def test_a_transaction_that_idled_too_long_says_so(self, backend: Any, db: peewee.Database) -> None:
        """In the server's words, first, in the driver's error too; what the driver said of it follows as it was."""

        def idle() -> None:
            db.execute_sql("SET LOCAL idle_in_transaction_session_timeout = 1")
            until(lambda: backend.server.execute(ALIVE.format(number)) == [(0,)])
            db.execute_sql("SELECT 1")

        number = session_number(db)
        with pytest.raises(peewee.OperationalError) as caught, db.atomic():
            idle()
        error = caught.value
        assert str(error).startswith("terminating connection due to idle-in-transaction timeout\n")
        assert "\nserver closed the connection unexpectedly\n" in str(error)
        assert str(error) == str(underlying(error))
        classified = classify(error, "postgres")
        assert (classified.category, classified.code) == (Category.LOST_CONNECTION, None)
        assert classified.server_message.startswith("terminating connection due to idle-in-transaction timeout")

    @pytest.mark.engines("postgres")
    def test_only_the_error_of_the_loss_tells_the_server_s_reason(self, backend: Any, db: peewee.Database) -> None:
        """Another error that leaves the block, the server's or the app's, keeps its text."""

        def lose_the_session(other: Exception) -> None:
            end_session(backend, session_number(db))
            with suppress(peewee.OperationalError):
                db.execute_sql("SELECT 1")
            raise other

        with pytest.raises(peewee.ProgrammingError) as nowhere:
            db.execute_sql("SELECT * FROM nowhere")
        for other in (nowhere.value, peewee.OperationalError("ours")):
            text = str(other)
            with pytest.raises(type(other)) as caught, db.atomic():
                lose_the_session(other)
            assert (caught.value, str(caught.value)) == (other, text)
            db.close()
            db.connect()

    @SERVERS
    def test_an_error_of_the_app_is_not_hidden_by_a_lost_session(self, backend: Any, db: peewee.Database) -> None:
        """What ended the block goes to the caller, whatever the rollback meets."""

        def fail() -> None:
            end_session(backend, session_number(db))
            raise ValueError("ours")

        with pytest.raises(ValueError, match="ours"), db.atomic():
            fail()

    def test_the_app_s_proxy_logs_too(self, debug_on: None) -> None:
        """peewee's own proxy would make its transactions itself."""
        proxy, database = type(DB)(), open_database("sqlite://")
        proxy.initialize(database)
        with capture_logs() as lines, proxy.atomic():
            pass
        assert [line["operation"] for line in lines] == ["begin", "commit"]
        database.close_all()

    def test_a_transaction_that_goes_on_is_logged_in_order(self, db: peewee.Database, debug_on: None) -> None:
        """Commit and rollback inside the block begin the next part."""
        with capture_logs() as lines, db.atomic() as transaction:
            transaction.commit()
            transaction.rollback()
        operations = [line["operation"] for line in lines]
        assert operations == ["begin", "commit", "begin", "rollback", "begin", "commit"]

    def test_a_closed_database_is_not_connected_to_be_asked(self, backend: Any, debug_on: None) -> None:
        """Logging borrows nothing."""
        database = backend.database()
        TransactionLogger.log_transaction_state(database)
        assert database.is_closed()

    @pytest.fixture
    def debug_on(self, caplog: pytest.LogCaptureFixture) -> None:
        """Let the transactions log at debug."""
        caplog.set_level(logging.DEBUG, "api.db.transactions")

    @pytest.fixture
    def asked(self, db: peewee.Database) -> list[str]:
        """Collect the questions about the isolation level."""
        questions: list[str] = []
        db.query_hooks.append(lambda event: questions.append(event.sql) if "isolation" in event.sql else None)
        return questions
