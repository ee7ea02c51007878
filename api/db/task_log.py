"""A log handler that keeps each task's lines in the database, without ever making the task wait for it."""

from __future__ import annotations

import datetime
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import peewee
import structlog
from playhouse.pool import PooledDatabase

from api.db.connection import exponential_backoff
from api.logs import redact, storable

log = structlog.get_logger(__name__)

# Writing a line makes these log lines of their own; were they kept, each line would make the next one.
EXCLUDED_LOGGERS = ("api.db", "peewee", "playhouse", "psycopg2", "pymysql")
MESSAGE_LIMIT = 16_000  # characters: utf8mb4 needs up to four bytes each, and MySQL's TEXT holds 65,535 bytes
SAY_EVERY_S = 60.0
NOT_VALUES = ("event", "task_id", "correlation_id", "stack_info")

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskLogCounts:
    """What became of the lines so far: *waiting* are in the queue, *refused* name no task that stands."""

    written: int
    waiting: int
    dropped: int
    refused: int


class TaskLogHandler(logging.Handler):
    """Writes records that carry a ``task_id`` into *table*, in batches, by a thread with its own connection.

    The id comes from ``extra`` or from structlog's context. *open_database* makes the thread's database object:
    never the app's, for a full pool is among the things worth logging. A lost database costs no line until
    *capacity* lines wait; then new ones are dropped, counted, and said, in the log and in the task's own lines.
    The thread starts with a process's first line, so the handler may be made before a fork.
    """

    def __init__(
        self,
        open_database: Callable[[], peewee.Database],
        table: type[peewee.Model],
        *,
        capacity: int = 10_000,
        batch_size: int = 200,
        close_deadline_s: float = 5.0,
    ) -> None:
        super().__init__()
        self._open_database = open_database
        self._table = table
        self._capacity = capacity
        self._batch_size = batch_size
        self._close_deadline_s = close_deadline_s
        self._start_afresh()
        _call_in_children(self._start_afresh)

    def filter(self, record: logging.LogRecord) -> bool:
        """Turn away what writing the lines itself logs, so that the handler never feeds itself."""
        if record.name.startswith(EXCLUDED_LOGGERS) or threading.current_thread() is self._thread:
            return False
        return super().filter(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* without logging's lock, in which ``logging.shutdown`` waits for ``close``."""
        if not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record* if a task logged it, and return at once."""
        try:
            if (line := _line(record)) is not None and not self._put(line):
                self._say(log.warning, "task log has no room; new lines are dropped")
        except Exception:  # noqa: BLE001 (a value that cannot be printed must not fail the task that logs it)
            self.handleError(record)

    def counts(self) -> TaskLogCounts:
        """Say what became of the lines so far, in this process."""
        with self._changed:
            return TaskLogCounts(self._written, len(self._lines), self._dropped, self._refused)

    def drain(self, deadline_s: float) -> bool:
        """Wait until every queued line is dealt with; False when *deadline_s* seconds did not suffice."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines, timeout=deadline_s)

    def close(self) -> None:
        """Write what still waits, within the handler's deadline, then stop; what is left by then is said."""
        until = time.monotonic() + self._close_deadline_s
        self.drain(self._close_deadline_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        self._abandon()
        if self._lost() > self._said_lost:
            log.warning("task log closed with lines lost", **asdict(self.counts()))
        super().close()

    def _abandon(self) -> None:
        with self._changed:
            self._dropped += len(self._lines)
            self._lines.clear()

    def _lost(self) -> int:
        return self._dropped + self._refused

    def _start_afresh(self) -> None:
        """Begin with an empty queue and no thread; a forked child's lines are its own, its parent's are not."""
        self._changed = threading.Condition()
        self._lines: deque[Line] = deque()
        self._gaps: Counter[uuid.UUID] = Counter()
        self._written = self._dropped = self._refused = 0
        self._said_lost = 0
        self._said_at: dict[str, float] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def _put(self, line: Line) -> bool:
        with self._changed:
            if self._closed or len(self._lines) >= self._capacity:
                self._dropped += 1
                self._gaps[line["task"]] += 1
                return False
            self._lines.append(line)
            self._changed.notify_all()
            self._ensure_thread()
            return True

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write_all, name="task-log", daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        database = self._open_database()
        while batch := self._next_batch():
            self._deliver(batch, database)
        _disconnect(database)

    def _next_batch(self) -> list[Line]:
        """Wait for lines and return the oldest, which stay queued until they are written; none is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            return [] if self._closed else list(islice(self._lines, self._batch_size))

    def _deliver(self, batch: list[Line], database: peewee.Database) -> None:
        """Write *batch*, trying again until the database takes it or the handler is closed."""
        attempt = 0
        while not self._closed:
            try:
                refused = self._insert(batch, database)
            except peewee.PeeweeException as error:
                _disconnect(database)
                self._say(log.warning, "task log cannot be written; its lines wait", error=type(error).__name__)
                attempt += 1
                self._pause(exponential_backoff(attempt))
            else:
                if attempt:
                    self._say(log.info, "task log is written again")
                self._settle(batch, refused)
                return

    def _insert(self, batch: list[Line], database: peewee.Database) -> int:
        """Insert *batch* and return how many lines were refused, such as those of a task deleted since.

        A batch that was stored although its connection broke is refused by its keys: no line is stored twice.
        """
        try:
            self._table.insert_many(batch).execute(database)
            return 0
        except (peewee.IntegrityError, peewee.DataError):
            if len(batch) == 1:
                return 1
        return sum(self._insert([line], database) for line in batch)

    def _settle(self, batch: list[Line], refused: int) -> None:
        """Say what was lost, in the log and in the tasks' own lines, then take *batch* off the queue."""
        with self._changed:
            self._written += len(batch) - refused
            self._refused += refused
            self._lines.extend(_gap(task_id, count) for task_id, count in self._gaps.items())
            self._gaps.clear()
        if self._lost() > self._said_lost:
            self._say(log.warning, "task log lost lines")
        with self._changed:
            for _ in range(min(len(batch), len(self._lines))):  # close() may have emptied the queue
                self._lines.popleft()
            self._changed.notify_all()

    def _say(self, tell: Callable[..., Any], event: str, **values: Any) -> None:
        """Log *event* with the counts, unless it was logged a short while ago."""
        now = time.monotonic()
        if now - self._said_at.get(event, -math.inf) < SAY_EVERY_S:
            return
        counts = self.counts()
        self._said_at[event] = now
        self._said_lost = counts.dropped + counts.refused
        tell(event, **asdict(counts), **values)

    def _pause(self, delay_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, timeout=delay_s)


def _disconnect(database: peewee.Database) -> None:
    """Close this thread's connection; a broken one must not go back into a pool."""
    try:
        database.manual_close() if isinstance(database, PooledDatabase) else database.close()
    except peewee.PeeweeException as error:
        log.debug("task log's connection did not close", error=type(error).__name__)


def _call_in_children(method: Any) -> None:
    """Call *method* in every forked child, as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def in_child() -> None:
        if (bound := reference()) is not None:
            bound()

    os.register_at_fork(after_in_child=in_child)


def _line(record: logging.LogRecord) -> Line | None:
    """Return *record* as a row of the table, or None when no task logged it.

    The ids come from ``extra``, from what structlog passed, or from the context, in this order.
    """
    context = structlog.contextvars.get_contextvars()
    passed = record.msg if isinstance(record.msg, Mapping) else {}
    ids = {**context, **passed, **record.__dict__}
    if ids.get("task_id") is None:
        return None
    event = dict(passed) or {"event": record.getMessage()}
    if record.exc_info:
        event["exc_info"] = record.exc_info
    correlation_id = ids.get("correlation_id")
    return {
        "id": uuid.uuid4(),
        "task": _uuid(ids["task_id"]),
        "level": record.levelname.lower()[:16],
        "message": _message(event, context),
        "correlation_id": None if correlation_id is None else storable(str(correlation_id))[:128],
        "created_at": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
    }


def _uuid(task_id: Any) -> uuid.UUID:
    return task_id if isinstance(task_id, uuid.UUID) else uuid.UUID(str(task_id))


def _gap(task_id: uuid.UUID, count: int) -> Line:
    """Return the line that stands where *count* lines of a task are missing."""
    return {
        "id": uuid.uuid4(),
        "task": task_id,
        "level": "warning",
        "message": f"{count} lines are missing here: the task log's queue was full",
        "correlation_id": None,
        "created_at": datetime.datetime.now(datetime.UTC),
    }


def _message(event: dict[str, Any], context: Mapping[str, Any]) -> str:
    """Return the line as people read it, with its values and exception: secrets masked, length bounded."""
    structlog.processors.format_exc_info(None, "", event)  # turns exc_info into the text of the traceback, in place
    exception = event.pop("exception", None)
    values = [f"{key}={value}" for key, value in event.items() if key not in context and key not in NOT_VALUES]
    line = " ".join([str(event.get("event")), *values])
    return storable(redact(line if exception is None else f"{line}\n{exception}"))[:MESSAGE_LIMIT]
