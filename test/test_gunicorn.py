"""The pool under real gunicorn: workers that boot, are replaced, drain, end and are killed while requests come."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from borrowing import until
from gunicorn_app import ENDS
from prometheus_client.parser import text_string_to_metric_families
from serving import GIVE_UP_AFTER_S, GUNICORN, LISTENING, Server, serving
from sessions import SERVERS

from api.db.lease import SESSIONS

if TYPE_CHECKING:
    from conftest import Backend

CLIENTS = 8
# Fewer than a worker's threads: they have to wait for each other.
POOL_MAX = 3
BOOTED = '"event": "booted"'
# A worker that is told to end before it listens to signals does not hear it: gunicorn kills it after this time.
MORE = ("--pythonpath", "test", "--graceful-timeout", "10")
HOOKS = ("--config", "python:api.web.gunicorn_hooks")
KINDS: dict[str, tuple[str, ...]] = {
    "sync": (*HOOKS, "--worker-class", "sync"),
    "gthread": (*HOOKS, "--worker-class", "gthread", "--threads", "4"),
    "gevent": (*HOOKS, "--worker-class", "gevent"),
}
PATCHED = ("--config", "test/gunicorn_gevent.py", "--worker-class", "gevent", "--preload")
PRELOADED: dict[str, tuple[str, ...]] = {
    "sync": (*KINDS["sync"], "--preload"),
    "gthread": (*KINDS["gthread"], "--preload"),
    "gevent": PATCHED,
}
ON_POSTGRES = pytest.mark.engines("postgres")
ON_MARIADB = pytest.mark.engines("mariadb", "mysql")
SQL_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'plinth' AND datname = '{}'"


@contextmanager
def gunicorn(
    backend: Backend, *arguments: str, workers: int = 2, in_use: bool = False, **settings: str
) -> Iterator[Server]:
    """Run gunicorn on the app of the tests; *in_use*: on one that its master has used and uses still."""
    app = "gunicorn_app:build_in_use()" if in_use else "gunicorn_app:build()"
    command = (*GUNICORN, *MORE, "--workers", str(workers), *arguments, app)
    with serving(command, backend.url, DB_POOL_MAX=str(POOL_MAX), **settings) as server:
        server.address = server.read_until(LISTENING)[1]
        server.read_until("Booting worker" if "--preload" in arguments else BOOTED, times=workers)
        yield server


@dataclass
class Load:
    """Requests of many clients, and what became of them: an answer of rows, all of them right, or *lost*."""

    address: str
    views: tuple[str, ...] = ("answer", "held", "rows")
    answers: list[list[dict[str, int]]] = field(default_factory=list)
    lost: list[OSError | http.client.HTTPException] = field(default_factory=list)

    def send(self, view: str) -> None:
        """Ask *view* for a number that no other request asks for, over a connection of its own."""
        number = random.randrange(10**15)
        connection = http.client.HTTPConnection(self.address, timeout=GIVE_UP_AFTER_S)
        try:
            connection.request("GET", f"/{view}/{number}")
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as exc:
            self.lost.append(exc)
            return
        finally:
            connection.close()
        assert response.status == 200, body
        rows = json.loads(body)
        assert {row["answer"] for row in rows} == {number}
        assert len({(row["session"], row["pid"]) for row in rows}) == 1
        self.answers.append(rows)

    def run(self, count: int, meanwhile: Callable[[], Any] = int) -> None:
        """Send *count* requests, and do something *meanwhile*, when a quarter of them is through."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            sent = [clients.submit(self.send, self.views[number % len(self.views)]) for number in range(count)]
            until(lambda: sum(each.done() for each in sent) >= count // 4)
            meanwhile()
        for each in sent:
            each.result()

    def run_until(self, is_enough: Callable[[], Any]) -> None:
        """Send requests until *is_enough*."""

        def send_and_see() -> bool:
            self.run(CLIENTS * 4)
            return bool(is_enough())

        until(send_and_see)

    @property
    def rows(self) -> list[dict[str, int]]:
        """The rows of all answers."""
        return [row for rows in self.answers for row in rows]

    @property
    def pids(self) -> set[int]:
        """The workers that answered."""
        return {row["pid"] for row in self.rows}

    def sessions_of(self, pid: int) -> set[int]:
        """Return the server sessions through which worker *pid* answered."""
        return {row["session"] for row in self.rows if row["pid"] == pid}


def server_sessions(backend: Backend) -> set[int]:
    """Return the sessions that the server has on the backend's database."""
    assert backend.server
    name = urlsplit(backend.url).path.lstrip("/")
    if backend.engine == "postgres":
        query = SQL_SESSIONS.format(name)
    else:
        query = f"SELECT id FROM {SESSIONS[backend.engine]} WHERE db = '{name}'"
    return {number for (number,) in backend.server.execute(query)}


def assert_each_on_its_own(load: Load) -> None:
    """No server session was used by two workers, and each worker has had exactly one thread that watches."""
    assert load.rows
    assert sum(len(load.sessions_of(pid)) for pid in load.pids) == len({row["session"] for row in load.rows})
    assert {row["watchers"] for row in load.rows} == {1}


def assert_clean_end(backend: Backend, server: Server, pids: set[int]) -> None:
    """Each of *pids* ended by itself with nothing borrowed, and no session is left on the server."""
    ends = {line["pid"]: line for line in server.told(ENDS) if line["pid"] in pids}
    assert ends.keys() == pids
    assert {(end["active"], end["pending"]) for end in ends.values()} == {(0, 0)}
    assert all(end["borrowed"] == end["returned"] > 0 for end in ends.values())
    assert not re.search(r'"level": "(error|critical)"', "".join(server.log))
    until(lambda: not server_sessions(backend))


@SERVERS
@pytest.mark.parametrize("kind", PRELOADED)
def test_workers_get_nothing_of_a_master_in_use(backend: Backend, kind: str) -> None:
    """With --preload, sessions in use and idle, held locks and a watch of the master's; workers come and go."""
    with gunicorn(backend, *PRELOADED[kind], "--max-requests", "20", in_use=True) as server:
        masters = server_sessions(backend)
        load = Load(server.address)
        load.run_until(lambda: len(load.pids) > 2)
        assert masters <= server_sessions(backend)

    assert load.lost == []
    assert len(masters) == 2
    assert not masters & {row["session"] for row in load.rows}
    assert len(load.pids) > 2
    assert_each_on_its_own(load)
    assert_clean_end(backend, server, load.pids)


@ON_POSTGRES
@pytest.mark.parametrize("kind", KINDS)
def test_sighup_under_load_loses_no_request(backend: Backend, kind: str) -> None:
    """The old workers drain, the new ones have sessions of their own."""
    with gunicorn(backend, *KINDS[kind]) as server:
        load = Load(server.address)
        old = {line["pid"] for line in server.told("booted")}
        load.run(100, meanwhile=lambda: server.process.send_signal(signal.SIGHUP))
        server.read_until(BOOTED, times=4)
        load.run_until(lambda: load.pids - old)

    assert load.lost == []
    assert_each_on_its_own(load)
    assert_clean_end(backend, server, load.pids)


@ON_MARIADB
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_under_load_ends_gracefully(backend: Backend, kind: str) -> None:
    """What is answered is right, what is borrowed comes back, and the server's sessions are gone."""
    with gunicorn(backend, *KINDS[kind]) as server:
        load = Load(server.address)
        load.run(100)
        assert load.lost == []
        load.run(100, meanwhile=server.process.terminate)
        load.run_until(lambda: load.lost)
        assert server.process.wait(GIVE_UP_AFTER_S) == 0

    assert_each_on_its_own(load)
    assert_clean_end(backend, server, load.pids)


@ON_POSTGRES
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_takes_only_its_own_requests_along(backend: Backend, kind: str) -> None:
    """SIGKILL under load: the other worker goes on, a new one boots, the dead one's sessions are gone."""
    with gunicorn(backend, *KINDS[kind]) as server:
        load = Load(server.address)
        load.run(50)
        killed = load.rows[-1]["pid"]
        load.run(100, meanwhile=lambda: os.kill(killed, signal.SIGKILL))
        server.read_until(BOOTED, times=3)
        load.run_until(lambda: len(load.pids) == 3)
        until(lambda: not load.sessions_of(killed) & server_sessions(backend))

    assert len(load.lost) <= CLIENTS
    assert_each_on_its_own(load)
    assert_clean_end(backend, server, load.pids - {killed})


def numbers(server: Server) -> dict[str, float]:
    """Return what /metrics says: each series' value by its name and the state it is of."""
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=GIVE_UP_AFTER_S) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    prefix = "db_client_connection_"
    return {
        f"{sample.name.removeprefix(prefix)} {sample.labels.get(prefix + 'state', '')}".strip(): sample.value
        for sample in samples
    }


