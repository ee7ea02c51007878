"""The command line: text and exit codes, nothing else. ``python -m api.db.migrations`` and ``flask --app api db``.

Exit codes: 0 done, 1 the database said no, 2 usage, settings or a bad file, 3 found (pending, failed, changed).
Standard output holds the result, with ``--json`` one document and nothing else; all else goes to standard error.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import peewee
from rich.console import Console
from rich.table import Table

from api import logs
from api.db import files, history, migrations, report
from api.db.batch import Options
from api.db.connection import open_database
from api.db.dialects.engine import Engine, engine_of
from api.db.dialects.errors import classify
from api.db.results import BatchInterrupted, batch_error
from api.db.status import migration_status
from api.exceptions import (
    AADAPError,
    ConfigurationError,
    MigrationError,
    MigrationFailedError,
    MigrationFileError,
)
from api.settings import Settings, load_settings

FOUND = 3
INTERRUPTED = "an interrupted batch is open: `up` undoes or finishes it first, `recover` does only that"
# What would steer the terminal, in a text that came from a server or a file.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
BAD_INPUT = (ConfigurationError, MigrationFileError)
OTHER_TOOLS = {
    "upgrade": "up",
    "migrate": "up",
    "apply": "up",
    "downgrade": "down",
    "rollback": "down",
    "revision": "create",
    "makemigrations": "create",
    "info": "status",
    "current": "status",
    "showmigrations": "status",
    "validate": "status",
}


@dataclass(slots=True)
class Context:
    """What every command has: the settings, the database, and how to show results."""

    settings: Settings
    as_json: bool
    verbose: bool
    database: peewee.Database
    engine: Engine = "sqlite"

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect for the block. A person waits: one attempt, one message; the app's boot is what tries again."""
        with migrations.connected(self.database, deadline_s=0):
            self.engine = engine_of(self.database)
            yield

    @property
    def directory(self) -> Path:
        """The folder that holds the migrations."""
        return self.settings.migration_directory

    def show(self, document: dict[str, Any], table: Callable[[], None]) -> None:
        """Print *document* with ``--json``, else call *table*."""
        if self.as_json:
            click.echo(json.dumps(document, ensure_ascii=False))
        else:
            table()


class Commands(click.Group):
    """The group, which knows other tools' words for our commands and says so."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or hint at ours for another tool's word."""
        if args and args[0] in OTHER_TOOLS and args[0] not in self.commands:
            raise click.UsageError(f"no command {args[0]!r}: here it is called {OTHER_TOOLS[args[0]]!r}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes a message and an exit code, a traceback only with ``--verbose``."""
        try:
            return super().invoke(ctx)
        except (AADAPError, peewee.PeeweeException) as exc:
            _leave(ctx, exc)
        except BatchInterrupted as exc:
            _tell(f"interrupted: {report.state_text(exc.result)}")
            _leave(ctx, batch_error(exc.result, ctx.obj.engine))
        except click.UsageError as exc:
            if ctx.params["as_json"]:
                click.echo(json.dumps({"error": _usage_error(exc).as_dict()}, ensure_ascii=False))
            raise
        finally:
            if isinstance(ctx.obj, Context):
                _hang_up(ctx.obj.database)


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--database-url", metavar="URL", help="The database; else DATABASE_URL.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The migrations; else MIGRATION_DIRECTORY.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--verbose", is_flag=True, help="Log every statement, show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, database_url: str | None, directory: Path | None, as_json: bool, verbose: bool) -> None:
    """Migrate the database: all pending migrations, or none of them.

    Without a command it is `up`. Exit codes: 0 done; 1 the database said no; 2 usage, settings or a bad file;
    3 found (`status` and `plan`: something is pending, failed or changed).
    """
    settings = load_settings(
        database_url=database_url,
        migration_directory=directory.absolute() if directory else None,
        log_level="DEBUG" if verbose else None,
    )
    # On a terminal the table says what INFO would; in a log the lines are all there is.
    quiet = settings.log_level == "INFO" and sys.stderr.isatty()
    logs.configure_logging("WARNING" if quiet else settings.log_level, settings.log_format)
    logs.bind_correlation_id()
    database = open_database(
        settings.database_url.get_secret_value(),
        pool_max=settings.db_pool_max,
        connect_timeout_s=settings.db_connect_timeout_s,
    )
    ctx.obj = Context(settings, as_json, verbose, database)
    if ctx.invoked_subcommand is None:
        ctx.invoke(up)


