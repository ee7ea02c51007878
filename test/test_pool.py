"""The pool counts right whatever is done to it, is fair, and makes nobody wait for another one's trouble."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import peewee
import pytest
from borrowing import PATIENCE_S, held, locks_held, until, waiting
from playhouse.pool import MaxConnectionsExceeded
from proxy import Proxy
from sessions import SERVERS, end_session, session_number

from api.db.connection import SqlitePool, open_database
from api.db.pool import pool_limits, snapshot_of
from api.db.pool_gate import ConnectPostponed
from api.db.pool_numbers import ENDPOINT, PoolTimeout
from api.db.pool_queue import Place
from api.logs import bind_correlation_id


@contextmanager
def a_table(database: peewee.Database) -> Iterator[None]:
    """Let *database* have an empty table ``item``."""
    with database.connection_context():
        database.execute_sql("CREATE TABLE item (id INTEGER)")
    yield


def rows(database: peewee.Database) -> int:
    """Return how many items another borrower sees."""
    with database.connection_context():
        return int(database.execute_sql("SELECT COUNT(*) FROM item").fetchone()[0])


def adds_up(database: peewee.Database) -> bool:
    """Say whether nobody has a connection or a slot, and every number agrees with every other one."""
    now = database.snapshot()
    assert (now.active, now.pending, now.waiting) == (0, 0, 0)
    assert now.borrowed == now.returned == now.wait.count == now.use.count
    assert now.created == now.create.count == now.idle + sum(now.closed.values())
    assert now.requests >= now.borrowed + now.timeouts
    assert database._slots.taken == 0
    return True


class TestNumbers:
    """What is counted is what happened."""

    def test_a_borrow_and_its_return_are_counted(self, backend: Any) -> None:
        """One connection in use, then idle; one borrow, one return."""
        database = backend.database(pool_max=5)
        with held(database, 2):
            now = database.snapshot()
            assert (now.max, now.active, now.idle, now.total, now.borrowed, now.returned) == (5, 2, 0, 2, 2, 0)
        now = database.snapshot()
        assert (now.active, now.idle, now.total, now.borrowed, now.returned, now.created) == (0, 2, 2, 2, 2, 2)
        assert adds_up(database)

    def test_a_full_pool_says_how_many_wait(self, backend: Any) -> None:
        """Three threads behind a pool of two are three waiters, and none once all are served."""
        database = backend.database(pool_max=2)
        with held(database, 2) as release, waiting(database, 3) as waiters:
            now = database.snapshot()
            assert (now.active, now.waiting, now.pending, now.queued) == (2, 3, 3, 3)
            assert now.oldest_wait_s > 0
            assert not any(waiter.done() for waiter in waiters)
            release()
        assert all(waiter.result() for waiter in waiters)
        now = database.snapshot()
        assert (now.borrowed, now.returned, now.timeouts, now.oldest_wait_s) == (5, 5, 0, 0)
        assert adds_up(database)

    def test_a_wait_in_vain_explains_itself(self, backend: Any) -> None:
        """The error has the numbers and the holders, says what to do, stays playhouse's, and is counted."""
        database = backend.database(pool_max=1, pool_timeout_s=0.05)
        with held(database, 1), pytest.raises(MaxConnectionsExceeded) as caught:
            database.connect()
        error = caught.value
        assert isinstance(error, PoolTimeout)
        assert "came free within 0.05 s: 1 of 1 in use, 0 idle" in str(error)
        assert f"held longest by {error.holders[0]}" in str(error)
        assert "raise DB_POOL_MAX" in str(error)
        assert (error.snapshot.active, error.last_connect_error) == (1, None)
        now = database.snapshot()
        assert (now.timeouts, now.waiting, now.borrowed, now.returned) == (1, 0, 1, 1)
        assert database.alarm.is_set()
        assert adds_up(database)

    def test_the_error_names_three_holders_the_longest_first(self, backend: Any) -> None:
        """Who has had a connection longest is where to look."""
        database = backend.database(pool_max=4, pool_timeout_s=0.01)
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(held(database, 1))
            names = [str(borrow) for borrow in database.borrows()]
            with pytest.raises(PoolTimeout) as caught:
                database.connect()
        assert [text.rpartition(" s")[0].rpartition(" ")[0] for text in caught.value.holders] == names
        assert str(caught.value).count(" s,") == 2

    def test_a_wait_of_a_second_sounds_the_alarm(self, backend: Any) -> None:
        """Before it has failed: whoever watches the pool is woken."""
        database = backend.database(pool_max=1)
        with held(database, 1) as release, waiting(database, 1):
            assert database.alarm.wait(PATIENCE_S)
            assert database.snapshot().timeouts == 0
            release()

    def test_a_borrow_says_whose_it_is(self, db: peewee.Database) -> None:
        """Thread, endpoint, correlation id, and since when."""
        db.close()
        token = ENDPOINT.set("tasks.create")
        try:
            correlation_id = bind_correlation_id("req-7")
            db.connect()
        finally:
            ENDPOINT.reset(token)
        (borrow,) = db.borrows()
        assert (borrow.thread, borrow.endpoint, borrow.correlation_id) == (
            threading.current_thread(),
            "tasks.create",
            correlation_id,
        )
        assert str(borrow) == "tasks.create req-7 (MainThread)"

    def test_borrows_are_told_oldest_first(self, backend: Any) -> None:
        """The one to look at is on top."""
        database = backend.database()
        with held(database, 3):
            ages = [borrow.since_s for borrow in database.borrows()]
        assert ages == sorted(ages)
        assert database.borrows() == []

    def test_the_peak_is_that_of_the_interval(self, backend: Any) -> None:
        """A burst between two samples is seen by the second, and not by the third."""
        database = backend.database()
        with held(database, 3):
            pass
        assert [database.snapshot(sample=True).peak for _ in range(2)] == [3, 0]

    def test_a_thread_that_is_connected_is_not_counted_again(self, db: peewee.Database) -> None:
        """Asking again for the connection one has borrows nothing."""
        assert db.connect(reuse_if_open=True) is False
        with pytest.raises(peewee.OperationalError, match="already opened"):
            db.connect()
        assert (db.snapshot().borrowed, db.snapshot().requests) == (1, 1)

    def test_a_server_that_refuses_is_no_borrow(self) -> None:
        """A connect that fails is counted as that, and holds nothing: the next one has the slot."""
        database = open_database("postgresql://nobody@127.0.0.1:1/none", pool_max=1, pool_timeout_s=0.01)
        for _ in range(3):
            with pytest.raises(peewee.OperationalError, match="refused"):
                database.connect()
        now = database.snapshot()
        assert (now.borrowed, now.active, now.requests) == (0, 0, 3)
        assert now.connect_errors >= 1
        assert "refused" in str(now.last_connect_error)
        assert adds_up(database)

    def test_each_request_ends_in_one_way(self, backend: Any) -> None:
        """Borrowed, timed out, refused by the server or not dialled at all: together all that asked."""
        database = open_database("postgresql://nobody@127.0.0.1:1/none")
        errors: list[Exception] = []
        while len(errors) < 50 or {type(error) for error in errors} != {peewee.OperationalError, ConnectPostponed}:
            with pytest.raises(peewee.OperationalError) as caught:
                database.connect()
            errors.append(caught.value)
        now = database.snapshot()
        assert now.postponed == sum(isinstance(error, ConnectPostponed) for error in errors)
        assert now.requests == len(errors) == now.connect_errors + now.postponed
        database = backend.database(pool_max=1, pool_timeout_s=0.01)
        with held(database, 1), pytest.raises(PoolTimeout):
            database.connect()
        now = database.snapshot()
        assert now.requests == now.borrowed + now.timeouts == 2

    def test_the_last_connect_error_has_an_age(self) -> None:
        """The error of a busy pool does not make an outage of long ago its reason."""
        database = open_database("postgresql://nobody@127.0.0.1:1/none", pool_max=1, pool_timeout_s=0.01)
        assert database.snapshot().last_connect_error_age_s is None
        with pytest.raises(peewee.OperationalError):
            database.connect()
        first = database.snapshot().last_connect_error_age_s
        assert 0 <= first <= database.snapshot().last_connect_error_age_s
        database._slots.take(Place())
        with pytest.raises(PoolTimeout, match=r"last connect error, \d+ s ago: .*refused"):
            database.connect()

    def test_the_error_of_a_wait_in_vain_can_be_sent_to_another_process(self, backend: Any) -> None:
        """With its numbers and its text."""
        database = backend.database(pool_max=1, pool_timeout_s=0.01)
        with held(database, 1), pytest.raises(PoolTimeout) as caught:
            database.connect()
        sent: PoolTimeout = pickle.loads(pickle.dumps(caught.value))
        assert (str(sent), sent.snapshot, sent.holders) == (
            str(caught.value),
            caught.value.snapshot,
            caught.value.holders,
        )

    def test_a_connect_that_breaks_half_way_holds_nothing(self) -> None:
        """An error after the socket is open leaves this thread unconnected, and the connection closed."""

        class Breaking(SqlitePool):
            def _initialize_connection(self, conn: Any) -> None:
                conn.execute("SELECT gone")

        database = Breaking(":memory:", max_connections=1, timeout=0.01, check_same_thread=False)
        for _ in range(2):
            with pytest.raises(peewee.OperationalError, match="no such column"):
                database.connect()
        assert database.is_closed()
        assert database.snapshot().closed["bad return"] == 2
        assert adds_up(database)

    def test_counts_add_up_under_threads(self, backend: Any) -> None:
        """Eight threads that borrow fifty times each from a pool of three make four hundred, exactly."""
        database = backend.database(pool_max=3, validate_after_s=0)

        def borrow_often(_: int) -> None:
            for _ in range(50):
                with database.connection_context():
                    database.execute_sql("SELECT 1").fetchone()

        with ThreadPoolExecutor(max_workers=8) as threads:
            list(threads.map(borrow_often, range(8)))
        assert database.snapshot().borrowed == 400
        assert database.snapshot().created <= 3
        assert adds_up(database)

    def test_numbers_are_read_while_every_lock_is_held(self, db: peewee.Database) -> None:
        """Whatever hangs with the locks in its hand does not hang those who look."""
        with ThreadPoolExecutor(max_workers=1) as threads, locks_held(db):
            assert threads.submit(db.snapshot, sample=True).result(timeout=PATIENCE_S).active == 1
            assert len(threads.submit(db.borrows).result(timeout=PATIENCE_S)) == 1

    def test_a_database_without_a_pool_has_no_limit(self) -> None:
        """Of a plain peewee database only this thread's connection is known, and that is said by None and nought."""
        database = peewee.SqliteDatabase(":memory:")
        with database:
            now = snapshot_of(database)
        assert (now.max, now.active, now.borrowed) == (None, 1, 0)
        assert pool_limits(database) == (None, None)

    def test_limits_are_those_the_pool_was_opened_with(self) -> None:
        """The size and the wait in seconds, as asked for."""
        assert pool_limits(open_database("sqlite://", pool_max=7, pool_timeout_s=1.5)) == (7, 1.5)

    def test_its_name_is_where_it_leads(self) -> None:
        """Host, port and database, the port also where the URL leaves it out; no user, no password."""
        assert snapshot_of(open_database("postgresql://u:SECRET@host/shop")).name == "host:5432/shop"
        assert snapshot_of(open_database("mysql://u:SECRET@host:3307/shop")).name == "host:3307/shop"
        assert snapshot_of(open_database("sqlite:////srv/shop.db")).name == "/srv/shop.db"


