"""SQLite's rebuild keeps all that hangs on a table, and a definition is edited in its own words."""

from __future__ import annotations

import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db.connection import open_database
from api.db.dialects.column_text import same_name, split_body, tokens_of
from api.db.rebuild import Edit, foreign_key_violations, foreign_keys_off, rebuild_column, refuse_new_violations
from api.exceptions import MigrationError, SchemaConflictError, UnsafeOperationError

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


def _schema(database: peewee.Database) -> Any:
    return database.execute_sql("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()


def _facts(database: peewee.Database) -> dict[str, Any]:
    """Return what must stay: all but the edited table's own text."""
    run = database.execute_sql
    return {
        "others": [each for each in _schema(database) if each[1] != "odd, (name"],
        "rows": run('SELECT rowid, * FROM "odd, (name"').fetchall(),
        "children": run("SELECT * FROM child").fetchall(),
        "view": run("SELECT * FROM seen").fetchall(),
        "counter": run("SELECT seq FROM sqlite_sequence WHERE name = 'odd, (name'").fetchall(),
        "keys": run('PRAGMA foreign_key_list("odd, (name")').fetchall(),
        "enforced": database.pragma("foreign_keys"),
    }


def _change(database: peewee.Database, create: str, edit: Edit) -> str:
    """Make the table t by *create*, edit its column b, and return its new text."""
    database.execute_sql(create)
    rebuild_column(database, "t", "b", edit)
    text: str = database.execute_sql("SELECT sql FROM sqlite_schema WHERE name = 't'").fetchone()[0]
    return text


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
    """What is on it alone goes with it, and the indexes it is part of."""
    run = database.execute_sql
    run("CREATE TABLE plain (id INT, o INT, q, FOREIGN KEY (o) REFERENCES owner (id), UNIQUE ([o]), UNIQUE (q))")
    run("CREATE INDEX of_both ON plain (q, o)")
    run("CREATE INDEX of_the_other ON plain (q)")

    rebuild_column(database, "plain", "o", lambda column: None)

    text = run("SELECT sql FROM sqlite_schema WHERE name = 'plain'").fetchone()[0]
    assert text == 'CREATE TABLE "plain" (id INT, q, UNIQUE (q))'
    assert [index.name for index in database.get_indexes("plain") if index.sql] == ["of_the_other"]


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


# Dropping what is needed ---------------------------------------------------------------------------------------

# What names t.b, or counts its columns -> how the error calls it.
USERS = {
    "CREATE INDEX i ON t (a) WHERE b > 0": "index 'i'",
    "CREATE INDEX i ON t (b + 1)": "index 'i'",
    'CREATE INDEX i ON t (a) WHERE "b" > 0': "index 'i'",
    "CREATE VIEW v AS SELECT a FROM t WHERE b > 0": "view 'v'",
    'CREATE VIEW v AS SELECT "b" FROM t': "view 'v'",
    "CREATE VIEW v (x, y, z) AS SELECT * FROM t": "SELECT FROM 'v' fails: expected 3 columns for 'v' but got 2",
    "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET b = 1; END": "trigger 'r'",
    "CREATE TRIGGER r AFTER UPDATE OF b ON t BEGIN SELECT 1; END": "trigger 'r'",
    'CREATE TRIGGER r AFTER INSERT ON owner BEGIN UPDATE t SET a = "b"; END': "trigger 'r'",
    "CREATE TRIGGER r AFTER DELETE ON owner BEGIN INSERT INTO t VALUES (1, 2, 3); END": "DELETE FROM 'owner' fails",
    "CREATE TABLE c (t_b REFERENCES t (b))": "table 'c'",
}
# The same in the table itself.
NEIGHBOURS = [
    "CHECK (b > 0)",
    'CHECK ("b" > 0)',
    "d AS (b + 1)",
    "UNIQUE (b, a)",
    "PRIMARY KEY (b)",
    "UNIQUE (b) CHECK (a > 0)",
    "up REFERENCES t (b)",
]


@pytest.mark.parametrize("user", USERS)
def test_a_column_that_something_needs_is_not_dropped(database: peewee.Database, user: str) -> None:
    """The error names what needs it, and nothing is changed; a name in double quotes is a name too."""
    database.execute_sql("CREATE TABLE t (a INT, b INT, c INT)")
    database.execute_sql(user)
    before = _schema(database)

    with pytest.raises(SchemaConflictError, match=re.escape(USERS[user])):
        rebuild_column(database, "t", "b", lambda column: None)
    assert _schema(database) == before


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_a_column_that_its_table_needs_is_not_dropped(database: peewee.Database, neighbour: str) -> None:
    """A CHECK would compare the text 'b' from then on, and nobody would be told."""
    with pytest.raises(SchemaConflictError, match=re.escape(f"named by {neighbour}")):
        _change(database, f"CREATE TABLE t (a INT, b INT, {neighbour})", lambda column: None)


def test_a_view_that_is_broken_already_is_named(database: peewee.Database) -> None:
    """SQLite cannot say what it needs."""
    database.execute_sql("CREATE VIEW old AS SELECT * FROM nowhere")

    with pytest.raises(SchemaConflictError, match="error in view old"):
        _change(database, "CREATE TABLE t (a INT, b INT)", lambda column: None)


def test_a_view_of_all_columns_does_not_hold_one(database: peewee.Database) -> None:
    """It shows what there is; that nobody can insert into it is nothing new."""
    database.execute_sql("CREATE VIEW v AS SELECT * FROM t")
    database.execute_sql("CREATE TRIGGER r INSTEAD OF DELETE ON v BEGIN SELECT 1; END")

    assert _change(database, "CREATE TABLE t (a INT, b INT)", lambda column: None) == 'CREATE TABLE "t" (a INT)'
    assert database.execute_sql("SELECT * FROM v").fetchall() == []


def test_a_failed_rebuild_inside_a_transaction_leaves_no_trace(database: peewee.Database) -> None:
    """Also when the migration catches the error and goes on."""
    before = (_facts(database), _schema(database))

    with foreign_keys_off(database), database.atomic(), pytest.raises(peewee.IntegrityError):
        rebuild_column(database, "odd, (name", "text", lambda column: column.with_tail("CHECK (text = '')"))

    assert (_facts(database), _schema(database)) == before


# What a row, a comment and a conflict clause survive -----------------------------------------------------------


@pytest.mark.parametrize("create", ["CREATE TABLE t (a TEXT UNIQUE, b INT)", "CREATE TABLE t (rowid TEXT, b INT)"])
def test_rows_keep_their_rowids(database: peewee.Database, create: str) -> None:
    """Another table may hold them, as FTS5's external content does; also where a column is called rowid."""
    database.execute_sql(create)
    database.execute_sql("INSERT INTO t VALUES ('z', 1), ('y', 2), ('a', 3)")
    database.execute_sql("DELETE FROM t WHERE b = 2")

    rebuild_column(database, "t", "b", lambda column: column.with_null(False))

    assert database.execute_sql("SELECT _rowid_, * FROM t ORDER BY 1").fetchall() == [(1, "z", 1), (3, "a", 3)]


def test_a_column_that_becomes_the_rowid_keeps_its_values(database: peewee.Database) -> None:
    """INT PRIMARY KEY is not the rowid, INTEGER PRIMARY KEY is."""
    database.execute_sql("CREATE TABLE t (a INT PRIMARY KEY, b INT)")
    database.execute_sql("INSERT INTO t VALUES (7, 1)")

    rebuild_column(database, "t", "a", lambda column: column.with_type("INTEGER"))

    assert database.execute_sql("SELECT rowid, * FROM t").fetchall() == [(7, 7, 1)]


def test_no_row_is_lost_to_a_conflict_clause(database: peewee.Database) -> None:
    """By ON CONFLICT IGNORE the copy could leave rows out; it fails."""
    database.execute_sql("CREATE TABLE t (b TEXT UNIQUE ON CONFLICT IGNORE)")
    database.execute_sql("INSERT INTO t VALUES ('1'), ('01')")

    with pytest.raises(peewee.IntegrityError):
        rebuild_column(database, "t", "b", lambda column: column.with_type("INTEGER"))
    assert database.execute_sql("SELECT b FROM t").fetchall() == [("1",), ("01",)]


def test_an_empty_table_gets_no_counter(database: peewee.Database) -> None:
    """The copy of no rows sets the AUTOINCREMENT counter to 0."""
    _change(
        database, "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, b)", lambda column: column.with_null(False)
    )

    assert database.execute_sql("SELECT * FROM sqlite_sequence WHERE name LIKE 't%'").fetchall() == []


def test_a_trigger_that_writes_the_name_otherwise_is_kept(database: peewee.Database) -> None:
    """SQLite keeps its author's capitals."""
    database.execute_sql("CREATE TABLE t (a, b)")
    database.execute_sql("CREATE TRIGGER r AFTER INSERT ON T BEGIN SELECT 1; END")

    rebuild_column(database, "t", "b", lambda column: column.with_null(False))

    assert ("trigger", "r", "CREATE TRIGGER r AFTER INSERT ON T BEGIN SELECT 1; END") in _schema(database)


def test_a_virtual_table_is_refused(database: peewee.Database) -> None:
    """It would become a plain one."""
    with pytest.raises(UnsafeOperationError, match="virtual table"):
        _change(database, "CREATE VIRTUAL TABLE t USING fts5 (a, b)", lambda column: column.with_null(False))


COMMENTED = [
    "CREATE TABLE t ( a INT -- first\n , b INT{} -- note\n , CHECK (a > 0) -- one\n , -- two\n CHECK (a < 10))",
    "CREATE TABLE t (\n a INT, -- the a\n b INT{} -- the age\n)",
    "CREATE TABLE t (a INT--note, with (comma\n, b INT{}--)\n)",
    "CREATE TABLE t (a INT, b INT{} /* ), */) /* :) keep */ WITHOUT ROWID -- ) end".replace("a INT", "a PRIMARY KEY"),
]


@pytest.mark.parametrize("text", COMMENTED)
def test_comments_stay_and_hide_nothing(database: peewee.Database, text: str) -> None:
    """A CHECK behind a comment is still one; a comma or parenthesis inside one is none."""
    changed = _change(database, text.format(""), lambda column: column.with_null(False))

    assert changed == text.format(" NOT NULL").replace("TABLE t", 'TABLE "t"')


# Rows that point nowhere ---------------------------------------------------------------------------------------


def test_a_key_that_cannot_be_checked_counts_as_one_violation(database: peewee.Database) -> None:
    """Its parent has no unique index: the database can still be migrated, but no migration may add one more."""
    database.execute_sql("CREATE TABLE parent (code TEXT)")
    database.execute_sql("CREATE TABLE mismatched (code TEXT REFERENCES parent (code))")
    before = foreign_key_violations(database)

    assert before == {("mismatched", None): 1}
    refuse_new_violations(database, before)
    database.execute_sql("CREATE TABLE another (code TEXT REFERENCES parent (code))")
    with pytest.raises(MigrationError, match="perhaps all of 'another'"):
        refuse_new_violations(database, before)


def test_a_check_that_was_cut_off_is_an_error(database: peewee.Database) -> None:
    """Only what SQLite says of the schema counts as a violation."""
    database.execute_sql(f"INSERT INTO child VALUES {', '.join(['(1, 3)'] * 1000)}")
    database.connection().set_progress_handler(lambda: 1, 1000)

    with pytest.raises(peewee.OperationalError, match="interrupted"):
        foreign_key_violations(database)


def test_old_violations_may_move_to_a_new_name(database: peewee.Database) -> None:
    """A renamed child brings its own along; only more of them are new."""
    database.pragma("foreign_keys", 0)
    database.execute_sql("INSERT INTO child VALUES (2, 77)")
    before = foreign_key_violations(database)

    assert before == {("child", "odd, (name"): 1}
    database.execute_sql("ALTER TABLE child RENAME TO renamed")
    refuse_new_violations(database, before)
    database.execute_sql("INSERT INTO renamed VALUES (3, 78)")
    with pytest.raises(MigrationError, match=r"2 of 'renamed' to 'odd, \(name'"):
        refuse_new_violations(database, before)


# Any table -----------------------------------------------------------------------------------------------------

NAMES = ["a", '"b c"', "[com,ma]", "`pa(ren`", '"q""q"', "näme", '"default"', "'s q'"]
TYPES = ["INT", "", "VARCHAR(20)", "DECIMAL(10, 2)", "UNSIGNED BIG INT", "TIMESTAMP WITH TIME ZONE", "BLOB"]
# One of each row, in any order.
PARTS = [
    ["", "DEFAULT -1", "DEFAULT 'a,('", "DEFAULT (1 + 2)", "DEFAULT x'0a'", "DEFAULT NULL", "DEFAULT 1e3"],
    ["", "NOT NULL ON CONFLICT ABORT", "CONSTRAINT nn NOT NULL", "NULL", "UNIQUE", "COLLATE NOCASE"],
    ["", "", "REFERENCES owner (id) ON DELETE SET DEFAULT", "REFERENCES owner ON UPDATE SET NULL"],
    ["", "", "CHECK ({} IS NOT 'x,)')", "CONSTRAINT ck CHECK (length({}) < 99)"],
]
GAPS = [", ", ",\n  ", " -- one, (two\n, ", ", /* ), */ "]
EDITS: dict[str, Edit] = {
    "null": lambda column: column.with_null(True),
    "not null": lambda column: column.with_null(False),
    "type": lambda column: column.with_type("TEXT"),
    "no default": lambda column: column.without_default(),
    "tail": lambda column: column.with_tail("CHECK (1)"),
}


def _random_table(chance: random.Random) -> tuple[str, list[str]]:
    """Return a CREATE TABLE for t, and its columns' names as they are written in it."""
    names = chance.sample(NAMES, chance.randint(2, 5))
    key = chance.choice(["id INTEGER PRIMARY KEY AUTOINCREMENT", "id TEXT PRIMARY KEY", "id INT"])
    columns = []
    for name in names:
        rest = [chance.choice(part).format(name.replace("'", '"')) for part in PARTS]
        columns.append(" ".join([name, chance.choice(TYPES), *chance.sample(rest, len(rest))]))
    last = [f"g AS (id || ',') {chance.choice(['STORED', 'VIRTUAL'])}", f"UNIQUE (id, {names[0]})"]
    options = " WITHOUT ROWID" if "TEXT" in key and chance.random() < 0.5 else ""
    return f"CREATE TABLE t (/* ( */ {chance.choice(GAPS).join([key, *columns, *last])}){options}", names


def _all_but(database: peewee.Database, column: str) -> dict[str, Any]:
    """Return all that there is to know of t, its neighbours and its rows, but for *column*'s own definition."""
    run = database.execute_sql
    text = run("SELECT sql FROM sqlite_schema WHERE name = 't'").fetchone()[0]
    body = text[text.index("(") + 1 : text.rindex(")")]
    columns = [row for row in run("PRAGMA table_xinfo(t)").fetchall() if not same_name(row[1], column)]
    shown = ["" if "WITHOUT" in text else "rowid"] + ['"' + row[1].replace('"', '""') + '"' for row in columns]
    return {
        "columns": columns,
        "rows": run(f"SELECT {', '.join(filter(None, shown))}, {column} || '' FROM t ORDER BY id").fetchall(),
        "items": [item for item in split_body(body) if not same_name(tokens_of(item, backslashes=False)[0], column)],
        "options": text[text.rindex(")") :],
        "indexes": run("SELECT l.*, i.* FROM pragma_index_list('t') l, pragma_index_xinfo(l.name) i").fetchall(),
        "keys": run("PRAGMA foreign_key_list(t)").fetchall(),
        "others": [each for each in _schema(database) if each[1] != "t"],
        "counter": run("SELECT * FROM sqlite_sequence ORDER BY name").fetchall(),
    }


@pytest.mark.parametrize("seed", range(200))
def test_any_table_keeps_all_but_the_column(database: peewee.Database, seed: int) -> None:
    """Random tables: what is not edited is the same before and after, to the letter."""
    chance = random.Random(seed)
    create, names = _random_table(chance)
    column, edit = chance.choice(names), chance.choice(list(EDITS))
    run = database.execute_sql
    run("INSERT INTO owner VALUES (2), (3)")
    run(create)
    for number in (1, 2, 3):
        values = ", ".join(str(chance.choice([1, number])) for _ in names)
        run(f"INSERT OR IGNORE INTO t (id, {', '.join(names)}) VALUES ({number * 10}, {values})")
    run("DELETE FROM t WHERE id = 20")
    run(f"CREATE INDEX of_t ON t (id DESC, {names[0]} COLLATE RTRIM) WHERE g IS NOT NULL")
    run(f"CREATE VIEW of_all AS SELECT {names[-1]} FROM t")
    before = _all_but(database, column)

    rebuild_column(database, "t", column, EDITS[edit])

    assert _all_but(database, column) == before, create
