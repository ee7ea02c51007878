"""What the journal costs, as ratios measured side by side in one run; off by default: ``python test/bench_journal.py``.

The same migrations are sent by the bare driver, one statement after the other, by us, and by other runners, to a
MariaDB of its own and to the MySQL that ``TEST_MYSQL_URL`` leads to, both as durable as they are by default. Each
round runs every contender once, in turn, on a fresh database in which its own tables stand already. Printed are
medians, and their ratio to the bare driver's. ``--peers`` adds Alembic and Django, which are no requirement:
``pip install alembic django`` before it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from urllib.parse import unquote, urlsplit

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import peewee
import pymysql
import servers
from playhouse.migrations import Runner

from api.db.connection import open_database
from api.db.migrations import migrate_db
from api.logs import configure_logging

NAME = f"bench_journal_{os.getpid()}"
FRESH = [
    """CREATE TABLE customer (id INT PRIMARY KEY AUTO_INCREMENT, email VARCHAR(120) NOT NULL, name VARCHAR(80) NOT NULL,
       phone VARCHAR(40), created_at DATETIME NOT NULL)""",
    """CREATE TABLE product (id INT PRIMARY KEY AUTO_INCREMENT, sku VARCHAR(40) NOT NULL, title VARCHAR(200) NOT NULL,
       price DECIMAL(10, 2) NOT NULL, colour VARCHAR(20))""",
    """CREATE TABLE purchase (id INT PRIMARY KEY AUTO_INCREMENT, customer_id INT NOT NULL, product_id INT NOT NULL,
       amount INT NOT NULL, created_at DATETIME NOT NULL)""",
    "CREATE TABLE note (id INT PRIMARY KEY AUTO_INCREMENT, customer_id INT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE coupon (id INT PRIMARY KEY AUTO_INCREMENT, code VARCHAR(20) NOT NULL, percent INT NOT NULL)",
    "CREATE TABLE archive (id INT PRIMARY KEY AUTO_INCREMENT, line VARCHAR(200) NOT NULL)",
    "CREATE TABLE item (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(80) NOT NULL)",
    "CREATE TABLE done (name VARCHAR(255) PRIMARY KEY, applied_at DATETIME NOT NULL)",
]
ROWS = {
    "customer (email, name, phone, created_at)": ("CONCAT(n, '@x.org'), CONCAT('name ', n), n, NOW()", 5000),
    "product (sku, title, price, colour)": ("CONCAT('sku', n), REPEAT('t', 60), n / 7, 'red'", 3000),
    "purchase (customer_id, product_id, amount, created_at)": ("1 + n MOD 5000, 1 + n MOD 3000, n, NOW()", 8000),
    "note (customer_id, body)": ("1 + n MOD 5000, REPEAT('b', 100)", 2000),
    "coupon (code, percent)": ("CONCAT('code', n), 10", 500),
    "archive (line)": ("REPEAT('l', 100)", 3000),
    "item (name)": ("CONCAT('item ', n)", 1000),
}
# Thirty-three statements over eight tables, as a release of an app sends them.
REALISTIC = [
    [
        """CREATE TABLE address (id INT PRIMARY KEY AUTO_INCREMENT, customer_id INT NOT NULL, street TEXT NOT NULL,
           city VARCHAR(80) NOT NULL, KEY address_customer (customer_id))""",
        """CREATE TABLE shipment (id INT PRIMARY KEY AUTO_INCREMENT, purchase_id INT NOT NULL, address_id INT NOT NULL,
           sent_at DATETIME, KEY shipment_address (address_id))""",
        "CREATE INDEX shipment_sent_at ON shipment (sent_at)",
        "ALTER TABLE shipment ADD CONSTRAINT shipment_to FOREIGN KEY (address_id) REFERENCES address (id)",
    ],
    [
        "ALTER TABLE customer ADD COLUMN status VARCHAR(16) NOT NULL DEFAULT 'new'",
        "ALTER TABLE customer ADD COLUMN score INT NULL",
        "UPDATE customer SET score = id MOD 100",
        "CREATE INDEX customer_status ON customer (status, score)",
        "CREATE UNIQUE INDEX customer_email ON customer (email)",
    ],
    [
        "ALTER TABLE product ADD COLUMN price_cents BIGINT NULL",
        "UPDATE product SET price_cents = price * 100",
        "ALTER TABLE product MODIFY COLUMN price_cents BIGINT NOT NULL",
        "CREATE UNIQUE INDEX product_sku ON product (sku)",
        "CREATE INDEX product_title ON product (title)",
    ],
    [
        "CREATE INDEX purchase_customer ON purchase (customer_id, created_at)",
        "ALTER TABLE purchase ADD CONSTRAINT purchase_of FOREIGN KEY (customer_id) REFERENCES customer (id)",
        "ALTER TABLE purchase ADD COLUMN currency CHAR(3) NOT NULL DEFAULT 'EUR'",
        "ALTER TABLE purchase RENAME COLUMN amount TO amount_cents",
    ],
    [
        "ALTER TABLE note RENAME TO remark",
        "ALTER TABLE remark ADD COLUMN author VARCHAR(80) NULL",
        "CREATE INDEX remark_customer ON remark (customer_id)",
    ],
    [
        "UPDATE customer SET name = 'nobody' WHERE id IN (7, 70, 700)",
        "UPDATE coupon SET percent = 20 WHERE id <= 50",
        "DELETE FROM coupon WHERE id > 480",
        "INSERT INTO coupon (id, code, percent) VALUES (1001, 'spring', 5), (1002, 'autumn', 15)",
    ],
    [
        "ALTER TABLE coupon ADD COLUMN valid_until DATE NULL",
        "CREATE INDEX coupon_code ON coupon (code)",
        "CREATE INDEX purchase_product ON purchase (product_id)",
        "ALTER TABLE coupon MODIFY COLUMN code VARCHAR(60) NOT NULL",
    ],
    ["ALTER TABLE customer DROP COLUMN phone", "ALTER TABLE product DROP COLUMN colour"],
    ["DROP INDEX product_title ON product", "DROP TABLE archive"],
]
# The worst case: thirty times the cheapest DDL there is, in ten migrations.
CHEAPEST = [[f"ALTER TABLE item ADD COLUMN c{number}_{at} INT NULL" for at in range(3)] for number in range(10)]

OURS = "def up(migrator, db):\n    for sql in {sql!r}:\n        db.execute_sql(sql)\n"
ALEMBIC = """from alembic import op