@ON_POSTGRES
def test_metrics_are_those_of_all_workers(backend: Backend) -> None:
    """Each request is counted once, and what is idle is what the server sees, also after a worker was killed."""
    with gunicorn(backend, *KINDS["gthread"], POOL_CHECK_INTERVAL_S="0.1", MIGRATE_ON_BOOT="off") as server:
        # A stream would borrow a second time.
        load = Load(server.address, views=("answer", "held"))
        load.run_until(lambda: len(load.pids) == 2)

        def is_right() -> bool:
            now, count = numbers(server), len(load.answers)
            is_counted = now["wait_time_seconds_count"] == now["use_time_seconds_count"] == count
            return is_counted and now["count idle"] == len(server_sessions(backend))

        until(is_right)
        killed, before = load.rows[0]["pid"], server_sessions(backend)
        os.kill(killed, signal.SIGKILL)
        server.read_until(BOOTED, times=3)
        until(lambda: server_sessions(backend) == before - load.sessions_of(killed))
        until(is_right)


@SERVERS
def test_under_gevent_a_query_that_waits_stops_no_other_request(backend: Backend) -> None:
    """Of two requests of one worker one waits, on the server, for what the other holds."""
    with gunicorn(backend, *KINDS["gevent"], workers=1) as server, ThreadPoolExecutor(2) as clients:
        load = Load(server.address)
        assert list(clients.map(load.send, ["turn"] * 2)) == [None] * 2

    assert load.lost == []
    assert_clean_end(backend, server, load.pids)


