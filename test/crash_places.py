"""A database that a crash harness may break: what it holds as comparable text, and a quick way back to a saved state.

A state is a dict of texts: a definition and the rows of each table, the views, the triggers, the migrations that are
done, and what the journal still holds. The migrations' own tables count only by what is unfinished in them; counters
(AUTO_INCREMENT) and the order of a table's keys do not count at all.
"""

from __future__ import annotations

import difflib
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import servers
from crash_batch.start import statements

from api.db.dialects.engine import Engine

State = dict[str, str]
Rows = Callable[[str], list[tuple[Any, ...]]]
# The keys of its rows are given out by the server, which gives none of them twice, undone or not.
NUMBERED = frozenset({"audit"})
BOOKKEEPING = re.compile(r"migration_")
JOURNAL = ("migration_batch", "migration_journal", "migration_journal_row")
HISTORY = "SELECT migration_name FROM migration_history WHERE status IN ('success', 'skipped')"


class Place(ABC):
    """One database. *url* is how the app opens it."""

    engine: ClassVar[Engine]

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def build(self) -> None:
        """Make the schema and rows that stand before the batch, on an empty database."""

    @abstractmethod
    def save(self, name: str) -> None:
        """Keep what the database holds now, for ``restore``; nobody may be connected."""

    @abstractmethod
    def restore(self, name: str) -> None:
        """Bring the database back to what was saved as *name*, and end whoever is still connected."""

    @abstractmethod
    def state(self) -> State:
        """Return what the database holds."""

    def close(self) -> None:  # noqa: B027 - most keep it in memory
        """Give back what was saved."""


class _Server(Place):
    def build(self) -> None:
        """Run the statements of the start."""
        with self._rows() as rows:
            for sql in statements(self.engine):
                rows(sql)

    @contextmanager
    def _rows(self, url: str | None = None) -> Iterator[Rows]:
        with closing(servers.connect(url or self.url)) as connection, closing(connection.cursor()) as cursor:

            def rows(sql: str) -> list[tuple[Any, ...]]:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []

            yield rows

    @property
    def name(self) -> str:
        """The database's name."""
        return urlsplit(self.url).path.lstrip("/")


class MySQLPlace(_Server):
    """A database on MySQL or MariaDB, saved as the statements that build it anew."""

    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url)
        self.engine = engine  # type: ignore[misc]
        self._saved: dict[str, list[str]] = {}

    def save(self, name: str) -> None:
        """Keep the statements."""
        with closing(servers.connect(self.url)) as connection, closing(connection.cursor()) as cursor:
            self._saved[name] = ["SET foreign_key_checks = 0", *_dump(cursor)]

    def restore(self, name: str) -> None:
        """Run the statements in a new database."""
        with self._rows() as rows:
            for sql in (f"DROP DATABASE {self.name}", f"CREATE DATABASE {self.name}", f"USE {self.name}"):
                rows(sql)
            for sql in self._saved[name]:
                rows(sql)

    def state(self) -> State:
        """Return what SHOW CREATE says, and the rows."""
        with self._rows() as rows:
            kinds = dict(rows("SHOW FULL TABLES"))
            state = {}
            for table, kind in kinds.items():
                if kind == "VIEW":
                    state[f"view {table}"] = rows(f"SHOW CREATE VIEW `{table}`")[0][1]
                elif not BOOKKEEPING.match(table):
                    state[f"table {table}"] = _normalised(rows(f"SHOW CREATE TABLE `{table}`")[0][1])
                    state[f"rows of {table}"] = _rows_text(table, rows(f"SELECT * FROM `{table}`"))
            for trigger, event, table, body, timing, *_ in rows("SHOW TRIGGERS"):
                state[f"trigger {trigger}"] = f"{timing} {event} ON {table}: {body}"
            return state | _bookkeeping(rows, kinds)


def _dump(cursor: Any) -> Iterator[str]:
    def rows(sql: str) -> Sequence[tuple[Any, ...]]:
        cursor.execute(sql)
        return list(cursor.fetchall())

    kinds = sorted(rows("SHOW FULL TABLES"), key=lambda row: str(row[1]))
    for table, kind in kinds:
        yield rows(f"SHOW CREATE {'VIEW' if kind == 'VIEW' else 'TABLE'} `{table}`")[0][1]
        if kind != "VIEW" and (found := rows(f"SELECT * FROM `{table}`")):
            marks = ", ".join(["%s"] * len(found[0]))
            values = ", ".join(cursor.mogrify(f"({marks})", row) for row in found)
            yield f"INSERT INTO `{table}` VALUES {values}"
    for trigger, *_ in rows("SHOW TRIGGERS"):
        yield rows(f"SHOW CREATE TRIGGER `{trigger}`")[0][2]


