"""Nothing that was left on a connection meets the next borrower: no transaction, no answer, no other database."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import peewee
import pymysql
import pytest
from borrowing import PATIENCE_S, held, until
from pymysql.cursors import SSCursor
from test_pool import a_table, adds_up, rows

from api.db.connection import SqlitePool, open_database
from api.db.dialects.answering import mysql_is_clean

MYSQL_FAMILY = pytest.mark.engines("mariadb", "mysql")
FAILS = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'on purpose'"
WRITES = "START TRANSACTION; INSERT INTO item VALUES (1)"
ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT f(i), SPACE(999) FROM n"
# PyMySQL swallows these two when it reads what a cursor has left unread.
TIMEOUTS = {"mariadb": 1969, "mysql": 3024}


class Struck(BaseException):
    """What comes from outside: a signal, the end of a green thread."""


@contextmanager
def a_procedure(database: peewee.Database, body: str) -> Iterator[None]:
    """Let *database* have an empty table ``item`` and a procedure ``p``."""
    with a_table(database):
        with database.connection_context():
            database.execute_sql(f"CREATE PROCEDURE p() BEGIN {body}; END")
        yield


@contextmanager
def a_procedure_of_rows(database: peewee.Database, number: int) -> Iterator[None]:
    """Let ``p`` of *database* write, and end in error *number* after 50 rows, too many for one buffer."""
    fails = f"IF i > 50 THEN {FAILS}, MYSQL_ERRNO = {number}; END IF"
    with a_procedure(database, f"{WRITES}; {ROWS}; COMMIT"):
        with database.connection_context():
            database.execute_sql(f"CREATE FUNCTION f(i INT) RETURNS INT NO SQL BEGIN {fails}; RETURN i; END")
        yield


def write_one(backend: Any, database: peewee.Database) -> list[Any]:
    """Insert number 2 by *database*, as one request, and return what another session sees then."""
    with database.connection_context():
        database.execute_sql("INSERT INTO item VALUES (2)")
    other = backend.database()
    with other.connection_context():
        return list(other.execute_sql("SELECT id FROM item").fetchall())


@pytest.fixture(name="db")
def _db(backend: Any) -> Any:
    return backend.database(pool_max=1)


@pytest.fixture
def greeting_port() -> Iterator[int]:
    """Give a port that greets as a MySQL with TLS does, and then says no word more."""
    salt, plugin = b"s" * 8, b"mysql_native_password\0"
    capabilities = (0x00FF_FFFF | 1 << 24).to_bytes(4, "little")
    body = b"\x0a8.0.0\0" + bytes(4) + salt + b"\0" + capabilities[:2] + b"\xff\x02\0" + capabilities[2:]
    body += b"\x15" + bytes(10) + salt + b"s" * 4 + b"\0" + plugin
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(max_workers=1) as thread:

        def greet() -> socket.socket:
            guest, _ = server.accept()
            guest.sendall(len(body).to_bytes(4, "little") + body)
            return guest

        greeting = thread.submit(greet)
        yield int(server.getsockname()[1])
        greeting.result().close()


class TestTransactions:
    """The server's last word on a transaction may be out of date; then it is asked."""

    @MYSQL_FAMILY
    @pytest.mark.parametrize("after", ["", "SELECT 1"])
    def test_one_that_a_failed_procedure_left_open_is_rolled_back(self, backend: Any, db: Any, after: str) -> None:
        """An error says nothing of it, nor do the rows of what is asked next."""
        with a_procedure(db, f"{WRITES}; {FAILS}"):
            with db.connection_context():
                with pytest.raises(peewee.OperationalError, match="on purpose"):
                    db.execute_sql("CALL p()")
                if after:
                    assert db.execute_sql(after).fetchall() == ((1,),)
            assert write_one(backend, db) == [(2,)]
        assert db.snapshot().created == 1

    @MYSQL_FAMILY
    def test_one_that_a_procedure_with_rows_left_open_is_rolled_back(self, backend: Any, db: Any) -> None:
        """What is behind the rows is read first, and says that it is open."""
        with a_procedure(db, f"{WRITES}; SELECT 'rows'"):
            with db.connection_context():
                assert db.execute_sql("CALL p()").fetchall() == (("rows",),)
            assert write_one(backend, db) == [(2,)]
        assert db.snapshot().created == 1

    @MYSQL_FAMILY
    def test_autocommit_that_a_failed_procedure_turned_off_costs_the_connection(self, backend: Any, db: Any) -> None:
        """The ROLLBACK that follows the error tells."""
        with a_procedure(db, f"SET autocommit = 0; {FAILS}"):
            with db.connection_context(), pytest.raises(peewee.OperationalError, match="on purpose"):
                db.execute_sql("CALL p()")
            assert db.snapshot().closed["bad return"] == 1
            assert write_one(backend, db) == [(2,)]

    @MYSQL_FAMILY
    @pytest.mark.parametrize("after", ["", "SELECT 1"])
    def test_one_whose_rows_ended_in_an_error_is_rolled_back(self, backend: Any, db: Any, after: str) -> None:
        """One that came while they were read one by one; the cursor is closed then."""
        with a_procedure_of_rows(db, 1644):
            with db.connection_context():
                with closing(db.connection().cursor(SSCursor)) as cursor:
                    cursor.execute("CALL p()")
                    assert cursor.fetchone()[0] == 1
                    with pytest.raises(pymysql.OperationalError, match="on purpose"):
                        cursor.fetchall()
                if after:
                    assert db.execute_sql(after).fetchall() == ((1,),)
            assert write_one(backend, db) == [(2,)]
        assert db.snapshot().created == 1

    @MYSQL_FAMILY
    @pytest.mark.parametrize("after", ["", "SELECT 1"])
    def test_one_whose_timeout_the_driver_swallowed_is_rolled_back(self, backend: Any, db: Any, after: str) -> None:
        """It reads what the cursor left unread when that is closed, or the next question is asked."""
        with a_procedure_of_rows(db, TIMEOUTS[backend.engine]):
            with db.connection_context(), closing(db.connection().cursor(SSCursor)) as cursor:
                cursor.execute("CALL p()")
                assert cursor.fetchone()[0] == 1
                if after:
                    with pytest.warns(UserWarning, match="left incomplete"):
                        assert db.execute_sql(after).fetchall() == ((1,),)
            assert write_one(backend, db) == [(2,)]
        assert db.snapshot().created == 1

    @MYSQL_FAMILY
    @pytest.mark.parametrize("way", ["atomic", "INSERT INTO item VALUES (1)", "SELECT 1", "CALL p()"])
    def test_what_went_well_is_returned_without_a_rollback(self, db: Any, way: str) -> None:
        """Nor is it in doubt before, with its result still there."""
        with a_procedure(db, "DO 1"), db.connection_context():
            if way == "atomic":
                with db.atomic():
                    db.execute_sql("INSERT INTO item VALUES (1)")
            else:
                db.execute_sql(way)
            assert mysql_is_clean(db.connection()) is True

    @MYSQL_FAMILY
    def test_an_error_is_forgotten_with_the_next_word_on_it(self, db: Any) -> None:
        """A return after that sends nothing: the server's last statement is the one before."""
        with db.connection_context():
            with pytest.raises(peewee.ProgrammingError):
                db.execute_sql("SELECT * FROM nowhere")
            db.execute_sql("DO 1")
            assert not db.connection().is_in_doubt
            before = db.execute_sql("SHOW SESSION STATUS LIKE 'Questions'").fetchone()
        with db.connection_context():
            after = db.execute_sql("SHOW SESSION STATUS LIKE 'Questions'").fetchone()
        assert int(after[1]) - int(before[1]) == 1


