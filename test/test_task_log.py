"""The task log: a task's lines reach the database, whatever happens to it, and the task never waits."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import peewee
import pytest
import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.testing import capture_logs

from api.db.dialects.engine import engine_of
from api.db.lease import SESSIONS
from api.db.models import Task, TaskLog
from api.db.task_log import MESSAGE_LIMIT, TaskLogHandler
from api.logs import bind_correlation_id
from conftest import Backend

DEADLINE_S = 30.0
KILL_OTHERS = {
    "postgres": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    **{
        engine: f"SELECT id FROM {sessions} WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        for engine, sessions in SESSIONS.items()
    },
}

Attach = Callable[..., TaskLogHandler]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Give the test a logger whose lines go nowhere else."""
    logger = logging.getLogger("a_task_at_work")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    structlog.contextvars.clear_contextvars()
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def task(db: peewee.Database) -> Iterator[Task]:
    """Give the test a task whose log has no table yet."""
    with db.bind_ctx([Task, TaskLog]):
        db.create_tables([Task])
        yield Task.create(title="t")


@pytest.fixture
def attach(backend: Backend, logger: logging.Logger, task: Task) -> Attach:
    """Give the test a way to put a handler with its own connection on the logger."""

    def attach(**options: float) -> TaskLogHandler:
        handler = TaskLogHandler(backend.database, TaskLog, **options)  # type: ignore[arg-type]
        logger.addHandler(handler)
        return handler

    return attach


@pytest.fixture
def handler(attach: Attach) -> TaskLogHandler:
    """Give the test a handler whose table stands."""
    TaskLog.create_table()
    return attach()


def written(handler: TaskLogHandler) -> list[str]:
    """Return the messages that reached the table, once the handler has dealt with all of them."""
    assert handler.drain(DEADLINE_S), handler.counts()
    return [line.message for line in TaskLog.select().order_by(TaskLog.created_at)]


def test_a_tasks_line_is_written(handler: TaskLogHandler, logger: logging.Logger, task: Task) -> None:
    """A record with a task's id becomes a row, with its level, its time and the request's correlation id."""
    bind_correlation_id("request-7")
    logger.warning("disk is %d%% full", 93, extra={"task_id": task.id})
    assert written(handler) == ["disk is 93% full"]
    line = TaskLog.get()
    assert (line.task_id, line.level, line.correlation_id) == (task.id, "warning", "request-7")
    assert line.created_at >= task.created_at


def test_structlogs_lines_are_written_with_their_values(
    handler: TaskLogHandler, logger: logging.Logger, task: Task
) -> None:
    """The id may stand in structlog's context; values follow the event, the context's own do not."""
    structlog.contextvars.bind_contextvars(task_id=str(task.id), agent_id="a1")
    processors: list[Any] = [structlog.contextvars.merge_contextvars, ProcessorFormatter.wrap_for_formatter]
    structlog.wrap_logger(logger, processors, wrapper_class=BoundLogger).info("cloned", files=3)
    assert written(handler) == ["cloned files=3"]


def test_an_exception_is_part_of_its_line(handler: TaskLogHandler, logger: logging.Logger, task: Task) -> None:
    """The traceback stands below the message."""
    try:
        raise KeyError("missing")
    except KeyError:
        logger.exception("step failed", extra={"task_id": task.id})
    (message,) = written(handler)
    assert message.startswith("step failed\nTraceback")
    assert message.endswith("KeyError: 'missing'")


def test_a_line_of_no_task_is_not_kept(handler: TaskLogHandler, logger: logging.Logger) -> None:
    """Records without a task's id start no thread and write nothing."""
    logger.info("a request came")
    assert written(handler) == []
    assert handler.counts().written == 0


@pytest.mark.parametrize("name", ["peewee", "api.db.pool", "api.db.task_log", "psycopg2", "pymysql"])
def test_the_layers_own_lines_are_not_kept(handler: TaskLogHandler, task: Task, name: str) -> None:
    """What writing a line logs itself is turned away, so that the handler never feeds itself."""
    record = logging.LogRecord(name, logging.DEBUG, "", 0, "INSERT", None, None)
    record.task_id = task.id
    assert not handler.handle(record)
    assert written(handler) == []


def test_a_secret_in_a_line_is_masked(handler: TaskLogHandler, logger: logging.Logger, task: Task) -> None:
    """What the app's log masks is masked here too."""
    logger.info("dialled postgres://app:hunter2@db/app", extra={"task_id": task.id})
    (message,) = written(handler)
    assert message == "dialled postgres://app:***@db/app"


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("nul \x00", "nul \\x00"),
        ("surrogate \udcff", "surrogate \\udcff"),
        ("\N{PILE OF POO}" * 20_000, "\N{PILE OF POO}" * MESSAGE_LIMIT),
    ],
    ids=["nul", "surrogate", "long"],
)
def test_every_text_can_be_stored(
    handler: TaskLogHandler, logger: logging.Logger, task: Task, message: str, stored: str
) -> None:
    """Text that a server would refuse is escaped or cut, not lost."""
    logger.info(message, extra={"task_id": task.id})
    assert written(handler) == [stored]


