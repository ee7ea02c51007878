"""Whatever happens to the server, under load: no thread hangs, no slot is lost, no answer is wrong, and all adds up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import peewee
import pytest
import servers
from borrowing import held, until
from pool_load import PATIENCE_S, Load, account, end_sessions, quarrels, sessions_of
from proxy import Proxy
from sessions import SERVERS

from api.db.connection import open_database
from api.db.dialects.connecting import driver_code
from conftest import Backend

SIZE = 6
WORKERS = 12
ROUNDS = 5


@dataclass
class Scene:
    """A *load* on a pool whose connections lead through *proxy*, as the user *guest* of *backend*'s server."""

    backend: Backend
    proxy: Proxy
    guest: str
    database: Any
    load: Load

    @property
    def server(self) -> servers.Server:
        """The server of the scene, which every engine here has."""
        assert self.backend.server is not None
        return self.backend.server

    def a_refusal(self) -> None:
        """Return when one more dial has been in vain."""
        before = self.load.book.refused
        until(lambda: self.load.book.refused > before)

    def end_sessions(self) -> None:
        """End every session of the load, as an administrator would."""
        end_sessions(self.server, sessions_of(self.server, self.guest))

    def administer(self, postgres: str, mysql: str) -> None:
        """Run the statement for this engine as an administrator."""
        self.server.execute(postgres if self.backend.engine == "postgres" else mysql)


def cut(scene: Scene) -> None:
    """Reset every connection at once."""
    scene.proxy.cut()


def cut_in_the_middle_of_answers(scene: Scene) -> None:
    """Reset each connection after 30 bytes of an answer, until that has met a dial too."""
    scene.proxy.cut_after(30)
    scene.a_refusal()
    scene.proxy.pass_on()


def refuse(scene: Scene) -> None:
    """Be gone, as a machine where nothing listens any more."""
    scene.proxy.refuse()
    scene.proxy.cut()
    scene.a_refusal()
    scene.proxy.pass_on()


def end_every_session(scene: Scene) -> None:
    """Let an administrator end every session."""
    scene.end_sessions()


def close_to_clients(scene: Scene) -> None:
    """End every session, and let nobody in for a while."""
    name = urlsplit(scene.backend.url).path[1:]
    scene.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", f"ALTER USER {scene.guest}@'%' ACCOUNT LOCK")
    scene.end_sessions()
    scene.a_refusal()
    scene.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true", f"ALTER USER {scene.guest}@'%' ACCOUNT UNLOCK")


def allow_too_few(scene: Scene) -> None:
    """Let in three clients of six for a while; whoever has one of them goes on."""
    limit = f"ALTER USER {scene.guest}@'%' WITH MAX_USER_CONNECTIONS "
    scene.administer(f"ALTER ROLE {scene.guest} CONNECTION LIMIT 3", f"{limit} 3")
    scene.end_sessions()
    scene.a_refusal()
    before = scene.load.book.rounds
    until(lambda: scene.load.book.rounds >= before + ROUNDS * WORKERS)
    scene.administer(f"ALTER ROLE {scene.guest} CONNECTION LIMIT -1", f"{limit} 0")


def stall(scene: Scene) -> None:
    """Be a black hole until a borrow has waited in vain."""
    scene.proxy.stall()
    _wait_in_vain(scene)
    scene.proxy.pass_on()


def stop_and_continue(scene: Scene) -> None:
    """Freeze the server and each of its processes, until a borrow has waited in vain."""
    scene.backend.private.pause()
    _wait_in_vain(scene)
    scene.backend.private.resume()


def kill(scene: Scene) -> None:
    """Let the server crash, and start it again after a while."""
    scene.backend.private.kill()
    scene.a_refusal()
    scene.backend.private.start()


def restart(scene: Scene) -> None:
    """Shut the server down, which ends the sessions with a word of farewell, and start it again after a while."""
    scene.backend.private.shut_down()
    scene.a_refusal()
    scene.backend.private.start()