class TestWaiting:
    """First come, first served, whichever way a connection comes free."""

    def test_who_came_first_is_served_first(self, backend: Any) -> None:
        """Five threads that came one after the other are served in that order."""
        database, served = backend.database(pool_max=1), []

        def borrow(number: int) -> None:
            with database.connection_context():
                served.append(number)

        with ThreadPoolExecutor(max_workers=5) as threads, held(database, 1) as release:
            for number in range(5):
                threads.submit(borrow, number)
                until(lambda number=number: database.snapshot().waiting == number + 1)  # type: ignore[misc]
            release()
        assert served == [0, 1, 2, 3, 4]

    def test_nobody_overtakes_the_line(self, backend: Any) -> None:
        """A thread that returns and asks again at once goes to the end of the line."""
        database, order = backend.database(pool_max=1), []

        def wait_for_it() -> None:
            with database.connection_context():
                order.append("waiter")

        database.connect()
        with ThreadPoolExecutor(max_workers=1) as threads:
            threads.submit(wait_for_it)
            until(lambda: database.snapshot().waiting == 1)
            database.close()
            with database.connection_context():
                order.append("holder")
        assert order == ["waiter", "holder"]

    @pytest.mark.parametrize("way", ["close", "manual_close", "close_all", "dispose"])
    def test_every_way_to_give_a_connection_up_wakes_the_next(self, backend: Any, way: str) -> None:
        """Returned, thrown away, closed with all the others or forgotten: the waiter has the slot."""
        db = backend.database(pool_max=1)
        db.connect()
        with waiting(db, 1) as (waiter,):
            getattr(db, way)()
        assert waiter.result()
        assert db._slots.taken == 0

    @pytest.mark.engines("postgres", "mariadb", "mysql")
    def test_taking_a_stale_connection_away_wakes_the_next(self, backend: Any) -> None:
        """What an age limit takes from its holder is returned; the holder's own close is not a second return."""
        database = backend.database(pool_max=1)
        with held(database, 1), waiting(database, 1) as (waiter,):
            assert database.close_stale(age=-1) == 1
        assert waiter.result()
        assert database.snapshot().closed["stale"] == 1
        assert adds_up(database)

    @pytest.mark.engines("sqlite")
    @pytest.mark.parametrize("way", ["close_all", "close_stale"])
    def test_sqlite_closes_what_is_in_use_at_its_return(self, backend: Any, way: str) -> None:
        """Closed under the thread that uses it, it would end the process."""
        database = backend.database()
        with held(database, 1):
            getattr(database, way)(*[-1] * (way == "close_stale"))
            assert database.snapshot().active == 1
        assert (database.snapshot().total, database.snapshot().closed["stale"]) == (0, 1)
        assert adds_up(database)

    @pytest.mark.engines("postgres", "mariadb", "mysql")
    def test_what_was_dialled_at_the_old_place_is_lent_once(self, backend: Any) -> None:
        """init() leads elsewhere while a dial is under way: who asked before has it, and nobody after."""
        database = backend.database()
        new = dict(database.connect_params)
        with Proxy(new["host"], new["port"]) as proxy:
            database.init(database.database, **new | {"port": proxy.port})
            proxy.stall()
            with ThreadPoolExecutor(max_workers=1) as threads:
                asked = threads.submit(database.connect)
                until(lambda: database.snapshot().pending == 1)
                database.init(database.database, **new)
                proxy.pass_on()
                assert asked.result(PATIENCE_S)
                threads.submit(database.close).result(PATIENCE_S)
            assert (database.snapshot().idle, database.snapshot().closed["stale"]) == (0, 1)

    @pytest.mark.engines("postgres", "mariadb", "mysql")
    def test_a_gate_is_closed_for_its_own_place_only(self, backend: Any) -> None:
        """init() to a server that lives connects at once, whatever the one before did."""
        database = backend.database()
        good = dict(database.connect_params)
        database.init(database.database, **good | {"port": 1})
        for _ in range(6):
            with pytest.raises(peewee.OperationalError):
                database.connect()
        database.init(database.database, **good)
        database.connect()
        database.close()

    def test_a_larger_limit_serves_who_waits(self, backend: Any) -> None:
        """Without a word from those who have a connection."""
        database = backend.database(pool_max=1)
        with held(database, 1), waiting(database, 2) as waiters:
            database.init(database.database, max_connections=2)
            assert all(waiter.result(PATIENCE_S) for waiter in waiters)
        assert adds_up(database)


