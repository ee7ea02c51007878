"""The watch over a pool: it sees what happens on real servers, says it once, and harms nobody."""

from __future__ import annotations

import gc
import io
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import peewee
import pytest
import structlog
from borrowing import PATIENCE_S, held, locks_held, until, waiting, watchers_of
from forking import in_child
from structlog.testing import capture_logs

from api.db import pool_monitor
from api.db.connection import PoolDiagnostics, open_database
from api.db.pool_judge import FINE, Finding, Health, Reason
from api.db.pool_lines import back_line, change_line, late_line, leak_line, orphan_line, probe_line, state_line, write
from api.db.pool_numbers import ENDPOINT, Borrow, PoolSnapshot, PoolTimeout
from api.exceptions import ConfigurationError
from api.logs import configure_logging
from api.settings import ROOT

OFTEN_S = 0.005
NEVER_S = 3600.0


@contextmanager
def watched(database: peewee.Database, interval_s: float = OFTEN_S, **more: Any) -> Iterator[list[Any]]:
    """Watch *database*'s pool while the block runs, and give it the lines that this makes."""
    with capture_logs() as lines:
        PoolDiagnostics.start_health_monitoring(database, interval_s, **more)
        try:
            yield lines
        finally:
            PoolDiagnostics.stop_health_monitoring(database)


def the(event: str, lines: list[Any]) -> Any:
    """Return the first of *lines* about *event*, as soon as it is there."""
    until(lambda: any(line["event"] == event for line in lines))
    return next(line for line in lines if line["event"] == event)


def levels(lines: list[Any]) -> list[str]:
    """Return the levels of *lines*, but for those of a watch that a busy machine kept from its work."""
    return [line["log_level"] for line in lines if line["event"] != "pool watch woke late"]


def abandon(database: peewee.Database) -> None:
    """Let a thread borrow a connection of *database*, and end without returning it."""

    def borrow() -> None:
        ENDPOINT.set("reports.build")
        database.connect()

    thread = threading.Thread(target=borrow, name="forgetful")
    thread.start()
    thread.join()


@pytest.mark.engines("postgres", "mariadb")
def test_a_used_up_pool_is_one_line_and_its_recovery_another(backend: Any) -> None:
    """One critical line with the figures and the holders, one info line when it is over, none between."""
    database = backend.database(pool_max=5)
    with held(database, 5) as release, watched(database) as lines:
        line = the("pool is used up", lines)
        release()
        the("pool has recovered", lines)
    assert levels(lines) == ["critical", "info"]
    assert (line["max"], line["active"], line["peak"], line["reason"]) == (5, 5, 5, "busy")
    assert len(line["holders"]) == 5
    assert "nobody waits" in line["look_at"]


def test_a_timeout_wakes_the_watch(backend: Any) -> None:
    """The pool rings and the line is there, long before the next look is due; it names who holds what."""
    database = backend.database(pool_max=1, pool_timeout_s=0.05)
    ENDPOINT.set("tasks.create")
    with database.connection_context(), watched(database, NEVER_S) as lines:
        with ThreadPoolExecutor(max_workers=1) as thread, pytest.raises(PoolTimeout):
            thread.submit(database.connect).result()
        line = the("pool is used up", lines)
    ENDPOINT.set(None)
    assert (line["log_level"], line["reason"], line["timeouts_new"]) == ("critical", "saturated", 1)
    (holder,) = line["holders"]
    assert "tasks.create" in holder
    assert threading.current_thread().name in holder


@pytest.mark.engines("postgres")
def test_a_wait_over_a_second_wakes_the_watch(backend: Any) -> None:
    """Said while the thread still waits."""
    database = backend.database(pool_max=1)
    with watched(database, NEVER_S) as lines, held(database, 1) as release, waiting(database, 1):
        line = the("pool is used up", lines)
        release()
    assert (line["reason"], line["waiting"], line["timeouts_new"]) == ("saturated", 1, 0)
    assert line["oldest_wait_s"] >= 1


@pytest.mark.engines("postgres", "mariadb")
def test_a_server_that_does_not_answer_is_a_slow_database(backend: Any) -> None:
    """Threads that ask and are not served, while the pool has room: the line says to look at the server."""
    database = backend.database(pool_max=5, connect_timeout_s=2)

    def connect() -> None:
        with suppress(peewee.PeeweeException):
            database.connect()

    backend.private.pause()
    with watched(database) as lines, ThreadPoolExecutor(max_workers=1) as thread:
        done = thread.submit(connect)
        line = the("connecting to the database is slow", lines)
        backend.private.resume()
        done.result()
    assert (line["log_level"], line["reason"], line["active"], line["waiting"]) == ("warning", "slow database", 0, 0)
    assert line["pending"] == 1


