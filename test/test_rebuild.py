"""SQLite's rebuild keeps all that hangs on a table, and a definition is edited in its own words."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db.connection import open_database
from api.db.dialects.column_text import parse_definition, split_body, tokens_of, unquote
from api.db.rebuild import foreign_key_violations, rebuild_column
from api.exceptions import MigrationError, SchemaConflictError

TABLE = """CREATE TABLE "odd, (name" (
  id INTEGER PRIMARY KEY AUTOINCREMENT, -- a comment, with a comma
  [text] TEXT COLLATE NOCASE DEFAULT 'a, (b' NOT NULL CHECK ([text] <> 'x,)'), /* another, one */
  `n` NUMERIC(10, 2) DEFAULT (1 + 2),
  whole INT GENERATED ALWAYS AS (n + 1) STORED,
  owner INTEGER REFERENCES owner (id) ON DELETE CASCADE,
  CONSTRAINT both UNIQUE (n, owner), CHECK (n <> 7)
)"""


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> peewee.Database:
    database = open_database(f"sqlite:///{tmp_path}/rebuild.db")
    database.connect()
    run = database.execute_sql
    run("CREATE TABLE owner (id INTEGER PRIMARY KEY)")
    run("INSERT INTO owner VALUES (1)")
    run(TABLE)
    run('CREATE TABLE child (id INTEGER, up INTEGER REFERENCES "odd, (name" (id) ON DELETE CASCADE)')
    run("INSERT INTO \"odd, (name\" (id, text, n, owner) VALUES (3, 'three', 5, 1), (9, 'nine', 6, 1)")
    run('DELETE FROM "odd, (name" WHERE id = 9')
    run("INSERT INTO child VALUES (1, 3)")
    run('CREATE INDEX partly ON "odd, (name" (n DESC) WHERE n > 1')
    run('CREATE TRIGGER lower_text AFTER INSERT ON "odd, (name" BEGIN UPDATE owner SET id = id; END')
    run('CREATE VIEW seen AS SELECT text, n FROM "odd, (name"')
    return database


def _facts(database: peewee.Database) -> dict[str, Any]:
    """Return what must stay: all but the edited table's own text."""
    run = database.execute_sql
    return {
        "others": run("SELECT type, name, sql FROM sqlite_schema WHERE name <> 'odd, (name' ORDER BY name").fetchall(),
        "rows": run('SELECT rowid, * FROM "odd, (name"').fetchall(),
        "children": run("SELECT * FROM child").fetchall(),
        "view": run("SELECT * FROM seen").fetchall(),
        "counter": run("SELECT seq FROM sqlite_sequence WHERE name = 'odd, (name'").fetchall(),
        "keys": run('PRAGMA foreign_key_list("odd, (name")').fetchall(),
        "enforced": database.pragma("foreign_keys"),
    }


def test_everything_that_hangs_on_the_table_is_kept(database: peewee.Database) -> None:
    """Rows, counter, children, indexes, triggers, views, keys and the odd parts of the text itself."""
    before = _facts(database)

    rebuild_column(database, "odd, (name", "n", lambda column: column.with_null(False))

    assert _facts(database) == before
    text = database.execute_sql("SELECT sql FROM sqlite_schema WHERE name = 'odd, (name'").fetchone()[0]
    assert "DEFAULT 'a, (b' NOT NULL CHECK ([text] <> 'x,)')" in text
    assert "`n` NUMERIC(10, 2) NOT NULL DEFAULT(1 + 2)" in text
    with pytest.raises(peewee.IntegrityError):
        database.execute_sql('INSERT INTO "odd, (name" (n) VALUES (NULL)')


def test_a_not_null_and_its_default_go_back_where_they_came_from(database: peewee.Database) -> None:
    """Relaxed, then strict again, the definition means what it meant."""
    before = database.execute_sql('PRAGMA table_xinfo("odd, (name")').fetchall()

    rebuild_column(database, "odd, (name", "text", lambda column: column.with_null(True))
    rebuild_column(database, "odd, (name", "text", lambda column: column.with_null(False))

    assert database.execute_sql('PRAGMA table_xinfo("odd, (name")').fetchall() == before


def test_a_dropped_column_takes_its_own_constraints_only(database: peewee.Database) -> None:
    """A foreign key on it alone goes with it; the column of a CHECK cannot go, and nothing changes then."""
    before = _facts(database)

    with pytest.raises(peewee.OperationalError):
        rebuild_column(database, "odd, (name", "n", lambda column: None)
    assert _facts(database) == before
    database.execute_sql("CREATE TABLE plain (id INTEGER, o INTEGER, FOREIGN KEY (o) REFERENCES owner (id))")
    rebuild_column(database, "plain", "o", lambda column: None)

    assert database.execute_sql("PRAGMA foreign_key_list(plain)").fetchall() == []
    assert [column.name for column in database.get_columns("plain")] == ["id"]


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 37), reason="STRICT is since SQLite 3.37")
def test_strict_and_without_rowid_stay(database: peewee.Database) -> None:
    """The table's options are behind its last parenthesis."""
    database.execute_sql("CREATE TABLE strict_one (id INT PRIMARY KEY, n INT) STRICT, WITHOUT ROWID")

    rebuild_column(database, "strict_one", "n", lambda column: column.with_null(False))

    text = database.execute_sql("SELECT sql FROM sqlite_schema WHERE name = 'strict_one'").fetchone()[0]
    assert text.endswith("STRICT, WITHOUT ROWID")