@ON_POSTGRES
def test_under_gevent_a_green_thread_that_ends_leaves_no_slot_taken(backend: Backend) -> None:
    """More of them than there are slots, each with a connection that it never gave back."""
    with gunicorn(backend, *KINDS["gevent"], workers=1, POOL_CHECK_INTERVAL_S="0.1") as server:
        load = Load(server.address)
        for _ in range(POOL_MAX + 1):
            load.send("lost")
        server.read_until("connection of a dead thread was reclaimed", times=POOL_MAX + 1)

    assert len(load.answers) == POOL_MAX + 1


@ON_POSTGRES
def test_gevent_that_patches_too_late_is_refused(backend: Backend) -> None:
    """With --preload, and no config file that patches the master: each request is told, and none gets a session."""
    with gunicorn(backend, *KINDS["gevent"], "--preload", workers=1) as server:
        status, answer = server.ask("/tasks")
        sessions = server_sessions(backend)

    assert (status, answer["code"]) == (500, "CONF001")
    assert "--preload" in answer["hint"]
    assert sessions == set()


@ON_POSTGRES
def test_under_gevent_a_connect_to_a_stopped_server_ends_in_time(backend: Backend) -> None:
    """The request is told after the connect timeout, and the service goes on when the server does."""
    with gunicorn(backend, *KINDS["gevent"], workers=1, DB_CONNECT_TIMEOUT_S="1", DB_POOL_TIMEOUT_S="1") as server:
        backend.private.pause()
        status, _ = server.ask("/answer/1")
        backend.private.resume()
        load = Load(server.address)
        load.send("answer")

    assert status == 503
    assert len(load.answers) == 1
