"""The pool's numbers as Prometheus gets them: names, totals that only grow, and gunicorn's several processes."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from borrowing import held, until
from flask import Flask
from forking import in_child
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import GUNICORN, LISTENING, Server, serving

from api.db.connection import DB
from api.db.migrations import migrate_db
from api.db.pool import snapshot_of
from api.db.pool_numbers import BOUNDS_S, PoolTimeout
from api.web.metrics import METRICS, REGISTRY, Durations, render

if TYPE_CHECKING:
    from app_fixtures import BuildApp
    from flask.testing import FlaskClient

    from conftest import Backend

pytest_plugins = ("app_fixtures",)

NAME = "db_client_connection_pool_name"
STATE = "db_client_connection_state"
HOOKED = (*GUNICORN, "--config", "python:api.web.gunicorn_hooks")
BOOTING = r"Booting worker with pid: (\d+)"
Samples = dict[tuple[str, ...], float]


def samples_of(text: str, pool: str = "") -> Samples:
    """Return what *text* says of the pool whose name begins with *pool*: name and further labels' values to value."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop(NAME).startswith(pool):
                found[sample.name.removeprefix("db_client_connection_"), *labels.values()] = sample.value
    return found


def scraped(database: Any = DB) -> Samples:
    """Return what this process says of *database* now."""
    return samples_of(render("")[0].decode(), snapshot_of(database).name)


def borrow(database: Any = DB, times: int = 1) -> None:
    """Borrow a connection and return it."""
    for _ in range(times):
        with database.connection_context():
            pass


