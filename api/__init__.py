"""Plinth: the database layer of a Flask service, and the service on top of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from api.settings import Settings


def create_app(settings: Settings | None = None) -> Flask:
    """Build the service: settings, logs, database, schema, then what speaks HTTP.

    *settings* default to the environment's. Raises ``ConfigurationError`` for wrong ones and, where the boot
    migrates, what ended the migration. The imports stand inside: ``python -m api.db.migrations`` passes this
    file, and needs no Flask.
    """
    from flask import Flask

    from api.db.cli import cli
    from api.exceptions import AADAPError
    from api.logs import configure_logging
    from api.settings import load_settings
    from api.web.boot import boot, refuse_to_boot
    from api.web.routes import serve

    configure_logging()
    try:
        settings = settings or load_settings()
        configure_logging(settings.log_level, settings.log_format)
        boot(settings)
    except AADAPError as error:
        refuse_to_boot(error)
    app = Flask(__name__, static_folder=None)
    serve(app, settings)
    app.cli.add_command(cli, "db")
    return app
