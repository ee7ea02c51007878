"""Operations look before they act: as asked, half made, something else, on every engine."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import peewee
import pytest
from playhouse.migrate import SchemaMigrator

from api.db.dialects.engine import Engine
from api.db.migrations import (
    alter_db_add_column,
    alter_db_add_index,
    alter_db_add_not_null,
    alter_db_column_type,
    alter_db_drop_column,
    alter_db_drop_index,
    alter_db_rename_column,
)
from api.db.migrators import Migrator, migrator_for
from api.db.operations import Outcome
from api.db.schema import LiveColumn, read_columns, read_indexes
from api.exceptions import SchemaConflictError, UnsafeOperationError
from conftest import Backend

SERIAL: dict[Engine, str] = {
    "sqlite": "INTEGER PRIMARY KEY",
    "postgres": "SERIAL PRIMARY KEY",
    "mysql": "INTEGER PRIMARY KEY AUTO_INCREMENT",
    "mariadb": "INTEGER PRIMARY KEY AUTO_INCREMENT",
}


@pytest.fixture(name="migrator")
def _migrator(backend: Backend, db: peewee.Database) -> Migrator:
    """A table ``item`` with two rows: ``label`` NULL in one of them."""
    db.execute_sql(f"CREATE TABLE item (id {SERIAL[backend.engine]}, name VARCHAR(20) NOT NULL, label VARCHAR(20))")
    db.execute_sql("INSERT INTO item (name, label) VALUES ('one', 'first')")
    db.execute_sql("INSERT INTO item (name) VALUES ('two')")
    return migrator_for(db)


def _column(migrator: Migrator, name: str) -> LiveColumn:
    columns = read_columns(migrator.database, migrator.engine, "item")
    assert columns is not None
    return columns[name]


def _values(migrator: Migrator, name: str) -> list[Any]:
    return [row[0] for row in migrator.database.execute_sql(f"SELECT {name} FROM item ORDER BY id").fetchall()]


def _index_columns(migrator: Migrator, *, unique: bool = False) -> list[tuple[str, ...]]:
    indexes = read_indexes(migrator.database, migrator.engine, "item")
    return [index.columns for index in indexes if index.columns != ("id",) and (index.unique or not unique)]


def _sent(migrator: Migrator, operation: Any) -> list[str]:
    """Return the statements of *operation* that change something."""
    statements: list[str] = []
    migrator.database.query_hooks.append(lambda event: statements.append(event.sql))
    operation()
    migrator.database.query_hooks.clear()
    return [sql for sql in statements if sql.startswith(("ALTER", "CREATE", "UPDATE", "DROP", "INSERT"))]


def test_a_required_column_with_a_default_is_one_statement(migrator: Migrator) -> None:
    """NOT NULL with a constant default is added by one ALTER, its index by a second statement."""
    field = peewee.CharField(max_length=32, default="it's 100% \\ok", index=True)

    statements = _sent(migrator, lambda: alter_db_add_column(migrator, "item", "kind", field))

    assert len(statements) == 2
    assert not _column(migrator, "kind").null
    assert _values(migrator, "kind") == ["it's 100% \\ok"] * 2
    assert _index_columns(migrator) == [("kind",)]


@pytest.mark.engines("mysql", "mariadb")
def test_the_cheapest_algorithm_is_asked_for_by_name(migrator: Migrator) -> None:
    """A column comes with ALGORITHM=INSTANT, an index with INPLACE and LOCK=NONE."""
    field = peewee.IntegerField(default=0, index=True)

    added, indexed = _sent(migrator, lambda: alter_db_add_column(migrator, "item", "kind", field))

    assert added.endswith("ALGORITHM=INSTANT")
    assert indexed.endswith("ALGORITHM=INPLACE LOCK=NONE")


def test_an_insert_that_does_not_know_the_new_column_goes_on_working(migrator: Migrator) -> None:
    """The default stays in the server's DDL, so old workers keep inserting during a rolling deploy."""
    alter_db_add_column(migrator, "item", "kind", peewee.CharField(max_length=32, default="new"))

    migrator.database.execute_sql("INSERT INTO item (name) VALUES ('three')")

    assert _values(migrator, "kind") == ["new"] * 3