@SERVERS
@pytest.mark.parametrize(
    "fault", [cut, cut_in_the_middle_of_answers, refuse, end_every_session, close_to_clients, allow_too_few]
)
def test_lost_connections_cost_an_error_each(backend: Any, fault: Callable[[Scene], None]) -> None:
    """At most one for each that was in use; then the same pool serves again, and its numbers are exact."""
    with a_scene(backend) as scene:
        _survive(scene, fault, most_errors=SIZE)
        assert scene.database.snapshot().closed["lost"] >= 1


@SERVERS
@pytest.mark.parametrize("fault", [cut, end_every_session])
def test_connections_lost_while_idle_cost_no_error(backend: Any, fault: Callable[[Scene], None]) -> None:
    """Also those returned a moment ago, which are lent again without asking the server."""
    with a_scene(backend, workers=SIZE, validate_after_s=600) as scene:
        with held(scene.database, SIZE) as release:
            before = sessions_of(scene.server, scene.guest)
            release()
            until(lambda: scene.database.snapshot().idle == SIZE)
            fault(scene)
            until(lambda: not set(before).intersection(sessions_of(scene.server, scene.guest)))
        with scene.load:
            scene.load.go_on(ROUNDS)
            book = scene.load.stop()
        assert scene.database.snapshot().closed["lost"] == SIZE
    assert (book.wrong, book.errors.total(), book.refused) == ([], 0, 0)


@pytest.mark.engines("postgres", "mariadb")
@pytest.mark.parametrize("fault", [kill, restart])
def test_a_server_that_comes_back_is_served_from_again(backend: Any, fault: Callable[[Scene], None]) -> None:
    """At most one error for each connection that was in use, and the process need not be started anew."""
    with a_scene(backend) as scene:
        _survive(scene, fault, most_errors=SIZE)
        assert scene.database.snapshot().closed["lost"] >= 1


@SERVERS
def test_a_black_hole_that_ends_costs_no_query(backend: Any) -> None:
    """Who waits for an answer gets the right one after all; who waits for a connection is told in time."""
    with a_scene(backend) as scene:
        _survive(scene, stall, most_errors=0)


@pytest.mark.engines("postgres", "mariadb")
def test_a_server_that_was_stopped_goes_on_as_if_nothing_had_been(backend: Any) -> None:
    """Who waits for an answer gets the right one after all; who waits for a connection is told in time."""
    with a_scene(backend) as scene:
        _survive(scene, stop_and_continue, most_errors=0)


@SERVERS
def test_a_dial_into_a_black_hole_holds_up_nobody_else(backend: Any) -> None:
    """It is still at it when others have borrowed, asked and returned a hundred times."""
    with a_scene(backend, workers=4, connect_timeout_s=60) as scene, ThreadPoolExecutor(max_workers=1) as thread:
        database = scene.database
        with held(database, 4):
            scene.proxy.hold()
            stuck = thread.submit(database.connection_context().__enter__)
            until(lambda: scene.proxy.accepted == 5)
        with scene.load:
            scene.load.go_on(25)
            assert (stuck.done(), database.snapshot().pending >= 1) == (False, True)
            book = scene.load.stop()
        scene.proxy.pass_on()
        stuck.result(PATIENCE_S)
        thread.submit(database.close).result(PATIENCE_S)
    assert (book.wrong, book.errors.total(), book.refused) == ([], 0, 0)


