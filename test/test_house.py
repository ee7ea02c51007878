"""The house keeps its own rules: its budgets, its floors, its names, and quiet imports."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import conftest
from api.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "api").rglob("*.py"))
MIGRATIONS = sorted((ROOT / "api/db/versions").glob("*.py"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if path not in MIGRATIONS
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Names that say nothing of what is inside.
EMPTY_NAMES = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}

# Imports every module named on its command line, and prints what an import may not do.
WATCHED_IMPORTS = """
import importlib, os, sys, threading
# Copies the whole environment at its import, for prometheus_client.
import wsgiref.handlers
module = None

class Watched(dict):
    def __getitem__(self, key):
        if key == b"DATABASE_URL":
            print(module, "reads DATABASE_URL")
        return super().__getitem__(key)

def watch(event, arguments):
    if event in {"socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen", "os.fork"}:
        print(module, event, arguments)

os.environ._data = Watched(os.environ._data)
sys.addaudithook(watch)
for module in sys.argv[1:]:
    importlib.import_module(module)
    if threading.active_count() > 1:
        print(module, "started", threading.enumerate())
# Not by the usual way out: there coverage opens the database it writes to.
sys.stdout.flush()
os._exit(0)
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter at the project's root, every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method that *path* defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_command_line_helps_without_a_warning() -> None:
    """`python -m api.db.migrations --help` prints help and nothing else, whatever the environment."""
    done = run_python("-m", "api.db.migrations", "--help", DATABASE_URL="nonsense://")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_the_command_line_loads_no_flask() -> None:
    """An operator's command does not pay for the web framework."""
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('loaded', sorted({'flask', 'werkzeug', 'jinja2'} & set(sys.modules))))\n"
        "sys.argv[1:] = ['--help']\n"
        "runpy.run_module('api.db.migrations', run_name='__main__')\n"
    )
    done = run_python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("loaded []\n")


def test_a_boot_loads_no_tokenizer() -> None:
    """Only a batch on MySQL or MariaDB pays for sqlglot, once it reads a statement."""
    done = run_python("-c", "import sys, api.db.cli; print('sqlglot' in sys.modules)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_an_import_does_nothing() -> None:
    """No module connects, starts a thread or a process, or reads the database's URL when it is imported."""
    done = run_python("-c", WATCHED_IMPORTS, *MODULES, DATABASE_URL="nonsense://")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["api", "api.db"])
def test_a_package_imports_nothing_of_ours(module: str) -> None:
    """`python -m api.db.migrations` loads these two first: what they import would be there twice."""
    script = f"import sys, {module}; print(*sorted(name for name in sys.modules if name.startswith('api.')))"
    done = run_python("-c", script)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {"api.db"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_budget(path: Path) -> None:
    """A file fits one reading, a function one screen."""
    lines = path.read_text().count("\n")
    long = {node.name: size for node in functions(path) if (size := _lines_of(node)) > MAX_FUNCTION_LINES}
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split it by what it answers"
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def test_functions_are_short() -> None:
    """Half of the functions have at most 10 lines, and 95 of 100 at most 40, docstrings included."""
    sizes = sorted(_lines_of(node) for path in SOURCES for node in functions(path))
    assert sizes[len(sizes) // 2] <= 10
    assert sizes[len(sizes) * 95 // 100] <= 40


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_named_after_its_subject(module: str) -> None:
    """No module is a drawer for what fits nowhere."""
    assert not EMPTY_NAMES & set(re.split(r"[._]", module))


def test_every_module_stands_on_a_floor() -> None:
    """The layers in setup.cfg name every room, so that lint-imports checks every import."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    floors = re.findall(r"[\w.]+", config["importlinter:contract:floors"]["layers"])
    rooms = [module for module in MODULES if module not in {"api", "api.db"}]
    assert [room for room in rooms if not any(f"{room}.".startswith(f"{floor}.") for floor in floors)] == []


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_a_migration_is_named_by_number_and_words(path: Path) -> None:
    """`NNNN_words.py`: four digits, then lower-case words that say what it does."""
    assert re.fullmatch(r"\d{4}(_[a-z0-9]+)+\.py", path.name)


def test_migrations_are_numbered_without_a_gap() -> None:
    """The numbers run 0001, 0002, 0003: two branches that took the same number meet here."""
    assert [int(path.name[:4]) for path in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


@pytest.mark.parametrize("name", ["requirements.txt", "test/requirements.txt"])
def test_a_requirement_admits_fixes_and_no_new_major(name: str) -> None:
    """Every requirement names the oldest version that will do, and where the untried ones begin."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-r "))]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+>=[\d.]+,<[\d.]+", line)] == []


def test_every_setting_is_hidden_from_the_tests() -> None:
    """A developer's own environment cannot change how a test ends."""
    assert {name.upper() for name in Settings.model_fields} <= set(conftest.SETTINGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_in_the_docs_leads_somewhere(page: Path) -> None:
    """Every relative link of a page points at a file that is there."""
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def _lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
