"""The app's boot and its health: what it does to the schema, when it refuses, and whether it says it is ready."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from flask.testing import FlaskClient

from api.db.connection import DB
from api.db.migrations import MigrationTracker, migrate_db
from api.exceptions import DatabaseUnavailableError, MigrationFailedError
from api.settings import load_settings
from api.web import boot, ops
from api.web.ops import Readiness, Verdict

if TYPE_CHECKING:
    from app_fixtures import BuildApp, Logged

    from conftest import Backend

pytest_plugins = ("app_fixtures",)

PENDING = ["0001_create_task", "0002_add_task_risk", "0003_create_logs_costs_connections"]
NO_FILE = Path("/nonexistent/.env")
SECRET = "hunter2"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a directory whose only migration fails."""
    directory = tmp_path / "versions"
    directory.mkdir()
    (directory / "0001_broken.py").write_text("def up(migrator, db):\n    db.execute_sql('SELECT FROM nowhere')\n")
    return directory


@pytest.fixture
def _unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every question to /readyz be a probe."""
    monkeypatch.setattr(ops, "KEPT_S", 0.0)


def test_a_boot_migrates_and_is_ready(client: FlaskClient) -> None:
    """After the boot the schema is current, and both health endpoints say yes."""
    assert client.get("/healthz").get_json() == {"status": "alive"}
    assert client.get("/readyz").get_json() == {"status": "ready"}


def test_a_second_boot_applies_nothing(build_app: BuildApp, logged: Logged) -> None:
    """The history of a second boot is the first one's, and its log has no word of migrating."""
    build_app()
    first = MigrationTracker.get_migration_history()
    DB.close()
    logged()
    build_app()

    assert MigrationTracker.get_migration_history() == first
    assert "migrating" not in [line["event"] for line in logged()]


@pytest.mark.parametrize("mode", ["check", "off"])
@pytest.mark.usefixtures("_unkept")
def test_a_boot_that_only_looks_is_ready_once_somebody_migrated(
    build_app: BuildApp, backend: Backend, mode: str
) -> None:
    """It changes nothing itself, names what is pending, and needs no restart."""
    client = build_app(migrate_on_boot=mode).test_client()
    before = client.get("/readyz")
    migrate_db(database=backend.database())

    assert (before.status_code, before.get_json()["pending"]) == (503, PENDING)
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(("mode", "warnings"), [("check", 1), ("off", 0)])
@pytest.mark.engines("sqlite")
def test_only_check_warns_of_what_is_pending(build_app: BuildApp, logged: Logged, mode: str, warnings: int) -> None:
    """``off`` does not look."""
    build_app(migrate_on_boot=mode)

    assert [line["pending"] for line in logged() if line["level"] == "warning"] == [PENDING] * warnings


def test_a_failed_migration_refuses_the_boot(build_app: BuildApp, logged: Logged, broken: Path) -> None:
    """The error reaches whoever boots, and one CRITICAL line says which migration, why and what to do."""
    with pytest.raises(MigrationFailedError, match="0001_broken"):
        build_app(migration_directory=broken)

    (line,) = [line for line in logged() if line["level"] == "critical"]
    assert line["event"].startswith("0001_broken failed at its 1st statement")
    assert line["boot"] == "refused"
    assert {"code", "hint", "correlation_id"} <= line.keys()


@pytest.mark.parametrize("mode", ["check", "off"])
@pytest.mark.engines("postgres", "mariadb")
def test_an_unreachable_database_lets_it_boot_unready(build_app: BuildApp, logged: Logged, mode: str) -> None:
    """It lives, says why it is not ready, and answers a request with 503, without the password anywhere."""
    url = f"postgresql://u:{SECRET}@127.0.0.1:1/d"
    client = build_app(database_url=url, migrate_on_boot=mode, db_pool_timeout_s=0.01).test_client()
    answers = [client.get(path) for path in ("/healthz", "/readyz", "/tasks")]

    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert answers[1].get_json()["reason"] == "database unreachable"
    assert (answers[2].get_json()["code"], answers[2].headers["Retry-After"]) == ("DB002", "5")
    assert SECRET not in f"{[answer.text for answer in answers]}{logged()}"