class TestReturning:
    """A slot comes back whatever happened to its connection, and the next borrower finds nothing of the last."""

    @pytest.mark.parametrize("way", ["close", "manual_close", "close_all"])
    def test_every_way_to_give_up_a_connection_counts_as_a_return(self, db: peewee.Database, way: str) -> None:
        """Returned, thrown away, or closed with all the others: borrowed and returned agree."""
        assert getattr(db, way)() is not False
        now = db.snapshot()
        assert (now.borrowed, now.returned, now.active, now.idle) == (1, 1, 0, int(way == "close"))
        assert adds_up(db)

    def test_a_transaction_left_open_is_rolled_back(self, backend: Any) -> None:
        """What was begun past peewee does not meet the next borrower, who gets the same connection."""
        database = backend.database(pool_max=1)
        with a_table(database):
            with database.connection_context():
                database.execute_sql("BEGIN")
                database.execute_sql("INSERT INTO item (id) VALUES (1)")
            assert rows(database) == 0
        assert database.snapshot().created == 1

    @pytest.mark.parametrize("way", ["close", "manual_close", "close_all"])
    def test_a_connection_in_a_transaction_stays_and_counts(self, db: peewee.Database, way: str) -> None:
        """peewee refuses; the connection is still in use, and still said to be."""
        with db.atomic():
            with pytest.raises(peewee.OperationalError, match="transaction is open"):
                getattr(db, way)()
            assert db.snapshot().active == 1
            assert db.execute_sql("SELECT 1").fetchone() == (1,)
        db.close()
        assert adds_up(db)

    @SERVERS
    def test_a_connection_lost_in_a_transaction_frees_its_slot(self, backend: Any, db: peewee.Database) -> None:
        """The rollback fails, and the close that follows counts the connection as lost."""
        with suppress(peewee.PeeweeException), db.atomic():
            end_session(backend, session_number(db))
            db.execute_sql("SELECT 1")
        db.close()
        assert db.snapshot().closed["lost"] == 1
        assert adds_up(db)

    @SERVERS
    def test_a_session_that_ended_unnoticed_in_a_transaction_is_not_lent_again(self, backend: Any) -> None:
        """The rollback at the return finds out."""
        database = backend.database()
        with database.connection_context():
            database.execute_sql("BEGIN")
            end_session(backend, session_number(database))
        assert database.snapshot().idle == 0
        assert adds_up(database)

    @SERVERS
    def test_a_connection_without_autocommit_is_not_lent_again(self, backend: Any, db: peewee.Database) -> None:
        """The next borrower's writes would wait for a COMMIT that nobody sends."""
        if backend.engine == "postgres":
            db.connection().autocommit = False
        else:
            db.execute_sql("SET autocommit = 0")
        db.close()
        assert db.snapshot().closed["bad return"] == 1

    def test_idle_connections_are_closed_and_counted(self, backend: Any) -> None:
        """Closed by hand, and no slot is freed that nobody had."""
        database = backend.database(pool_max=2)
        with held(database, 2):
            pass
        database.close_idle()
        assert (database.snapshot().idle, database.snapshot().closed["manual"]) == (0, 2)
        assert adds_up(database)

    def test_dispose_forgets_connections_and_numbers(self, db: peewee.Database) -> None:
        """Nothing is closed, nothing is counted, and the pool works on."""
        db.dispose()
        now = db.snapshot()
        assert (now.active, now.idle, now.pending, now.borrowed, now.returned, now.created) == (0, 0, 0, 0, 0, 0)
        with db.connection_context():
            assert db.snapshot().active == 1

    def test_a_dead_thread_s_connection_can_be_reclaimed(self, backend: Any) -> None:
        """Its slot is free, its connection closed and counted as an orphan, once."""
        database = backend.database(pool_max=1, pool_timeout_s=0.01)
        thread = threading.Thread(target=database.connect)
        thread.start()
        thread.join()
        (borrow,) = database.borrows()
        assert [database.reclaim(borrow) for _ in range(2)] == [True, False]
        assert database.snapshot().closed["orphan"] == 1
        assert adds_up(database)

    def test_a_living_thread_s_connection_is_never_reclaimed(self, db: peewee.Database) -> None:
        """However long it has been held."""
        (borrow,) = db.borrows()
        assert db.reclaim(borrow) is False
        assert db.execute_sql("SELECT 1").fetchone() == (1,)


