"""Create the tables of what tasks logged and cost, and of the platforms they talk to."""

from __future__ import annotations

import peewee

from api.db.base import DataBaseModel
from api.db.fields import UTCDateTimeField


class Task(DataBaseModel):
    id = peewee.UUIDField(primary_key=True)


class TaskLog(DataBaseModel):
    id = peewee.UUIDField(primary_key=True)
    task = peewee.ForeignKeyField(Task, on_delete="CASCADE")
    level = peewee.CharField(max_length=16)
    message = peewee.TextField()
    correlation_id = peewee.CharField(max_length=128, null=True)
    created_at = UTCDateTimeField(index=True)


class CostRecord(DataBaseModel):
    id = peewee.UUIDField(primary_key=True)
    task = peewee.ForeignKeyField(Task, on_delete="CASCADE")
    agent_type = peewee.CharField(max_length=64)
    tokens_in = peewee.BigIntegerField(default=0)
    tokens_out = peewee.BigIntegerField(default=0)
    cost_usd = peewee.DecimalField(max_digits=12, decimal_places=6, default=0)
    created_at = UTCDateTimeField(index=True)


class PlatformConnection(DataBaseModel):
    id = peewee.UUIDField(primary_key=True)
    platform = peewee.CharField(max_length=64)
    name = peewee.CharField(max_length=128)
    config = peewee.TextField()
    is_active = peewee.BooleanField(default=True)
    created_at = UTCDateTimeField(index=True)

    class Meta:
        indexes = ((("platform", "name"), True),)


TABLES = [TaskLog, CostRecord, PlatformConnection]


def up(migrator, db):
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)


def down(migrator, db):
    with db.bind_ctx(TABLES):
        db.drop_tables(TABLES)
