"""Every reason against a field, proven by the server that refuses it or loses a value; and no reason without one."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import peewee
import pytest
from playhouse import postgres_ext, sqlite_ext

from api.db.base import DataBaseModel
from api.db.dialects.engine import ENGINES
from api.db.dialects.validation import validate_field
from api.db.fields import UTCDateTimeField
from conftest import Backend

MYSQL = ("mysql", "mariadb")
ELSEWHERE = ("mysql", "mariadb", "sqlite")
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 987654)
ONES = Decimal("1" * 40)
THIRTY_ONES = Decimal("0." + "1" * 30)
DEFAULTS_TO_X = [peewee.SQL("DEFAULT 'x'")]


@dataclass(frozen=True)
class Case:
    """A table's fields, a value that its field ``a`` is to keep, and the engines that cannot."""

    fields: Callable[[], dict[str, peewee.Field]]
    cannot: Iterable[str] = ()
    value: Any = None
    meta: dict[str, Any] = field(default_factory=dict)

    def model(self, db: peewee.Database) -> type[peewee.Model]:
        """Return the table as a model of *db*."""
        meta = type("Meta", (), {"database": db, "table_name": "kept", **self.meta})
        return type("Kept", (peewee.Model,), {**self.fields(), "Meta": meta})


def one(make: Callable[..., peewee.Field], *args: Any, **kwargs: Any) -> Callable[[], dict[str, peewee.Field]]:
    """Return what makes the fields of a table with one field ``a``, beside its key."""
    return lambda: {"a": make(*args, **kwargs)}


def two(first: int, second: int, **kwargs: Any) -> Callable[[], dict[str, peewee.Field]]:
    """Return what makes the fields of a table with two texts of these lengths."""
    return lambda: {"a": peewee.CharField(first, **kwargs), "b": peewee.CharField(second, **kwargs)}


PAIR = {"indexes": ((("a", "b"), False),)}
UNIQUE_PAIR = {"indexes": ((("a", "b"), True),)}
KEY_PAIR = {"primary_key": peewee.CompositeKey("a", "b")}

CASES: dict[str, Case] = {
    "varchar at its limit": Case(one(peewee.CharField, 16380)),
    "varchar over MySQL's limit": Case(one(peewee.CharField, 16384), MYSQL),
    "varchar over PostgreSQL's limit": Case(one(peewee.CharField, 10485761), (*MYSQL, "postgres")),
    "varchar without a length": Case(one(peewee.CharField, None), MYSQL),
    "char at its limit": Case(one(peewee.FixedCharField, 255)),
    "char over its limit": Case(one(peewee.FixedCharField, 256), MYSQL),
    "row at its limit": Case(two(8000, 8381)),
    "row over its limit": Case(two(8000, 8382), MYSQL),
    "row of NULLs over its limit": Case(two(8000, 8382, null=True), MYSQL),
    "index at its limit": Case(one(peewee.CharField, 768, index=True)),
    "index over its limit": Case(one(peewee.CharField, 769, index=True), ("mysql",)),
    "unique index over its limit": Case(one(peewee.CharField, 769, unique=True), ("mysql",)),
    "primary key at its limit": Case(one(peewee.CharField, 768, primary_key=True)),
    "primary key over its limit": Case(one(peewee.CharField, 769, primary_key=True), MYSQL),
    "composite index at its limit": Case(two(384, 384), meta=PAIR),
    "composite index over its limit": Case(two(384, 385), MYSQL, meta=PAIR),
    "composite unique index over its limit": Case(two(384, 385), ("mysql",), meta=UNIQUE_PAIR),
    "composite primary key over its limit": Case(two(384, 385), MYSQL, meta=KEY_PAIR),
    "text indexed": Case(one(peewee.TextField, index=True), ("mysql",)),
    "text unique": Case(one(peewee.TextField, unique=True), ("mysql",)),
    "text as primary key": Case(one(peewee.TextField, primary_key=True), MYSQL),
    "blob indexed": Case(one(peewee.BlobField, index=True), ("mysql",)),
    "json indexed": Case(one(peewee.JSONField, index=True), ("mysql",)),
    "text with a literal default": Case(one(peewee.TextField, constraints=DEFAULTS_TO_X), ("mysql",)),
    "text with an expression": Case(one(peewee.TextField, constraints=[peewee.SQL("DEFAULT ('x')")])),
    "varchar with a literal default": Case(one(peewee.CharField, constraints=DEFAULTS_TO_X)),
    "decimal of 15 digits": Case(one(peewee.DecimalField, 15, 4), value=Decimal("12345678901.2345")),
    "decimal of 20 digits": Case(one(peewee.DecimalField, 20, 4), ("sqlite",), Decimal("1234567890123456.7891")),
    "decimal of 66 digits": Case(one(peewee.DecimalField, 66, 4), (*MYSQL, "sqlite"), ONES),
    "decimal of 1001 digits": Case(one(peewee.DecimalField, 1001, 4), (*MYSQL, "postgres", "sqlite"), ONES),
    "decimal with 31 behind the point": Case(one(peewee.DecimalField, 60, 31), ("mysql", "sqlite"), THIRTY_ONES),
    "decimal with 39 behind the point": Case(one(peewee.DecimalField, 60, 39), (*MYSQL, "sqlite"), THIRTY_ONES),
    "decimal with more behind than in all": Case(one(peewee.DecimalField, 4, 6), MYSQL),
    "fraction of a second": Case(one(peewee.DateTimeField), MYSQL, MOMENT),
    "fraction of a second in a time": Case(one(peewee.TimeField), MYSQL, MOMENT.time()),
    "fraction of a second asked for": Case(one(UTCDateTimeField), (), MOMENT.replace(tzinfo=datetime.UTC)),
    "float of 12 digits": Case(one(peewee.FloatField), (*MYSQL, "postgres"), 0.123456789012),
    "double of 12 digits": Case(one(peewee.DoubleField), (), 0.123456789012),
    "column name of 63 bytes": Case(lambda: {"a" * 63: peewee.IntegerField()}),
    "column name of 64 bytes": Case(lambda: {"a" * 64: peewee.IntegerField()}, ("postgres",)),
    "column name of 65 characters": Case(lambda: {"a" * 65: peewee.IntegerField()}, (*MYSQL, "postgres")),
    "column name of 33 umlauts": Case(lambda: {"ä" * 33: peewee.IntegerField()}, ("postgres",)),
    "table name of 64 bytes": Case(one(peewee.IntegerField), ("postgres",), meta={"table_name": "t" * 64}),
    "table name of 65 characters": Case(one(peewee.IntegerField), (*MYSQL, "postgres"), meta={"table_name": "t" * 65}),
    "array": Case(one(postgres_ext.ArrayField, index=False), ELSEWHERE, [1, 2]),
    "interval": Case(one(postgres_ext.IntervalField), ELSEWHERE, datetime.timedelta(days=1)),
    "time with a zone": Case(one(postgres_ext.DateTimeTZField), MYSQL, MOMENT.replace(tzinfo=datetime.UTC)),
    "words for a search": Case(one(postgres_ext.TSVectorField, index=False), MYSQL),
    "index for a search": Case(one(postgres_ext.TSVectorField), ELSEWHERE),
    "PostgreSQL's binary JSON": Case(one(postgres_ext.BinaryJSONField, index=False), MYSQL),
    "SQLite's binary JSON": Case(one(sqlite_ext.JSONBField), MYSQL),
    "type ANY": Case(one(peewee.AnyField), (*MYSQL, "postgres")),
    "no type": Case(one(peewee.BareField), (*MYSQL, "postgres")),
    "identity": Case(lambda: {"id": peewee.IdentityField()}, ELSEWHERE),
    "sequence": Case(one(peewee.IntegerField, sequence="kept_numbers"), ELSEWHERE),
    "index of type BRIN": Case(one(peewee.IntegerField, index=True, index_type="BRIN"), ELSEWHERE),
    "index of type HASH": Case(one(peewee.IntegerField, index=True, index_type="HASH"), ("sqlite",)),
    "uuid": Case(one(peewee.UUIDField, unique=True)),
    "boolean": Case(one(peewee.BooleanField), (), True),
    "json": Case(one(peewee.JSONField), (), {"a": [1, None]}),
    "blob": Case(one(peewee.BlobField)),
}


