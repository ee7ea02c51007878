"""A batch that fails leaves schema and data as they were on MySQL and MariaDB, which commit at every DDL statement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peewee
import pytest

from api.db.journal.definition import same
from api.db.migrations import migrate_db
from api.exceptions import MigrationFailedError

pytestmark = pytest.mark.engines("mariadb", "mysql")

START = (
    "CREATE TABLE parent (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(40) NOT NULL, UNIQUE KEY by_name (name))",
    """CREATE TABLE child (id INT AUTO_INCREMENT PRIMARY KEY, parent_id INT NOT NULL, code CHAR(8) NOT NULL,
       price DECIMAL(10,4) NOT NULL, ratio DOUBLE NULL, note TEXT NOT NULL, size INT NOT NULL DEFAULT 3 COMMENT 'it''s',
       doubled INT GENERATED ALWAYS AS (size * 2) VIRTUAL, kind ENUM('a','b') NOT NULL, stamp TIMESTAMP(6) NULL,
       day DATE NOT NULL, data BLOB NOT NULL,
       KEY by_code_and_size (code, size), UNIQUE KEY by_day_and_code (day, code), KEY by_ratio (ratio),
       CONSTRAINT positive CHECK (price > 0),
       CONSTRAINT child_parent FOREIGN KEY (parent_id) REFERENCES parent (id)) COMMENT = 'children; of ''parents'''""",
    "CREATE TABLE `odd ``name, ü` (`a b` INT PRIMARY KEY, `naïve` VARCHAR(9) CHARACTER SET latin1 NOT NULL)",
    "CREATE TABLE lone (id INT PRIMARY KEY, v INT NULL)",
    "INSERT INTO parent (name) VALUES ('one'), ('two'), ('three')",
    """INSERT INTO child (parent_id, code, price, ratio, note, size, kind, stamp, day, data) VALUES
       (1, 'x', 1.2345, 1.7, 'n', 1, 'a', '2024-03-01 10:00:00.123456', '2024-01-01', x'00ff27'),
       (2, 'y', 2.5, NULL, 'é😀', 2, 'b', NULL, '2024-01-02', x'')""",
    "INSERT INTO `odd ``name, ü` VALUES (1, 'é'), (2, 'b')",
    "INSERT INTO lone VALUES (1, 1), (2, NULL)",
    "CREATE TABLE quiet (id INT PRIMARY KEY)",
    "CREATE VIEW names AS SELECT id FROM quiet",
)
LONG = "n" * 64

# What one batch may do; each is undone exactly. A row is a batch.
BATCHES: dict[str, tuple[str, ...]] = {
    "add a column": ("ALTER TABLE child ADD COLUMN a INT NOT NULL DEFAULT 1 AFTER code, ADD KEY by_a (a)",),
    "fill a new column": ("ALTER TABLE child ADD COLUMN a INT NULL", "UPDATE child SET a = size"),
    "drop a column": ("ALTER TABLE child DROP COLUMN note",),
    "drop a column with keys": ("ALTER TABLE child DROP KEY by_day_and_code, DROP COLUMN code",),
    "drop two columns and add one": ("ALTER TABLE child DROP COLUMN kind, DROP data, ADD COLUMN kind INT NULL",),
    "drop a generated column and its base": ("ALTER TABLE child DROP doubled", "ALTER TABLE child DROP size"),
    "drop a foreign key and its column": (
        "ALTER TABLE child DROP FOREIGN KEY child_parent, DROP COLUMN parent_id",
        "DROP TABLE parent",
    ),
    "drop a table that others write into": ("DROP TABLE lone", "CREATE TABLE lone (id INT PRIMARY KEY)"),
    "drop a table with a foreign key, then make it": (
        "DROP TABLE child",
        START[1],
        "INSERT INTO child (parent_id, code, price, note, kind, day, data) VALUES (1, '', 1, '', 'a', NOW(), '')",
    ),
    "drop both tables": ("DROP TABLE child, parent",),
    "rename columns": (
        "ALTER TABLE child RENAME COLUMN code TO parole",
        "ALTER TABLE child CHANGE parole code2 CHAR(8) NOT NULL",
        "ALTER TABLE child RENAME COLUMN code2 TO kind2, RENAME COLUMN kind TO code",
    ),
    "rename tables": ("RENAME TABLE lone TO alone, parent TO lone", "ALTER TABLE child RENAME TO kid"),
    "swap tables by turns": ("RENAME TABLE lone TO x", "RENAME TABLE parent TO lone", "RENAME TABLE x TO parent"),
    "rename and alter": ("ALTER TABLE lone RENAME TO alone, ADD COLUMN z INT NULL", "DROP TABLE alone"),
    "a lossy type": ("ALTER TABLE child MODIFY ratio INT NULL", "ALTER TABLE child MODIFY note VARCHAR(3) NULL"),
    "a lossy time": (
        "ALTER TABLE child MODIFY stamp DATETIME NULL FIRST",
        "ALTER TABLE child MODIFY code VARCHAR(4) NOT NULL",
    ),
    "a wider type": ("ALTER TABLE child MODIFY code VARCHAR(90) NOT NULL DEFAULT 'q', MODIFY size BIGINT NULL",),
    "another key": ("ALTER TABLE lone DROP PRIMARY KEY, ADD COLUMN k INT AUTO_INCREMENT PRIMARY KEY FIRST",),
    "indexes": (
        "CREATE UNIQUE INDEX u ON lone (v)",
        "DROP INDEX by_ratio ON child",
        "ALTER TABLE child ADD INDEX by_parent (parent_id, code), RENAME INDEX by_day_and_code TO other",
        "CREATE FULLTEXT INDEX words ON child (note)",
    ),
    "constraints": (
        "ALTER TABLE child DROP CONSTRAINT positive, ADD CONSTRAINT positive CHECK (price > -(5))",
        "ALTER TABLE child DROP FOREIGN KEY child_parent",
        "ALTER TABLE child ADD CONSTRAINT child_parent FOREIGN KEY (parent_id) REFERENCES parent (id)",
    ),
    "defaults and comments": (
        "ALTER TABLE child ALTER size DROP DEFAULT, ALTER code SET DEFAULT 'it''s', COMMENT = ''",
        "ALTER TABLE parent COMMENT = 'a\\nb', MODIFY name VARCHAR(40) NOT NULL COMMENT 'x,y'",
    ),
    "character sets": (
        "ALTER TABLE `odd ``name, ü` CONVERT TO CHARACTER SET utf8mb4",
        "ALTER TABLE `odd ``name, ü` DEFAULT CHARACTER SET latin1, ADD COLUMN c VARCHAR(5) NULL",
    ),
    "odd names": (
        "ALTER TABLE `odd ``name, ü` RENAME COLUMN `a b` TO `c,``d`",
        f"ALTER TABLE `odd ``name, ü` ADD COLUMN `{LONG}` INT NULL, DROP COLUMN `naïve`",
        f"ALTER TABLE `odd ``name, ü` DROP COLUMN `{LONG}`",
        f"RENAME TABLE `odd ``name, ü` TO `{LONG}`",
        f"DROP TABLE `{LONG}`",
    ),
    "rows": (
        "UPDATE child SET price = 9, code = 'z'",
        "DELETE FROM lone WHERE id = 1",
        "INSERT INTO parent (name) VALUES ('four'), ('five')",
        "INSERT INTO lone VALUES (2, 5), (7, 7) ON DUPLICATE KEY UPDATE v = 6",
        "REPLACE INTO lone VALUES (7, 8)",
        "UPDATE lone SET id = id + 100",
        "DELETE FROM child",
    ),
    "rows of what took a new table's name": (
        "CREATE TABLE x (id INT PRIMARY KEY)",
        "DROP TABLE x",
        "RENAME TABLE lone TO x",
        "UPDATE x SET v = 9",
        "ALTER TABLE child ADD COLUMN size2 INT NULL",
        "ALTER TABLE child RENAME COLUMN size2 TO size3",
        "ALTER TABLE child DROP COLUMN size3, RENAME COLUMN ratio TO size3",
        "UPDATE child SET size3 = 5",
    ),
    "rows between changes": (
        "UPDATE lone SET v = 4",
        "ALTER TABLE lone RENAME COLUMN v TO w",
        "UPDATE lone SET w = 5",
        "RENAME TABLE lone TO alone",
        "INSERT INTO alone VALUES (9, 9)",
        "ALTER TABLE alone DROP COLUMN w",
        "DELETE FROM alone",
    ),
    "tables": (
        "CREATE TABLE made (id INT PRIMARY KEY, lone_id INT, FOREIGN KEY (lone_id) REFERENCES lone (id))",
        "CREATE TABLE IF NOT EXISTS lone (id INT)",
        "CREATE TABLE copied LIKE child",
        "CREATE TABLE chosen AS SELECT * FROM parent",
        "INSERT INTO made VALUES (1, 1)",
        "DROP TABLE IF EXISTS chosen, nothing",
        "CREATE TEMPORARY TABLE t (id INT)",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ),
    "views": (
        "CREATE OR REPLACE VIEW names AS SELECT 1 AS one",
        "DROP VIEW names",
        "CREATE VIEW more AS SELECT id FROM lone",
    ),
    "triggers": (
        "CREATE TRIGGER tick BEFORE INSERT ON lone FOR EACH ROW SET NEW.v = 1",
        "DROP TRIGGER tick",
        "CREATE TRIGGER tock BEFORE INSERT ON parent FOR EACH ROW SET NEW.name = 'x'",
        "DROP TABLE child",
        "ALTER TABLE parent RENAME TO elder",
    ),
    "partitions": ("ALTER TABLE lone PARTITION BY HASH (id) PARTITIONS 3", "ALTER TABLE lone COALESCE PARTITION 1"),
}


@pytest.fixture
def start(db: peewee.Database) -> peewee.Database:
    """Give the database the tables and rows of START."""
    for sql in START:
        db.execute_sql(sql.replace("%", "%%"))
    return db


def running(*statements: str) -> Callable[[Any, Any], None]:
    """Return a migration that sends *statements*."""

    def up(migrator: Any, db: Any) -> None:
        for sql in statements:
            db.execute_sql(sql)

    return up


def failing(*statements: str) -> list[tuple[str, Callable[[Any, Any], None]]]:
    """Return a batch that sends *statements*, and another migration that fails."""

    def fail(migrator: Any, db: Any) -> None:
        raise RuntimeError("on purpose")

    return [("0001_a", running(*statements)), ("0002_b", fail)]


def picture(db: peewee.Database) -> dict[str, tuple[str, Any]]:
    """Return each table's definition and rows; the service's own tables left out."""
    tables = [name for (name,) in db.execute_sql("SHOW TABLES").fetchall() if not name.startswith("migration_")]
    shown = {}
    for table in tables:
        quoted = "`" + table.replace("`", "``") + "`"
        create = db.execute_sql(f"SHOW CREATE TABLE {quoted}".replace("%", "%%")).fetchone()[1]
        rows = db.execute_sql(f"SELECT * FROM {quoted}".replace("%", "%%")).fetchall()
        shown[table] = (create, sorted(rows, key=repr))
    return shown


def assert_same(now: dict[str, tuple[str, Any]], before: dict[str, tuple[str, Any]]) -> None:
    """Compare two pictures: the tables, their rows, their definitions but for the order of keys and counters."""
    assert sorted(now) == sorted(before)
    for table, (create, rows) in before.items():
        assert now[table][1] == rows
        is_table = create.startswith("CREATE TABLE")
        assert same(now[table][0], create) if is_table else now[table][0] == create, now[table][0]


def journal_rows(db: peewee.Database) -> list[int]:
    """Return how many rows each of the journal's tables holds."""
    tables = ("migration_batch", "migration_journal", "migration_journal_row")
    return [db.execute_sql(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_failed_batch_leaves_everything_as_it_was(start: peewee.Database, batch: str) -> None:
    """Whatever a batch did, its failure takes back: definitions, rows, and no trace in the journal."""
    before = picture(start)
    ran: list[bool] = []

    def reached(migrator: Any, db: Any) -> None:
        ran.append(picture(db) != before)
        raise RuntimeError("on purpose")

    with pytest.raises(MigrationFailedError, match="on purpose"):
        migrate_db([("0001_a", running(*BATCHES[batch])), ("0002_b", reached)], database=start)

    assert ran == [True]
    assert_same(picture(start), before)
    assert journal_rows(start) == [0, 0, 0]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_ends_as_its_statements_alone_would(backend: Any, start: peewee.Database, batch: str) -> None:
    """With the journal a batch leaves the same definitions and rows as the bare statements, and nothing beside."""
    migrate_db([("0001_a", running(*BATCHES[batch]))], database=start)
    journalled = picture(start)
    assert journal_rows(start) == [0, 0, 0]

    for table in start.get_tables():
        if not table.startswith("migration_"):
            start.execute_sql("SET foreign_key_checks = 0")
            start.execute_sql("DROP TABLE `{}`".format(table.replace("`", "``")))
    for view in start.get_views():
        start.execute_sql(f"DROP VIEW `{view.name}`")
    start.execute_sql("SET foreign_key_checks = 1")
    for sql in (*START, *BATCHES[batch]):
        start.execute_sql(sql)

    assert_same(journalled, picture(start))
