"""Random batches sent through the journal to a real server, undone or committed, and compared with what should stand.

``python test/fuzz_ddl.py --count 3000 --seed 7 --engine mariadb`` runs until 3000 statements were done; MySQL is the
one that ``TEST_MYSQL_URL`` leads to. A round is repeated by its own seed, which a failure prints, and ``--count 1``.
The same statements go to a copy without the journal: the batch must come to the same there, statement by statement.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import peewee
import pymysql
import servers
from fuzz_columns import Maker
from fuzz_statements import FIRST, Random, Statements

from api.db.connection import open_database
from api.db.journal.definition import TableDefinition, differing_names, parse
from api.db.journal.link import Link
from api.db.journal.link import name as quoted
from api.db.journal.session import Journal, journalled, prepare, recover
from api.db.journal.store import Guard
from api.exceptions import MigrationError, StatementRefusedError
from api.logs import configure_logging

STATEMENTS_A_BATCH = 8
# How a batch ends: committed, undone by its own session, by another one, or by several of which each is stopped.
ENDS = ("committed", "undone", "recovered", "stopped")
SESSION = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', foreign_key_checks = 1, time_zone = '+00:00'"
)
# Each statement runs at a time of its own, so that what an ON UPDATE CURRENT_TIMESTAMP does is seen.
FIRST_SECOND = 1_700_000_000
OWN_TABLES = ("migration_batch", "migration_journal", "migration_journal_row")
LOCK = "fuzz"
LOCK_TIMEOUT_S = 60
REALS, HEXED = (
    ("float", "double"),
    ("char", "varchar", "text", "blob", "binary", "geometry", "point", "enum", "set", "bit"),
)
Picture = dict[str, tuple[str, Counter[tuple[Any, ...]]]]


class UndoneError(Exception):
    """Raised on purpose, to have a batch undone."""


class FuzzError(AssertionError):
    """A batch did not end as it should."""


class Side:
    """A database, and the connection by which it is filled, altered and looked at."""

    def __init__(self, connection: Any) -> None:
        self.link = Link(connection)

    def send(self, sql: str) -> None:
        """Send *sql* as a migration would."""
        with self.link.connection.cursor() as cursor:
            cursor.execute(sql)

    def empty(self) -> None:
        """Drop all tables but the journal's own."""
        self.link.execute("SET SESSION foreign_key_checks = 0")
        tables = [quoted(table) for table in self.tables()]
        if tables:
            self.link.execute("DROP TABLE " + ", ".join(tables))
        self.link.execute(SESSION)

    def tables(self) -> list[str]:
        """Return the tables' names."""
        return [table for (table,) in self.link.rows("SHOW TABLES") if table not in OWN_TABLES]

    def definition(self, table: str) -> str:
        """Return what makes *table*."""
        return str(self.link.rows(f"SHOW CREATE TABLE {quoted(table)}")[0][1])

    def standing(self) -> dict[str, TableDefinition]:
        """Return the tables by name."""
        return {table: parse(self.definition(table)) for table in self.tables()}

    def picture(self, like: Picture | None = None) -> Picture:
        """Return each table's definition and rows; only of the tables and columns of the picture *like*, if given."""
        definitions = {table: self.definition(table) for table in self.tables()}
        shown = {
            table: text if like is None else like[table][0]
            for table, text in definitions.items()
            if like is None or table in like
        }
        return {table: (definitions[table], self._rows(table, text)) for table, text in shown.items()}

    def _rows(self, table: str, definition: str) -> Counter[tuple[Any, ...]]:
        columns = ", ".join(_read(quoted(column.name), column.text) for column in parse(definition).columns)
        return Counter(self.link.rows(f"SELECT {columns} FROM {quoted(table)}"))


def _read(column: str, text: str) -> str:
    kind = text.lower().split("(")[0].split()[0]
    if kind in REALS:
        return f"{column} * 1e0"
    return f"HEX({column})" if kind.endswith(HEXED) else f"CAST({column} AS CHAR)"


