"""Where each migration stands: its file held against its history row."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import peewee

from api.db import files, history
from api.db.files import MigrationFile


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A migration as ``status`` shows it: applied, skipped, pending, failed, changed or missing."""

    name: str
    state: str
    applied_at: dt.datetime | None = None
    duration_ms: int | None = None
    error: str | None = None


def migration_status(directory: Path, database: peewee.Database) -> list[MigrationState]:
    """Return the state of every migration in *directory* or in the history; reads every file's checksum."""
    rows = {row.migration_name: row for row in history.read_history(database)}
    known = {file.name: file for file in files.list_files(Path(directory))}
    names = sorted(rows.keys() | known.keys(), key=files.order_of)
    return [_state(name, known.get(name), rows.get(name)) for name in names]


def _state(name: str, file: MigrationFile | None, row: history.HistoryRow | None) -> MigrationState:
    if row is None:
        return MigrationState(name, "pending")
    if file is None:
        state = "missing"
    elif row.status == "failed":
        state = "failed"
    elif row.checksum is not None and files.read_checksum(file.path) != row.checksum:
        state = "changed"
    else:
        state = "applied" if row.status == "success" else "skipped"
    return MigrationState(name, state, row.applied_at, row.duration_ms, row.error_message or row.reason)
