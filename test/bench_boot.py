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
Contenders = dict[str, Callable[[], None]]


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
    def bare() -> None:
        connection = servers.connect(url)
        cursor = connection.cursor()
        cursor.execute("SELECT migration_name, status FROM migration_history")
        assert len(cursor.fetchall()) == MIGRATIONS
        connection.close()

    def with_playhouse() -> None:
        database = _plain(url, engine)
        database.connect()
        assert Runner(database, str(playhouse), "playhouse_history").up() == []
        database.close()

    def plinth() -> None:
        database = open_database(url)
        assert not migrate_db(directory=ours, database=database).applied
        database.close_all()

    return {"bare driver": bare, "plinth": plinth, "playhouse": with_playhouse}


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
        "bare driver": lambda: _fresh(server, bare),
        "plinth": lambda: _fresh(server, lambda url: _run_ours(url, ours)),
        "playhouse": lambda: _fresh(server, with_playhouse),
    }


def _run_ours(url: str, directory: Path) -> None:
    database = open_database(url)
    if not database.table_exists("item"):
        _create_item(url)
    migrate_db(directory=directory, database=database)
    database.close_all()


SPENT = 0.0


def _fresh(server: servers.Server, run: Callable[[str], None]) -> None:
    """Run on a fresh database; only *run* counts, not the making and dropping."""
    global SPENT
    url = server.create_database("bench_apply")
    _create_item(url)
    started = time.perf_counter()
    run(url)
    SPENT = time.perf_counter() - started
    server.drop_database("bench_apply")


def _create_item(url: str) -> None:
    connection = servers.connect(url)
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    cursor.execute("CREATE TABLE done (name VARCHAR(255) PRIMARY KEY)")
    connection.close()


def _print(title: str, rounds: int, contenders: Contenders) -> None:
    global SPENT
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            SPENT, started = 0.0, time.perf_counter()
            run()
            taken[name].append(SPENT or time.perf_counter() - started)
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