def keeps(db: peewee.Database, model: type[peewee.Model], value: Any) -> bool:
    """Say whether the server makes the table, under its own name and columns, and gives *value* back unchanged."""
    try:
        db.create_tables([model])
        if value is not None:
            model.insert(a=value).execute()
    except peewee.PeeweeException:
        return False
    table = model._meta.table_name
    if table not in db.get_tables() or {column.name for column in db.get_columns(table)} != set(model._meta.columns):
        return False
    return value is None or model.select().get().a == value


@pytest.mark.parametrize("name", CASES)
def test_reasons_are_given_exactly_where_the_server_cannot(backend: Backend, db: peewee.Database, name: str) -> None:
    """A field has a reason where the server refuses it or loses its value, and none where the server keeps it."""
    case = CASES[name]
    model = case.model(db)
    reasons = [reason for made in model._meta.sorted_fields for reason in validate_field(made, backend.engine)]
    cannot = backend.engine in case.cannot
    assert (bool(reasons), keeps(db, model, case.value)) == (cannot, not cannot), reasons


def test_text_default_is_the_servers_and_no_reason_says_otherwise(backend: Backend, db: peewee.Database) -> None:
    """An INSERT that leaves the column out is filled by the server, on MySQL too."""
    words: Any = type("Words", (DataBaseModel,), {"a": peewee.TextField(default="x")})
    with words.bind_ctx(db):
        db.create_tables([words])
        db.execute_sql("INSERT INTO words (id) VALUES (1)")
        assert words.get().a == "x"
        assert validate_field(words.a, backend.engine) == []


def test_long_row_is_told_of_its_longest_column_only() -> None:
    """One reason a table, on the column to change."""
    model = CASES["row over its limit"].model(peewee.SqliteDatabase(":memory:"))
    assert validate_field(model.a, "mysql") == []
    assert "65536 bytes" in validate_field(model.b, "mysql")[0]


def test_field_of_no_model_is_judged_by_itself() -> None:
    """A field that stands alone, as a migration has it, is judged on every engine without a connection."""
    assert ["1074" in " ".join(validate_field(peewee.CharField(20000), engine)) for engine in ENGINES] == [
        *(False, True, True, False)
    ]


def test_foreign_key_is_judged_by_its_target() -> None:
    """A key to a text of 769 characters cannot be indexed in MySQL either."""
    parent = type("Parent", (peewee.Model,), {"name": peewee.CharField(769, primary_key=True)})
    assert "1071" in validate_field(peewee.ForeignKeyField(parent), "mysql")[0]


def test_unknown_engine_is_refused() -> None:
    """No engine is guessed."""
    with pytest.raises(ValueError, match="did you mean 'postgres'"):
        validate_field(peewee.TextField(), "postgresql")