def test_a_line_that_cannot_be_printed_does_not_fail_its_task(
    handler: TaskLogHandler, logger: logging.Logger, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad format is logging's own matter; the task goes on and its next line is kept."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d files", "many", extra={"task_id": task.id})
    logger.info("not a task", extra={"task_id": "not a task"})
    logger.info("next", extra={"task_id": task.id})
    assert written(handler) == ["next"]


def test_many_lines_arrive_in_order(attach: Attach, logger: logging.Logger, task: Task) -> None:
    """More lines than a batch holds are all written, in the order they were logged."""
    TaskLog.create_table()
    handler = attach(batch_size=7)
    for number in range(50):
        logger.info("%02d", number, extra={"task_id": task.id})
    assert written(handler) == [f"{number:02}" for number in range(50)]
    assert handler.counts().written == 50


def test_a_line_of_a_deleted_task_costs_no_other_line(
    handler: TaskLogHandler, logger: logging.Logger, task: Task
) -> None:
    """A line that the database refuses is counted and said; those beside it are written."""
    with capture_logs() as said:
        for number in range(5):
            logger.info("%d", number, extra={"task_id": task.id if number != 2 else uuid.uuid4()})
        assert written(handler) == ["0", "1", "3", "4"]
    assert handler.counts().refused == 1
    assert [line["log_level"] for line in said] == ["warning"]


def test_lines_wait_for_their_table_and_a_full_queue_says_what_is_missing(
    attach: Attach, logger: logging.Logger, task: Task
) -> None:
    """While nothing can be written lines wait; those beyond the capacity are counted, and said in their place."""
    handler = attach(capacity=3)
    with capture_logs() as said:
        for number in range(5):
            logger.info("%d", number, extra={"task_id": task.id})
        TaskLog.create_table()
        messages = written(handler)
    assert messages == ["0", "1", "2", "2 lines are missing here: the task log's queue was full"]
    assert handler.counts().dropped == 2
    assert "task log has no room; new lines are dropped" in [line["event"] for line in said]


def test_what_is_left_at_the_deadline_is_said(attach: Attach, logger: logging.Logger, task: Task) -> None:
    """``close`` gives up at its deadline, and says how many lines were lost."""
    handler = attach(close_deadline_s=0.2)
    logger.info("never written", extra={"task_id": task.id})
    with capture_logs() as said:
        handler.close()
    assert (said[-1]["event"], said[-1]["dropped"]) == ("task log closed with lines lost", 1)


def test_close_writes_what_waits(handler: TaskLogHandler, logger: logging.Logger, task: Task) -> None:
    """Lines logged just before the end are in the table when ``close`` returns."""
    for number in range(20):
        logger.info("%d", number, extra={"task_id": task.id})
    handler.close()
    assert TaskLog.select().count() == 20


@pytest.mark.engines("postgres", "mariadb", "mysql")
def test_a_killed_connection_costs_no_line(
    handler: TaskLogHandler, logger: logging.Logger, task: Task, db: peewee.Database
) -> None:
    """When the server drops the writer's connection, the next line is written by a new one."""
    logger.info("before", extra={"task_id": task.id})
    written(handler)
    is_mysql = isinstance(db, peewee.MySQLDatabase)
    rows = db.execute_sql(KILL_OTHERS[engine_of(db)]).fetchall()
    for (connection_id,) in rows if is_mysql else ():
        db.execute_sql(f"KILL {connection_id}")
    assert len(rows) == 1
    logger.info("after", extra={"task_id": task.id})
    assert written(handler) == ["before", "after"]


@pytest.mark.engines("postgres", "mariadb")
def test_a_killed_server_costs_no_line(
    handler: TaskLogHandler, logger: logging.Logger, task: Task, db: peewee.Database, backend: Backend
) -> None:
    """Lines logged while the server is down are written when it is back."""
    logger.info("before", extra={"task_id": task.id})
    written(handler)
    db.close()
    backend.private.kill()
    logger.info("meanwhile", extra={"task_id": task.id})
    backend.private.ensure_running()
    assert written(handler) == ["before", "meanwhile"]


def test_a_forked_child_writes_its_own_lines(handler: TaskLogHandler, logger: logging.Logger, task: Task) -> None:
    """A child writes by a thread and a connection of its own, and the parent's go on."""
    logger.info("parent", extra={"task_id": task.id})
    written(handler)
    if (child := os.fork()) == 0:
        logger.info("child", extra={"task_id": task.id})
        os._exit(0 if handler.drain(DEADLINE_S) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    logger.info("parent again", extra={"task_id": task.id})
    assert written(handler) == ["parent", "child", "parent again"]
