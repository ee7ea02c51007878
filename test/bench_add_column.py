"""What a new NOT NULL column costs, and how long it makes a writer wait, beside plain ``playhouse.migrate``.

Off by default: ``python test/bench_add_column.py``; MySQL is the one that ``TEST_MYSQL_URL`` leads to. Both contenders
add the same field by the same driver to a table packed anew, so that neither pays for what the other left behind.
Each runs once: figures of a few milliseconds are no better than the writer's wait when nothing else happens.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import peewee
import servers
from bench_boot import DurableMariaDB, DurablePostgres
from playhouse.migrate import SchemaMigrator

from api.db.connection import open_database
from api.db.dialects.engine import ENGINES, Engine, engine_of
from api.db.migrations import alter_db_add_column, alter_db_drop_column
from api.db.migrators import migrator_for
from api.logs import configure_logging

DATABASE, TABLE, COLUMN = "bench_add_column", "item", "state"
WRITE_EVERY_S, AROUND_S, IDLE_S = 0.002, 0.2, 2.0
VARIANTS = {"column": False, "with its index": True}
SERVERS: dict[Engine, Callable[[], servers.Server]] = {
    "postgres": DurablePostgres,
    "mariadb": DurableMariaDB,
    "mysql": servers.MySQLServer,
}
# What a run leaves behind is gone after these: dead rows, split pages, row versions, dirty pages.
PACK: dict[Engine, tuple[str, ...]] = {
    "postgres": (f"VACUUM FULL {TABLE}", "CHECKPOINT"),
    "mariadb": (f"OPTIMIZE TABLE {TABLE}",),
    "mysql": (f"OPTIMIZE TABLE {TABLE}",),
    "sqlite": ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"),
}
# The writer waits to the end, for its wait is what is measured.
BE_PATIENT: dict[Engine, str] = {
    "postgres": "SET lock_timeout = 0",
    "mariadb": "SET SESSION innodb_lock_wait_timeout = 3600",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 3600",
    "sqlite": "PRAGMA busy_timeout = 3600000",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """How long a run took, and the longest of the writer's waits meanwhile."""

    took_s: float
    waited_ms: float


def main() -> None:
    """Measure the engines asked for, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    asked = parser.parse_args()
    configure_logging("WARNING")
    print(f"{asked.rows:,} rows; seconds, and the writer's longest wait in ms (ratio is playhouse : ours)\n")
    print(f"{'':<26}{'playhouse s':>12}{'ours s':>10}{'ratio':>9}{'playhouse ms':>15}{'ours ms':>10}{'ratio':>9}")
    for engine in asked.engines:
        if reason := servers.missing(engine):
            print(f"{engine:<10}left out: {reason}")
            continue
        with _opened(engine) as database:
            _measure(engine, database, asked.rows)


@contextmanager
def _opened(engine: Engine) -> Iterator[peewee.Database]:
    """Give an empty database: on a server of ours, on ``TEST_MYSQL_URL``'s, or in a temporary file."""
    with ExitStack() as stack:
        if engine == "sqlite":
            url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/{DATABASE}.db"
        else:
            server = SERVERS[engine]()
            stack.callback(server.stop)
            url = server.create_database(DATABASE)
            stack.callback(server.drop_database, DATABASE)
        database = open_database(url)
        stack.callback(database.close_all)
        yield database


def _measure(engine: Engine, database: peewee.Database, rows: int) -> None:
    _fill(database, rows)
    for variant, index in VARIANTS.items():
        field = peewee.CharField(max_length=32, default="x", index=index)
        theirs, ours = (_cost_of(add, engine, database, rows, field) for add in (_add_by_playhouse, _add_by_ours))
        print(
            f"{engine:<10}{variant:<16}"
            f"{theirs.took_s:>12.3f}{ours.took_s:>10.3f}{theirs.took_s / ours.took_s:>7.0f} x"
            f"{theirs.waited_ms:>15.1f}{ours.waited_ms:>10.1f}{theirs.waited_ms / ours.waited_ms:>7.0f} x",
            flush=True,
        )
    idle = _beside_writer(engine, database, rows, lambda: time.sleep(IDLE_S))
    print(f"{engine:<10}{'writer alone':<16}{'':>46}{idle.waited_ms:>10.1f}", flush=True)


def _fill(database: peewee.Database, rows: int) -> None:
    """Make the table, of about 100 bytes a row, by doubling it."""
    database.execute_sql(f"CREATE TABLE {TABLE} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL, words VARCHAR(100))")
    database.execute_sql(f"INSERT INTO {TABLE} VALUES (1, 0, '{'w' * 80}')")
    standing = 1
    while standing < rows:
        copy = f"SELECT id + {standing}, n, words FROM {TABLE} WHERE id <= {rows - standing}"
        database.execute_sql(f"INSERT INTO {TABLE} {copy}")
        standing *= 2


def _add_by_playhouse(database: peewee.Database, field: peewee.Field) -> None:
    migrator = SchemaMigrator.from_database(database)
    with migrator.migration_context():
        migrator.migrate(migrator.add_column(TABLE, COLUMN, field))


def _add_by_ours(database: peewee.Database, field: peewee.Field) -> None:
    # As a batch does it: SQLite's write lock first, since what was read without it may be stale (SQLITE_BUSY_SNAPSHOT).
    transactions = {"postgres": database.atomic(), "sqlite": database.atomic("IMMEDIATE")}
    with transactions.get(engine_of(database), nullcontext()):
        alter_db_add_column(migrator_for(database), TABLE, COLUMN, field)


def _cost_of(
    add: Callable[[peewee.Database, peewee.Field], None],
    engine: Engine,
    database: peewee.Database,
    rows: int,
    field: peewee.Field,
) -> Cost:
    """Pack the table, add *field* while the writer writes, check that each row has it, and drop it."""
    for sql in PACK[engine]:
        database.execute_sql(sql)
    cost = _beside_writer(engine, database, rows, lambda: add(database, field))
    filled = database.execute_sql(f"SELECT COUNT(*) FROM {TABLE} WHERE {COLUMN} = 'x'").fetchone()[0]
    indexed = any(COLUMN in each.columns for each in database.get_indexes(TABLE))
    assert (filled, indexed) == (rows, field.index), f"{add.__name__} left {filled} of {rows} rows, index: {indexed}"
    alter_db_drop_column(migrator_for(database), TABLE, COLUMN)
    return cost


def _beside_writer(engine: Engine, database: peewee.Database, rows: int, run: Callable[[], object]) -> Cost:
    """Time *run* while a thread writes, from ``AROUND_S`` before it until as long after it."""
    writing, done = Event(), Event()

    def write() -> float:
        longest_s = 0.0
        with database.connection_context():
            database.execute_sql(BE_PATIENT[engine])
            _update_a_row(database, rows)  # not counted: it also waits for what the packing left to do
            writing.set()
            while not done.wait(WRITE_EVERY_S):
                longest_s = max(longest_s, _timed(lambda: _update_a_row(database, rows)))
        return longest_s * 1000

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            writing.wait(timeout=30)
            time.sleep(AROUND_S)
            took_s = _timed(run)
            time.sleep(AROUND_S)
        finally:
            done.set()
        return Cost(took_s, writer.result())


def _update_a_row(database: peewee.Database, rows: int) -> None:
    database.execute_sql(f"UPDATE {TABLE} SET n = n + 1 WHERE id = {random.randint(1, rows)}")


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