def test_a_rebuild_with_foreign_keys_on_inside_a_transaction_is_refused(database: peewee.Database) -> None:
    """It would delete the children, and the pragma is a silent no-op there."""
    with database.atomic(), pytest.raises(MigrationError, match="while foreign keys are enforced"):
        rebuild_column(database, "odd, (name", "n", lambda column: column.with_null(False))

    assert database.execute_sql("SELECT count(*) FROM child").fetchone()[0] == 1


def test_a_missing_table_or_column_is_named(database: peewee.Database) -> None:
    """Nothing is changed."""
    with pytest.raises(SchemaConflictError, match="no table 'gone'"):
        rebuild_column(database, "gone", "n", lambda column: column)
    with pytest.raises(SchemaConflictError, match="no column 'gone'"):
        rebuild_column(database, "owner", "gone", lambda column: column)


def test_rows_that_point_nowhere_are_counted(database: peewee.Database) -> None:
    """By child and parent table."""
    database.pragma("foreign_keys", 0)
    database.execute_sql("INSERT INTO child VALUES (2, 77), (3, 78)")

    assert foreign_key_violations(database) == {("child", "odd, (name"): 2}


NOT_NULL_EDITS = {
    "int(11) DEFAULT NULL": "int(11) NOT NULL",
    "varchar(9) COLLATE utf8mb4_bin DEFAULT 'NOT NULL'": "varchar(9) COLLATE utf8mb4_bin NOT NULL DEFAULT 'NOT NULL'",
    "timestamp NULL DEFAULT NULL ON UPDATE now()": "timestamp NOT NULL ON UPDATE now()",
    "int GENERATED ALWAYS AS (`a` + 1) VIRTUAL": "int GENERATED ALWAYS AS(`a` + 1) VIRTUAL NOT NULL",
    "enum('a','NULL',')') DEFAULT 'a' COMMENT 'it\\'s'": "enum('a','NULL',')') NOT NULL DEFAULT 'a' COMMENT 'it\\'s'",
}
TYPE_EDITS = {
    ("varchar(9) CHARACTER SET latin1 COLLATE latin1_bin", "TEXT"): "TEXT CHARACTER SET latin1 COLLATE latin1_bin",
    ("varchar(9) CHARACTER SET latin1 COLLATE latin1_bin NOT NULL", "INTEGER"): "INTEGER NOT NULL",
    ("int(10) unsigned NOT NULL DEFAULT -5 COMMENT 'x'", "BIGINT"): "BIGINT NOT NULL DEFAULT -5 COMMENT 'x'",
}


@pytest.mark.parametrize("definition", NOT_NULL_EDITS)
def test_not_null_is_edited_and_nothing_else(definition: str) -> None:
    """As MySQL and MariaDB print a column: quotes, comments and defaults that look like keywords pass through."""
    edited = parse_definition(definition, named=False, backslashes=True).with_null(False)

    assert str(edited) == NOT_NULL_EDITS[definition]


@pytest.mark.parametrize(("definition", "kind"), TYPE_EDITS)
def test_a_type_is_edited_and_the_rest_stays(definition: str, kind: str) -> None:
    """The character set goes where the new type has none."""
    edited = parse_definition(definition, named=False, backslashes=True).with_type(kind)

    assert str(edited) == TYPE_EDITS[definition, kind]


@pytest.mark.parametrize(
    "definition",
    ["int NOT NULL DEFAULT 5", "int NOT NULL DEFAULT -5", "int NOT NULL DEFAULT (1 + 2)", "int NOT NULL DEFAULT now()"],
)
def test_a_default_is_taken_out_whole(definition: str) -> None:
    """A sign, an expression, a function's parentheses go with it."""
    assert str(parse_definition(definition, named=False, backslashes=True).without_default()) == "int NOT NULL"


def test_text_is_split_where_sqlite_would() -> None:
    """Quotes of four kinds, comments and nested parentheses hide commas."""
    assert split_body("a INT, [b,c] TEXT DEFAULT ',', CHECK (a IN (1, 2)) -- x, y") == [
        "a INT",
        "[b,c] TEXT DEFAULT ','",
        "CHECK (a IN (1, 2)) -- x, y",
    ]
    assert tokens_of("x /* , */ 'it''s' (a (b))", backslashes=False) == ["x", "'it''s'", "(a (b))"]
    assert [unquote(name) for name in ('"a""b"', "`c`", "[d]", "e")] == ['a"b', "c", "d", "e"]
