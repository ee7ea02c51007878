"""Operations and the schema that stands: other types, indexes that serve, foreign keys, names and their case."""

from __future__ import annotations

from typing import Any

import peewee
import pytest
from playhouse.postgres_ext import BinaryJSONField

from api.db.base import DataBaseModel
from api.db.dialects.engine import Engine
from api.db.foreign_keys import ForeignKey, read_foreign_keys
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
from api.db.schema import LiveColumn, mysql_definitions, read_columns, read_indexes
from api.exceptions import SchemaConflictError
from conftest import Backend


class LongText(peewee.TextField):
    """MySQL's longest text."""

    field_type = "LONGTEXT"


class Box(peewee.Model):
    """What an item may be in."""

    code = peewee.IntegerField(unique=True)


@pytest.fixture(name="migrator")
def _migrator(db: peewee.Database) -> Migrator:
    """A table ``item`` with a row, and a table ``box`` that it may refer to."""
    db.execute_sql("CREATE TABLE box (id INTEGER PRIMARY KEY, code INTEGER NOT NULL UNIQUE)")
    db.execute_sql("CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL, label VARCHAR(20))")
    db.execute_sql("INSERT INTO item (id, name, label) VALUES (1, 'one', 'first')")
    return migrator_for(db)


def _column(migrator: Migrator, name: str) -> LiveColumn:
    columns = read_columns(migrator.database, migrator.engine, "item")
    assert columns is not None
    return columns[name]


def _index_names(migrator: Migrator, table: str = "item") -> list[str]:
    indexes = read_indexes(migrator.database, migrator.engine, table)
    return sorted(index.name for index in indexes if not index.constraint)


def _foreign_keys(migrator: Migrator) -> list[ForeignKey]:
    return read_foreign_keys(migrator.database, migrator.engine, "item")


@pytest.mark.engines("mysql")
def test_a_default_survives_the_change_to_text(migrator: Migrator) -> None:
    """As a literal it would be refused: it is put in parentheses; and it is kept from TEXT to LONGTEXT."""
    migrator.database.execute_sql("ALTER TABLE item MODIFY name VARCHAR(20) NOT NULL DEFAULT 'Some one'")

    alter_db_column_type(migrator, "item", "name", peewee.TextField())
    migrator.alter_column_type("item", "name", LongText()).run()
    migrator.database.execute_sql("INSERT INTO item (id) VALUES (2)")

    assert migrator.database.execute_sql("SELECT name FROM item WHERE id = 2").fetchone() == ("Some one",)
    assert _column(migrator, "name").type.kind == "longtext"


@pytest.mark.engines("mysql")
@pytest.mark.parametrize("field", [peewee.TextField(default="a'b"), peewee.JSONField(default={"a": "%"})])
def test_a_migrated_default_of_text_equals_a_fresh_one(migrator: Migrator, field: peewee.Field) -> None:
    """Added, completed from a half made column, or made with its table: the server says the same of it."""
    kind = field.field_type
    fresh: Any = type("Fresh", (DataBaseModel,), {"kind": field.clone()})
    with fresh.bind_ctx(migrator.database):
        migrator.database.create_tables([fresh])
    migrator.database.execute_sql(f"ALTER TABLE item ADD COLUMN half {kind} NULL")

    alter_db_add_column(migrator, "item", "half", field)
    alter_db_add_column(migrator, "item", "added", field)

    expected = mysql_definitions(migrator.database, "fresh")["kind"]
    assert "NOT NULL DEFAULT (" in expected
    assert {_column(migrator, name).definition for name in ("half", "added")} == {expected}


