"""Resume a migration with ``atomic = False``: each statement that it sent is a step, and a done step is not sent again.

A step is recorded in the transaction of its own statement, so that it is done and recorded or neither. A statement
that refuses a transaction (CREATE INDEX CONCURRENTLY, VACUUM; DDL on MySQL and MariaDB) is recorded as begun before
it and as done after; if a crash fell between, the live schema says which it was. Steps are told apart by their text
and by how often it came before; reads, SET and the migration's own BEGIN and COMMIT are none.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import peewee
import psycopg2
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.journal import snapshot
from api.db.journal.link import Link
from api.db.journal.reading import read
from api.db.schema import quote
from api.exceptions import StatementRefusedError
from api.logs import redact, storable

log = structlog.get_logger(__name__)

NO_STEP = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:SELECT|SHOW|PRAGMA|EXPLAIN|DESCRIBE|DESC|SET|RESET|BEGIN|START|COMMIT|END|ROLLBACK"
    r"|SAVEPOINT|RELEASE|DISCARD|LOCK|UNLOCK|FETCH|CLOSE|USE)\b",
    re.IGNORECASE | re.DOTALL,
)
ROWS_ONLY = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
CONCURRENT_INDEX = re.compile(
    r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<index>\"(?:[^\"]|\"\")+\"|\w+)\s+ON\b",
    re.IGNORECASE,
)
CONCURRENT = re.compile(r"\bCONCURRENTLY\b", re.IGNORECASE)
INVALID = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname = ANY (current_schemas(false))"""

KEY_LENGTH = 8_000
COLUMNS = (
    "migration_name VARCHAR(255) NOT NULL, position INTEGER NOT NULL, statement TEXT NOT NULL, "
    "state VARCHAR(8) NOT NULL, stood TEXT"
)
MYSQL = " ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"


class Steps:
    """The steps of one migration: what an earlier run has done, and what this one does.

    *send* sends a statement past the hook and returns the rows that it answers with; *is_open* says whether a
    transaction is open. *resumed* says whether an earlier run has left steps, *skipped* how many were not sent again.
    """

    def __init__(
        self,
        database: peewee.Database,
        engine: Engine,
        migration: str,
        send: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]],
        is_open: Callable[[], bool],
    ) -> None:
        self.database = database
        self.engine = engine
        self.migration = migration
        self.is_open = is_open
        self.skipped = 0
        self._send = send
        self._seen: Counter[str] = Counter()
        found = self.sql(
            "SELECT position, statement, state, stood FROM migration_step WHERE migration_name = {}", migration
        )
        self._before = {(text, n): (place, state, was) for text, n, place, state, was in _counted(found)}
        self.resumed = bool(found)
        self._next = max((row[0] for row in found), default=0) + 1

    def sql(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Send *text*, each ``{}`` a parameter, past the hook."""
        return self._send(text.format(*[self.database.param] * len(parameters)), parameters)

    def step(self, text: str, run: Callable[[], Any], skip: Callable[[], Any]) -> Any:
        """Return what *run* returns, which sends *text*, or what *skip* does if an earlier run has done the step."""
        if NO_STEP.match(text):
            return run()
        key = _key(text)
        self._seen[key] += 1
        place, state, before = self._before.get((key, self._seen[key]), (None, "", None))
        if state == "done" or (state == "begun" and self._was_done(text, before)):
            self.skipped += 1
            if place is not None and state == "begun":
                self._mark_done(place)
            return skip()
        if place is None:
            place, self._next = self._next, self._next + 1
        return self._run(key, text, place, run)

    def _run(self, key: str, text: str, place: int, run: Callable[[], Any]) -> Any:
        if self.is_open():
            answer = run()
            self._record(place, key, "done")
            return answer
        if self.engine in ("mysql", "mariadb") and not ROWS_ONLY.match(text):
            return self._run_alone(key, text, place, run)
        self.sql("BEGIN")
        try:
            answer = run()
            self._record(place, key, "done")
        except Exception as exc:
            self.sql("ROLLBACK")
            if classify(exc, self.engine).category is not Category.INSIDE_TRANSACTION:
                raise
            return self._run_alone(key, text, place, run)
        except BaseException:
            self.sql("ROLLBACK")
            raise
        self.sql("COMMIT")
        return answer

    def _run_alone(self, key: str, text: str, place: int, run: Callable[[], Any]) -> Any:
        self._record(place, key, "begun", self._look(text))
        answer = run()
        self._mark_done(place)
        return answer

    def _record(self, place: int, key: str, state: str, before: str | None = None) -> None:
        self.sql("DELETE FROM migration_step WHERE migration_name = {} AND position = {}", self.migration, place)
        columns = "migration_name, position, statement, state, stood"
        sql = f"INSERT INTO migration_step ({columns}) VALUES ({{}}, {{}}, {{}}, {{}}, {{}})"
        self.sql(sql, self.migration, place, key, state, before)

    def _mark_done(self, place: int) -> None:
        sql = "UPDATE migration_step SET state = 'done' WHERE migration_name = {} AND position = {}"
        self.sql(sql, self.migration, place)

    # Whether a begun step was done -----------------------------------------------------------------------------

    def _look(self, text: str) -> str | None:
        """Return what stands before a statement that refuses a transaction, as far as it tells later whether it ran."""
        if self.engine == "postgres":
            return json.dumps(self._invalid()) if CONCURRENT.search(text) else None
        definitions = self._definitions(text)
        return None if definitions is None else json.dumps(definitions)

    def _was_done(self, text: str, before: str | None) -> bool:
        """Say whether a begun step was done; clear away what it left half done."""
        if self.engine == "postgres":
            return self._index_was_built(text, before)
        definitions = self._definitions(text)
        if definitions is None or before is None:
            log.warning("a statement may have run before the crash, and is sent again", statement=redact(text)[:200])
            return False
        return bool(definitions != json.loads(before))

    def _index_was_built(self, text: str, before: str | None) -> bool:
        known = [tuple(each) for each in json.loads(before or "[]")]
        for schema, index in self._invalid():
            if (schema, index) not in known:
                log.warning("an index that a crash left half built is dropped", index=index)
                self.sql(f"DROP INDEX CONCURRENTLY IF EXISTS {quote(self.database, schema, index)}")
        match = CONCURRENT_INDEX.match(text)
        if match is None:
            return False
        return self.sql("SELECT to_regclass({})", match["index"])[0][0] is not None

    def _invalid(self) -> list[tuple[str, str]]:
        return [(schema, index) for schema, index in self.sql(INVALID)]

    def _definitions(self, text: str) -> dict[str, str | None] | None:
        try:
            statement = read(text)
        except StatementRefusedError:
            return None
        named = [getattr(statement, each, ()) for each in ("tables", "views")]
        names = [*(name for names in named for name in names), getattr(statement, "table", None)]
        names += [name for pair in getattr(statement, "pairs", ()) for name in pair]
        names.append(getattr(statement, "new_table", None))
        return snapshot.definitions(Link(self.database.connection()), sorted({name for name in names if name}))


def _key(text: str) -> str:
    """Return *text* as it is recorded: without secrets, and short enough for MySQL's TEXT."""
    key = storable(redact(text))
    return (
        key if len(key) <= KEY_LENGTH else key[:KEY_LENGTH] + hashlib.sha256(text.encode("utf8", "replace")).hexdigest()
    )


def _counted(rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, int, int, str, str | None]]:
    seen: Counter[str] = Counter()
    for place, text, state, before in sorted(rows, key=lambda row: int(row[0])):
        seen[text] += 1
        yield text, seen[text], place, state, before


