"""The app as an operator starts it: ``flask run`` and gunicorn, real processes, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from api.db.migrations import MigrationTracker
from api.settings import ROOT

if TYPE_CHECKING:
    from conftest import Backend

FLASK = (sys.executable, "-m", "flask", "--app", "api")
GUNICORN = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket")
GIVE_UP_AFTER_S = 60
SECRET = "hunter2"


@dataclass
class Server:
    """A server process and what it has logged so far."""

    process: subprocess.Popen[str]
    address: str = ""
    log: list[str] = field(default_factory=list)

    def read_until(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Read the log on until *pattern* stood in it *times* times, and return the last match."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            found = list(re.finditer(pattern, "".join(self.log)))
            if len(found) >= times:
                return found[-1]
        raise AssertionError(f"the server ended without {pattern!r}:\n{''.join(self.log)}")

    def ask(self, path: str) -> tuple[int, Any]:
        """Return status and JSON of *path*."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=GIVE_UP_AFTER_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)


def environment(url: str, **settings: str) -> dict[str, str]:
    """Return the environment of a server on *url*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "GUNICORN_"))}
    return kept | {"DATABASE_URL": url, "LOG_FORMAT": "json"} | settings


@contextmanager
def serving(command: tuple[str, ...], url: str, **settings: str) -> Iterator[Server]:
    """Run *command* from the project's root until the block ends; kill it if it hangs."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(url, **settings),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    guard = threading.Timer(GIVE_UP_AFTER_S, process.kill)
    guard.start()
    server = Server(process)
    try:
        yield server
    finally:
        process.terminate()
        assert process.stderr
        server.log.extend(process.stderr)
        process.stderr.close()
        process.wait()
        guard.cancel()


def run(*arguments: str, url: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``flask`` with *arguments* to its end."""
    return subprocess.run(
        [*FLASK, *arguments],
        cwd=ROOT,
        env=environment(url, **settings),
        capture_output=True,
        text=True,
        timeout=GIVE_UP_AFTER_S,
        check=False,
    )


@pytest.mark.engines("sqlite")
def test_flask_run_migrates_and_serves(backend: Backend) -> None:
    """One command, and the health endpoints answer; the access line carries the request's id."""
    with serving((*FLASK, "run", "--port", "0"), backend.url) as server:
        server.address = server.read_until(r"Running on http://([\d.]+:\d+)")[1]
        answers = [server.ask(path) for path in ("/healthz", "/readyz", "/nowhere")]

    assert [status for status, _ in answers] == [200, 200, 404]
    assert answers[1][1] == {"status": "ready"}
    lines = [json.loads(line) for line in server.log if line.startswith("{")]
    (access,) = [line for line in lines if "GET /nowhere" in line["event"]]
    assert access["correlation_id"] == answers[2][1]["correlation_id"]


@pytest.mark.engines("postgres", "mariadb")
def test_two_gunicorn_workers_boot_together_and_migrate_once(backend: Backend) -> None:
    """Both workers end up serving, each migration ran once, and no worker failed."""
    with serving((*GUNICORN, "api:create_app()"), backend.url) as server:
        server.address = server.read_until(r"Listening at: http://([\d.]+:\d+)")[1]
        server.read_until(r'"event": "booted"', times=2)
        ready = [server.ask("/readyz") for _ in range(8)]

    assert ready == [(200, {"status": "ready"})] * 8
    applied = [json.loads(line)["applied"] for line in server.log if '"event": "migrated"' in line]
    assert sum(applied) == 3
    assert "Exception in worker" not in "".join(server.log)
    database = backend.database()
    assert {row["status"] for row in MigrationTracker.get_migration_history(database=database)} == {"success"}


@pytest.mark.engines("postgres", "mariadb")
def test_preloaded_workers_share_no_connection(backend: Backend) -> None:
    """The master migrates, then forks: what it connected is not used by two workers at once."""
    with serving((*GUNICORN, "--preload", "api:create_app()"), backend.url) as server:
        server.address = server.read_until(r"Listening at: http://([\d.]+:\d+)")[1]
        server.read_until("Booting worker", times=2)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(server.ask, ["/tasks"] * 200))

    assert answers == [(200, {"tasks": []})] * 200
    assert not [line for line in server.log if '"level": "error"' in line]


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("command", ["routes", "db status"])
def test_a_command_does_not_migrate(backend: Backend, command: str) -> None:
    """Loading the app to look at it leaves the schema as it is."""
    run(*command.split(), url=backend.url)

    assert MigrationTracker.get_migration_history(database=backend.database()) == []


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("command", ["run", "routes"])
def test_wrong_settings_end_the_program(command: str) -> None:
    """Exit code 2, one CRITICAL line that names every wrong variable, no traceback, no secret."""
    done = run(command, url=f"postgresql://u:{SECRET}@h", MIGRATE_ON_BOOT="atuo")

    assert done.returncode == 2
    assert done.stderr.count("critical") == 1
    assert "DATABASE_URL" in done.stderr
    assert "MIGRATE_ON_BOOT='atuo'" in done.stderr
    assert "CONF001" in done.stderr
    assert not {"Traceback", SECRET} & set(re.findall(r"\w+", done.stdout + done.stderr))


@pytest.mark.engines("sqlite")
def test_a_failed_migration_ends_flask_run(backend: Backend, tmp_path: Path) -> None:
    """Exit code 1, one CRITICAL line that names the migration, no traceback; the failure is in the history."""
    (tmp_path / "0001_broken.py").write_text("def up(migrator, db):\n    db.execute_sql('SELECT FROM nowhere')\n")
    done = run("run", "--port", "0", url=backend.url, MIGRATION_DIRECTORY=str(tmp_path))

    (line,) = [json.loads(line) for line in done.stderr.splitlines() if '"critical"' in line]
    assert done.returncode == 1
    assert "0001_broken" in line["event"]
    assert "Traceback" not in done.stderr
    (row,) = MigrationTracker.get_migration_history(database=backend.database())
    assert row["status"] == "failed"


@pytest.mark.engines("sqlite")
def test_a_failed_migration_ends_gunicorn(backend: Backend, tmp_path: Path) -> None:
    """gunicorn does not restart its workers for ever: it ends with 3."""
    (tmp_path / "0001_broken.py").write_text("def up(migrator, db):\n    db.execute_sql('SELECT FROM nowhere')\n")
    command = (*GUNICORN, "--workers", "1", "api:create_app()")
    with serving(command, backend.url, MIGRATION_DIRECTORY=str(tmp_path)) as server:
        server.read_until("Worker failed to boot")
        code = server.process.wait(GIVE_UP_AFTER_S)

    assert code == 3
    assert '"level": "critical"' in "".join(server.log)