def test_durations_are_added_as_prometheus_itself_would_observe_them() -> None:
    """prometheus_client's private names are where we take them to be: added and observed come to the same text."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    added = Durations("x", "x", ("a",), registry=ours, buckets=BOUNDS_S).labels("1")
    observed = Histogram("x", "x", ("a",), registry=theirs, buckets=BOUNDS_S).labels("1")
    for seconds in (2**-14, 2**-10, 0.5, 64.0):
        observed.observe(seconds)
    added.add([1, 0, 1, *[0] * 4, 1, *[0] * 4, 1], 64.5 + 2**-10 + 2**-14)

    assert [[s for m in each.collect() for s in m.samples if s.name != "x_created"] for each in (ours, theirs)] == [
        [s for m in theirs.collect() for s in m.samples if s.name != "x_created"]
    ] * 2


def test_the_names_and_labels_are_opentelemetrys(client: FlaskClient) -> None:
    """Every family, its kind, and no label but the pool's name, the state, and a bucket's bound."""
    client.get("/tasks")
    families = list(text_string_to_metric_families(client.get("/metrics").text))

    assert {f.name.removeprefix("db_client_connection_"): f.type for f in families if "_created" not in f.name} == {
        "count": "gauge",
        "max": "gauge",
        "pending_requests": "gauge",
        "timeouts": "counter",
        "wait_time_seconds": "histogram",
        "use_time_seconds": "histogram",
        "create_time_seconds": "histogram",
    }
    assert {label for family in families for s in family.samples for label in s.labels} == {NAME, STATE, "le"}
    assert all(f.name.startswith("db_client_connection_") and f.documentation for f in families)


@pytest.mark.engines("sqlite")
def test_who_asks_for_openmetrics_gets_it(client: FlaskClient) -> None:
    """The form is the one that the header asks for, plain text without one."""
    asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert client.get("/metrics").content_type.startswith("text/plain; version=0.0.4")
    assert asked.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("accept", ["text/plain; version=x.y.z", "text/plain;version==1", "a/b;q=1"])
def test_a_form_that_cannot_be_read_is_answered_in_plain_text(client: FlaskClient, accept: str) -> None:
    """prometheus_client raises for a version that is no number."""
    asked = client.get("/metrics", headers={"Accept": accept})
    assert (asked.status_code, asked.content_type.partition(";")[0]) == (200, "text/plain")


def test_what_is_scraped_is_what_the_pool_has_counted(client: FlaskClient) -> None:
    """Each total and each bucket, after requests that waited in vain too; the scrape itself borrows nothing."""
    for _ in range(3):
        client.get("/tasks")
    before = snapshot_of(DB)
    found = scraped()

    assert client.get("/metrics").status_code == 200
    assert snapshot_of(DB).requests == before.requests
    assert (found["count", "idle"], found["count", "used"], found["max",]) == (before.idle, 0, 20)
    for name, timings in (("wait", before.wait), ("use", before.use), ("create", before.create)):
        assert found[f"{name}_time_seconds_count",] == timings.count > 0
        assert found[f"{name}_time_seconds_sum",] == pytest.approx(timings.sum_s)
        bounds = [*map(str, timings.bounds_s), "+Inf"]
        counts = [found[f"{name}_time_seconds_bucket", bound] for bound in bounds]
        assert counts == [sum(timings.counts[: end + 1]) for end in range(len(bounds))]


def test_an_empty_pool_is_scraped(build_app: BuildApp) -> None:
    """With every connection in use the answer comes all the same, and says so."""
    client = build_app(db_pool_max=2, db_pool_timeout_s=0.01).test_client()
    with held(DB, 2):
        with pytest.raises(PoolTimeout):
            DB.connect()
        found = samples_of(client.get("/metrics").text, snapshot_of(DB).name)

    assert (found["count", "used"], found["count", "idle"], found["max",]) == (2, 0, 2)
    assert (found["timeouts_total",], found["pending_requests",]) == (1, 0)
    assert scraped()["count", "used"] == 0


@pytest.mark.engines("postgres", "mariadb")
def test_a_dead_database_is_scraped(app: Flask, backend: Backend) -> None:
    """With the server stopped the answer comes all the same, with the totals so far."""
    client = app.test_client()
    client.get("/tasks")
    backend.private.pause()
    try:
        answer = client.get("/metrics")
    finally:
        backend.private.resume()

    assert samples_of(answer.text, snapshot_of(DB).name)["wait_time_seconds_count",] == snapshot_of(DB).borrowed


@pytest.mark.engines("sqlite")
def test_the_watch_pushes_without_being_asked(build_app: BuildApp) -> None:
    """The numbers of a worker that nobody scrapes are at most one look old."""
    build_app(pool_check_interval_s=0.01).test_client().get("/tasks")
    now = snapshot_of(DB)

    def pushed() -> float | None:
        return samples_of(generate_latest(REGISTRY).decode(), now.name).get(("wait_time_seconds_count",))

    until(lambda: pushed() == now.borrowed)


@pytest.mark.engines("sqlite")
def test_pushes_from_many_threads_count_each_borrow_once(app: Flask) -> None:
    """Threads borrow, others push as fast as they can: the total is what was borrowed."""

    def push_often() -> None:
        for _ in range(200):
            METRICS.push()

    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(6) as threads:
        working = [threads.submit(work) for work in (lambda: borrow(times=200), push_often) * 3]
    sys.setswitchinterval(usual_s)
    for each in working:
        each.result()

    found, now = scraped(), snapshot_of(DB)
    assert now.borrowed >= 600
    assert found["wait_time_seconds_count",] == found["use_time_seconds_count",] == now.borrowed
    assert found["use_time_seconds_sum",] == pytest.approx(now.use.sum_s)


@pytest.mark.engines("sqlite")
def test_totals_go_on_where_the_pool_begins_anew(app: Flask) -> None:
    """After dispose() the pool counts from nought, and what is scraped does not fall."""
    borrow(times=3)
    before = scraped()["wait_time_seconds_count",]
    DB.obj.dispose()
    borrow()

    assert scraped()["wait_time_seconds_count",] == before + 1


@pytest.mark.engines("sqlite")
def test_two_databases_have_their_own_numbers(app: Flask, backend: Backend, tmp_path: Path) -> None:
    """Each under its name; two pools that lead to one database are added up, and what is gone is nought."""
    other = type(backend)("sqlite", f"sqlite:///{tmp_path}/other.db").database(pool_max=3)
    again = backend.database(pool_max=5)
    for database in (other, again):
        METRICS.include(database)
    borrow(times=4)
    borrow(other, times=2)
    borrow(again, times=3)
    here = snapshot_of(DB).borrowed + 3

    assert (scraped(other)["wait_time_seconds_count",], scraped(other)["max",]) == (2, 3)
    assert (scraped()["wait_time_seconds_count",], scraped()["max",]) == (here, 25)
    other.close_all()
    name = snapshot_of(other).name
    del database, other
    gc.collect()
    assert samples_of(render("")[0].decode(), name)["max",] == 0


@pytest.mark.engines("sqlite")
def test_a_fork_in_the_middle_of_pushes_leaves_the_child_able_to_push(app: Flask) -> None:
    """Whatever thread pushes at the fork, the child's first push ends, and counts the child's borrows from nought."""
    borrow(times=2)
    before = scraped()["wait_time_seconds_count",]
    done = threading.Event()

    def push_on() -> None:
        while not done.is_set():
            METRICS.push()

    def count() -> str:
        signal.alarm(30)
        borrow(times=3)
        return str(scraped()["wait_time_seconds_count",])

    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(push_on)
        answers = [in_child(count) for _ in range(5)]
        done.set()

    assert answers == [str(before + 3)] * 5
    assert scraped()["wait_time_seconds_count",] == before


class Service:
    """A gunicorn with our hooks: what it counts, and the folder that its workers count into."""

    def __init__(self, server: Server, place: Path) -> None:
        self.server, self._place = server, place
        server.address = server.read_until(LISTENING)[1]
        self.totals = [0.0]

    @property
    def folder(self) -> Path:
        """The only folder of numbers."""
        (folder,) = self._place.glob("plinth-metrics-*")
        return folder

    def workers(self, count: int) -> list[int]:
        """Return the pids of the two newest workers, as soon as *count* have begun to boot."""
        pids: dict[int, None] = {}

        def have_booted() -> bool:
            # A line may stand there twice: after a reload a preloaded master logs in two ways.
            pids.update({int(pid): None for pid in re.findall(BOOTING, "".join(self.server.log))})
            return len(pids) >= count

        until(have_booted)
        return list(pids)[-2:]

    def counting(self, kind: str = "gauge_livesum") -> set[int]:
        """Return the pids that have a file of their own; of gauges, whose connections are in the numbers now."""
        names = [path.stem.rpartition("_")[2] for path in self.folder.glob(f"{kind}_*.db")]
        return {int(name) for name in names if name != "kept"}

    def errors(self) -> list[str]:
        """Return the lines at error or worse, but those of gunicorn about the workers that we killed."""
        bad = ('"level": "error"', '"level": "critical"', "Traceback")
        return [line for line in self.server.log if any(word in line for word in bad) and "SIGKILL" not in line]

    def get(self, path: str) -> str:
        """Return the answer to *path*; once more where a worker that was told to end took it with it."""
        for _ in range(5):
            try:
                with urllib.request.urlopen(f"http://{self.server.address}{path}", timeout=30) as response:
                    return str(response.read(), "utf-8")
            except OSError as exc:
                error = exc
        raise error

    def scrape(self) -> Samples:
        """Return the numbers, and keep the total of borrows."""
        found = samples_of(self.get("/metrics"))
        self.totals.append(found.get(("wait_time_seconds_count",), 0.0))
        return found

    def until(self, is_so: Callable[[Samples], bool]) -> Samples:
        """Scrape until *is_so*, and return what was scraped then."""
        until(lambda: is_so(self.scrape()))
        return self.scrape()


@contextmanager
def served(backend: Backend, place: Path, *options: str, look_every_s: float) -> Iterator[Service]:
    """Serve the migrated app from two workers, whose folder is made in *place*; only requests borrow there."""
    migrate_db(database=backend.database())
    settings = {"MIGRATE_ON_BOOT": "off", "TMPDIR": str(place), "POOL_CHECK_INTERVAL_S": str(look_every_s)}
    with serving((*HOOKED, *options, "api:create_app()"), backend.url, **settings) as server:
        yield Service(server, place)


@contextmanager
def flocked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a lock of *kind* on *folder* while the block runs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def waiting_for_locks() -> set[int]:
    """Return the pids of the processes that wait for a lock like ours."""
    return {int(pid) for pid in re.findall(r"-> FLOCK +\w+ +\w+ +(\d+)", Path("/proc/locks").read_text())}


def ask_all(service: Service, pids: list[int]) -> int:
    """Ask for tasks until each of the workers *pids* has counted something; return how often."""
    asked = 0
    while not service.counting() >= set(pids):
        with ThreadPoolExecutor(8) as threads:
            asked += len(list(threads.map(service.get, ["/tasks"] * 8)))
    return asked


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_gunicorns_workers_are_added_up_whatever_becomes_of_them(
    backend: Backend, tmp_path: Path, preload: tuple[str, ...]
) -> None:
    """A dead worker's connections go, its totals stay; a reload loses none; the folder goes with the master."""
    with served(backend, tmp_path, *preload, "--threads", "2", look_every_s=0.02) as service:
        asked = 0

        def adds_up(workers: list[int]) -> bool:
            nonlocal asked
            asked += ask_all(service, workers)
            until(lambda: service.counting() == set(workers))
            return service.until(lambda found: found["wait_time_seconds_count",] == asked)["max",] == 40

        first = service.workers(2)
        assert adds_up(first)
        # As of a worker that was killed while it made its file.
        empty = service.folder / f"counter_{2**22 + 1}.db"
        empty.touch()
        os.kill(first[0], signal.SIGKILL)
        second = service.workers(3)
        until(lambda: not empty.exists())
        assert adds_up(second)
        service.server.process.send_signal(signal.SIGHUP)
        third = service.workers(5)
        assert adds_up(third)
        os.kill(third[0], signal.SIGKILL)
        last = service.workers(6)
        # Nobody scrapes now: the dead workers' totals are in one file, which is all that is left of them.
        until(lambda: service.counting("histogram") <= set(last))
        assert adds_up(last)

    assert service.totals == sorted(service.totals)
    assert service.server.process.returncode == 0
    assert list(tmp_path.glob("plinth-metrics-*")) == []
    assert service.errors() == []


