"""The command line as a person and a script meet it: text, JSON, exit codes, and each error once."""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee
import pytest
from click.testing import CliRunner
from forking import in_child

from api.db.cli import OTHER_TOOLS, cli
from api.settings import ENV_FILE
from conftest import Backend

ROOT = Path(__file__).parent.parent
GOOD = """def up(migrator, db):
    db.execute_sql("CREATE TABLE a (id INTEGER)")


def down(migrator, db):
    db.execute_sql("DROP TABLE a")
"""
BAD = """def up(migrator, db):
    db.execute_sql("CREATE TABLE b (id INTEGER)")
    db.execute_sql("INSERT INTO b VALUES (1)")
    db.execute_sql("INSERT INTO gone VALUES ('hunter2')")
"""


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Run = Callable[..., Done]


@pytest.fixture(name="versions")
def _versions(tmp_path: Path) -> Path:
    directory = tmp_path / "versions"
    directory.mkdir()
    (directory / "0001_a.py").write_text(GOOD)
    return directory


@pytest.fixture(name="run")
def _run(backend: Backend, versions: Path) -> Run:
    def run(*arguments: str, url: str = backend.url, directory: Path = versions) -> Done:
        command = [sys.executable, "-W", "error", "-m", "api.db.migrations", "--database-url", url]
        command += ["--directory", str(directory), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def _only(run: Done, code: int, *texts: str) -> None:
    """Assert the exit code, that each text is told, that there is one error, and no secret."""
    told = run.out + run.err
    assert run.code == code, told
    assert [text for text in texts if text not in told] == []
    assert len(re.findall(r"^error ", run.err, re.MULTILINE)) == 1
    assert "hunter2" not in told


def test_up_prints_a_table_then_that_nothing_is_pending(run: Run) -> None:
    """Without a command it is ``up``; both times it exits 0. ``plan`` says the same word on every engine."""
    plan, first, second = run("plan"), run(), run("up")

    assert re.search(r"^0001_a +1 +as a whole$", plan.out, re.MULTILINE)
    assert (first.code, second.code) == (0, 0)
    assert re.search(r"^migration +status +ms\n0001_a +success +\d+\n1 applied in \d+ ms$", first.out, re.MULTILINE)
    assert second.out == "nothing is pending: the schema is current\n"


def test_json_is_one_document_and_nothing_else(run: Run) -> None:
    """The shapes of ``up``, ``status``, ``plan`` and ``history``."""
    plan, up, status, history = (run("--json", command).document for command in ("plan", "up", "status", "history"))

    assert plan == {"migrations": [{"name": "0001_a", "part": 1, "atomic": True}], "interrupted": False}
    assert up.keys() == {"batch", "applied", "failed", "stuck", "rolled_back", "pending", "duration_ms"}
    assert up["applied"][0].keys() == {"name", "status", "duration_ms"}
    assert status["pending"] == 0
    assert status["migrations"][0].keys() == {"name", "state", "applied_at", "duration_ms", "error"}
    assert [(each["name"], each["action"], each["status"]) for each in history["attempts"]] == [
        ("0001_a", "up", "success")
    ]


def test_exit_codes_tell_what_was_found(run: Run, versions: Path) -> None:
    """3 while something is pending or changed, 0 when all is as it should be."""
    codes = [run("status").code, run("plan").code, run("up").code, run("status").code, run("plan").code]
    (versions / "0001_a.py").write_text(GOOD + "# edited\n")

    assert codes == [3, 3, 0, 0, 0]
    assert run("status").code == 3
    assert re.search(r"0001_a +changed", run("status").out)


def test_down_asks_unless_told_yes(run: Run) -> None:
    """Without a terminal to ask on it names what it would revert, and stops."""
    run("up")

    refused, reverted = run("down"), run("down", "--yes")

    assert refused.code == 2
    assert "0001_a" in refused.err
    assert "--yes" in refused.err
    assert (reverted.code, reverted.out) == (0, "reverted: 0001_a\n")
    assert run("status").code == 3


def test_a_failed_migration_tells_file_statement_state_and_remedy(run: Run, versions: Path) -> None:
    """Which file and line, which statement, what the server said, what stands, what to do; exit 1."""
    (versions / "0002_b.py").write_text(BAD)

    failed = run("up")

    text = failed.err.replace("hunter2", "")
    assert failed.code == 1
    assert "error MIG003: 0002_b failed at its 3rd statement: " in text
    assert re.search(r"file +\S+0002_b\.py, line 4$", text, re.MULTILINE)
    assert re.search(r"statement +INSERT INTO gone VALUES", text)
    assert re.search(r"what to do  correct the table's name", text)
    assert re.search(r"state +rolled back.*: schema and data are as before", text)


def test_a_failed_batch_as_json(run: Run, versions: Path, backend: Backend) -> None:
    """``failed`` carries name and error, ``rolled_back`` and ``pending`` the names; the schema is as before."""
    (versions / "0002_b.py").write_text(BAD)

    document = run("--json", "up").document

    assert document["failed"]["name"] == "0002_b"
    assert document["failed"]["error"].keys() >= {"code", "message", "severity", "hint"}
    assert document["applied"] == []
    assert document["rolled_back"] == ["0001_a"]
    assert document["pending"] == ["0001_a", "0002_b"]
    assert [table for table in backend.database().get_tables() if not table.startswith("migration_")] == []


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    ("url", "texts"),
    [
        ("oracle://u:hunter2@h/d", ["DATABASE_URL", "the scheme 'oracle' is none of"]),
        ("postgres://u:hunter2@h", ["DATABASE_URL", "names no database"]),
        ("postgres://u:hunt/hunter2@h/d", ["DATABASE_URL", "%40"]),
        ("hunter2", ["DATABASE_URL", "is not a URL"]),
    ],
)
def test_a_wrong_url_is_a_wrong_setting(run: Run, url: str, texts: list[str]) -> None:
    """Exit 2, the variable's name, and nothing of the URL that could be secret."""
    _only(run("up", url=url), 2, *texts)


