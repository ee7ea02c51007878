"""Resume a migration with ``atomic = False``: each statement that it sent is a step, and a done step is not sent again.

A step is recorded in the transaction of its own statement, with what the server answered, so that it is done and
recorded or neither; a resume replays the answer. A statement that refuses a transaction (CREATE INDEX CONCURRENTLY,
VACUUM; DDL on MySQL and MariaDB) is recorded as begun before it and as done after; if a crash fell between, the live
schema says which it was. Steps are told apart by their text and by how often it came before; reads, SET and the
migration's own BEGIN and COMMIT are none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import peewee
import structlog

from api.db.dialects.categories import Category
from api.db.dialects.engine import Engine
from api.db.dialects.errors import classify
from api.db.journal import snapshot
from api.db.journal.link import Link
from api.db.journal.reading import read
from api.db.lease import Lease
from api.db.schema import quote
from api.db.step_answer import Answer
from api.exceptions import MigrationError, MigrationLockError, StatementRefusedError
from api.logs import redact, storable

log = structlog.get_logger(__name__)

LEAD = r"(?:\s|(?:--|#)[^\n]*\n|/\*.*?\*/)*"
NO_STEP = re.compile(
    rf"(?:{LEAD}\()*{LEAD}(?:SELECT|VALUES|TABLE|SHOW|PRAGMA|EXPLAIN|DESCRIBE|DESC|SET|RESET|BEGIN|START|COMMIT|END"
    r"|ROLLBACK|SAVEPOINT|RELEASE|DISCARD|LOCK|UNLOCK|DECLARE|FETCH|MOVE|CLOSE|PREPARE|DEALLOCATE|ATTACH|DETACH|USE)\b",
    re.IGNORECASE | re.DOTALL,
)
WITH = re.compile(rf"(?:{LEAD}\()*{LEAD}WITH\b", re.IGNORECASE | re.DOTALL)
NO_WORDS = re.compile(r"'(?:[^'\\]|''|\\.)*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|\s+", re.DOTALL)
# FOR UPDATE only locks, and REPLACE( and INSERT( are functions.
WRITES = re.compile(
    r"\b(?:INSERT|REPLACE|MERGE)\b(?! ?\()[ \w]*?\bINTO\b|\bDELETE\b[ \w.,]*?\bFROM\b"
    r"|(?<!FOR )(?<!KEY )\bUPDATE\b(?! ?\()",
    re.IGNORECASE,
)
INTO_TABLE = re.compile(r"[ (]*(?:SELECT|WITH)\b.*?\bINTO\b", re.IGNORECASE | re.DOTALL)
ROWS_ONLY = re.compile(rf"{LEAD}(?:WITH|INSERT|UPDATE|DELETE|REPLACE|LOAD)\b", re.IGNORECASE | re.DOTALL)
NAME = r"(?:\"(?:[^\"]|\"\")+\"|[\w$]+)"
CONCURRENT_INDEX = re.compile(
    rf"{LEAD}CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:(?:IF\s+NOT\s+EXISTS\s+)?(?P<index>{NAME})\s+)?"
    rf"ON\s+(?:ONLY\s+)?(?P<table>{NAME}(?:\s*\.\s*{NAME})?)",
    re.IGNORECASE | re.DOTALL,
)
INDEXES = """
SELECT n.nspname, c.relname, i.indisvalid FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = to_regclass({})"""
MISSING = frozenset(
    {Category.MISSING_TABLE, Category.MISSING_COLUMN, Category.MISSING_INDEX, Category.MISSING_CONSTRAINT}
)

# Who has lost the lease commits no step after another has read the steps: both hold this for their transaction.
STEP_LOCK = int.from_bytes(hashlib.sha256(b"plinth:step").digest()[:8], signed=True)
STEP_LOCK_TIMEOUT = "30s"
LOCK_STEPS = f"SELECT pg_advisory_xact_lock({STEP_LOCK})"

KEY_LENGTH = 8_000
MOST_TOLD = 20
COLUMNS = (
    "migration_name VARCHAR(255) NOT NULL, position INTEGER NOT NULL, statement TEXT NOT NULL, "
    "state VARCHAR(8) NOT NULL, stood {text}, answer {text}, PRIMARY KEY (migration_name, position)"
)
STEP = "migration_name = {} AND position = {}"
MYSQL = " ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
# Without a rowid of its own, a step leaves SQLite's last_insert_rowid() alone.
ENDINGS: dict[Engine, str] = {"postgres": "", "sqlite": " WITHOUT ROWID", "mysql": MYSQL, "mariadb": MYSQL}


class Call(NamedTuple):
    """A statement to be sent: *run* sends it, *answer* tells afterwards what it answered, *replay* tells that again."""

    run: Callable[[], Any]
    answer: Callable[[], Answer]
    replay: Callable[[Answer], Any]


class Found(NamedTuple):
    """A step that an earlier run has left: *stood* is what stood before it, *answer* what it answered, as text."""

    place: int
    text: str
    state: str
    stood: str | None
    answer: str | None


class Steps:
    """The steps of one migration: what an earlier run has done, and what this one does.

    *of* is the migration and the lease under which it runs. *send* sends a statement past the hook and returns the rows
    that it answers with; *is_open* says whether a transaction is open. *resumed* says whether an earlier run has left
    steps, *skipped* which were not sent again.
    """

    def __init__(
        self,
        database: peewee.Database,
        engine: Engine,
        of: tuple[str, Lease],
        send: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]],
        is_open: Callable[[], bool],
    ) -> None:
        self.database = database
        self.engine = engine
        self.migration, self.lease = of
        self.is_open = is_open
        self.skipped: list[str] = []
        self._send = send
        self._seen: Counter[str] = Counter()
        found = self._found()
        self._before = {(each.text, n): each for each, n in _counted(found)}
        self.resumed = bool(found)
        self._next = max((each.place for each in found), default=0) + 1

    def _found(self) -> list[Found]:
        if self.engine == "postgres":
            self.sql(f"SELECT set_config('lock_timeout', '{STEP_LOCK_TIMEOUT}', true); {LOCK_STEPS}")
        sql = "SELECT position, statement, state, stood, answer FROM migration_step WHERE migration_name = {}"
        return [Found(*row) for row in self.sql(sql, self.migration)]

    def sql(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Send *text*, each ``{}`` a parameter, past the hook."""
        return self._send(text.format(*[self.database.param] * text.count("{}")), parameters)

    def step(self, text: str, call: Call) -> Any:
        """Send *text* by *call*, or replay its answer if an earlier run has done the step; return what *call* does."""
        if is_read(text, self.engine):
            return call.run()
        key = _key(text)
        self._seen[key] += 1
        found = self._before.get((key, self._seen[key]))
        if found is not None and (found.state == "done" or self._was_done(text, found.stood)):
            return self._skip(found, call)
        if found is None:
            place, self._next = self._next, self._next + 1
            return self._run(key, text, place, call)
        self.sql(f"DELETE FROM migration_step WHERE {STEP}", self.migration, found.place)
        return self._run(key, text, found.place, call)

    def _skip(self, found: Found, call: Call) -> Any:
        if found.state == "begun":
            self._mark_done(found.place, Answer())
        answer = Answer.read(found.answer)
        self.skipped.append(_short(found.text))
        tell = log.warning if len(self.skipped) <= MOST_TOLD else log.debug
        tell("an earlier run has done this statement: it is not sent again", statement=self.skipped[-1])
        if answer.rows is None:
            raise MigrationError(
                f"an earlier run has done {self.skipped[-1]!r}, and the rows that it answered with were not kept: they "
                "were too many, or of an unknown type",
                hint="take back by hand what the statement did, then let it be sent again: DELETE FROM migration_step "
                f"WHERE migration_name = '{self.migration}' AND position = {found.place}",
            )
        return call.replay(answer)

    def _run(self, key: str, text: str, place: int, call: Call) -> Any:
        if self.is_open():
            return self._run_and_record(key, place, call)
        if self.engine in ("mysql", "mariadb") and not ROWS_ONLY.match(text):
            return self._run_alone(key, text, place, call)
        self.sql("BEGIN")
        try:
            returned = self._run_and_record(key, place, call)
        except Exception as exc:
            self.sql("ROLLBACK")
            if classify(exc, self.engine).category is not Category.INSIDE_TRANSACTION:
                raise
            return self._run_alone(key, text, place, call)
        except BaseException:
            self.sql("ROLLBACK")
            raise
        self.sql("COMMIT")
        return returned

    def _run_and_record(self, key: str, place: int, call: Call) -> Any:
        returned = call.run()
        self._record(Found(place, key, "done", None, call.answer().text()))
        return returned

    def _run_alone(self, key: str, text: str, place: int, call: Call) -> Any:
        if not self.lease.holds():
            raise _lost_lock()
        self._record(Found(place, key, "begun", self._look(text), None))
        returned = call.run()
        self._mark_done(place, call.answer())
        return returned

    def _record(self, step: Found) -> None:
        """Write *step* while the lease is ours: on PostgreSQL who takes it over waits for this transaction."""
        condition, parameters = self.lease.condition
        dual = " FROM DUAL" if self.engine in ("mysql", "mariadb") else ""
        self.sql(
            f"{LOCK_STEPS + '; ' if self.engine == 'postgres' else ''}INSERT INTO migration_step "
            "(migration_name, position, statement, state, stood, answer) "
            f"SELECT {{}}, {{}}, {{}}, {{}}, {{}}, {{}}{dual} WHERE {condition}",
            *(self.migration, *step, *parameters),
        )
        if not self.sql(f"SELECT 1 FROM migration_step WHERE {STEP}", self.migration, step.place):
            raise _lost_lock()

    def _mark_done(self, place: int, answer: Answer) -> None:
        sql = f"UPDATE migration_step SET state = 'done', answer = {{}} WHERE {STEP}"
        self.sql(sql, answer.text(), self.migration, place)

    def explaining(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function*, whose error says what was skipped where that may be why something is missing."""

        def run(*args: Any) -> Any:
            try:
                return function(*args)
            except Exception as exc:
                if not self.skipped or classify(exc, self.engine).category not in MISSING:
                    raise
                raise self._explained(exc) from exc

        return run

    def _explained(self, exc: Exception) -> MigrationError:
        found = classify(exc, self.engine)
        return MigrationError(
            f"{found.code}: {found.server_message} (statements that an earlier run has done, and that were not sent "
            f"again: {len(self.skipped)})",
            hint=f"{found.remedy}. If what the earlier run did was taken back since, in {self.skipped[0]!r} or a later "
            f"step, forget them: DELETE FROM migration_step WHERE migration_name = '{self.migration}'",
        )

    # Whether a begun step was done -----------------------------------------------------------------------------

    def _look(self, text: str) -> str | None:
        """Return what stands before a statement that refuses a transaction, as far as it tells later whether it ran."""
        if self.engine == "postgres":
            match = CONCURRENT_INDEX.match(text)
            return json.dumps(self._indexes(match["table"])) if match else None
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
        match = CONCURRENT_INDEX.match(text)
        if match is None:
            return False
        name = match["index"]
        known = [] if name else [tuple(each) for each in json.loads(before or "[]")]
        built = False
        for schema, index, is_valid in self._indexes(match["table"]):
            if name and index != _unquoted(name):
                continue
            if is_valid:
                built = built or bool(name)
            elif (schema, index, is_valid) not in known:
                log.warning("an index that a crash left half built is dropped", index=index)
                self._send(f"DROP INDEX CONCURRENTLY IF EXISTS {quote(self.database, schema, index)}", ())
        return built

    def _indexes(self, table: str) -> list[tuple[str, str, bool]]:
        return [(schema, index, is_valid) for schema, index, is_valid in self.sql(INDEXES, table)]

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


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def _lost_lock() -> MigrationLockError:
    return MigrationLockError(
        "the migration lock was lost while the migration ran: its last statement was taken back, or not sent",
        hint="another process may go on with it: run `status`, then `up` once more",
    )


def is_read(text: str, engine: Engine) -> bool:
    """Say whether *text* changes nothing durable. A WITH is told by the verbs in it."""
    is_with = WITH.match(text) is not None
    if not is_with and (NO_STEP.match(text) is None or engine != "postgres"):
        return NO_STEP.match(text) is not None
    words = NO_WORDS.sub(" ", text)
    creates = engine == "postgres" and INTO_TABLE.match(words) is not None
    return not creates and not (is_with and WRITES.search(words))


def _counted(found: Sequence[Found]) -> Iterator[tuple[Found, int]]:
    seen: Counter[str] = Counter()
    for each in sorted(found):
        seen[each.text] += 1
        yield each, seen[each.text]


def create_table(database: peewee.Database, engine: Engine) -> None:
    """Create ``migration_step`` where it is missing. Call it under the migration lock."""
    if not database.table_exists("migration_step"):
        columns = COLUMNS.format(text="MEDIUMTEXT" if engine in ("mysql", "mariadb") else "TEXT")
        database.execute_sql(f"CREATE TABLE migration_step ({columns}){ENDINGS[engine]}")


def forget(database: peewee.Database, migration: str) -> None:
    """Delete the steps of *migration*: it is recorded as a whole."""
    database.execute_sql(f"DELETE FROM migration_step WHERE migration_name = {database.param}", (migration,))