@pytest.mark.engines("sqlite")
def test_a_worker_that_ends_after_some_requests_takes_no_number_with_it(backend: Backend, tmp_path: Path) -> None:
    """Each request is counted though no look of the watch came in a worker's short life, and no total ever falls."""
    with served(backend, tmp_path, "--max-requests", "4", look_every_s=600) as service:
        for _ in range(20):
            service.get("/tasks")
        service.until(lambda found: found["wait_time_seconds_count",] == 20)
        service.workers(6)

    assert service.totals == sorted(service.totals)
    assert service.errors() == []


@pytest.mark.engines("sqlite")
def test_totals_are_not_moved_under_a_scrape(backend: Backend, tmp_path: Path) -> None:
    """The master leaves a dead worker's file where it is while somebody reads; who reads waits while it moves one."""
    with served(backend, tmp_path, look_every_s=0.02) as service:
        first = service.workers(2)
        asked = ask_all(service, first)
        service.until(lambda found: found["wait_time_seconds_count",] == asked)
        with flocked(service.folder, fcntl.LOCK_SH):
            os.kill(first[0], signal.SIGKILL)
            second = service.workers(3)
        assert first[0] in service.counting("histogram")

        os.kill(first[1], signal.SIGKILL)
        third = service.workers(4)
        until(lambda: service.counting("histogram") <= set(third))
        with ThreadPoolExecutor(1) as thread:
            with flocked(service.folder, fcntl.LOCK_EX):
                scrape = thread.submit(service.scrape)
                until(lambda: bool(waiting_for_locks() & set(second + third)))
            assert scrape.result()["wait_time_seconds_count",] == asked

    assert service.errors() == []