class TestLending:
    """What is lent lives, and costs no more round trips than that takes."""

    @SERVERS
    def test_a_connection_returned_just_now_is_lent_without_a_question(self, backend: Any) -> None:
        """Neither the borrow nor the return sends anything."""
        database = backend.database(validate_after_s=600)
        last_seen = "SELECT query FROM pg_stat_activity WHERE pid = {}"
        if backend.engine != "postgres":
            last_seen = "SHOW SESSION STATUS LIKE 'Questions'"
        with database.connection_context():
            number = session_number(database)
            first = database.execute_sql(last_seen.format(number)).fetchone()
        with database.connection_context():
            if backend.engine == "postgres":
                ((query,),) = backend.server.execute(last_seen.format(number))
                assert query == last_seen.format(number)
            else:
                second = database.execute_sql(last_seen).fetchone()
                assert int(second[1]) - int(first[1]) == 1

    @SERVERS
    def test_a_connection_idle_for_long_must_answer(self, backend: Any) -> None:
        """It has got a question by the time it is lent."""
        database = backend.database(validate_after_s=0)
        with database.connection_context():
            number = session_number(database)
            before = database.snapshot().created
        with database.connection_context():
            if backend.engine == "postgres":
                asked = backend.server.execute(f"SELECT query FROM pg_stat_activity WHERE pid = {number}")
                assert asked == [("SELECT 1",)]
            else:
                row = database.execute_sql("SHOW SESSION STATUS LIKE 'Com_admin_commands'").fetchone()
                assert int(row[1]) == 1
        assert database.snapshot().created == before

    @SERVERS
    @pytest.mark.parametrize("validate_after_s", [0, 600])
    def test_a_session_that_ended_while_idle_is_not_lent(self, backend: Any, validate_after_s: float) -> None:
        """Also where no question is asked: an idle session that says something has ended."""
        database = backend.database(validate_after_s=validate_after_s)
        with held(database, 3):
            sessions = [borrow.link.connection for borrow in database.borrows()]
        numbers = [c.get_backend_pid() if backend.engine == "postgres" else c.thread_id() for c in sessions]
        for number in numbers:
            end_session(backend, number)
        with database.connection_context():
            assert session_number(database) not in numbers
        assert database.snapshot().closed["lost"] == 3
        assert adds_up(database)

    @pytest.mark.engines("postgres")
    def test_a_notification_does_not_cost_a_connection(self, backend: Any) -> None:
        """Something came in on an idle connection: it is asked, and lives."""
        database = backend.database()
        with database.connection_context():
            number = session_number(database)
            database.execute_sql("LISTEN news")
        other = backend.database()
        with other.connection_context():
            other.execute_sql("NOTIFY news")
        with database.connection_context():
            assert session_number(database) == number

    def test_no_connection_outlives_its_time(self, backend: Any) -> None:
        """One that is too old when it comes back, or when it is next, is closed as stale."""
        database = backend.database(max_lifetime_s=600)
        with database.connection_context():
            (borrow,) = database.borrows()
            borrow.link.expires_s = 0
        assert (database.snapshot().idle, database.snapshot().closed["stale"]) == (0, 1)
        with database.connection_context():
            (borrow,) = database.borrows()
        borrow.link.expires_s = 0
        with database.connection_context():
            assert database.snapshot().closed["stale"] == 2
        assert adds_up(database)

    def test_old_connections_at_the_bottom_are_closed_by_those_who_return(self, backend: Any) -> None:
        """In quiet hours nobody would borrow them, and they would stay."""
        database = backend.database()
        with held(database, 3):
            links = [borrow.link for borrow in database.borrows()]
        for link in links:
            link.expires_s = 0
        links[0].expires_s = float("inf")
        until(lambda: _borrow_once(database) and database.snapshot().idle == 1)
        assert adds_up(database)

    def test_connections_opened_together_do_not_end_together(self, backend: Any) -> None:
        """Each has a lifetime of its own, up to a tenth shorter than the one that was set."""
        database = backend.database(max_lifetime_s=1000)
        with held(database, 5):
            ends = sorted(b.link.expires_s for b in database.borrows())
            births = sorted(b.since_s for b in database.borrows())
        assert all(first != second for first, second in pairwise(ends))
        assert births[0] + 899 < ends[0] <= ends[-1] < births[-1] + 1001

    def test_the_connection_returned_last_is_lent_first(self, backend: Any) -> None:
        """So that the others may grow old, and what is lent is warm."""
        database = backend.database()
        with database.connection_context(), held(database, 1):
            mine = database.connection()
        with database.connection_context():
            assert database.connection() is mine


