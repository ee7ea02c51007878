"""See each statement of a migration with ``atomic = False`` before the server does, and make it a step."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import peewee
import psycopg2
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from api.db.dialects.engine import Engine
from api.db.journal.link import Link
from api.db.lease import Lease
from api.db.step_answer import MOST_ROWS, Answer
from api.db.steps import Call, Steps
from api.exceptions import StatementRefusedError

log = structlog.get_logger(__name__)

COPY_OUT = re.compile(r"\bTO\s+STDOUT\b", re.IGNORECASE)
Make = Callable[..., Steps]


@contextmanager
def resumable(database: peewee.Database, engine: Engine, migration: str, lease: Lease) -> Iterator[Steps]:
    """Make each statement that this thread's connection is sent during the block a step of *migration*.

    Raises ``MigrationLockError``, before the step is committed, when *lease* has gone to another process.
    """

    def make(send: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]], is_open: Callable[[], bool]) -> Steps:
        return Steps(database, engine, (migration, lease), send, is_open)

    hook = _on_postgres if engine == "postgres" else _on_sqlite if engine == "sqlite" else _on_mysql
    with hook(database, make) as steps:
        yield steps
    if steps.skipped:
        log.info("an interrupted migration was resumed", name=migration, steps_done_before=len(steps.skipped))


class _Told:
    """Mixed into a driver's cursor class: once *told* is set, the cursor answers with that, and not by itself."""

    _told: Answer | None = None
    _left: Iterator[tuple[Any, ...]] = iter(())

    def tell(self, answer: Answer) -> Any:
        """Answer with *answer* from now on."""
        self._told, self._left = answer, iter(answer.rows or ())
        return self

    def executemany(self, query: Any, many: Any) -> Any:
        """Make each row's statement a step."""
        touched = 0
        for each in many:
            self.execute(query, each)  # type: ignore[attr-defined]
            touched += max(0, self.rowcount)
        return self.tell(Answer(touched))

    @property
    def rowcount(self) -> int:
        return int(super().rowcount if self._told is None else self._told.touched)  # type: ignore[misc]

    @property
    def lastrowid(self) -> Any:
        return super().lastrowid if self._told is None else self._told.last_id  # type: ignore[misc]

    @property
    def description(self) -> Any:
        if self._told is None:
            return super().description  # type: ignore[misc]
        return tuple((name, *[None] * 6) for name in self._told.columns) or None

    def fetchone(self) -> Any:
        return super().fetchone() if self._told is None else next(self._left, None)  # type: ignore[misc]

    def fetchmany(self, size: int | None = None) -> Any:
        size = self.arraysize if size is None else size  # type: ignore[attr-defined]
        if self._told is None:
            return super().fetchmany(size)  # type: ignore[misc]
        return [row for _, row in zip(range(size), self._left, strict=False)]

    def fetchall(self) -> Any:
        return super().fetchall() if self._told is None else list(self._left)  # type: ignore[misc]

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return super().__next__() if self._told is None else next(self._left)  # type: ignore[misc]


# PostgreSQL ----------------------------------------------------------------------------------------------------