def test_a_column_that_stands_as_asked_is_skipped(migrator: Migrator) -> None:
    """The second time nothing is sent, and the reason is said."""
    field = peewee.CharField(max_length=32, default="new", index=True)
    alter_db_add_column(migrator, "item", "kind", field)

    statements = _sent(migrator, lambda: alter_db_add_column(migrator, "item", "kind", field))

    assert statements == []
    assert migrator.results[-1].outcome is Outcome.SKIPPED
    assert "stands as asked" in migrator.results[-1].reason


def test_a_half_made_column_is_completed(migrator: Migrator) -> None:
    """Nullable, unfilled and without its index, as a crash between statements leaves it: all three are mended."""
    field = peewee.CharField(max_length=20, default="none", index=True)

    result = alter_db_add_column(migrator, "item", "label", field)

    assert result.outcome is Outcome.COMPLETED
    assert _values(migrator, "label") == ["first", "none"]
    assert not _column(migrator, "label").null
    assert _index_columns(migrator) == [("label",)]
    migrator.database.execute_sql("INSERT INTO item (name) VALUES ('of an old worker')")
    assert _values(migrator, "label")[-1] == "none"


def test_a_column_without_the_server_default_only_is_as_asked(migrator: Migrator) -> None:
    """A default that only peewee knows changes nothing in the schema."""
    result = alter_db_add_column(migrator, "item", "name", peewee.CharField(max_length=20, default="x"))

    assert result.outcome is Outcome.SKIPPED


def test_a_shorter_column_is_widened(migrator: Migrator) -> None:
    """VARCHAR(20) becomes VARCHAR(64), and keeps its rows and its NOT NULL."""
    result = alter_db_add_column(migrator, "item", "name", peewee.CharField(max_length=64))

    assert result.outcome is Outcome.COMPLETED
    assert _column(migrator, "name").type.length == 64
    assert not _column(migrator, "name").null
    assert _values(migrator, "name") == ["one", "two"]


def test_a_longer_column_is_kept(migrator: Migrator) -> None:
    """VARCHAR(20) where 5 are asked for stays: narrowing could cut a value."""
    result = alter_db_column_type(migrator, "item", "name", peewee.CharField(max_length=5))

    assert result.outcome is Outcome.SKIPPED
    assert "longer" in result.reason
    assert _column(migrator, "name").type.length == 20


def test_a_stricter_column_is_relaxed(migrator: Migrator) -> None:
    """NOT NULL goes where NULL is asked for."""
    alter_db_add_column(migrator, "item", "name", peewee.CharField(max_length=20, null=True))

    assert _column(migrator, "name").null


def test_another_type_is_an_error_that_names_both(migrator: Migrator) -> None:
    """An integer is asked for where text stands: nothing is changed."""
    with pytest.raises(SchemaConflictError, match=r"(?i)item\.name stands as '[a-z ]+\(20\)', asked for is 'integer'"):
        alter_db_add_column(migrator, "item", "name", peewee.IntegerField(default=0))

    assert _values(migrator, "name") == ["one", "two"]


def test_a_type_is_changed_where_that_is_what_is_asked(migrator: Migrator) -> None:
    """``alter_db_column_type`` turns text into longer text, and leaves NULL and rows alone."""
    alter_db_column_type(migrator, "item", "label", peewee.TextField(null=True))

    assert _column(migrator, "label").type.kind == "text"
    assert _values(migrator, "label") == ["first", None]


def test_a_required_column_without_a_default_is_refused_on_a_table_with_rows(migrator: Migrator) -> None:
    """MySQL and MariaDB would fill it with 0 or '' without a word."""
    with pytest.raises(UnsafeOperationError, match="holds rows"):
        alter_db_add_column(migrator, "item", "kind", peewee.IntegerField())

    assert "kind" not in (read_columns(migrator.database, migrator.engine, "item") or {})


def test_a_required_column_without_a_default_is_added_to_an_empty_table(migrator: Migrator) -> None:
    """Without rows there is nothing to invent a value for."""
    migrator.database.execute_sql("DELETE FROM item")

    alter_db_add_column(migrator, "item", "kind", peewee.IntegerField())

    assert not _column(migrator, "kind").null


def test_a_callable_default_stamps_the_rows_and_stays_out_of_the_schema(migrator: Migrator) -> None:
    """The function is called once for the rows that stand; later rows are peewee's to fill."""
    moment = dt.datetime(2026, 11, 20, 12, 30)

    alter_db_add_column(migrator, "item", "seen_at", peewee.DateTimeField(default=lambda: moment))

    stamped = {str(value)[:19] for value in _values(migrator, "seen_at")}
    assert stamped == {"2026-11-20 12:30:00"}
    assert _column(migrator, "seen_at").default is None
    assert not _column(migrator, "seen_at").null


