"""Tasks and what they logged, as JSON under ``/tasks``."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import peewee
import structlog
from flask import Blueprint, request, url_for
from pydantic import Field

from api.db.models import RiskLevel, Task, TaskLog, TaskStatus
from api.exceptions import ExecutionError
from api.logs import current_correlation_id
from api.web.inputs import Answer, Body, Text, as_json, read_body, read_page

log = structlog.get_logger(__name__)

tasks = Blueprint("tasks", __name__, url_prefix="/tasks")

Resource = Annotated[str, *Text(200)]


class NewTask(Body):
    """What makes a task; only the title has no default."""

    title: Annotated[str, *Text(200)]
    status: TaskStatus = TaskStatus.PENDING
    priority: int = Field(default=0, ge=-32768, le=32767)
    risk_level: RiskLevel = RiskLevel.LOW
    resources: list[Resource] | None = Field(default=None, max_length=100)


class NewLog(Body):
    """One line of a task's log."""

    level: Literal["debug", "info", "warning", "error", "critical"]
    # MySQL's TEXT holds 65,535 bytes, and a character of utf8mb4 takes up to four.
    message: Annotated[str, *Text(16000)]


@tasks.post("")
def create_task() -> Answer:
    """Store a task; 201 and where it is."""
    task = Task.create(**read_body(NewTask).model_dump())
    log.info("task created", task_id=task.id, risk_level=task.risk_level)
    return _described(task), 201, {"Location": url_for("tasks.show_task", task_id=task.id)}


@tasks.get("")
def list_tasks() -> Answer:
    """List tasks, the newest first; ``status`` keeps those of one status."""
    query = Task.select()
    if status := request.args.get("status"):
        if status not in set(TaskStatus):
            raise ExecutionError(f"'status' should be one of {', '.join(TaskStatus)}, not {status[:32]!r}")
        query = query.where(Task.status == status)
    return {"tasks": [_described(task) for task in read_page().of(query)]}


@tasks.get("/<uuid:task_id>")
def show_task(task_id: uuid.UUID) -> Answer:
    """Show one task."""
    return _described(Task.get_by_id(task_id))


@tasks.delete("/<uuid:task_id>")
def delete_task(task_id: uuid.UUID) -> Answer:
    """Delete a task; the database deletes its logs and costs with it."""
    if not Task.delete().where(Task.id == task_id).execute():
        raise peewee.DoesNotExist
    return {}, 204


@tasks.post("/<uuid:task_id>/logs")
def add_log(task_id: uuid.UUID) -> Answer:
    """Add a line to a task's log, under this request's correlation id."""
    line = read_body(NewLog)
    task = Task.get_by_id(task_id)
    row = TaskLog.create(task=task, level=line.level, message=line.message, correlation_id=current_correlation_id())
    return _described_log(row), 201


@tasks.get("/<uuid:task_id>/logs")
def list_logs(task_id: uuid.UUID) -> Answer:
    """List a task's log, the newest line first."""
    task = Task.get_by_id(task_id)
    return {"logs": [_described_log(row) for row in read_page().of(TaskLog.select().where(TaskLog.task == task))]}


def _described(task: peewee.Model) -> dict[str, Any]:
    return as_json(task, *Task._meta.sorted_fields)


def _described_log(row: peewee.Model) -> dict[str, Any]:
    return as_json(row, *TaskLog._meta.sorted_fields)