@pytest.mark.engines("postgres", "mariadb")
def test_a_server_that_refuses_is_a_failing_database(backend: Any) -> None:
    """Connects that fail look after look: the line carries what was said last."""
    database = backend.database(pool_max=5)
    backend.private.kill()
    with watched(database) as lines:

        def has_line() -> bool:
            with suppress(peewee.PeeweeException):
                database.connect()
            return any(line["event"] == "connecting to the database fails" for line in lines)

        until(has_line)
        line = the("connecting to the database fails", lines)
    assert (line["log_level"], line["active"]) == ("warning", 0)
    assert line["connect_errors_new"] > 0
    assert "refused" in line["last_connect_error"]


def test_a_leak_is_said_with_the_place_where_the_holder_is(backend: Any) -> None:
    """Age, thread, endpoint and the holder's stack of now; once; and that it came back."""
    database, release, ready = backend.database(), threading.Event(), threading.Event()

    def hold_on() -> int:
        ENDPOINT.set("reports.build")
        with database.connection_context():
            ready.set()
            release.wait()
            return int(database.execute_sql("SELECT 7").fetchone()[0])

    with watched(database, leak_after_s=0) as lines, ThreadPoolExecutor(1, thread_name_prefix="holder") as thread:
        answer = thread.submit(hold_on)
        ready.wait()
        line = the("connection held for too long", lines)
        release.set()
        back = the("connection held for too long was returned", lines)
    assert (line["log_level"], line["thread"], line["endpoint"]) == ("warning", "holder_0", "reports.build")
    assert any(place.endswith("hold_on") for place in line["stack"].splitlines())
    assert (back["log_level"], back["thread"]) == ("info", "holder_0")
    assert answer.result() == 7, "its connection was not touched"
    assert levels(lines) == ["warning", "info"]


def test_a_dead_thread_s_connection_is_taken_back(backend: Any) -> None:
    """Who waits for the only connection gets a slot; the line is an error and names the thread that is gone."""
    database = backend.database(pool_max=1)
    abandon(database)
    with watched(database, interval_s=0.1) as lines:
        with database.connection_context():
            assert database.execute_sql("SELECT 7").fetchone()[0] == 7
        line = the("connection of a dead thread was reclaimed", lines)
    assert (line["log_level"], line["thread"], line["endpoint"]) == ("error", "forgetful", "reports.build")
    now = database.snapshot()
    assert (now.closed["orphan"], now.active, now.borrowed, now.returned) == (1, 0, 2, 2)