@dataclass
class Round:
    """One batch: *database* is where it runs under the journal, *bare* a copy where it runs without."""

    url: str
    bare: Side
    generator: Statements
    counts: Counter[str]
    log: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run it; raises ``FuzzError`` with the way there."""
        with self._opened() as database:
            side = Side(database.connection())
            if not self._make(side):
                self.counts["tables refused"] += 1
                return
            before = side.picture()
            end = self.generator.random.choice(ENDS)
            journal = self._batch(database, side, end)
            if journal.stuck:
                raise self._failure(f"undo: {journal.stuck.message}")
        if journal.is_open:
            self._recover()
        with self._opened() as database:
            side = Side(database.connection())
            self._compare(side.picture(), self.bare.picture() if end == "committed" else before, end)
            left = [side.link.rows(f"SELECT COUNT(*) FROM {table}")[0][0] for table in OWN_TABLES]
            if any(left):
                raise self._failure(f"{end}, and the journal still holds {left}")
        self.counts[f"batches {end}"] += 1

    @contextmanager
    def _opened(self) -> Iterator[peewee.Database]:
        """Give the database over a new connection, once the session before is gone."""
        # A new TLS context takes longer than a batch.
        database = open_database(self.url + "?ssl_disabled=true", pool_max=2)
        database.connect()
        try:
            link = Link(database.connection())
            (taken,) = link.rows(f"SELECT GET_LOCK('{LOCK}', {LOCK_TIMEOUT_S})")[0]
            assert taken == 1, "the session before did not end"
            link.execute(SESSION)
            yield database
        finally:
            _hang_up(database)

    # The tables and the batch ---------------------------------------------------------------------------------------

    def _make(self, side: Side) -> bool:
        for each in (side, self.bare):
            each.empty()
            each.link.execute("SET timestamp = " + str(FIRST_SECOND))
        for sql in (*FIRST, self.generator.table()):
            if not self._send_first(side, sql):
                return False
        definition = parse(side.definition("t"))
        for sql in self.generator.rows(definition) + (self.generator.child() if self.generator.chance(0.3) else []):
            self._send_first(side, sql)
        return True

    def _send_first(self, side: Side, sql: str) -> bool:
        self.log.append(sql)
        outcomes = [_outcome(each, sql) for each in (side, self.bare)]
        assert bool(outcomes[0]) == bool(outcomes[1]), outcomes
        return not outcomes[0]

    def _batch(self, database: peewee.Database, side: Side, end: str) -> Journal:
        engine = self.generator.engine
        try:
            with journalled(database, engine, "fuzz", "up", Guard(), 10_000) as journal:
                self.log.append(f"-- the batch, which is to be {end}")
                for number in range(1, self.generator.random.randint(1, STATEMENTS_A_BATCH) + 1):
                    self._statement(side, self.generator.statement(self.bare.standing()), number)
                for each in (side, self.bare):
                    each.send("COMMIT")
                self._compare_seen(side)
                if end == "committed":
                    journal.commit(database, lambda: None)
                    return journal
                if end != "undone":
                    self._stop(side.link.connection, 0 if end == "recovered" else self._after())
                raise UndoneError
        except UndoneError:
            return journal

    def _statement(self, side: Side, statement: Random, number: int) -> None:
        for each in (side, self.bare):
            each.link.execute(f"SET timestamp = {FIRST_SECOND + 1000 * number}")
        kind = statement.kind
        self.counts[f"tried: {kind}"] += 1
        try:
            refused = _outcome(side, statement.sql)
        except MigrationError as exc:
            reason = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|\d+|\[.*?\]|`.*`", "…", exc.message, flags=re.DOTALL)
            if not isinstance(exc, StatementRefusedError):
                reason = "NOT AS A REFUSAL: " + reason
            self.counts[f"refused by the journal: {kind}"] += 1
            self.counts[f"because: {reason[:110]}"] += 1
            self.log.append(f"{statement.sql}; -- refused: {exc.message}")
            return
        except Exception as exc:
            raise self._failure(f"{exc!r} for {statement.sql}") from exc
        bare = _outcome(self.bare, statement.sql)
        # MySQL drops a column INSTANT by a longer name, cuts that within a character, and fails; the journal does not.
        if bare and bare.startswith("3507") and not refused:
            bare = _outcome(self.bare, statement.sql + ", ALGORITHM=COPY")
        self.log.append(statement.sql + (f"; -- {refused}" if refused else ""))
        # MySQL 9.7 says 1146 of an ALTER of a table with children, and has done it.
        is_said = "1146" in ((refused or "")[:4], (bare or "")[:4])
        if bool(refused) != bool(bare) and not (is_said and kind == "alter"):
            raise self._failure(f"under the journal: {refused or 'done'}; without: {bare or 'done'}")
        self.counts[f"refused by the server: {kind}" if refused else "statements"] += 1

    def _after(self) -> int:
        return self.generator.random.choice((1, 4, 12, 40)) * self.generator.random.randint(1, 8)

    def _stop(self, connection: Any, after: int) -> None:
        """Lose *connection* once it was sent *after* more statements."""
        send = connection._execute_command
        sent = 0

        def count(*arguments: Any) -> Any:
            nonlocal sent
            sent += 1
            if sent > after:
                self.log.append(f"-- stopped after {sent - 1} statements")
                connection._force_close()
                raise pymysql.err.OperationalError(2013, "lost on purpose")
            return send(*arguments)

        connection._execute_command = count

    def _recover(self) -> None:
        stops = self.generator.random.choice((0, 0, 1, 2))
        for stop in range(stops + 1):
            with self._opened() as database:
                if stop < stops:
                    self._stop(database.connection(), self._after())
                try:
                    recover(database, self.generator.engine, Guard())
                except MigrationError as exc:
                    raise self._failure(f"recover: {exc.message}") from exc
                except peewee.PeeweeException as exc:
                    if stop == stops or "lost on purpose" not in str(exc):
                        raise self._failure(f"recover: {exc}") from exc

    # Comparing ------------------------------------------------------------------------------------------------------

    def _compare_seen(self, side: Side) -> None:
        """Compare what a session sees in the middle of the batch with what stands without the journal."""
        bare = self.bare.picture()
        seen = side.picture(bare)
        if seen.keys() != bare.keys():
            raise self._failure(f"tables within the batch: {sorted(seen)} and not {sorted(bare)}")
        for table, (_, rows) in bare.items():
            if seen[table][1] != rows:
                raise self._failure(f"rows of {table} within the batch:\n{_apart(seen[table][1], rows)}")

    def _compare(self, now: Picture, wanted: Picture, end: str) -> None:
        if now.keys() != wanted.keys():
            raise self._failure(f"{end}: tables {sorted(now)} and not {sorted(wanted)}")
        for table, (text, rows) in wanted.items():
            definition, found = now[table]
            if different := differing_names(definition, text):
                raise self._failure(f"{end}: {table}: {different}\nis {definition}\nand not {text}")
            if found != rows:
                raise self._failure(f"{end}: rows of {table}:\n{_apart(found, rows)}")
            self.counts["rows compared"] += rows.total()
            self.counts["tables printed otherwise"] += _sorted_lines(definition) != _sorted_lines(text)

    def _failure(self, why: str) -> FuzzError:
        return FuzzError(why + "\nafter:\n" + ";\n".join(self.log))


def _outcome(side: Side, sql: str) -> str | None:
    """Send *sql*, and return why the server refused it."""
    try:
        side.send(sql)
    except pymysql.err.MySQLError as exc:
        return f"{exc.args[0]}: {exc.args[1]}"
    return None


def _apart(now: Counter[tuple[Any, ...]], wanted: Counter[tuple[Any, ...]]) -> str:
    return f"too much {[*(now - wanted)]}\nmissing {[*(wanted - now)]}"


def _sorted_lines(text: str) -> list[str]:
    return sorted(line.rstrip(",") for line in text.splitlines() if not line.startswith(") ENGINE"))


def _hang_up(database: peewee.Database) -> None:
    connection = database.connection()
    with suppress(peewee.PeeweeException, pymysql.err.MySQLError):
        database.manual_close()
    connection._force_close()


# The run -----------------------------------------------------------------------------------------------------------


@contextmanager
def databases(server: servers.Server) -> Iterator[tuple[str, str]]:
    """Give the URLs of two fresh databases on *server*, dropped afterwards."""
    names = [f"fuzz_{os.getpid()}_{side}" for side in ("journal", "bare")]
    urls = [server.create_database(name) for name in names]
    try:
        yield urls[0], urls[1]
    finally:
        for name in names:
            server.drop_database(name)


def fuzz(urls: tuple[str, str], engine: Maker, *, seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """Send *count* random statements or some more, and return what was counted, and each failure.

    Each round has a seed of its own.
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    _prepare(urls[0])
    with closing(servers.connect(urls[1])) as connection:
        while counts["statements"] < count:
            try:
                Round(urls[0], Side(connection), Statements(seed, engine), counts).run()
            except FuzzError as exc:
                print(f"{engine}, seed {seed}: {exc}", flush=True)
                failures.append(f"{engine}, seed {seed}: {exc}")
                connection.rollback()
                _prepare(urls[0])
            counts["batches"] += 1
            seed += 1
    return counts, failures


def _prepare(url: str) -> None:
    database = open_database(url, pool_max=2)
    with database.connection_context():
        prepare(database)
        link = Link(database.connection())
        for table in OWN_TABLES:
            link.execute(f"DELETE FROM {table}")
    database.close_all()


def main() -> None:
    """Run it as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("mariadb", "mysql"), required=True)
    parser.add_argument("--count", type=int, default=1000, help="statements to do")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    configure_logging("CRITICAL")
    print(f"{options.engine}, seed {options.seed}, {options.count} statements", flush=True)
    started = time.monotonic()
    with servers.Fleet() as fleet, databases(fleet[options.engine]) as urls:
        counts, failures = fuzz(urls, cast(Maker, options.engine), seed=options.seed, count=options.count)
    for what, number in sorted(counts.items()):
        print(f"{number:7} {what}")
    print(f"{time.monotonic() - started:.0f} seconds, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