@pytest.mark.engines("sqlite")
def test_an_unreachable_database_refuses_a_boot_that_migrates(build_app: BuildApp, tmp_path: Path) -> None:
    """Nobody serves on a schema that nobody has seen."""
    with pytest.raises(DatabaseUnavailableError):
        build_app(database_url=f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(("command", "is_served"), [("run", True), ("flask", False), ("db", False), ("shell", False)])
def test_only_run_serves(command: str, is_served: bool) -> None:
    """A command that loads the app to look at it must not migrate."""
    assert boot.is_served()
    with click.Context(click.Command(command), info_name=command):
        assert boot.is_served() is is_served


@pytest.mark.engines("sqlite")
def test_a_long_boot_says_what_to_do(
    build_app: BuildApp, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, under the boot's correlation id, while the migration still runs."""
    monkeypatch.setattr(boot, "LONG_AFTER_S", 0.0)
    (tmp_path / "0001_slow.py").write_text(
        "import threading\n"
        "def up(migrator, db):\n"
        "    [thread.join(30) for thread in threading.enumerate() if isinstance(thread, threading.Timer)]\n"
    )
    build_app(migration_directory=tmp_path)

    lines = logged()
    (line,) = [line for line in lines if "still migrating" in line["event"]]
    assert "MIGRATE_ON_BOOT=check" in line["hint"]
    assert {line["correlation_id"] for line in lines} == {line["correlation_id"]}


@pytest.mark.engines("postgres", "mariadb")
@pytest.mark.usefixtures("_unkept")
def test_readiness_follows_the_server(client: FlaskClient, backend: Backend) -> None:
    """A killed server makes it unready, with a code and no address; the server's return makes it ready."""
    backend.private.kill()
    gone = client.get("/readyz")
    backend.private.ensure_running()

    assert gone.status_code == 503
    assert set(gone.get_json()) == {"status", "reason", "code"}
    assert client.get("/readyz").status_code == 200


@pytest.mark.engines("postgres", "mariadb")
@pytest.mark.usefixtures("_unkept")
def test_a_stopped_server_is_unreachable_within_the_connect_timeout(client: FlaskClient, backend: Backend) -> None:
    """A server that accepts and then says nothing is no reason to hang."""
    backend.private.pause()

    assert client.get("/readyz").get_json()["reason"] == "database unreachable"
    assert client.get("/healthz").status_code == 200


class CountedReadiness(Readiness):
    """Counts its probes, each of which lasts until it is let go."""

    probes = 0
    let_go = threading.Event()
    begun = threading.Event()

    def _probe(self) -> Verdict:
        self.probes += 1
        self.begun.set()
        self.let_go.wait(30)
        return Verdict()


def test_askers_share_one_probe() -> None:
    """Ten at once cost the database one connection, and later ones within two seconds none."""
    readiness = CountedReadiness(load_settings(env_file=NO_FILE))
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(readiness.verdict) for _ in range(10)]
        readiness.begun.wait(30)
        readiness.let_go.set()

    assert [answer.result() for answer in answers] + [readiness.verdict()] == [Verdict()] * 11
    assert readiness.probes == 1


def test_nobody_waits_long_for_a_probe_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first probe hangs, whoever asks is told that the database does not answer."""
    monkeypatch.setattr(ops, "WAIT_S", 0.0)
    readiness = CountedReadiness(load_settings(env_file=NO_FILE))
    readiness.begun, readiness.let_go = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(readiness.verdict)
        readiness.begun.wait(30)
        meanwhile = readiness.verdict()
        readiness.let_go.set()

    assert (meanwhile.reason, meanwhile.details) == ("database unreachable", {"code": "NO_ANSWER"})
    assert first.result() == Verdict()