def test_a_living_thread_keeps_its_connection_however_long(backend: Any) -> None:
    """A leak may be a long report: it is said, and nothing else happens to it."""
    database = backend.database()
    with database.connection_context(), watched(database, leak_after_s=0) as lines:
        the("connection held for too long", lines)
        assert database.execute_sql("SELECT 7").fetchone()[0] == 7
        assert sum(database.snapshot().closed.values()) == 0


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_every_line_can_be_written(fmt: Literal["console", "json"], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever form the log has, each line about a pool comes out whole, its figures as fields."""
    now = PoolSnapshot(name="db:5432/shop", pid=1, max=20, active=19, idle=1, total=20)
    borrow = Borrow(threading.current_thread(), "tasks.create", "req-7", 0.0, 1)
    changes: list[Any] = ["entered", "repeated", "recovered"]
    findings = [
        Finding(change, Health.CRITICAL, reason, 0.0, 19, 0, 0, 0, 0) for change in changes for reason in Reason
    ]
    written = [change_line(finding, now, [borrow], 1.0) for finding in findings]
    written += [state_line(FINE, now, [borrow], 1.0), leak_line(borrow, now, 1.0), back_line(borrow, now, 1.0)]
    written += [orphan_line(borrow, now, 1.0), late_line(9.0, now), probe_line(now, "refused", 2003, "start it")]
    written += [probe_line(now, None, None, None)]
    stream, handlers = io.StringIO(), logging.getLogger().handlers[:]
    try:
        configure_logging("DEBUG", fmt, stream)
        for line in written:
            write(line)
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.reset_defaults()
    assert capsys.readouterr().err == ""
    assert stream.getvalue().count("db:5432/shop") == len(written)


@pytest.mark.engines("sqlite")
def test_a_full_pool_of_files_is_fine(backend: Any) -> None:
    """SQLite's connections are file handles: only who waits for one counts."""
    database = backend.database(pool_max=8, pool_timeout_s=0.01)
    with held(database, 8), watched(database, NEVER_S) as lines:
        assert PoolDiagnostics.log_pool_health(database) == "fine"
        with pytest.raises(PoolTimeout):
            database.connect()
        assert the("pool is used up", lines)["reason"] == "saturated"


def test_watching_borrows_nothing_and_waits_for_no_lock(backend: Any) -> None:
    """While every lock of peewee and of the pool is held the watch looks on, and it never asks for a connection."""
    database = backend.database()
    looks: list[PoolSnapshot] = []

    with locks_held(database), watched(database, on_sample=looks.append):
        until(lambda: len(looks) >= 3)
    assert database.snapshot().requests == 0


@pytest.mark.engines("sqlite")
def test_a_state_that_lasts_is_said_again(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``HEALTH_CHECK_INTERVAL`` seconds, with how long it has lasted."""
    assert PoolDiagnostics.HEALTH_CHECK_INTERVAL == 60
    monkeypatch.setattr(PoolDiagnostics, "HEALTH_CHECK_INTERVAL", 0)
    database = backend.database(pool_max=1)
    with watched(database) as lines, held(database, 1) as release, waiting(database, 1):
        until(lambda: len(lines) >= 3)
        release()
    said = [line for line in lines if line["event"] == "pool is used up"]
    assert len(said) >= 3
    assert all("lasted_s" in line for line in said)


def test_there_is_one_thread_a_database(backend: Any) -> None:
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


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e12])
@pytest.mark.parametrize("name", ["interval", "leak_after_s", "probe_every_s"])
def test_a_number_that_is_none_to_wait_for_is_refused(name: str, value: float) -> None:
    """By its name, to the caller: no thread starts only to end in it, or to spin."""
    database = open_database("sqlite://")
    with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
        PoolDiagnostics.start_health_monitoring(database, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="interval is 0"):
        PoolDiagnostics.start_health_monitoring(database, 0)
    assert watchers_of(database) == []


def test_the_thread_ends_with_its_database(tmp_path: Path) -> None:
    """The watch keeps no database alive, whatever it said about it, and does not outlive it."""
    database = open_database(f"sqlite:///{tmp_path}/x.db", pool_max=1)
    with capture_logs() as lines, held(database, 1):
        PoolDiagnostics.start_health_monitoring(database, OFTEN_S, leak_after_s=0)
        the("connection held for too long", lines)
    (thread,) = watchers_of(database)
    database.close_all()
    gone = weakref.ref(database)
    del database
    until(lambda: gc.collect() >= 0 and gone() is None and not thread.is_alive())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_gets_a_watch_of_its_own(backend: Any) -> None:
    """No thread survives a fork; a lock held at that moment does not keep the child's from starting and seeing."""
    database = backend.database(pool_max=1, pool_timeout_s=0.05)
    PoolDiagnostics.start_health_monitoring(database, NEVER_S)

    def watch_again() -> str:
        before = len(watchers_of(database))
        with watched(database, NEVER_S) as lines, held(database, 1):
            after = len(watchers_of(database))
            with suppress(PoolTimeout):
                database.connect()
            line = the("pool is used up", lines)
        return (
            f"{before} before, {after} after, {line['timeouts_new']} new, pid is its own: {line['pid'] == os.getpid()}"
        )

    with pool_monitor._starting():
        assert in_child(watch_again) == "0 before, 1 after, 1 new, pid is its own: True"
    assert len(watchers_of(database)) == 1
    PoolDiagnostics.stop_health_monitoring(database)


@pytest.mark.engines("sqlite")
def test_a_log_that_fails_does_not_end_the_watch(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look is taken all the same, and what has to be done is done unsaid."""
    monkeypatch.setattr(PoolDiagnostics, "HEALTH_CHECK_INTERVAL", 0)
    database = backend.database(pool_max=1)
    tried: list[str] = []

    def fail(_: Any, __: str, line: Any) -> Any:
        tried.append(line["event"])
        raise OSError("the disk is full")

    with watched(database, leak_after_s=0):
        structlog.configure(processors=[fail])
        with held(database, 1):
            until(lambda: "connection held for too long" in tried)
        abandon(database)
        until(lambda: database.snapshot().closed["orphan"] == 1)
        until(lambda: "connection of a dead thread was reclaimed" in tried)
        assert len(watchers_of(database)) == 1


@pytest.mark.engines("sqlite")
def test_a_line_that_fails_does_not_keep_back_the_next(backend: Any) -> None:
    """Two leaks found by one look: the second is tried although the first could not be written."""
    database, tried = backend.database(), []

    def fail(_: Any, __: str, line: Any) -> Any:
        tried.append(line["event"])
        raise OSError("the disk is full")

    with held(database, 2), capture_logs():
        structlog.configure(processors=[fail])
        PoolDiagnostics.start_health_monitoring(database, OFTEN_S, leak_after_s=0)
        until(lambda: tried.count("connection held for too long") == 2)
        PoolDiagnostics.stop_health_monitoring(database)


@pytest.mark.engines("sqlite")
def test_an_alarm_from_before_the_watch_is_no_news(backend: Any) -> None:
    """What rang while nobody watched says nothing about now."""
    database = backend.database()
    looks: list[PoolSnapshot] = []
    database.alarm.set()
    with watched(database, on_sample=looks.append) as lines:
        until(lambda: len(looks) >= 3)
    assert levels(lines) == []


@pytest.mark.engines("sqlite")
def test_what_listens_to_the_looks_may_fail(backend: Any) -> None:
    """An error of the metrics is said, and the watch goes on."""
    database, looks = backend.database(), []

    def fail(seen: PoolSnapshot) -> None:
        looks.append(seen)
        raise ValueError("no such gauge")

    with watched(database, on_sample=fail) as lines:
        line = the("the pool could not be looked at", lines)
        until(lambda: len(looks) >= 3)
    assert str(line["exc_info"]) == "no such gauge"
    assert levels(lines) == ["error"], "said once a minute"


@pytest.mark.engines("sqlite")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_system_without_threads_refuses_no_request(backend: Any) -> None:
    """A watch that cannot start is a line in the log, and tried again at the next request."""
    database = backend.database()

    def start() -> str:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with capture_logs() as lines:
            PoolDiagnostics.start_health_monitoring(database)
            PoolDiagnostics.start_health_monitoring(database)
        return " ".join(line["log_level"] for line in lines)

    assert in_child(start, unprivileged=True) == "error error"


SCRIPT = """
import sys, time
from api.db.connection import PoolDiagnostics, open_database
from api.exceptions import ConfigurationError
from api.logs import configure_logging
configure_logging("DEBUG")
database = open_database(sys.argv[1], pool_max=1)
def look_slowly(_):
    print("begin", flush=True)
    time.sleep(float(sys.argv[2]))
    print("end", flush=True)
PoolDiagnostics.start_health_monitoring(database, 0.01, on_sample=look_slowly)
sys.stdin.readline()
"""


@contextmanager
def watching_process(url: str, look_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that watches a pool on *url* until its standard input ends, *look_s* a look."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, url, str(look_s)], cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        guard = threading.Timer(PATIENCE_S, process.kill)
        guard.start()
        try:
            assert process.stdout.readline() == "begin\n"
            yield process
        finally:
            guard.cancel()
            process.kill()


@pytest.mark.engines("sqlite")
def test_the_watch_says_when_it_was_kept_from_looking(backend: Any) -> None:
    """A process that was stopped for a while says so: what the numbers showed meanwhile nobody saw."""
    with watching_process(backend.url) as process:
        process.send_signal(signal.SIGSTOP)
        with suppress(subprocess.TimeoutExpired):
            process.wait(pool_monitor.LATE_AFTER_S + 0.3)
        process.send_signal(signal.SIGCONT)
        assert process.stderr
        assert "pool watch woke late" in process.stderr.readline()


@pytest.mark.engines("sqlite")
def test_the_watch_ends_with_the_process(backend: Any) -> None:
    """An ordinary end, no complaint of the interpreter, and no look broken off in the middle."""
    with watching_process(backend.url, look_s=0.1) as process:
        output, errors = process.communicate("\n")
    assert process.returncode == 0
    assert not {"Traceback", "Fatal"} & set(errors.replace(":", " ").split())
    assert output.count("end") == output.count("begin") + 1


@pytest.mark.engines("postgres", "mariadb")
def test_a_probe_asks_the_server_beside_the_pool(backend: Any) -> None:
    """Switched on, it says when the server stops answering and when it does again; the pool is not touched."""
    database = backend.database(connect_timeout_s=2)
    with watched(database, probe_every_s=0) as lines:
        backend.private.kill()
        line = the("database does not answer the probe", lines)
        backend.private.start()
        the("database answers the probe again", lines)
    assert (line["log_level"], line["pool"]) == ("warning", database.snapshot().name)
    assert line["reason"]
    assert line["look_at"]
    now = database.snapshot()
    assert (now.requests, now.created, now.connect_errors) == (0, 0, 0)