def test_a_nullable_column_leaves_the_rows_null(migrator: Migrator) -> None:
    """A default of a nullable field is for new rows, as in peewee."""
    alter_db_add_column(migrator, "item", "kind", peewee.CharField(max_length=8, null=True, default="x"))

    assert _values(migrator, "kind") == [None, None]


def test_a_rename_is_done_once(migrator: Migrator) -> None:
    """The second rename finds the source gone and the target there, and is skipped."""
    first = alter_db_rename_column(migrator, "item", "name", "title")
    second = alter_db_rename_column(migrator, "item", "name", "title")

    assert (first.outcome, second.outcome) == (Outcome.APPLIED, Outcome.SKIPPED)
    assert _values(migrator, "title") == ["one", "two"]


@pytest.mark.parametrize(("old", "new"), [("name", "label"), ("gone", "nowhere")])
def test_a_rename_with_both_or_neither_column_is_an_error(migrator: Migrator, old: str, new: str) -> None:
    """Which one is right is not for a program to guess."""
    with pytest.raises(SchemaConflictError, match=r"both|neither"):
        alter_db_rename_column(migrator, "item", old, new)


def test_not_null_is_refused_while_a_row_holds_null(migrator: Migrator) -> None:
    """The rows are asked first, and the message has the UPDATE that mends them."""
    with pytest.raises(UnsafeOperationError, match=r"item\.label holds NULL") as caught:
        alter_db_add_not_null(migrator, "item", "label")
    migrator.database.execute_sql("UPDATE item SET label = 'x' WHERE label IS NULL")
    alter_db_add_not_null(migrator, "item", "label")

    assert "UPDATE item SET label" in caught.value.hint
    assert not _column(migrator, "label").null
    assert alter_db_add_not_null(migrator, "item", "label").outcome is Outcome.SKIPPED


def test_an_index_counts_by_its_columns_not_by_its_name(migrator: Migrator) -> None:
    """An index that a person made under another name serves; one on other columns, or less unique, does not."""
    migrator.database.execute_sql("CREATE INDEX by_hand ON item (label, name)")

    assert alter_db_add_index(migrator, "item", ["label", "name"]).outcome is Outcome.SKIPPED
    assert alter_db_add_index(migrator, "item", ["label"]).outcome is Outcome.APPLIED
    assert alter_db_add_index(migrator, "item", ["label", "name"], unique=True).outcome is Outcome.APPLIED
    assert alter_db_add_index(migrator, "item", ["label", "name"], unique=True).outcome is Outcome.SKIPPED


def test_a_unique_index_serves_where_a_plain_one_is_asked(migrator: Migrator) -> None:
    """It finds the same rows."""
    alter_db_add_index(migrator, "item", "name", unique=True)

    assert alter_db_add_index(migrator, "item", "name").outcome is Outcome.SKIPPED
    assert _index_columns(migrator, unique=True) == [("name",)]


@pytest.mark.engines("postgres", "sqlite")
def test_a_partial_index_does_not_serve(migrator: Migrator) -> None:
    """It lacks the rows that its condition leaves out."""
    migrator.database.execute_sql("CREATE INDEX partly ON item (label) WHERE label IS NOT NULL")

    assert alter_db_add_index(migrator, "item", "label").outcome is Outcome.APPLIED


@pytest.mark.engines("mysql", "mariadb")
def test_a_prefix_counts_where_the_server_imposed_it(migrator: Migrator) -> None:
    """The longest prefix that fits into a key serves; a shorter one that a person chose does not."""
    database = migrator.database
    database.execute_sql("ALTER TABLE item ADD big VARCHAR(2048) CHARACTER SET utf8mb4, ADD INDEX imposed (big(768))")
    database.execute_sql("ALTER TABLE item ADD chosen VARCHAR(200) CHARACTER SET utf8mb4, ADD INDEX short (chosen(10))")

    assert alter_db_add_index(migrator, "item", "big").outcome is Outcome.SKIPPED
    assert alter_db_add_index(migrator, "item", "chosen").outcome is Outcome.APPLIED