revision = "{number:04d}"
down_revision = {before!r}


def upgrade():
    for sql in {sql!r}:
        op.execute(sql)
"""
ALEMBIC_ENV = """from alembic import context
from sqlalchemy import create_engine, pool

url = context.config.get_main_option("sqlalchemy.url")
with create_engine(url, poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
DJANGO = """from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {before!r}
    operations = [migrations.RunSQL(sql) for sql in {sql!r}]
"""
Batch = list[list[str]]
Contender = Callable[[], None]


class DurableMariaDB(servers.MariaDBServer):
    """A MariaDB that flushes every commit."""

    durable = True


def main() -> None:
    """Measure both engines and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", action="store_true", help="Alembic and Django too (pip install alembic django)")
    parser.add_argument("--engine", choices=("mariadb", "mysql"), action="append")
    options = parser.parse_args()
    configure_logging("ERROR")
    engines = options.engine or ["mariadb", *(["mysql"] if os.environ.get("TEST_MYSQL_URL") else [])]
    for engine in engines:
        server = DurableMariaDB() if engine == "mariadb" else servers.MySQLServer()
        try:
            _measure(server, options.rounds, options.peers)
        finally:
            server.stop()


def _measure(server: servers.Server, rounds: int, peers: bool) -> None:
    settings = ("innodb_flush_log_at_trx_commit", "sync_binlog", "log_bin")
    (values,) = server.execute("SELECT " + ", ".join(f"@@{setting}" for setting in settings))
    print(f"\n{server.engine} {server.version}: " + ", ".join(map("{} = {}".format, settings, values)))
    url = urlsplit(server.url)._replace(path=f"/{NAME}").geturl()
    for title, batch in (("a release over 8 tables", REALISTIC), ("the cheapest DDL only", CHEAPEST)):
        with tempfile.TemporaryDirectory() as folder:
            contenders = _contenders(url, Path(folder), batch, peers)
            number = sum(map(len, batch))
            print(f"  {title}: {number} statements in {len(batch)} migrations (median of {rounds} rounds)")
            _print(_rounds(server, contenders, rounds))


def _contenders(url: str, folder: Path, batch: Batch, peers: bool) -> dict[str, tuple[Contender, Contender]]:
    """Return by name what makes the contender's own tables, and what runs the batch."""
    ours = _write(folder / "ours", batch, OURS)
    nothing = folder / "nothing"
    nothing.mkdir()
    (nothing / "0000_nothing.py").write_text("def up(migrator, db):\n    pass\n")
    known: dict[str, tuple[Contender, Contender]] = {
        "bare driver": (lambda: None, partial(_bare, url, batch)),
        "plinth": (partial(_plinth, url, nothing), partial(_plinth, url, ours)),
        "pwmigrate": (partial(_pwmigrate, url, nothing), partial(_pwmigrate, url, ours)),
    }
    return known | (_peers(url, folder, batch) if peers else {})


def _write(folder: Path, batch: Batch, text: str, *, first: int = 1, before: Callable[[int], object] = str) -> Path:
    folder.mkdir(parents=True)
    for number, sql in enumerate(batch, first):
        (folder / f"{number:04d}_m.py").write_text(text.format(number=number, sql=sql, before=before(number - 1)))
    return folder


# The contenders ------------------------------------------------------------------------------------------------


def _bare(url: str, batch: Batch) -> None:
    with closing(servers.connect(url)) as connection:
        cursor = connection.cursor()
        for number, statements in enumerate(batch):
            for sql in statements:
                cursor.execute(sql)
            cursor.execute("INSERT INTO done VALUES (%s, NOW())", (f"{number:04d}_m",))


def _plinth(url: str, directory: Path) -> None:
    database = open_database(url)
    migrate_db(directory=directory, database=database)
    database.close_all()


def _pwmigrate(url: str, directory: Path) -> None:
    ours = open_database(url)
    known = ("host", "port", "user", "password")
    parameters = {key: value for key, value in ours.connect_params.items() if key in known}
    database = peewee.MySQLDatabase(ours.database, **parameters)
    database.connect()
    Runner(database, str(directory)).up()
    database.close()


def _peers(url: str, folder: Path, batch: Batch) -> dict[str, tuple[Contender, Contender]]:
    return {"Alembic": _alembic(url, folder / "alembic", batch), "Django": _django(url, folder / "django", batch)}


def _alembic(url: str, folder: Path, batch: Batch) -> tuple[Contender, Contender]:
    # By name: a type checker need not have what only --peers asks for.
    command, config = import_module("alembic.command"), import_module("alembic.config").Config()
    _write(folder / "versions", [[], *batch], ALEMBIC, first=0, before=lambda n: f"{n:04d}" if n >= 0 else None)
    (folder / "env.py").write_text(ALEMBIC_ENV)
    config.set_main_option("script_location", str(folder))
    config.set_main_option("sqlalchemy.url", urlsplit(url)._replace(scheme="mysql+pymysql").geturl().replace("%", "%%"))
    return partial(command.upgrade, config, "0000"), partial(command.upgrade, config, "head")


def _django(url: str, folder: Path, batch: Batch) -> tuple[Contender, Contender]:
    settings, registry = import_module("django.conf").settings, import_module("django.apps").apps
    management, connections = import_module("django.core.management"), import_module("django.db").connections
    app = f"shop{abs(hash(str(folder)))}"
    package = _write(
        folder / app / "migrations",
        [[], *batch],
        DJANGO,
        first=0,
        before=lambda n: [(app, f"{n:04d}_m")] if n >= 0 else [],
    )
    for place in (package, package.parent):
        (place / "__init__.py").touch()
    sys.path.insert(0, str(folder))
    if not settings.configured:
        # Django asks for mysqlclient; PyMySQL takes its name, and here its version, so that all use one driver. Its
        # modules too: imported again under that name they would take the place of those that everybody else has.
        pymysql.version_info = (2, 2, 7, "final", 0)
        sys.modules |= {f"MySQLdb{name[7:]}": each for name, each in sys.modules.items() if name[:7] == "pymysql"}
        settings.configure(DATABASES={"default": {}}, INSTALLED_APPS=[], USE_TZ=True)
        import_module("django").setup()
    settings.INSTALLED_APPS = [app]
    registry.set_installed_apps([app])
    parts = urlsplit(url)
    account = {"HOST": parts.hostname, "PORT": parts.port, "USER": unquote(parts.username or ""), "NAME": NAME}
    account |= {"ENGINE": "django.db.backends.mysql", "PASSWORD": unquote(parts.password or "")}
    connections.settings = connections.configure_settings({"default": {}, app: account})

    def migrate(*target: str) -> None:
        management.call_command("migrate", *target, verbosity=0, database=app)
        connections.close_all()

    return partial(migrate, app, "0000"), partial(migrate, app)


# Measuring -----------------------------------------------------------------------------------------------------


def _rounds(
    server: servers.Server, contenders: dict[str, tuple[Contender, Contender]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds that each contender took in each round; a round before the first warms up.

    Who goes first changes with the rounds: a server is still busy with what it was sent last.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        first = number % len(contenders)
        for name in [*contenders, *contenders][first : first + len(contenders)]:
            elapsed_s = _on_fresh(server, *contenders[name])
            if number:
                taken[name].append(elapsed_s)
    return taken


def _on_fresh(server: servers.Server, prepare: Contender, run: Contender) -> float:
    """Return how long *run* takes; making and dropping the database do not count, nor do the contender's tables."""
    url = server.create_database(NAME)
    try:
        _fill(url)
        prepare()
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    finally:
        server.drop_database(NAME)


def _fill(url: str) -> None:
    numbers = "WITH RECURSIVE one (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM one WHERE n < {}) SELECT {} FROM one"
    with closing(servers.connect(url)) as connection:
        cursor = connection.cursor()
        for sql in FRESH:
            cursor.execute(sql)
        variable = (
            "max_recursive_iterations" if "MariaDB" in connection.get_server_info() else "cte_max_recursion_depth"
        )
        cursor.execute(f"SET SESSION {variable} = 10000")
        for table, (values, number) in ROWS.items():
            cursor.execute(f"INSERT INTO {table} " + numbers.format(number, values))


def _print(taken: dict[str, list[float]]) -> None:
    for name, seconds in taken.items():
        ratio = median(seconds) / median(taken["bare driver"])
        print(f"    {name:<12} {median(seconds) * 1000:8.1f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