@pytest.mark.engines("postgres", "mariadb", "mysql")
def test_a_wrong_password_is_told_once(run: Run, backend: Backend) -> None:
    """Exit 1 at once, with the user and the place."""
    assert backend.server is not None
    address = backend.url.rpartition("@")[2]
    user = "plinth" if backend.engine != "mysql" else "root"

    done = run("up", url=f"{backend.url.partition('://')[0]}://{user}:hunter2@{address}")

    _only(done, 1, "error DB002", "correct user and password", user)


@pytest.mark.engines("postgres", "mariadb")
def test_an_unreachable_server_is_told_once(run: Run, backend: Backend) -> None:
    """Nothing listens on port 1: one message, exit 1, no waiting for what will not come."""
    scheme = backend.url.partition("://")[0]

    done = run("status", url=f"{scheme}://plinth:hunter2@127.0.0.1:1/x")

    _only(done, 1, "error DB002", "nothing listens there", "127.0.0.1:1/x")
    assert "trying again" not in done.err


@pytest.mark.engines("postgres", "mariadb")
def test_an_unknown_database_is_told_once(run: Run, backend: Backend) -> None:
    """Its name, and that it has to be created."""
    _only(run("up", url=backend.url.rpartition("/")[0] + "/nowhere"), 1, "missing database", "nowhere")


@pytest.mark.engines("postgres")
def test_a_read_only_server_is_told_once(run: Run, db: peewee.Database) -> None:
    """Exit 1, the category's remedy, nothing applied."""
    db.execute_sql(f'ALTER DATABASE "{db.database}" SET default_transaction_read_only = on')

    _only(run("up"), 1, "nothing ran: the database is read-only (transaction_read_only is on)", "what to do")