@pytest.mark.engines("mysql", "mariadb")
@pytest.mark.parametrize("field", [peewee.CharField(null=True), peewee.IntegerField(null=True)])
def test_a_clock_goes_with_its_type(migrator: Migrator, field: peewee.Field) -> None:
    """ON UPDATE and DEFAULT CURRENT_TIMESTAMP are of times only; left on another type MySQL refuses it (1294)."""
    kind = "DATETIME(6) NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6) COMMENT 'kept'"
    migrator.database.execute_sql("DELETE FROM item")
    migrator.database.execute_sql(f"ALTER TABLE item ADD COLUMN seen {kind}")

    alter_db_column_type(migrator, "item", "seen", field)

    definition = (_column(migrator, "seen").definition or "").lower()
    assert "timestamp" not in definition
    assert "comment 'kept'" in definition


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize("field", [peewee.TextField(null=True), LongText(null=True), peewee.CharField(null=True)])
def test_json_turned_into_text_takes_any_text(migrator: Migrator, field: peewee.Field) -> None:
    """MariaDB's JSON is LONGTEXT with a CHECK, and the CHECK goes."""
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN facts JSON")

    assert alter_db_column_type(migrator, "item", "facts", field).outcome is Outcome.COMPLETED
    migrator.database.execute_sql("UPDATE item SET facts = 'no JSON'")


@pytest.mark.engines("mariadb")
def test_json_without_its_check_is_completed(migrator: Migrator) -> None:
    """A LONGTEXT where JSON is asked for gets the CHECK, once."""
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN facts LONGTEXT")

    first, second = (
        alter_db_add_column(migrator, "item", "facts", peewee.JSONField(null=True)).outcome for _ in range(2)
    )

    assert (first, second) == (Outcome.COMPLETED, Outcome.SKIPPED)
    with pytest.raises(peewee.OperationalError, match="4025"):
        migrator.database.execute_sql("UPDATE item SET facts = 'no JSON'")


@pytest.mark.engines("sqlite")
def test_sqlite_applies_the_new_types_affinity(migrator: Migrator) -> None:
    """What the docs warn of: a text of digits becomes a number as the rows are copied."""
    migrator.database.execute_sql("UPDATE item SET label = '01234'")

    alter_db_column_type(migrator, "item", "label", peewee.IntegerField(null=True))

    assert migrator.database.execute_sql("SELECT label FROM item").fetchone() == (1234,)


OTHER_KINDS: dict[Engine, list[str]] = {
    "mysql": ["FULLTEXT INDEX item_label ON item (label)", "INDEX item_label ON item (label) INVISIBLE"],
    "mariadb": ["FULLTEXT INDEX item_label ON item (label)", "INDEX item_label ON item (label) IGNORED"],
    "postgres": [
        "INDEX item_label ON item USING hash (label)",
        "INDEX item_label ON item (label text_pattern_ops)",
        'INDEX item_label ON item (label COLLATE "C")',
    ],
    "sqlite": ["INDEX item_label ON item (label COLLATE NOCASE)"],
}


def test_an_index_of_another_kind_does_not_serve(migrator: Migrator) -> None:
    """A query on the column alone cannot count on it; it also has the name, so that the new one gets another."""
    for kind in OTHER_KINDS[migrator.engine]:
        migrator.database.execute_sql(f"CREATE {kind}")

        assert alter_db_add_index(migrator, "item", "label").outcome is Outcome.APPLIED
        assert alter_db_add_index(migrator, "item", "label").outcome is Outcome.SKIPPED
        assert _index_names(migrator) == ["item_label", "item_label_idx"]
        alter_db_drop_index(migrator, "item", ["label"])


@pytest.mark.engines("postgres")
def test_a_field_that_asks_for_another_kind_of_index_gets_it_once(migrator: Migrator) -> None:
    """The kind that the field names, GIN here, serves, and no B-tree is put beside it."""
    field = BinaryJSONField(null=True)

    assert alter_db_add_column(migrator, "item", "facts", field).outcome is Outcome.APPLIED
    assert alter_db_add_column(migrator, "item", "facts", field).outcome is Outcome.SKIPPED
    assert _index_names(migrator) == ["item_facts"]