@cli.command()
@click.argument("target", required=False)
@click.pass_obj
def up(context: Context, target: str | None = None) -> None:
    """Apply what is pending, up to and including TARGET if given: all of it or nothing."""
    with _Progress(context) as progress, context.connected():
        result = migrations.migrate_db(
            directory=context.directory,
            database=context.database,
            target=target,
            options=_options(context, progress.say),
        )

    def table() -> None:
        if not result.applied:
            click.echo("nothing is pending: the schema is current")
            return
        _table(("migration", "status", "ms", "reason"), report.applied_rows(result))
        click.echo(f"{len(result.applied)} applied in {result.duration_ms} ms")

    context.show(report.batch_document(result), table)


@cli.command()
@click.pass_obj
def status(context: Context) -> None:
    """Show every migration's state: applied, skipped, pending, failed, changed, missing. Reads all files."""
    with context.connected():
        states = migration_status(context.directory, context.database)
        _, interrupted = history.look(context.database)
    document = report.status_document(states, interrupted)

    def table() -> None:
        _table(("migration", "state", "applied at", "ms", "error or reason"), report.status_rows(states))
        click.echo(f"{document['pending']} pending")
        if interrupted:
            click.echo(INTERRUPTED)

    context.show(document, table)
    if interrupted or any(each.state in report.TO_DO | {"changed"} for each in states):
        raise click.exceptions.Exit(FOUND)


@cli.command()
@click.argument("target", required=False)
@click.pass_obj
def plan(context: Context, target: str | None) -> None:
    """Show what `up` would run, in which order and what of it as a whole; changes nothing."""
    with context.connected():
        names, interrupted = migrations.pending_and_interrupted(context.directory, context.database, target)
    parts = migrations.migration_parts(context.directory, names)

    def table() -> None:
        if not names:
            click.echo("nothing is pending" if interrupted else "nothing is pending: the schema is current")
        else:
            _table(("migration", "part", "runs as"), report.plan_rows(parts))
        if interrupted:
            click.echo(INTERRUPTED)

    context.show(report.plan_document(parts, interrupted), table)
    if names or interrupted:
        raise click.exceptions.Exit(FOUND)


@cli.command("history")
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest so many.")
@click.pass_obj
def history_command(context: Context, limit: int | None) -> None:
    """Show every attempt, oldest first: when, what, who, how long, and the error."""
    with context.connected():
        attempts = history.read_attempts(context.database, limit)
    headers = ("when", "migration", "action", "status", "ms", "by", "error or reason")
    context.show(report.history_document(attempts), lambda: _table(headers, report.history_rows(attempts)))