def create_table(database: peewee.Database, engine: Engine) -> None:
    """Create ``migration_step`` where it is missing. Call it under the migration lock."""
    if not database.table_exists("migration_step"):
        database.execute_sql(
            f"CREATE TABLE migration_step ({COLUMNS})" + (MYSQL if engine in ("mysql", "mariadb") else "")
        )


def forget(database: peewee.Database, migration: str) -> None:
    """Delete the steps of *migration*: it is recorded as a whole."""
    database.execute_sql(f"DELETE FROM migration_step WHERE migration_name = {database.param}", (migration,))


@contextmanager
def resumable(database: peewee.Database, engine: Engine, migration: str) -> Iterator[Steps]:
    """Make each statement that this thread's connection is sent during the block a step of *migration*."""
    hook = {"postgres": _on_postgres, "sqlite": _on_sqlite}.get(engine, _on_mysql)
    with hook(database, engine, migration) as steps:
        yield steps
    if steps.skipped:
        log.info("an interrupted migration was resumed", name=migration, steps_done_before=steps.skipped)


@contextmanager
def _on_postgres(database: peewee.Database, engine: Engine, migration: str) -> Iterator[Steps]:
    connection = database.connection()
    plain = connection.cursor_factory

    def send(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    steps = Steps(
        database, engine, migration, send, lambda: connection.get_transaction_status() != TRANSACTION_STATUS_IDLE
    )

    class StepCursor(plain or psycopg2.extensions.cursor):  # type: ignore[misc]
        def execute(self, query: Any, vars: Any = None) -> Any:
            text = self.mogrify(query, vars).decode("utf-8", "replace")
            real = super().execute
            return steps.step(text, lambda: real(query, vars), lambda: real("SELECT WHERE false"))

        def executemany(self, query: Any, vars_list: Any) -> None:
            for each in vars_list:
                self.execute(query, each)

    connection.cursor_factory = StepCursor
    try:
        yield steps
    finally:
        connection.cursor_factory = plain


@contextmanager
def _on_sqlite(database: peewee.Database, engine: Engine, migration: str) -> Iterator[Steps]:
    """See what goes through peewee; a statement of ``connection().execute`` passes by: its class takes no hook."""
    connection: sqlite3.Connection = database.connection()

    def send(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return connection.execute(sql, tuple(parameters)).fetchall()

    steps = Steps(database, engine, migration, send, lambda: connection.in_transaction)

    class StepCursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = ()) -> Any:
            real = super().execute
            text = f"{sql} -- {parameters!r}" if parameters else sql
            return steps.step(text, lambda: real(sql, parameters), lambda: real("SELECT 1 WHERE 0"))

    database.cursor = lambda *args, **kwargs: database.connection().cursor(StepCursor)
    try:
        yield steps
    finally:
        del database.cursor


@contextmanager
def _on_mysql(database: peewee.Database, engine: Engine, migration: str) -> Iterator[Steps]:
    link = Link(database.connection())
    plain = link.connection.query
    steps = Steps(database, engine, migration, link.rows, lambda: link.in_transaction)

    def query(sql: str | bytes, unbuffered: bool = False) -> Any:
        if link.own:
            return plain(sql, unbuffered)
        text = sql.decode("utf8", "surrogateescape") if isinstance(sql, bytes) else sql
        answers: list[Any] = []

        def run(sent: str | bytes = sql) -> Any:
            touched = plain(sent, unbuffered)
            answers.append(link.answer)
            return touched

        touched = steps.step(text, run, lambda: run("DO 0"))
        # What the cursor reads next is the answer to its own statement, not to ours.
        link.answer = answers[-1]
        return touched

    with link.hooked(query):
        yield steps