class TestAnswers:
    """A borrower gets the answers to what it asked itself."""

    @MYSQL_FAMILY
    def test_rows_left_unread_cost_the_connection_and_no_time(self, db: Any) -> None:
        """There may be no end to them; nor is anybody warned when the cursor is freed."""
        with db.connection_context():
            cursor = db.connection().cursor(SSCursor)
            cursor.execute("SELECT 1 UNION SELECT 2")
            assert cursor.fetchone() == (1,)
        assert (db.snapshot().idle, db.snapshot().closed["bad return"]) == (0, 1)
        del cursor
        gc.collect()
        with db.connection_context():
            assert db.execute_sql("SELECT 3").fetchone() == (3,)
        assert adds_up(db)

    @MYSQL_FAMILY
    def test_rows_read_to_their_end_cost_nothing(self, db: Any) -> None:
        """One by one as well as all at once."""
        with db.connection_context(), closing(db.connection().cursor(SSCursor)) as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2")
            assert cursor.fetchall() == [(1,), (2,)]
        assert (db.snapshot().idle, db.snapshot().closed["bad return"]) == (1, 0)

    @MYSQL_FAMILY
    @pytest.mark.parametrize(("name", "arguments"), [("show_warnings", ()), ("set_character_set", ("utf8mb4",))])
    def test_what_the_driver_asks_by_itself_costs_nothing(self, db: Any, name: str, arguments: tuple[str, ...]) -> None:
        """Its answer has been read, though not where all others are."""
        with db.connection_context():
            getattr(db.connection(), name)(*arguments)
        assert (db.snapshot().idle, db.snapshot().closed["bad return"]) == (1, 0)

    @MYSQL_FAMILY
    @pytest.mark.parametrize("at", ["_read_query_result", "read"])
    def test_an_answer_that_nobody_waited_for_is_not_the_next_one_s(self, db: Any, at: str) -> None:
        """Who was broken off after the question was sent takes the connection with him."""

        def strike(frame: Any, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_name == at and "pymysql" in frame.f_code.co_filename:
                raise Struck

        def ask_in_vain() -> None:
            with db.connection_context():
                sys.setprofile(strike)
                try:
                    db.execute_sql("SELECT 1")
                finally:
                    sys.setprofile(None)

        with ThreadPoolExecutor(max_workers=1) as thread:
            assert isinstance(thread.submit(ask_in_vain).exception(), Struck)
        assert db.snapshot().closed["bad return"] == 1
        with db.connection_context():
            assert [db.execute_sql(f"SELECT {n}").fetchone() for n in (7, 8)] == [(7,), (8,)]
        assert adds_up(db)


class TestEndings:
    """A connection that is being returned is its holder's; one that is taken away was nobody's."""

    @pytest.mark.engines("postgres", "mariadb")
    @pytest.mark.parametrize("way", ["close_all", "close_stale"])
    def test_a_connection_that_is_being_returned_is_left_to_its_holder(self, backend: Any, way: str) -> None:
        """A libpq whose connection is freed while it reads ends the process; the holder closes it instead."""
        database = backend.database(connect_timeout_s=20)
        began = threading.Event()

        def hold() -> bool:
            database.connect()
            database.execute_sql("BEGIN")
            began.set()
            paused.wait(PATIENCE_S)
            return bool(database.close())

        paused = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as thread:
            holder = thread.submit(hold)
            assert began.wait(PATIENCE_S)
            backend.private.pause()
            try:
                paused.set()
                until(lambda: database.borrows()[0].is_ending)
                assert getattr(database, way)(*[-1] * (way == "close_stale")) in (None, 0)
                assert len(database.borrows()) == 1
            finally:
                backend.private.resume()
            assert holder.result(PATIENCE_S)
        assert (database.snapshot().idle, database.snapshot().closed["stale"]) == (0, 1)
        assert adds_up(database)

    def test_a_connection_is_hung_up_without_peewee_s_lock(self) -> None:
        """Whose time was up while it was idle, or in use: nobody waits meanwhile."""
        seen = []

        class Watched(SqlitePool):
            def _close_raw(self, conn: Any) -> None:
                seen.append(self._lock.locked())
                super()._close_raw(conn)

        database = Watched(":memory:", check_same_thread=False)
        with held(database, 2):
            for borrow in database.borrows():
                borrow.link.expires_s = 0.0
        assert seen == [False, False]
        assert adds_up(database)

    def test_another_database_gets_connections_of_its_own(self, tmp_path: Any) -> None:
        """Those of the one before, idle or in use, are not lent again."""
        database: Any = open_database(f"sqlite:///{tmp_path}/one.db")
        with a_table(database), held(database, 2), held(database, 1):
            pass
        with held(database, 1):
            database.init(f"{tmp_path}/two.db")
            assert database.snapshot().idle == 0
        assert (database.snapshot().idle, database.snapshot().total) == (0, 0)
        with database.connection_context():
            assert database.get_tables() == []
        assert adds_up(database)

    def test_the_same_database_again_keeps_its_connections(self, db: Any) -> None:
        """Another limit is no reason to hang up."""
        with db.connection_context():
            pass
        db.init(db.database, max_connections=3)
        assert (db.snapshot().idle, db.snapshot().max) == (1, 3)

    def test_memory_has_no_lifetime(self) -> None:
        """SQLite's data there ends with its connection."""
        database: Any = open_database("sqlite://", max_lifetime_s=1e-9)
        with a_table(database):
            assert rows(database) == 0
        assert adds_up(database)


def test_a_server_that_falls_silent_in_the_tls_handshake_holds_nobody(greeting_port: int) -> None:
    """The connect timeout holds there too."""
    database = open_database(f"mysql://u@127.0.0.1:{greeting_port}/x", connect_timeout_s=1)
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            database.connect()
        except peewee.OperationalError as exc:
            failed.append(exc)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert "handshake" in str(failed)
    assert adds_up(database)


@MYSQL_FAMILY
def test_a_connected_mysql_has_the_timeouts_that_were_asked_for(backend: Any) -> None:
    """None for a long ALTER, unless the URL has one: the connect's own hold for the connect."""
    for query, wanted in (("", (None, None)), ("?read_timeout=70&write_timeout=80", (70, 80))):
        database: Any = open_database(backend.url + query)
        with database.connection_context():
            connection = database.connection()
            assert (connection._read_timeout, connection._write_timeout) == wanted
        database.close_all()


def test_a_close_that_fails_gives_the_connection_up() -> None:
    """Whatever the driver raises there: the slot is free, the connection closed, and the thread has none."""

    class Failing(SqlitePool):
        def _can_reuse(self, conn: Any) -> bool:
            raise AttributeError("on purpose")

    database = Failing(":memory:", max_connections=1, timeout=0.01, check_same_thread=False)
    for _ in range(2):
        database.connect()
        with pytest.raises(AttributeError, match="on purpose"):
            database.close()
        assert database.is_closed()
    assert database.snapshot().closed["bad return"] == 2
    assert adds_up(database)
