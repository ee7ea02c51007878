"""Create the table of tasks."""

from __future__ import annotations

import peewee

from api.db.base import DataBaseModel
from api.db.fields import UTCDateTimeField


class Task(DataBaseModel):
    id = peewee.UUIDField(primary_key=True)
    title = peewee.CharField(max_length=200)
    status = peewee.CharField(max_length=16, default="pending", index=True)
    priority = peewee.SmallIntegerField(default=0)
    created_at = UTCDateTimeField(index=True)
    updated_at = UTCDateTimeField()


def up(migrator, db):
    with db.bind_ctx([Task]):
        db.create_tables([Task], safe=False)


def down(migrator, db):
    with db.bind_ctx([Task]):
        db.drop_tables([Task])
