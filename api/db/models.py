"""The app's tables: tasks, what they logged, what they cost, and the platforms they talk to.

Keys are UUIDs, made by whoever makes the row; times are UTC. What belongs to a task is deleted with it.
``docs/MODELS.md`` says why each column is there.
"""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Any

import peewee

from api.db.base import DataBaseModel
from api.db.fields import EncryptedJSONField, UTCDateTimeField, utc_now


class TaskStatus(StrEnum):
    """Where a task stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RiskLevel(StrEnum):
    """How much damage a task can do, from none to an outage."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


def _choices(values: type[StrEnum]) -> list[tuple[str, str]]:
    return [(value.value, value.name.capitalize()) for value in values]


class Task(DataBaseModel):
    """One piece of work that agents carry out; ``resources`` names what it may touch, NULL when nobody said."""

    id = peewee.UUIDField(primary_key=True, default=uuid.uuid4)
    title = peewee.CharField(max_length=200)
    status = peewee.CharField(max_length=16, default=TaskStatus.PENDING.value, choices=_choices(TaskStatus), index=True)
    priority = peewee.SmallIntegerField(default=0, help_text="the higher, the sooner")
    created_at = UTCDateTimeField(default=utc_now, index=True)
    updated_at = UTCDateTimeField(default=utc_now)
    risk_level = peewee.CharField(max_length=16, default=RiskLevel.LOW.value, choices=_choices(RiskLevel))
    resources = peewee.JSONField(null=True)

    def save(self, force_insert: bool = False, only: Any = None) -> int:
        """Store the task and move ``updated_at`` to now, also when *only* names other fields."""
        self.updated_at = utc_now()  # type: ignore[assignment]  # peewee is untyped: no descriptor is seen
        only = None if only is None else [*only, Task.updated_at]
        return int(super().save(force_insert=force_insert, only=only))


class TaskLog(DataBaseModel):
    """One line that a task logged; ``correlation_id`` finds the request it came from in the app's log."""

    id = peewee.UUIDField(primary_key=True, default=uuid.uuid4)
    task = peewee.ForeignKeyField(Task, backref="logs", on_delete="CASCADE")
    level = peewee.CharField(max_length=16)
    message = peewee.TextField()
    correlation_id = peewee.CharField(max_length=128, null=True)
    created_at = UTCDateTimeField(default=utc_now, index=True)


class CostRecord(DataBaseModel):
    """What one call of an agent used and cost, in tokens and US dollars."""

    id = peewee.UUIDField(primary_key=True, default=uuid.uuid4)
    task = peewee.ForeignKeyField(Task, backref="costs", on_delete="CASCADE")
    agent_type = peewee.CharField(max_length=64)
    tokens_in = peewee.BigIntegerField(default=0)
    tokens_out = peewee.BigIntegerField(default=0)
    cost_usd = peewee.DecimalField(max_digits=12, decimal_places=6, default=0)
    created_at = UTCDateTimeField(default=utc_now, index=True)


class PlatformConnection(DataBaseModel):
    """How to reach a platform; ``config`` is encrypted at rest, and sealed until ``get_config()``."""

    id = peewee.UUIDField(primary_key=True, default=uuid.uuid4)
    platform = peewee.CharField(max_length=64)
    name = peewee.CharField(max_length=128)
    config = EncryptedJSONField()
    is_active = peewee.BooleanField(default=True)
    created_at = UTCDateTimeField(default=utc_now, index=True)

    class Meta:
        """Connections of a platform are told apart by their names."""

        indexes = ((("platform", "name"), True),)

    def get_config(self) -> dict[str, Any]:
        """Return the plain config: use it and let it go, do not log or keep it.

        Raises ``ConfigurationError`` when no key is bound, or when none of them opens it.
        """
        config: dict[str, Any] = PlatformConnection.config.open(self)
        return config


MODELS = (Task, TaskLog, CostRecord, PlatformConnection)