def test_an_index_is_dropped_by_name_or_by_columns(migrator: Migrator) -> None:
    """Both find it, and both skip when it is gone."""
    alter_db_add_index(migrator, "item", ["label"])
    alter_db_add_index(migrator, "item", ["name", "label"])

    assert alter_db_drop_index(migrator, "item", "item_label").outcome is Outcome.APPLIED
    assert alter_db_drop_index(migrator, "item", ["name", "label"]).outcome is Outcome.APPLIED
    assert alter_db_drop_index(migrator, "item", "item_label").outcome is Outcome.SKIPPED
    assert _index_columns(migrator) == []


def test_a_primary_key_is_not_dropped_as_an_index(migrator: Migrator) -> None:
    """It belongs to a constraint, and the message says how that one is dropped."""
    names = [index.name for index in read_indexes(migrator.database, migrator.engine, "item")]
    if migrator.engine == "sqlite":
        migrator.database.execute_sql("CREATE TABLE keyed (code TEXT PRIMARY KEY)")
        names = [index.name for index in read_indexes(migrator.database, "sqlite", "keyed")]
    table = "keyed" if migrator.engine == "sqlite" else "item"

    with pytest.raises(UnsafeOperationError, match="belongs to a constraint"):
        alter_db_drop_index(migrator, table, names[0])


def test_a_column_is_dropped_with_its_indexes_once(migrator: Migrator) -> None:
    """Its indexes go first; the second time there is nothing to drop."""
    alter_db_add_index(migrator, "item", ["label", "name"])

    assert alter_db_drop_column(migrator, "item", "label").outcome is Outcome.APPLIED
    assert alter_db_drop_column(migrator, "item", "label").outcome is Outcome.SKIPPED
    assert _index_columns(migrator) == []
    assert _values(migrator, "name") == ["one", "two"]


@pytest.mark.engines("postgres")
def test_a_view_is_never_dropped_along(migrator: Migrator) -> None:
    """playhouse says CASCADE here; without it the server refuses, and the view stays."""
    migrator.database.execute_sql("CREATE VIEW labels AS SELECT label FROM item")

    with pytest.raises(peewee.InternalError, match="other objects depend on it"):
        alter_db_drop_column(migrator, "item", "label")


def test_a_foreign_key_comes_with_its_column(migrator: Migrator) -> None:
    """Column, index and constraint are there; a value that points nowhere is refused."""
    database = migrator.database
    database.execute_sql("CREATE TABLE box (id INTEGER PRIMARY KEY)")
    box: Any = database.Model.__class__("Box", (database.Model,), {"__module__": __name__})
    field = peewee.ForeignKeyField(box, field=box.id, null=True, on_delete="CASCADE")

    alter_db_add_column(migrator, "item", "box_id", field)
    again = alter_db_add_column(migrator, "item", "box_id", field)

    assert again.outcome is Outcome.SKIPPED
    assert [key.dest_table for key in database.get_foreign_keys("item")] == ["box"]
    assert ("box_id",) in _index_columns(migrator)
    with pytest.raises(peewee.IntegrityError):
        database.execute_sql("UPDATE item SET box_id = 7")


def test_a_missing_foreign_key_is_completed(migrator: Migrator) -> None:
    """A column without its constraint, as a crash between the two leaves it, gets the constraint."""
    database = migrator.database
    database.execute_sql("CREATE TABLE box (id INTEGER PRIMARY KEY)")
    box: Any = database.Model.__class__("Box", (database.Model,), {"__module__": __name__})
    database.execute_sql("ALTER TABLE item ADD COLUMN box_id INTEGER")

    result = alter_db_add_column(migrator, "item", "box_id", peewee.ForeignKeyField(box, field=box.id, null=True))

    assert result.outcome is Outcome.COMPLETED
    assert [key.column for key in database.get_foreign_keys("item")] == ["box_id"]


@pytest.mark.engines("mysql", "mariadb")
def test_a_change_keeps_default_comment_and_collation(migrator: Migrator) -> None:
    """playhouse's rename and NULL changes lose all three."""
    text = "VARCHAR(30) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT 'b(o''b' COMMENT 'a, b) NOT NULL'"
    migrator.database.execute_sql(f"ALTER TABLE item ADD COLUMN kept {text}")

    alter_db_add_column(migrator, "item", "kept", peewee.CharField(max_length=40, null=True))
    alter_db_rename_column(migrator, "item", "kept", "moved")
    alter_db_add_not_null(migrator, "item", "moved")

    definition = _column(migrator, "moved").definition or ""
    assert "varchar(40)" in definition
    assert "utf8mb4_bin NOT NULL DEFAULT 'b(o" in definition
    assert "COMMENT 'a, b) NOT NULL'" in definition