@pytest.mark.engines("sqlite")
def test_a_read_only_file_is_told_once(backend: Backend, db: peewee.Database, versions: Path, tmp_path: Path) -> None:
    """The same for a file that the account may only read."""
    if in_child(lambda: os.access(ENV_FILE.parent, os.R_OK), unprivileged=True) != "True":
        pytest.skip(f"{ENV_FILE.parent} is closed to the account nobody, and so is its .env")
    db.execute_sql("CREATE TABLE b (id INTEGER)")
    db.close_all()
    Path(str(db.database)).chmod(0o444)
    # pytest's own folders, one more where it runs several tests at a time.
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.stat().st_uid == os.getuid() and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)

    def up() -> str:
        done = CliRunner().invoke(cli, ["--database-url", backend.url, "--directory", str(versions), "up"])
        return f"{done.exit_code} {done.stderr}"

    codecs.lookup("utf-8-sig")  # loaded now: nobody may not read every Python's own folder
    told = in_child(up, unprivileged=True)
    assert told.startswith("1 ")
    assert "error MIG001: " in told
    assert "readonly database" in told
    assert "what to do" in told


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("0002_b", "def up(:\n", "0002_b.py, line 1"),
        ("0002_b", "def upp(migrator, db): ...\n", "has no function up(migrator, db)"),
        ("0001_b", GOOD, "migration number 1 is used twice: '0001_a.py' and '0001_b.py'"),
        ("0002 b", GOOD, "is not a migration's name"),
    ],
)
def test_a_bad_file_is_told_once(run: Run, versions: Path, name: str, text: str, told: str) -> None:
    """Exit 2, file and line, before anything ran."""
    (versions / f"{name}.py").write_text(text)

    _only(run("up"), 2, "error MIG002", told)
    assert run("--json", "up").document["error"]["code"] == "MIG002"


@pytest.mark.engines("sqlite")
def test_a_removed_and_an_edited_file_are_shown(run: Run, versions: Path) -> None:
    """``status`` names both states; ``up`` serves on with one warning."""
    (versions / "0002_b.py").write_text(GOOD.replace("TABLE a", "TABLE b"))
    run("up")
    (versions / "0001_a.py").unlink()
    (versions / "0002_b.py").write_text("def up(migrator, db): ...\n")

    status, up = run("status"), run("up")

    assert re.search(r"0001_a +missing", status.out)
    assert re.search(r"0002_b +changed", status.out)
    assert (status.code, up.code) == (3, 0)
    assert up.err.count("without a file") == 1


@pytest.mark.engines("sqlite")
def test_a_missing_directory_is_told_once(run: Run, tmp_path: Path) -> None:
    """Exit 2, with the setting that names it."""
    _only(run("up", directory=tmp_path / "nowhere"), 2, "cannot be read", "MIGRATION_DIRECTORY")


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(("theirs", "ours"), sorted(OTHER_TOOLS.items()))
def test_another_tools_word_is_answered_with_ours(run: Run, theirs: str, ours: str) -> None:
    """A hint and exit 2, no alias."""
    done = run(theirs)

    assert done.code == 2
    assert f"here it is called {ours!r}" in done.err


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("arguments", [["nonsense"], ["up", "--nonsense"], ["upgrade"]])
def test_a_usage_error_is_a_document_too(run: Run, arguments: list[str]) -> None:
    """With ``--json`` a script reads one document whatever went wrong; exit 2."""
    done = run("--json", *arguments)

    assert done.code == 2
    assert done.document["error"]["code"] == "CONF001"


@pytest.mark.engines("sqlite", "postgres")
def test_verbose_shows_a_traceback_without_secrets(backend: Backend, versions: Path) -> None:
    """Neither the server's quote of the statement, nor Python's, nor the values of a query."""
    (versions / "0002_b.py").write_text(
        "def up(migrator, db):\n    db.execute_sql(\"CREATE USER x PASSWORD 'hunter2' bogus\")\n"
    )
    command = [sys.executable, "-m", "api.db.migrations", "--verbose", "--directory", str(versions)]
    done = subprocess.run(
        [*command, "--database-url", backend.url], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.engines("sqlite")
def test_a_place_that_cannot_be_written_is_told(run: Run, tmp_path: Path) -> None:
    """``create`` below a file: exit 2, one message."""
    (tmp_path / "file").write_text("")

    _only(run("create", "x", directory=tmp_path / "file" / "versions"), 2, "cannot be")


@pytest.mark.engines("sqlite")
def test_create_writes_the_next_number(run: Run, versions: Path) -> None:
    """What it writes can be loaded and planned."""
    done = run("create", "Add", "user-email")

    assert done.code == 0
    assert (versions / "0002_add_user_email.py").exists()
    assert "0002_add_user_email" in run("plan").out


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_documented(run: Run, command: str) -> None:
    """It has help, and the guide shows it."""
    guide = (ROOT / "docs" / "DATABASE_MIGRATIONS.md").read_text()

    assert (cli.commands[command].help or "").strip()
    assert run(command, "--help").code == 0
    assert f"`{command}" in guide