@contextmanager
def _on_postgres(database: peewee.Database, make: Make) -> Iterator[Steps]:
    connection = database.connection()
    plain = connection.cursor_factory

    def send(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    steps = make(send, lambda: connection.get_transaction_status() != TRANSACTION_STATUS_IDLE)

    class StepCursor(_Told, plain or psycopg2.extensions.cursor):  # type: ignore[misc]
        def execute(self, query: Any, vars: Any = None) -> Any:
            text = self.mogrify(query, vars).decode("utf-8", "replace")
            real = super().execute
            return self._step(text, lambda: real(query, vars))

        def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> Any:
            text = sql if isinstance(sql, str) else sql.as_string(self)
            real = super().copy_expert
            if COPY_OUT.search(text):
                return real(sql, file, size)
            return self._step(text, lambda: real(sql, file, size))

        def copy_from(self, file: Any, table: str, *args: Any, **kwargs: Any) -> Any:
            real = super().copy_from
            return self._step(f"COPY {table} FROM STDIN", lambda: real(file, table, *args, **kwargs))

        def _step(self, text: str, run: Callable[[], Any]) -> Any:
            self._told = None
            return steps.step(text, Call(run, self._answer, self.tell))

        def _answer(self) -> Answer:
            if not self.description:
                return Answer(self.rowcount)
            columns = tuple(column[0] for column in self.description)
            if not 0 < self.rowcount <= MOST_ROWS:
                return Answer(self.rowcount, None, columns, None if self.rowcount else ())
            rows = tuple(tuple(row) for row in psycopg2.extensions.cursor.fetchall(self))
            self.scroll(0, mode="absolute")
            return Answer(self.rowcount, None, columns, rows)

    connection.cursor_factory = StepCursor
    try:
        yield steps
    finally:
        connection.cursor_factory = plain


# SQLite --------------------------------------------------------------------------------------------------------


@contextmanager
def _on_sqlite(database: peewee.Database, make: Make) -> Iterator[Steps]:
    connection: sqlite3.Connection = database.connection()
    plain = database.connection

    def send(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return connection.execute(sql, tuple(parameters)).fetchall()

    steps = make(send, lambda: connection.in_transaction)

    class StepCursor(_Told, sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = ()) -> Any:
            real = super().execute
            self._told = None
            text = f"{sql} -- {parameters!r}" if parameters else sql
            return steps.step(text, Call(lambda: real(sql, parameters), self._answer, self.tell))

        def executescript(self, script: str) -> Any:
            raise StatementRefusedError(
                "executescript() sends several statements at once, which a resume could not tell apart",
                hint="send them one by one with db.execute_sql()",
            )

        def _answer(self) -> Answer:
            if not self.description:
                return Answer(self.rowcount, self.lastrowid)
            # Read to the end: SQLite commits nothing while a statement is under way.
            columns, rows = tuple(column[0] for column in self.description), tuple(self.fetchall())
            answer = Answer(self.rowcount, self.lastrowid, columns, rows)
            self.tell(answer)
            return answer

    stepping = _Stepping(connection, StepCursor)
    database.connection = lambda: stepping if plain() is connection else plain()
    database.cursor = lambda named_cursor=None: database.connection().cursor()
    try:
        yield steps
    finally:
        del database.connection, database.cursor


class _Stepping:
    """SQLite's connection, whose class takes no hook, with another class of cursor."""

    def __init__(self, connection: sqlite3.Connection, cursor: type[sqlite3.Cursor]) -> None:
        vars(self).update(_connection=connection, _cursor=cursor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    def __enter__(self) -> _Stepping:
        self._connection.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> Any:
        return self._connection.__exit__(*exc_info)

    def cursor(self, *_: Any, **__: Any) -> sqlite3.Cursor:
        return self._connection.cursor(self._cursor)  # type: ignore[no-any-return]

    def execute(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor().executemany(*args)

    def executescript(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor().executescript(*args)


# MySQL and MariaDB ---------------------------------------------------------------------------------------------


@contextmanager
def _on_mysql(database: peewee.Database, make: Make) -> Iterator[Steps]:
    link = Link(database.connection())
    plain = link.connection.query
    steps = make(link.rows, lambda: link.in_transaction)

    def query(sql: str | bytes | bytearray, unbuffered: bool = False) -> Any:
        text = sql if isinstance(sql, str) else sql.decode("utf8", "surrogateescape")
        answers: list[Any] = []

        def run() -> Any:
            touched = plain(sql, unbuffered)
            answers[:] = [link.answer]
            return touched

        def replay(answer: Answer) -> Any:
            plain(f"DO LAST_INSERT_ID({answer.last_id})" if answer.last_id else "DO 0")
            link.answer_with(max(0, answer.touched), answer.last_id or 0, answer.columns, answer.rows or ())
            answers[:] = [link.answer]
            return max(0, answer.touched)

        touched = steps.step(text, Call(run, lambda: Answer(*link.answered()), replay))
        # What the cursor reads next is the answer to its own statement, not to ours.
        link.answer = answers[-1]
        return touched

    with link.hooked(query):
        yield steps
