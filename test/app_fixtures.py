"""The app on a backend, for the tests that ask it something."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from cryptography.fernet import Fernet
from flask import Flask
from flask.testing import FlaskClient

from api import create_app
from api.db.connection import DB, PoolDiagnostics
from api.settings import load_settings

if TYPE_CHECKING:
    from conftest import Backend

NO_FILE = Path("/nonexistent/.env")
BuildApp = Callable[..., Flask]
Logged = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def build_app(backend: Backend) -> Iterator[BuildApp]:
    """Return a function that builds the app on the backend; undo afterwards what the app binds to the process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    opened = []

    def build(**overrides: Any) -> Flask:
        given = {"database_url": backend.url, "log_format": "json", "db_connect_timeout_s": 2} | overrides
        key = Fernet.generate_key().decode()
        try:
            return create_app(load_settings(env_file=NO_FILE, **({"encryption_keys": key} | given)))
        finally:
            opened.append(DB.obj)

    yield build
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    for database in filter(None, opened):
        PoolDiagnostics.stop_health_monitoring(database)
        database.close_all()
    DB.initialize(None)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def app(build_app: BuildApp) -> Flask:
    """Return the app, migrated, on each engine in turn."""
    return build_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Return a client of the app on each engine in turn."""
    return app.test_client()


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Logged:
    """Return a function that returns the lines logged since it was last called."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]

    return read
