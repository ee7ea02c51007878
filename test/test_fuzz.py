"""Random batches through the journal end as they should; thousands by ``python test/fuzz_ddl.py``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import fuzz_ddl
import peewee
import pytest
from test_journal import assert_same, picture

from api.db.migrations import migrate_db
from api.exceptions import MigrationError, MigrationFailedError
from conftest import Backend

pytestmark = pytest.mark.engines("mariadb", "mysql")

STATEMENTS = 100
START = (
    "CREATE TABLE parent (id INT PRIMARY KEY)",
    """CREATE TABLE t (id INT PRIMARY KEY, a INT NOT NULL DEFAULT 1, b TEXT NULL, e TEXT NULL, c INT NULL,
       seen TIMESTAMP NULL, day DATETIME NULL, up INT NULL,
       word VARCHAR(20) CHARACTER SET latin1 NULL CHECK (word <> 'no'),
       FULLTEXT KEY words (b, e), KEY c (c), FOREIGN KEY (up) REFERENCES parent (id))""",
    "CREATE TABLE loose (id INT NOT NULL UNIQUE, v INT NULL)",
    "INSERT INTO parent VALUES (1)",
    "INSERT INTO t VALUES (1, 7, 'b', 'e', 3, NULL, NULL, 1, 'yes')",
    "INSERT INTO t VALUES (2, 8, NULL, NULL, 3, NULL, '2024-01-01', NULL, NULL)",
    "INSERT INTO loose VALUES (1, 1)",
)
# What random batches found, each made small. A statement that is refused is passed over, and the batch goes on.
FOUND: dict[str, tuple[str, ...]] = {
    "a drop whose rest fails": ("ALTER TABLE t ALTER COLUMN a SET DEFAULT 5, DROP COLUMN a",),
    "a drop whose rest is refused": ("ALTER TABLE t DROP COLUMN a, CONVERT TO CHARACTER SET latin1",),
    "a new table that is loosened, then filled": (
        "CREATE TABLE made (id INT PRIMARY KEY, u INT NOT NULL, UNIQUE KEY u (u))",
        "ALTER TABLE made DROP INDEX u, MODIFY u VARCHAR(9) NULL, RENAME TO other",
        "INSERT INTO other VALUES (1, 'x'), (2, 'x'), (3, NULL)",
        "ALTER TABLE other DROP COLUMN u, ADD COLUMN z INT",
    ),
    "a new table in the place of the old one": (
        "CREATE TABLE made LIKE loose",
        "INSERT INTO made SELECT id + 10, v FROM loose",
        "ALTER TABLE made DROP COLUMN v",
        "RENAME TABLE loose TO old, made TO loose",
        "INSERT INTO loose VALUES (99)",
        "DROP TABLE old",
    ),
    "a new column that is loosened, then filled": (
        "ALTER TABLE t ADD COLUMN new INT NULL, ADD UNIQUE KEY new (new)",
        "ALTER TABLE t DROP INDEX new",
        "UPDATE t SET new = 4",
        "ALTER TABLE t MODIFY new VARCHAR(9) NULL",
        "UPDATE t SET new = 'x'",
    ),
    "a foreign key that made its own index": ("ALTER TABLE t DROP FOREIGN KEY t_ibfk_1",),
    "a column with the name of its key": ("ALTER TABLE t DROP COLUMN c", "ALTER TABLE t ADD KEY c (a)"),
    "a drop beside a FULLTEXT key": ("ALTER TABLE t DROP COLUMN b",),
    "NULL that becomes the current time": (
        "ALTER TABLE t MODIFY seen TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
        "ALTER TABLE t MODIFY day TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
    ),
    "a lossy type beside a rename": ("ALTER TABLE t MODIFY a TINYINT NULL AFTER c, RENAME COLUMN c TO d",),
    "a lossy type beside what depends on it": (
        "ALTER TABLE t MODIFY a TINYINT NULL, ADD COLUMN twice INT AS (a * 2) VIRTUAL",
        "ALTER TABLE t MODIFY a TINYINT NULL",
        "ALTER TABLE t ADD COLUMN twice INT AS (a * 2) VIRTUAL",
    ),
    "a check whose text changes by itself": ("ALTER TABLE t ADD COLUMN new INT NULL",),
    "a unique key that is no primary key": ("INSERT INTO loose VALUES (2, 2)", "UPDATE loose SET v = 3"),
    "a primary key that cannot be renamed": ("ALTER TABLE t RENAME KEY `PRIMARY` TO p",),
}


@pytest.mark.parametrize("batch", FOUND)
def test_what_random_batches_found_is_undone(db: peewee.Database, batch: str) -> None:
    """Definitions and rows are as before, and nothing stands in the way."""
    for sql in START:
        db.execute_sql(sql)
    before = picture(db)

    def up(migrator: Any, db: Any) -> None:
        for sql in FOUND[batch]:
            with suppress(peewee.PeeweeException, MigrationError):
                db.execute_sql(sql)
        raise RuntimeError("on purpose")

    with pytest.raises(MigrationFailedError, match="on purpose") as caught:
        migrate_db([("0001_a", up)], database=db)

    assert caught.value.result.failure is not None
    assert caught.value.result.failure.stuck is None
    assert_same(picture(db), before)


def test_random_batches_are_undone_or_end_as_their_statements_alone_would(backend: Backend, seed: int) -> None:
    """A hundred statements by the seed of the day; the undo is also stopped anywhere, and left to a recovery."""
    assert backend.engine in ("mariadb", "mysql")
    assert backend.server is not None

    with fuzz_ddl.databases(backend.server) as urls:
        counts, failures = fuzz_ddl.fuzz(urls, backend.engine, seed=seed, count=STATEMENTS)

    assert failures == []
    assert counts["statements"] >= STATEMENTS
    assert counts["rows compared"] > STATEMENTS