class TestTrouble:
    """A server that hangs costs each caller its own connect timeout, and nobody anything else."""

    @pytest.mark.engines("postgres", "mariadb")
    def test_nobody_waits_for_another_one_s_dial(self, backend: Any) -> None:
        """While one thread dials a server that is stopped, another returns, and is counted."""
        database = backend.database(connect_timeout_s=20)
        database.connect()
        with ThreadPoolExecutor(max_workers=1) as threads:
            backend.private.pause()
            try:
                dialling = threads.submit(_borrow_once, database)
                until(lambda: database.snapshot().pending == 1)
                database.close()
                now = database.snapshot()
                assert (now.active, now.idle, now.pending, now.waiting) == (0, 1, 1, 0)
                database.connect()
                assert not dialling.done()
            finally:
                backend.private.resume()
            assert dialling.result(PATIENCE_S)
        database.close()
        assert adds_up(database)

    @pytest.mark.engines("postgres", "mariadb")
    def test_an_idle_connection_to_a_stopped_server_holds_nobody_for_ever(self, backend: Any) -> None:
        """It must answer within the connect timeout; the caller pays for one of them, not for all."""
        database = backend.database(connect_timeout_s=2, validate_after_s=0)
        with held(database, 3):
            pass
        backend.private.pause()
        try:
            with pytest.raises(peewee.OperationalError):
                database.connect()
        finally:
            backend.private.resume()
        assert (database.snapshot().closed["lost"], database.snapshot().idle) == (1, 2)
        until(lambda: _borrow_once(database))
        assert adds_up(database)

    @pytest.mark.engines("postgres", "mariadb")
    def test_a_return_to_a_stopped_server_ends_too(self, backend: Any) -> None:
        """The rollback that gets no answer costs the connection."""
        database = backend.database(connect_timeout_s=2)
        database.connect()
        database.execute_sql("BEGIN")
        backend.private.pause()
        try:
            database.close()
        finally:
            backend.private.resume()
        assert database.snapshot().idle == 0
        assert adds_up(database)

    @pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
    def test_callers_fail_together_not_one_after_the_other(self, silent_port: int, scheme: str) -> None:
        """Two dial, four wait behind them; when the two have failed, the others are told and dial no more."""
        database = open_database(
            f"{scheme}://u@127.0.0.1:{silent_port}/x", pool_max=2, pool_timeout_s=60, connect_timeout_s=2
        )
        with ThreadPoolExecutor(max_workers=6) as threads:
            callers: list[Future[Any]] = [threads.submit(database.connect) for _ in range(6)]
        assert all(isinstance(caller.exception(), peewee.OperationalError) for caller in callers)
        assert database.snapshot().connect_errors < 6
        assert database.snapshot().timeouts == 0
        assert adds_up(database)

    def test_a_dial_that_is_broken_off_frees_its_slot(self) -> None:
        """An interrupt is no failure of the server: the gate stays open, and the next borrow has the slot."""

        class Interrupted(SqlitePool):
            def _add_conn_hooks(self, conn: Any) -> None:
                raise KeyboardInterrupt

        database = Interrupted(":memory:", max_connections=1, timeout=0.01, check_same_thread=False)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                database.connect()
        assert database.snapshot().connect_errors == 0
        assert adds_up(database)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Give a port that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def _borrow_once(database: peewee.Database) -> bool:
    try:
        with database.connection_context():
            return bool(database.execute_sql("SELECT 1").fetchone())
    except peewee.OperationalError:
        return False
