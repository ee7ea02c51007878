"""Let a task say how risky it is, and what it may touch."""

from __future__ import annotations

import peewee

from api.db.migrations import alter_db_add_column, alter_db_drop_column


def up(migrator, db):
    alter_db_add_column(migrator, "task", "risk_level", peewee.CharField(max_length=16, default="low"))
    alter_db_add_column(migrator, "task", "resources", peewee.JSONField(null=True))


def down(migrator, db):
    alter_db_drop_column(migrator, "task", "resources")
    alter_db_drop_column(migrator, "task", "risk_level")