@cli.command()
@click.argument("target", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def down(context: Context, target: str | None, yes: bool) -> None:
    """Revert the newest applied migration, or all back through TARGET, TARGET included."""
    with context.connected():
        names = migrations.revertible(target, database=context.database)
    if names and not yes:
        _ask(names)
    with _Progress(context) as progress, context.connected():
        result = migrations.revert(
            target,
            directory=context.directory,
            database=context.database,
            options=_options(context, progress.say),
        )

    def table() -> None:
        reverted = ", ".join(ran.name for ran in result.applied)
        click.echo(f"reverted: {reverted}" if reverted else "nothing is applied")

    context.show(report.batch_document(result), table)


@cli.command()
@click.pass_obj
def recover(context: Context) -> None:
    """Undo or finish what an interrupted run left, now. `up` does it too, before anything else."""
    with context.connected():
        recovered = migrations.recover(database=context.database, options=_options(context, lambda name: None))

    def table() -> None:
        for each in recovered:
            kept = report.left_alone_text(each.left_alone)
            click.echo(f"the interrupted {each.direction} was {each.action}: {each.statements} journal entries{kept}")
        if not recovered:
            click.echo("nothing to recover: no batch was interrupted")

    context.show(report.recovered_document(recovered), table)


@cli.command()
@click.argument("words", nargs=-1, required=True)
@click.pass_obj
def create(context: Context, words: Sequence[str]) -> None:
    """Write a skeleton migration, named after the WORDS and the next free number."""
    path = files.create(context.directory, " ".join(words))
    context.show({"created": str(path)}, lambda: click.echo(f"created {path}"))


def main() -> int:
    """Run the command line and return the exit code."""
    return int(cli(prog_name="python -m api.db.migrations", standalone_mode=True) or 0)


# How it looks --------------------------------------------------------------------------------------------------


def _options(context: Context, on_start: Callable[[str], None]) -> Options:
    settings = context.settings
    return Options(
        settings.migration_lock_timeout_s,
        settings.migration_statement_lock_timeout_s,
        settings.migration_undo_rows,
        on_start,
    )


class _Progress:
    """One line on a terminal that says which migration runs; nothing anywhere else."""

    def __init__(self, context: Context) -> None:
        console = Console(stderr=True)
        shown = console.is_terminal and not context.as_json and not context.verbose
        self.status = console.status("looking for pending migrations") if shown else None

    def __enter__(self) -> _Progress:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.status:
            self.status.stop()

    def say(self, name: str) -> None:
        """Show that *name* runs now."""
        if self.status:
            self.status.update(name)


def _table(headers: Sequence[str], rows: Sequence[report.Row]) -> None:
    """Print a table: framed and coloured on a terminal, aligned columns elsewhere. Empty columns are left out."""
    used = [at for at in range(len(headers)) if any(row[at] for row in rows)] or list(range(len(headers)))
    chosen = [headers[at] for at in used]
    lines = [[row[at] for at in used] for row in rows]
    if sys.stdout.isatty():
        table = Table(*chosen)
        for line in lines:
            table.add_row(*line)
        Console().print(table, markup=False)
        return
    widths = [max(len(line[at]) for line in [chosen, *lines]) for at in range(len(chosen))]
    for line in [chosen, *lines]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _ask(names: Sequence[str]) -> None:
    click.echo("to be reverted, with what they hold: " + ", ".join(names), err=True)
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; add --yes")
    click.confirm("revert them?", abort=True, err=True)


def _leave(ctx: click.Context, exc: AADAPError | peewee.PeeweeException) -> NoReturn:
    """Show *exc* and end with its exit code."""
    error = exc if isinstance(exc, AADAPError) else _as_ours(ctx, exc)
    if ctx.params["as_json"]:
        click.echo(json.dumps(_error_document(error), ensure_ascii=False))
    else:
        for line in _error_lines(ctx, error):
            _tell(line)
    if ctx.params["verbose"]:
        _tell("".join(traceback.format_exception(error)))
    ctx.exit(2 if isinstance(error, BAD_INPUT) else 1)


def _tell(text: str) -> None:
    click.echo(CONTROL.sub("", logs.redact(text)), err=True)


def _usage_error(exc: click.UsageError) -> AADAPError:
    return ConfigurationError(exc.format_message(), hint="see --help")


def _as_ours(ctx: click.Context, exc: peewee.PeeweeException) -> AADAPError:
    found = classify(exc, ctx.obj.engine)
    code = f"{found.code}: " if found.code is not None else ""
    return MigrationError(f"{code}{found.server_message}", hint=found.remedy)


def _error_document(error: AADAPError) -> dict[str, Any]:
    if isinstance(error, MigrationFailedError):
        return report.batch_document(error.result, error)
    return {"error": error.as_dict()}


def _error_lines(ctx: click.Context, error: AADAPError) -> list[str]:
    rows: list[report.Row] = [("what to do", error.hint)] if error.hint else []
    if isinstance(error, MigrationFailedError):
        rows = report.failure_rows(error)
    width = max((len(label) for label, _ in rows), default=0)
    return [
        f"error {error.error_code}: {error.message}",
        *(f"  {label:<{width}}  {text}" for label, text in rows),
    ]


def _hang_up(database: peewee.Database) -> None:
    """Close what the command opened, so that no connection is left to the interpreter's end."""
    if not database.is_closed() and not database.in_transaction():
        database.close()
    database.close_all()