@pytest.mark.engines("sqlite")
def test_uniqueness_without_case_is_another_uniqueness(migrator: Migrator) -> None:
    """UNIQUE COLLATE NOCASE refuses 'A' beside 'a'; where the column itself is NOCASE it is what was asked for."""
    migrator.database.execute_sql("CREATE UNIQUE INDEX loose ON item (name COLLATE NOCASE)")
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN nick TEXT COLLATE NOCASE")
    migrator.database.execute_sql("CREATE UNIQUE INDEX nicks ON item (nick DESC)")

    assert alter_db_add_index(migrator, "item", "name", unique=True).outcome is Outcome.APPLIED
    assert alter_db_add_index(migrator, "item", "nick", unique=True).outcome is Outcome.SKIPPED


@pytest.mark.engines("postgres")
def test_a_deferrable_constraint_serves_as_index_only(migrator: Migrator) -> None:
    """Its uniqueness is checked at COMMIT, and ON CONFLICT cannot use it."""
    migrator.database.execute_sql("ALTER TABLE item ADD UNIQUE (label) DEFERRABLE INITIALLY DEFERRED")

    assert alter_db_add_index(migrator, "item", "label").outcome is Outcome.SKIPPED
    assert alter_db_add_index(migrator, "item", "label", unique=True).outcome is Outcome.APPLIED


@pytest.mark.engines("postgres")
def test_a_partitioned_table_gets_its_index_once(migrator: Migrator) -> None:
    """The index of the whole is there, and in every partition."""
    migrator.database.execute_sql("CREATE TABLE parted (id INT, b INT) PARTITION BY RANGE (id)")
    migrator.database.execute_sql("CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)")

    assert alter_db_add_index(migrator, "parted", "b").outcome is Outcome.APPLIED
    assert alter_db_add_index(migrator, "parted", "b").outcome is Outcome.SKIPPED
    assert alter_db_add_index(migrator, "parted_1", "b").outcome is Outcome.SKIPPED


@pytest.mark.engines("postgres", "sqlite")
@pytest.mark.parametrize(
    "sql", ["CREATE TABLE item_label (c INTEGER)", "CREATE INDEX item_label ON box (code)"], ids=["table", "index"]
)
def test_a_name_that_something_else_has_is_left_to_it(migrator: Migrator, sql: str) -> None:
    """Names of indexes are the whole schema's: a new column's index and an index by itself take the next free one."""
    migrator.database.execute_sql(sql)
    migrator.database.execute_sql(sql.replace("item_label", "item_kind"))

    alter_db_add_index(migrator, "item", "label")
    alter_db_add_column(migrator, "item", "kind", peewee.IntegerField(null=True, index=True))

    assert _index_names(migrator) == ["item_kind_idx", "item_label_idx"]


@pytest.mark.engines("postgres")
def test_a_long_name_is_compared_as_the_server_cuts_it(migrator: Migrator) -> None:
    """PostgreSQL keeps 63 bytes of a name, playhouse makes 64 characters."""
    table = "a_table_whose_name_is_as_long_as_a_name_may_be_on_this_server"
    migrator.database.execute_sql(f"CREATE TABLE {table} (label TEXT)")
    alter_db_add_index(migrator, table, "label")
    (name,) = _index_names(migrator, table)
    migrator.database.execute_sql(f"DROP INDEX {name}")
    migrator.database.execute_sql(f"CREATE INDEX {name} ON box (code)")

    assert alter_db_add_index(migrator, table, "label").outcome is Outcome.APPLIED
    assert len(name) == 63


def test_a_column_with_a_foreign_key_is_dropped(migrator: Migrator) -> None:
    """What ``up`` added ``down`` takes away: constraint, index, column."""
    field = peewee.ForeignKeyField(Box, field=Box.id, null=True)
    alter_db_add_column(migrator, "item", "box_id", field)

    assert alter_db_drop_column(migrator, "item", "box_id").outcome is Outcome.APPLIED
    assert _foreign_keys(migrator) == []
    assert _index_names(migrator) == []


