"""What happens before the first request: bind the database, migrate or look whether somebody has."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
import peewee
import structlog

from api.db.base import validate_all
from api.db.batch import Options
from api.db.connection import DB, get_db_connection, log_connection_config, open_database
from api.db.fields import bind_encryption_keys
from api.db.migrations import migrate_db, pending_migrations
from api.db.models import MODELS, TaskLog
from api.db.task_log import TaskLogHandler
from api.exceptions import AADAPError, ConfigurationError, DatabaseLayerError, MigrationFileError
from api.logs import bind_correlation_id, carry_context
from api.settings import Settings

log = structlog.get_logger(__name__)

LONG_AFTER_S = 20.0
LONG_HINT = (
    "run `python -m api.db.migrations` in an init step before the deploy, set MIGRATE_ON_BOOT=check for the "
    "service itself, and give it a startup probe on /readyz: a supervisor's time limit may kill a long boot"
)


def is_served() -> bool:
    """Tell whether this process will serve: it does, unless a command other than ``flask run`` loads the app.

    ``flask db``, ``shell`` and ``routes`` load it too, and must not migrate.
    """
    context = click.get_current_context(silent=True)
    return context is None or context.info_name == "run"


def boot(settings: Settings) -> None:
    """Bind the database and the keys to this process; where the app is served, see to the schema too."""
    DB.initialize(
        open_database(
            settings.database_url.get_secret_value(),
            pool_max=settings.db_pool_max,
            pool_timeout_s=settings.db_pool_timeout_s,
            connect_timeout_s=settings.db_connect_timeout_s,
            validate_after_s=settings.pool_validate_after_s,
            max_lifetime_s=settings.pool_max_lifetime_s,
        )
    )
    bind_encryption_keys(settings.encryption_keys)
    if is_served():
        bind_correlation_id()
        log_connection_config(DB)
        prepare_schema(settings)
        keep_task_logs(settings)
        log.info("booted", migrate_on_boot=settings.migrate_on_boot, app_env=settings.app_env, pid=os.getpid())
        structlog.contextvars.unbind_contextvars("correlation_id")


def prepare_schema(settings: Settings) -> None:
    """Bring the schema up to date as ``MIGRATE_ON_BOOT`` says, and leave no connection open.

    ``auto`` migrates, and raises what went wrong so that the program ends; ``check`` only warns, and
    ``/readyz`` says no until somebody has migrated; ``off`` does not look.
    """
    try:
        if settings.migrate_on_boot == "auto":
            _migrate(settings)
        elif settings.migrate_on_boot == "check":
            _check(settings)
    finally:
        if not DB.is_closed():
            DB.close()
        # With gunicorn's --preload this is the master: workers forked from it would share an idle connection.
        DB.close_idle()


def _migrate(settings: Settings) -> None:
    with _saying_that_it_is_long():
        migrate_db(
            directory=settings.migration_directory,
            database=DB,
            options=Options(
                lock_timeout_s=settings.migration_lock_timeout_s,
                statement_lock_timeout_s=settings.migration_statement_lock_timeout_s,
                undo_rows=settings.migration_undo_rows,
            ),
        )
    validate_all(MODELS)


def _check(settings: Settings) -> None:
    try:
        get_db_connection(DB, deadline_s=settings.db_connect_timeout_s)
        pending = pending_migrations(settings.migration_directory, DB)
    except MigrationFileError:
        raise
    except (DatabaseLayerError, peewee.PeeweeException) as exc:
        log.warning("the database cannot be asked at boot; not ready until it can", error=str(exc))
        return
    validate_all(MODELS)
    if pending:
        log.warning("migrations are pending; not ready until they are applied", pending=pending)


def keep_task_logs(settings: Settings) -> None:
    """Write every log line that carries a ``task_id`` into that task's own log, from now on."""
    url, timeout_s = settings.database_url.get_secret_value(), settings.db_connect_timeout_s
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, TaskLogHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(TaskLogHandler(lambda: open_database(url, pool_max=1, connect_timeout_s=timeout_s), TaskLog))


@contextmanager
def _saying_that_it_is_long() -> Iterator[None]:
    """Log one line if the block takes longer than 20 seconds."""
    timer = threading.Timer(LONG_AFTER_S, carry_context(_say_that_it_is_long))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_that_it_is_long() -> None:
    log.warning("the boot is still migrating, or waiting for a process that does", after_s=LONG_AFTER_S, hint=LONG_HINT)


def refuse_to_boot(error: AADAPError) -> NoReturn:
    """Log *error* as one CRITICAL line and end the boot.

    Under ``flask`` the program ends without a traceback, with the command line's exit codes: 2 for settings and
    files, 1 for what the database said. Elsewhere *error* goes to the caller: gunicorn then ends with 3.
    """
    log.critical(error.message, boot="refused", code=error.error_code, hint=error.hint)
    if click.get_current_context(silent=True) is None:
        raise error
    raise SystemExit(2 if isinstance(error, ConfigurationError | MigrationFileError) else 1) from error