@SERVERS
def test_a_return_into_a_black_hole_holds_up_nobody_else(backend: Any) -> None:
    """Its ROLLBACK is still unanswered when others have borrowed and returned a hundred times."""
    with a_scene(backend, connect_timeout_s=60, validate_after_s=600) as scene, ThreadPoolExecutor(1) as thread:
        database = scene.database
        with held(database, 2):
            pass
        thread.submit(database.connect).result(PATIENCE_S)
        thread.submit(database.execute_sql, "BEGIN").result(PATIENCE_S)
        scene.proxy.stall()
        stuck = thread.submit(database.close)
        for _ in range(100):
            database.connect()
            database.close()
        assert not stuck.done()
        scene.proxy.pass_on()
        assert stuck.result(PATIENCE_S)
        now = database.snapshot()
    assert (now.active, now.idle, sum(now.closed.values())) == (0, 2, 0)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_callers_in_a_black_hole_time_out_side_by_side(scheme: str) -> None:
    """All of them dial before the first one's time is up, nobody dials again, and whoever waits behind is told."""
    with Proxy("127.0.0.1", 9) as proxy, ThreadPoolExecutor(max_workers=WORKERS) as threads:
        proxy.stall()
        database: Any = open_database(
            f"{scheme}://u@127.0.0.1:{proxy.port}/x", pool_max=SIZE, pool_timeout_s=60, connect_timeout_s=3
        )
        callers: list[Future[Any]] = [threads.submit(database.connect) for _ in range(WORKERS)]
        until(lambda: proxy.accepted == SIZE)
        until(lambda: database.snapshot().waiting == WORKERS - SIZE)
        assert (database.snapshot().pending, [caller for caller in callers if caller.done()]) == (WORKERS, [])
        errors = [caller.exception(PATIENCE_S) for caller in callers]
        assert all(isinstance(error, peewee.OperationalError) for error in errors)
        # At the most one knocks anew for those who wait, while the others are told without.
        assert database.snapshot().connect_errors == proxy.accepted <= SIZE + 1
        assert (database.snapshot().pending, database._slots.taken) == (0, 0)


@SERVERS
@pytest.mark.parametrize("how", ["ended by an administrator", "cut off"])
def test_a_transaction_lost_in_mid_query_is_not_tried_again(backend: Any, how: str) -> None:
    """It ends in the reason that server or driver gave, and leaves nothing behind."""
    sleep = "SELECT pg_sleep(600)" if backend.engine == "postgres" else "SELECT SLEEP(600)"
    with a_scene(backend) as scene, ThreadPoolExecutor(max_workers=1) as thread:
        lost = thread.submit(_sleep_in_a_transaction, scene.database, sleep)
        until(lambda: bool(sessions_of(scene.server, scene.guest, sleep)))
        if how == "cut off":
            scene.proxy.cut()
        else:
            scene.end_sessions()
        error = lost.exception(PATIENCE_S)
        assert isinstance(error, peewee.OperationalError)
        if backend.engine != "postgres":
            assert driver_code(error) in (1927, 2013)
        elif how == "cut off":
            assert "connection" in str(error)
        else:
            assert str(error).count("terminating connection due to administrator command") == 1
        with closing(servers.connect(backend.url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT COUNT(*) FROM tally")
            assert cursor.fetchone() == (0,)
        assert scene.database.snapshot().requests == 1


def _sleep_in_a_transaction(database: Any, sleep: str) -> None:
    try:
        database.connect()
        with database.atomic():
            database.execute_sql("INSERT INTO tally VALUES (0, 0)")
            database.execute_sql(sleep)
            database.execute_sql("INSERT INTO tally VALUES (1, 0)")
    finally:
        database.close()


def _survive(scene: Scene, fault: Callable[[Scene], None], *, most_errors: int) -> None:
    with scene.load:
        scene.load.go_on(ROUNDS)
        fault(scene)
        scene.load.go_on(ROUNDS)
        book = scene.load.stop()
    assert book.wrong == []
    assert quarrels(scene.database, book) == []
    assert book.errors.total() <= most_errors, book.errors


def _wait_in_vain(scene: Scene) -> None:
    before = scene.load.book.timeouts
    until(lambda: scene.database.snapshot().active == SIZE and scene.load.book.timeouts > before)


@contextmanager
def a_scene(backend: Backend, *, workers: int = WORKERS, connect_timeout_s: int = 3, **pool: Any) -> Iterator[Scene]:
    """Give a load that has not begun, on a pool of six, as a user of its own."""
    parts = urlsplit(backend.url)
    assert backend.server is not None
    assert parts.port is not None
    with account(backend.server, backend.url) as guest, Proxy("127.0.0.1", parts.port) as proxy:
        url = parts._replace(netloc=f"{guest}:{guest}@127.0.0.1:{proxy.port}").geturl()
        options = {"pool_max": SIZE, "pool_timeout_s": 0.5, "connect_timeout_s": connect_timeout_s} | pool
        database: Any = open_database(url, **options)
        try:
            yield Scene(backend, proxy, guest, database, Load(database, backend.url, workers))
        finally:
            backend.server.ensure_running()
            proxy.pass_on()
            database.close_all()