def _normalised(create: str) -> str:
    """Return *create* without its counter, the lines of keys and constraints in order of their text."""
    first, *lines, last = [line.rstrip(",") for line in create.splitlines()]
    columns = [line for line in lines if line.startswith("  `")]
    keys = sorted(line for line in lines if not line.startswith("  `"))
    return "\n".join([first, *columns, *keys, re.sub(r" AUTO_INCREMENT=\d+", "", last)])


class PostgresPlace(_Server):
    """A database on PostgreSQL, saved as another database to copy."""

    engine = "postgres"
    COLUMNS = """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull,
               pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
        ORDER BY 1, attnum"""
    PARTS = """
        SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        ORDER BY 1, 2"""
    VIEWS = "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._saved: set[str] = set()

    def save(self, name: str) -> None:
        """Copy the database."""
        self._administrate(f"CREATE DATABASE {self.name}_{name} TEMPLATE {self.name}")
        self._saved.add(name)

    def restore(self, name: str) -> None:
        """Copy it back."""
        self._administrate(
            f"DROP DATABASE {self.name} WITH (FORCE)", f"CREATE DATABASE {self.name} TEMPLATE {self.name}_{name}"
        )

    def close(self) -> None:
        """Drop the copies."""
        self._administrate(*(f"DROP DATABASE {self.name}_{name}" for name in self._saved))

    def _administrate(self, *statements: str) -> None:
        with self._rows(urlsplit(self.url)._replace(path="/postgres").geturl()) as rows:
            for sql in statements:
                rows(sql)

    def state(self) -> State:
        """Return what the catalogue says, and the rows."""
        with self._rows() as rows:
            lines: dict[str, list[str]] = {}
            for table, *column in rows(self.COLUMNS):
                lines.setdefault(table, []).append(" ".join(map(str, column)))
            tables = list(lines)
            for table, part in rows(self.PARTS):
                lines[table].append(part)
            state = {f"view {view}": definition for view, definition in rows(self.VIEWS)}
            for table in tables:
                if not BOOKKEEPING.match(table):
                    state[f"table {table}"] = "\n".join(lines[table])
                    state[f"rows of {table}"] = _rows_text(table, rows(f'SELECT * FROM "{table}"'))
            return state | _bookkeeping(rows, tables)


class SqlitePlace(Place):
    """A SQLite file, saved as its bytes."""

    engine = "sqlite"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.path = Path(url.removeprefix("sqlite:///"))
        self._saved: dict[str, bytes] = {}

    def build(self) -> None:
        """Make the file."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(";\n".join(statements(self.engine)))

    def save(self, name: str) -> None:
        """Read the file."""
        self._saved[name] = self.path.read_bytes()

    def restore(self, name: str) -> None:
        """Write it back, without what a dead process left beside it."""
        for ending in ("-wal", "-shm"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)
        self.path.write_bytes(self._saved[name])

    def state(self) -> State:
        """Return what ``sqlite_schema`` says, and the rows."""
        with closing(sqlite3.connect(self.path)) as connection:

            def rows(sql: str) -> list[tuple[Any, ...]]:
                return connection.execute(sql).fetchall()

            state, tables = {}, []
            for kind, name, table, sql in rows("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"):
                tables += [name] * (kind == "table")
                if not BOOKKEEPING.match(table):
                    # A table that was renamed, as each rebuild does, has its name in quotes.
                    state[f"{kind} {name}"] = str(sql).replace('"', "")
            for table in tables:
                if not BOOKKEEPING.match(table):
                    state[f"rows of {table}"] = _rows_text(table, rows(f'SELECT * FROM "{table}"'))
            return state | _bookkeeping(rows, tables)


def _rows_text(table: str, rows: Iterable[tuple[Any, ...]]) -> str:
    kept = [row[1:] if table in NUMBERED else row for row in rows]
    return "\n".join(sorted(map(repr, kept)))


def _bookkeeping(rows: Rows, tables: Iterable[str]) -> State:
    standing = set(tables)
    done = rows(HISTORY) if "migration_history" in standing else []
    unfinished = {table: rows(f"SELECT COUNT(*) FROM {table}")[0][0] for table in JOURNAL if table in standing}
    return {
        "done migrations": "\n".join(sorted(name for (name,) in done)),
        "unfinished in the journal": "\n".join(f"{table}: {count}" for table, count in unfinished.items() if count),
    }


def differences(found: State, wanted: State) -> str:
    """Return what differs between two states, line by line, for people: ``-`` is wanted, ``+`` is found."""
    lines: list[str] = []
    for thing in sorted(found.keys() | wanted.keys()):
        one, other = (state[thing].splitlines() if thing in state else ["(absent)"] for state in (wanted, found))
        if one != other:
            lines += [thing, *(f"  {line}" for line in difflib.ndiff(one, other) if line[0] in "+-")]
    return "\n".join(lines)


def place_of(engine: Engine, url: str) -> Place:
    """Return the place at *url*: a database that nobody else uses."""
    if engine == "sqlite":
        return SqlitePlace(url)
    return PostgresPlace(url) if engine == "postgres" else MySQLPlace(url, engine)
