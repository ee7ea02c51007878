"""What a boot costs, as ratios measured side by side in one run; off by default: ``python test/bench_boot.py``.

Starts a PostgreSQL and a MariaDB of its own that flush every commit, as servers do in production. Each round runs
every contender once, in turn, so that a noisy machine is noisy for all. Printed are medians, and their ratio to the
bare driver, which does the least that must be done.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import peewee
import servers
from playhouse.migrations import Runner

from api.db.connection import open_database
from api.db.dialects.engine import Engine
from api.db.migrations import migrate_db
from api.logs import configure_logging

BOOTS, APPLIES, MIGRATIONS = 40, 5, 100
OURS = """import peewee

from api.db.migrations import alter_db_add_column


def up(migrator, db):
    alter_db_add_column(migrator, "item", "c{number}", peewee.IntegerField(default=0))
"""
PLAYHOUSE = """import peewee


def up(migrator, db):
    migrator.migrate(migrator.add_column("item", "c{number}", peewee.IntegerField(default=0)))
"""
Contenders = dict[str, Callable[[], float]]


class DurablePostgres(servers.PostgresServer):
    """A PostgreSQL that flushes every commit."""

    durable = True


class DurableMariaDB(servers.MariaDBServer):
    """A MariaDB that flushes every commit."""

    durable = True


def main() -> None:
    """Measure both engines and print the table."""
    configure_logging("WARNING")
    for kind in (DurablePostgres, DurableMariaDB):
        server = kind()
        try:
            _measure(kind.engine, server)
        finally:
            server.stop()


def _measure(engine: Engine, server: servers.Server) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours, playhouse = (_write(Path(folder) / name, text) for name, text in (("o", OURS), ("p", PLAYHOUSE)))
        url = server.create_database("bench_boot")
        _create_tables(url)
        _run_ours(url, ours)
        Runner(_plain(url, engine), str(playhouse), "playhouse_history").fake()
        _print(f"{engine}: a boot with nothing pending", BOOTS, _boots(engine, url, ours, playhouse))
        server.drop_database("bench_boot")
        _print(f"{engine}: the first apply of {MIGRATIONS}", APPLIES, _applies(engine, server, ours, playhouse))


def _write(directory: Path, text: str) -> Path:
    directory.mkdir()
    for number in range(1, MIGRATIONS + 1):
        (directory / f"{number:04d}_add_c{number}.py").write_text(text.format(number=number))
    return directory


def _boots(engine: Engine, url: str, ours: Path, playhouse: Path) -> Contenders:
    """Time connect, look and close; the app's database object is there before, and so is playhouse's."""

    def bare() -> None:
        connection = servers.connect(url)
        cursor = connection.cursor()
        cursor.execute("SELECT migration_name, status FROM migration_history")
        assert len(dict(cursor.fetchall())) == MIGRATIONS
        connection.close()

    def plinth() -> float:
        database = open_database(url)
        elapsed_s = _timed(lambda: migrate_db(directory=ours, database=database))
        return elapsed_s + _timed(database.close_all)

    def with_playhouse() -> float:
        database = _plain(url, engine)
        elapsed_s = _timed(database.connect) + _timed(Runner(database, str(playhouse), "playhouse_history").up)
        return elapsed_s + _timed(database.close)

    return {"bare driver": lambda: _timed(bare), "plinth": plinth, "playhouse": with_playhouse}


def _applies(engine: Engine, server: servers.Server, ours: Path, playhouse: Path) -> Contenders:
    def bare(url: str) -> None:
        connection = servers.connect(url)
        cursor = connection.cursor()
        for number in range(1, MIGRATIONS + 1):
            cursor.execute(f"ALTER TABLE item ADD COLUMN c{number} INTEGER NOT NULL DEFAULT 0")
            cursor.execute("INSERT INTO done VALUES (%s)", (f"{number:04d}",))
        connection.close()

    def with_playhouse(url: str) -> None:
        database = _plain(url, engine)
        database.connect()
        Runner(database, str(playhouse), "playhouse_history").up()
        database.close()

    return {
        "bare driver": lambda: _on_fresh(server, bare),
        "plinth": lambda: _on_fresh(server, lambda url: _run_ours(url, ours)),
        "playhouse": lambda: _on_fresh(server, with_playhouse),
    }


def _run_ours(url: str, directory: Path) -> None:
    database = open_database(url)
    migrate_db(directory=directory, database=database)
    database.close_all()


def _on_fresh(server: servers.Server, run: Callable[[str], None]) -> float:
    """Return how long *run* takes on a fresh database; making and dropping that do not count."""
    url = server.create_database("bench_apply")
    _create_tables(url)
    elapsed_s = _timed(lambda: run(url))
    server.drop_database("bench_apply")
    return elapsed_s


def _create_tables(url: str) -> None:
    connection = servers.connect(url)
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    cursor.execute("CREATE TABLE done (name VARCHAR(255) PRIMARY KEY)")
    connection.close()


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _print(title: str, rounds: int, contenders: Contenders) -> None:
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            taken[name].append(run())
    print(f"\n{title} (median of {rounds})")
    least = median(taken["bare driver"])
    for name, seconds in taken.items():
        print(f"  {name:<12} {median(seconds) * 1000:8.2f} ms   {median(seconds) / least:5.2f} x")


def _plain(url: str, engine: Engine) -> peewee.Database:
    """Return peewee's own database, without a pool, for playhouse."""
    ours = open_database(url)
    known = {key: ours.connect_params[key] for key in ("host", "port", "user", "password")}
    kind = peewee.PostgresqlDatabase if engine == "postgres" else peewee.MySQLDatabase
    return kind(ours.database, **known)


if __name__ == "__main__":
    main()
