"""The app as an operator starts it: ``flask run`` and gunicorn, real processes, asked over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from serving import GIVE_UP_AFTER_S, GUNICORN, LISTENING, environment, serving

from api.db.migrations import MigrationTracker
from api.settings import ROOT

if TYPE_CHECKING:
    from conftest import Backend

FLASK = (sys.executable, "-m", "flask", "--app", "api")
SECRET = "hunter2"


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
        server.address = server.read_until(LISTENING)[1]
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
        server.address = server.read_until(LISTENING)[1]
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
