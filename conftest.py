"""The suite's engines: which there are, a fresh database a test, and at the end which of them really ran."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import peewee
import pytest
import servers

from api.db.connection import open_database
from api.db.dialects.engine import Engine

ENGINES: tuple[Engine, ...] = ("sqlite", "postgres", "mariadb", "mysql")
FLEET = pytest.StashKey[servers.Fleet]()
DATABASE_NUMBERS = count(1)
# Every setting of the app: a developer's own must not reach a test.
SETTINGS = (
    *("DATABASE_URL", "MIGRATE_ON_BOOT", "MIGRATION_DIRECTORY", "MIGRATION_LOCK_TIMEOUT_S"),
    *("MIGRATION_STATEMENT_LOCK_TIMEOUT_S", "MIGRATION_UNDO_ROWS", "DB_POOL_MAX", "DB_POOL_TIMEOUT_S"),
    *("DB_CONNECT_TIMEOUT_S", "POOL_CHECK_INTERVAL_S", "POOL_WARNING_THRESHOLD", "POOL_CRITICAL_THRESHOLD"),
    *("POOL_VALIDATE_AFTER_S", "POOL_MAX_LIFETIME_S", "POOL_LEAK_AFTER_S"),
    *("ENCRYPTION_KEYS", "LOG_LEVEL", "LOG_FORMAT", "APP_ENV"),
)


@dataclass
class Backend:
    """One engine with a fresh, empty database for one test; *server* is ``None`` for SQLite."""

    engine: Engine
    url: str
    server: servers.Server | None = None
    opened: list[peewee.Database] = field(default_factory=list)

    def database(self, **kwargs: Any) -> peewee.Database:
        """Return a new, unconnected database object, opened as the app does it; closed after the test."""
        database = open_database(self.url, **kwargs)
        self.opened.append(database)
        return database

    @property
    def private(self) -> servers.PrivateServer:
        """The server as one that a test may pause and kill; it runs again for the next test."""
        assert isinstance(self.server, servers.PrivateServer), f"{self.engine} has no server of ours"
        return self.server

    def close(self) -> None:
        """Close what ``database`` gave out, the connections of other threads included."""
        for database in self.opened:
            getattr(database, "close_all", database.close)()


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Give the test a fresh database on each engine in turn; ``@pytest.mark.engines`` names fewer."""
    engine: Engine = request.param
    if reason := servers.missing(engine):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{engine}: {reason}")
    if engine == "sqlite":
        place: AbstractContextManager[Backend] = nullcontext(Backend(engine, f"sqlite:///{tmp_path}/test.db"))
    else:
        place = _place_on(request.config.stash[FLEET][engine])
    with place as backend, closing(backend):
        request.node.user_properties.append(("engine", engine))
        yield backend


@pytest.fixture
def db(backend: Backend) -> peewee.Database:
    """Give the test a connected database on each engine in turn."""
    database = backend.database()
    database.connect()
    return database


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Draw the seed of a random test; the end of the output says it, also when the test passes."""
    drawn = random.SystemRandom().randrange(10**6)
    print(f"seed {drawn}")
    request.node.user_properties.append(("told", f"{request.node.name}: seed {drawn}"))
    return drawn


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's settings from the test."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def _place_on(server: servers.Server) -> Iterator[Backend]:
    name = f"plinth_test_{os.getpid()}_{next(DATABASE_NUMBERS)}"
    url = server.create_database(name)
    try:
        yield Backend(server.engine, url, server)
    finally:
        server.ensure_running()
        server.drop_database(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``backend`` on each engine it names; on MySQL only when its URL is given."""
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("engines")
    named = marker.args if marker else ENGINES
    if unknown := set(named) - set(ENGINES):
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no engine is called {unknown.pop()!r}")
    engines = [engine for engine in named if engine != "mysql" or os.environ.get("TEST_MYSQL_URL")]
    metafunc.parametrize("backend", engines, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a report travel between processes whatever the test printed: half a character does not."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Make the fleet; nothing starts before a test needs it."""
    config.stash[FLEET] = servers.Fleet()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers."""
    config.stash[FLEET].stop()


def pytest_report_header() -> str:
    """Say which engines the suite can run on, and why not on the others."""
    return "engines at hand: " + ", ".join(
        f"{engine} ({reason})" if (reason := servers.missing(engine)) else _title(engine) for engine in ENGINES
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the chosen tests need, side by side, while the first tests run."""
    if not session.config.option.collectonly:
        session.config.stash[FLEET].start(engine for engine in _needed(session) if servers.missing(engine) is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """End the output with the engines that tests really ran on, and those they should have run on."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.config.option.collectonly:
        return
    reports = [report for kind in reporter.stats.values() for report in kind]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    properties = [pair for report in called for pair in report.user_properties]
    for line in [value for name, value in properties if name == "told"]:
        reporter.write_line(line)
    ran = [value for name, value in properties if name == "engine"]
    stopped = dict.fromkeys(_needed(session) - set(ran), "its tests stopped before they began")
    reasons = {engine: servers.missing(engine) or stopped.get(engine) for engine in ENGINES}
    line = ", ".join(_title(engine) for engine in ENGINES if engine in ran) or "none"
    not_run = ", ".join(f"{engine} ({reason})" for engine, reason in reasons.items() if reason)
    reporter.write_line(f"engines: {line} ({len(ran)} tests)" + (f"; NOT RUN: {not_run}" if not_run else ""))


def _needed(session: pytest.Session) -> set[Engine]:
    # The process that only hands out tests to others has none of its own.
    calls = (getattr(item, "callspec", None) for item in getattr(session, "items", ()))
    return {call.params["backend"] for call in calls if call and "backend" in call.params}


def _title(engine: Engine) -> str:
    return f"{engine} {servers.version_at_hand(engine)}"