@pytest.mark.engines("mysql", "mariadb")
def test_an_index_that_another_foreign_key_needs_stays(migrator: Migrator) -> None:
    """The server refuses to drop it (1553); dropping the column takes the column out of it."""
    migrator.database.execute_sql("ALTER TABLE item ADD a INT, ADD b INT, ADD INDEX both_of (a, b)")
    migrator.database.execute_sql("ALTER TABLE item ADD CONSTRAINT kept FOREIGN KEY (a) REFERENCES box (id)")

    assert alter_db_drop_column(migrator, "item", "b").outcome is Outcome.APPLIED
    assert [key.name for key in _foreign_keys(migrator)] == ["kept"]
    assert {each.columns for each in read_indexes(migrator.database, migrator.engine, "item")} == {("id",), ("a",)}


@pytest.mark.engines("mariadb")
def test_an_index_that_another_table_refers_to_stays(migrator: Migrator) -> None:
    """A child's foreign key stands on the parent's index too, on MariaDB whatever that one begins with."""
    database = migrator.database
    database.execute_sql("ALTER TABLE item ADD a INT, ADD b INT, ADD INDEX both_of (a, b)")
    database.execute_sql("CREATE TABLE part (a INT, FOREIGN KEY (a) REFERENCES item (a))")

    assert alter_db_drop_column(migrator, "item", "b").outcome is Outcome.APPLIED


@pytest.mark.parametrize(
    ("standing", "asked"),
    [
        ("id) ON DELETE CASCADE", peewee.ForeignKeyField(Box, field=Box.id, null=True)),
        ("id)", peewee.ForeignKeyField(Box, field=Box.id, null=True, on_delete="CASCADE")),
        ("id)", peewee.ForeignKeyField(Box, field=Box.id, null=True, on_update="CASCADE")),
        ("code)", peewee.ForeignKeyField(Box, field=Box.id, null=True)),
    ],
    ids=["deletes", "does not delete", "does not update", "another column"],
)
def test_another_foreign_key_is_an_error_that_names_both(migrator: Migrator, standing: str, asked: Any) -> None:
    """A foreign key on the same column counts only when it does the same."""
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN box_id INTEGER")
    _refer(migrator, standing)

    with pytest.raises(SchemaConflictError, match=r"refers to box \(\w+\) ON DELETE .*, asked for is box \(id\)"):
        alter_db_add_column(migrator, "item", "box_id", asked)

    assert len(_foreign_keys(migrator)) == 1


def test_a_foreign_key_as_asked_counts_whatever_its_name_and_case(migrator: Migrator) -> None:
    """No second one is added; without actions, with RESTRICT on InnoDB, and in capitals where case does not count."""
    capitals = migrator.engine == "sqlite"
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN box_id INTEGER")
    _refer(migrator, "id)", target="BOX" if capitals else "box")
    field = peewee.ForeignKeyField(Box, field=Box.id, null=True, index=False)

    assert alter_db_add_column(migrator, "item", "box_id", field).outcome is Outcome.SKIPPED
    assert len(_foreign_keys(migrator)) == 1


def test_a_foreign_key_outside_a_model_knows_its_target(migrator: Migrator) -> None:
    """Without ``field=`` it refers to the primary key, as in a model: for a new column and for one that stands."""
    migrator.database.execute_sql("ALTER TABLE item ADD COLUMN old_id INTEGER")

    alter_db_add_column(migrator, "item", "old_id", peewee.ForeignKeyField(Box, null=True))
    alter_db_add_column(migrator, "item", "new_id", peewee.ForeignKeyField(Box, null=True))
    alter_db_add_column(migrator, "item", "code", peewee.ForeignKeyField(Box, field="code", null=True))

    keys = {key.columns: key.keys for key in _foreign_keys(migrator)}
    assert keys == {("old_id",): ("id",), ("new_id",): ("id",), ("code",): ("code",)}


