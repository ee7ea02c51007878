"""Connections to platforms, as JSON under ``/connections``; a config goes in and is never returned."""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

import peewee
from flask import Blueprint, url_for
from pydantic import AfterValidator

from api.db.models import PlatformConnection
from api.exceptions import ExecutionError
from api.web.inputs import Answer, Body, Text, as_json, read_body, read_page

connections = Blueprint("connections", __name__, url_prefix="/connections")

# Encrypted it grows by a third, and has to fit the 65,535 bytes of MySQL's TEXT.
CONFIG_MAX = 40_000
SHOWN = tuple(field for field in PlatformConnection._meta.sorted_fields if field.name != "config")


def _fits(config: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(config)) > CONFIG_MAX:
        raise ValueError(f"should have at most {CONFIG_MAX} characters as JSON")
    return config


Config = Annotated[dict[str, Any], AfterValidator(_fits)]


class NewConnection(Body):
    """What makes a connection."""

    platform: Annotated[str, *Text(64)]
    name: Annotated[str, *Text(128)]
    config: Config
    is_active: bool = True


class ChangedConnection(Body):
    """What may change: whether it is used, and its config as a whole, such as when a credential is rotated."""

    is_active: bool | None = None
    config: Config | None = None


@connections.post("")
def create_connection() -> Answer:
    """Store a connection, its config encrypted; 409 when the platform has one of this name."""
    row = PlatformConnection.create(**read_body(NewConnection).model_dump())
    return _described(row), 201, {"Location": url_for("connections.show_connection", connection_id=row.id)}


@connections.get("")
def list_connections() -> Answer:
    """List connections, the newest first."""
    return {"connections": [_described(row) for row in read_page().of(PlatformConnection.select(*SHOWN))]}


@connections.get("/<uuid:connection_id>")
def show_connection(connection_id: uuid.UUID) -> Answer:
    """Show one connection."""
    return _described(_shown(connection_id))


@connections.patch("/<uuid:connection_id>")
def change_connection(connection_id: uuid.UUID) -> Answer:
    """Switch a connection on or off, or replace its config, or both."""
    changes = read_body(ChangedConnection).model_dump(exclude_none=True)
    if not changes:
        raise ExecutionError("the body should name 'is_active', 'config' or both")
    PlatformConnection.update(**changes).where(PlatformConnection.id == connection_id).execute()
    return _described(_shown(connection_id))


def _shown(connection_id: uuid.UUID) -> peewee.Model:
    return PlatformConnection.select(*SHOWN).where(PlatformConnection.id == connection_id).get()


def _described(row: peewee.Model) -> dict[str, Any]:
    return as_json(row, *SHOWN)