KEY = uuid.UUID(bytes=b"\xff\x00'%" * 4)
DEFAULTS: dict[str, Any] = {
    "text": (lambda: peewee.TextField(default="100% it's \\"), "100% it's \\"),
    "bytes": (lambda: peewee.BlobField(default=b"\x00\xff%'"), b"\x00\xff%'"),
    "uuid": (lambda: peewee.BinaryUUIDField(default=KEY), KEY.bytes),
    "json": (lambda: peewee.JSONField(default={"it's": [1, "%"]}), {"it's": [1, "%"]}),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_of_any_type_fills_the_rows_and_stays(migrator: Migrator, name: str) -> None:
    """Old rows and a row of an old worker have it, on MySQL's TEXT, BLOB and JSON too; a second run skips."""
    field, value = DEFAULTS[name]
    alter_db_add_column(migrator, "item", "kind", field())

    migrator.database.execute_sql("INSERT INTO item (name) VALUES ('three')")

    read = {"bytes": bytes, "uuid": bytes, "json": lambda each: json.loads(each) if isinstance(each, str) else each}
    assert [read.get(name, str)(each) for each in _values(migrator, "kind")] == [value] * 3
    assert not _column(migrator, "kind").null
    assert alter_db_add_column(migrator, "item", "kind", field()).outcome is Outcome.SKIPPED


def test_a_callable_default_of_text_stays_out_of_the_schema(migrator: Migrator) -> None:
    """On MySQL too, where it is in the DDL while the rows are filled."""
    alter_db_add_column(migrator, "item", "kind", peewee.TextField(default=lambda: "now"))

    assert _values(migrator, "kind") == ["now"] * 2
    assert _column(migrator, "kind").default is None


@pytest.mark.engines("mysql")
def test_a_text_column_with_a_default_copies_no_table(migrator: Migrator) -> None:
    """Column and default are metadata, each by itself; with the default in it, ADD COLUMN would be a copy."""
    field = peewee.TextField(default="empty")

    sent = _sent(migrator, lambda: alter_db_add_column(migrator, "item", "body", field))

    algorithms = [sql.rpartition("ALGORITHM=")[2] for sql in sent]
    assert algorithms == ["INSTANT", "INSTANT", sent[2], "INPLACE, LOCK=NONE"]
    assert sent[2].startswith("UPDATE")


def test_a_missing_table_or_column_is_named(migrator: Migrator) -> None:
    """The message says which, before anything is sent."""
    with pytest.raises(SchemaConflictError, match="no table 'gone'"):
        alter_db_add_column(migrator, "gone", "x", peewee.IntegerField(null=True))
    with pytest.raises(SchemaConflictError, match="no column 'gone'"):
        alter_db_column_type(migrator, "item", "gone", peewee.TextField())
    with pytest.raises(SchemaConflictError, match="no column 'gone'"):
        alter_db_add_index(migrator, "item", ["name", "gone"])


def test_a_plain_playhouse_migrator_is_served_alike(migrator: Migrator) -> None:
    """What was written against playhouse needs no change."""
    plain = SchemaMigrator.from_database(migrator.database)

    statements = _sent(migrator, lambda: alter_db_add_column(plain, "item", "kind", peewee.IntegerField(default=3)))

    assert len(statements) == 1
    assert _values(migrator, "kind") == [3, 3]


@pytest.mark.engines("mysql", "mariadb", "sqlite")
def test_what_another_session_made_meanwhile_is_looked_at_again(migrator: Migrator, backend: Backend) -> None:
    """Between the look and the statement a second session adds the column: the operation finds it as asked."""
    other = backend.database()

    def meddle(event: Any) -> None:
        if event.sql.startswith(("PRAGMA table_xinfo", "SELECT column_name")):
            migrator.database.query_hooks.clear()
            other.execute_sql("ALTER TABLE item ADD COLUMN kind INTEGER")

    migrator.database.query_hooks.append(meddle)

    result = alter_db_add_column(migrator, "item", "kind", peewee.IntegerField(null=True))

    assert result.outcome is Outcome.SKIPPED