@pytest.mark.engines("mysql", "mariadb", "sqlite")
def test_case_does_not_count_in_a_columns_name(migrator: Migrator) -> None:
    """``LABEL`` is ``label``: found, indexed once, renamed, made NOT NULL and dropped."""
    assert alter_db_add_not_null(migrator, "item", "LABEL").outcome is Outcome.APPLIED
    assert alter_db_column_type(migrator, "item", "LABEL", peewee.CharField(max_length=40)).outcome is Outcome.COMPLETED
    assert alter_db_add_index(migrator, "item", ["LABEL", "Name"]).outcome is Outcome.APPLIED
    assert alter_db_add_index(migrator, "item", ["label", "name"]).outcome is Outcome.SKIPPED
    assert alter_db_drop_index(migrator, "item", ["Label", "NAME"]).outcome is Outcome.APPLIED
    assert alter_db_rename_column(migrator, "item", "LABEL", "Label").outcome is Outcome.APPLIED
    assert alter_db_rename_column(migrator, "item", "label", "Label").outcome is Outcome.SKIPPED
    assert alter_db_drop_column(migrator, "item", "lAbEl").outcome is Outcome.APPLIED


@pytest.mark.engines("postgres")
def test_case_counts_on_postgresql(migrator: Migrator) -> None:
    """``Label`` and ``label`` are two columns."""
    migrator.database.execute_sql('ALTER TABLE item ADD COLUMN "Label" TEXT')

    with pytest.raises(SchemaConflictError, match="both 'label' and 'Label'"):
        alter_db_rename_column(migrator, "item", "label", "Label")


def test_a_percent_sign_in_a_name_is_a_letter_like_any_other(migrator: Migrator, backend: Backend) -> None:
    """The drivers format every statement with ``%``; every operation works on such a table and column."""
    migrator.rename_table("item", "50%s of").run()
    field = peewee.CharField(max_length=9, default="100%", index=True)
    table, column = "50%s of", "5%d"

    assert alter_db_add_column(migrator, table, column, field).outcome is Outcome.APPLIED
    assert alter_db_add_column(migrator, table, column, field).outcome is Outcome.SKIPPED
    alter_db_column_type(migrator, table, column, peewee.CharField(max_length=20, null=True))
    alter_db_add_column(migrator, table, column, peewee.CharField(max_length=20, default="x"))
    alter_db_add_index(migrator, table, [column, "label"], unique=True)
    alter_db_add_column(migrator, table, "half%", peewee.CharField(max_length=9, null=True))
    alter_db_add_column(migrator, table, "half%", peewee.CharField(max_length=9, default="5%"))
    alter_db_drop_column(migrator, table, "half%")
    alter_db_add_column(migrator, table, "b%", peewee.ForeignKeyField(Box, null=True))
    alter_db_drop_column(migrator, table, "b%")
    alter_db_rename_column(migrator, table, column, "6%")
    alter_db_drop_index(migrator, table, ["6%", "label"])

    columns = read_columns(migrator.database, backend.engine, table)
    assert columns is not None
    assert [*columns] == ["id", "name", "label", "6%"]


@pytest.mark.engines("mysql", "mariadb")
def test_a_view_is_called_a_view(migrator: Migrator) -> None:
    """Its columns cannot be changed, and the message says why."""
    migrator.database.execute_sql("CREATE VIEW labels AS SELECT label FROM item")

    with pytest.raises(SchemaConflictError, match="'labels' is a view"):
        alter_db_add_not_null(migrator, "labels", "label")


def _refer(migrator: Migrator, rest: str, target: str = "box") -> None:
    """Let ``item.box_id`` refer to *target*, its name in capitals where case does not count; *rest* ends the SQL."""
    if migrator.engine == "sqlite":
        migrator.database.execute_sql("ALTER TABLE item DROP COLUMN box_id")
        migrator.database.execute_sql(f"ALTER TABLE item ADD COLUMN box_id INTEGER REFERENCES {target} ({rest}")
    else:
        column = "box_id" if migrator.engine == "postgres" else "BOX_ID"
        sql = f"ALTER TABLE item ADD CONSTRAINT by_hand FOREIGN KEY ({column}) REFERENCES {target} ({rest}"
        migrator.database.execute_sql(sql)
