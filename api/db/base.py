"""The base of every model: bound to ``DB``, its defaults kept by the server, its fields checked."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import peewee
import structlog

from api.db.connection import DB
from api.db.dialects.engine import Engine, engine_of
from api.db.dialects.literals import with_server_default
from api.db.dialects.validation import validate_field

log = structlog.get_logger(__name__)


class SchemaWithDefaults(peewee.SchemaManager):
    """Writes the constant defaults of NOT NULL columns into CREATE TABLE, where peewee keeps them in Python.

    So a fresh schema equals a migrated one, and an INSERT that does not know the column yet still works.
    """

    def _create_table(self, safe: bool = True, **options: Any) -> peewee.Context:
        described = _Described(self.model, engine_of(self.database))
        plain = peewee.SchemaManager(described, self.database, **self.context_options)
        return plain._create_table(safe=safe, **options)


class _Described(peewee.Node):
    """*model* as *engine* is told of it: the same table, its fields saying their defaults."""

    def __init__(self, model: type[peewee.Model], engine: Engine) -> None:
        self._model = model
        self._meta = copy.copy(model._meta)
        self._meta.sorted_fields = [with_server_default(field, engine) for field in model._meta.sorted_fields]

    def __sql__(self, ctx: peewee.Context) -> peewee.Context:
        return ctx.sql(self._model)


class DataBaseModel(peewee.Model):
    """A model in the app's database, its table named after the class: ``TaskLog`` is ``task_log``."""

    class Meta:
        """What every model inherits."""

        database = DB
        legacy_table_names = False
        schema_manager_class = SchemaWithDefaults

    @classmethod
    def validate_fields(cls) -> list[str]:
        """Warn of every field that the bound engine cannot keep, and return the reasons; empty is good news."""
        engine = engine_of(cls._meta.database)
        found = [(field, validate_field(field, engine, model=cls)) for field in cls._meta.sorted_fields]
        for field, reasons in found:
            for reason in reasons:
                log.warning(
                    "field does not fit the engine", table=cls._meta.table_name, field=field.name, reason=reason
                )
        return [reason for _, reasons in found for reason in reasons]


def validate_all(models: Iterable[type[DataBaseModel]]) -> list[str]:
    """Warn of every field of *models* that the bound engine cannot keep, and return the reasons."""
    return [reason for model in models for reason in model.validate_fields()]
