"""Column types: read, compared, and carried from one engine to another, on real servers."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import peewee
import pytest
from playhouse import postgres_ext, sqlite_ext

from api.db.dialects.engine import ENGINES, Engine
from api.db.dialects.equivalence import PEEWEE_TYPES, get_equivalent_type
from api.db.dialects.types import ColumnType, Fit, compare_types, field_type_text, parse_type
from api.exceptions import UnsafeOperationError
from conftest import Backend

COMMON_FIELDS = {
    "whole": peewee.IntegerField,
    "large": peewee.BigIntegerField,
    "small": peewee.SmallIntegerField,
    "float4": peewee.FloatField,
    "float8": peewee.DoubleField,
    "exact": peewee.DecimalField,
    "name": peewee.CharField,
    "short": lambda: peewee.CharField(16),
    "fixed": lambda: peewee.FixedCharField(10),
    "body": peewee.TextField,
    "raw": peewee.BlobField,
    "flags": peewee.BitField,
    "bits": peewee.BigBitField,
    "key": peewee.UUIDField,
    "bare_key": peewee.BinaryUUIDField,
    "moment": peewee.DateTimeField,
    "day": peewee.DateField,
    "hour": peewee.TimeField,
    "stamp": peewee.TimestampField,
    "address": peewee.IPField,
    "flag": peewee.BooleanField,
    "document": peewee.JSONField,
}
FIELDS_OF: dict[Engine, dict[str, Any]] = {
    "postgres": {
        "endless": lambda: peewee.CharField(max_length=None),
        "names": lambda: postgres_ext.ArrayField(peewee.CharField, {"max_length": 20}),
        "grid": lambda: postgres_ext.ArrayField(dimensions=2),
        "zoned": postgres_ext.DateTimeTZField,
        "words": postgres_ext.TSVectorField,
        "span": postgres_ext.IntervalField,
        "json": postgres_ext.JSONField,
        "jsonb": postgres_ext.BinaryJSONField,
    },
    "sqlite": {
        "bare": peewee.BareField,
        "any": peewee.AnyField,
        "json": sqlite_ext.JSONField,
        "jsonb": sqlite_ext.JSONBField,
        "digits": sqlite_ext.TDecimalField,
    },
    "mysql": {},
    "mariadb": {},
}

TYPES: dict[Engine, tuple[str, ...]] = {
    "postgres": (
        *("smallint", "integer", "bigint", "serial", "bigserial", "boolean", "real", "double precision"),
        *("numeric(10,5)", "numeric(65,30)", "character(10)", "character(300)", "character varying(16)"),
        *("character varying(20000)", "character varying(5000000)", "character varying", "text", "bytea", "date"),
        *("time without time zone", "timestamp without time zone", "timestamp(3) without time zone"),
        *("timestamp with time zone", "json", "jsonb", "uuid"),
    ),
    "mysql": (
        *("tinyint(1)", "tinyint", "tinyint unsigned", "smallint", "smallint unsigned", "mediumint"),
        *("mediumint unsigned", "int", "int unsigned", "bigint", "int auto_increment", "bigint auto_increment"),
        *("float", "double", "decimal(10,5)", "decimal(65,30)", "char(10)", "varchar(16)", "varchar(16000)"),
        *("tinytext", "text", "mediumtext", "longtext", "binary(16)", "varbinary(16)", "tinyblob", "blob"),
        *("mediumblob", "longblob", "date", "time", "time(6)", "datetime", "datetime(6)", "timestamp(6)", "json"),
    ),
    "mariadb": (
        *("tinyint(1)", "tinyint(4)", "smallint(5) unsigned", "mediumint(9)", "int(11)", "int(10) unsigned"),
        *("bigint(20)", "int(11) auto_increment", "float", "double", "decimal(10,5)", "char(10)", "varchar(16)"),
        *("text", "mediumtext", "longtext", "varbinary(16)", "blob", "longblob", "date", "time", "datetime"),
        *("datetime(6)", "timestamp(6)", "json", "uuid"),
    ),
    "sqlite": (
        *("INTEGER", "SMALLINT", "BIGINT", "BOOLEAN", "REAL", "FLOAT", "DECIMAL(10, 5)", "CHAR(10)", "VARCHAR(255)"),
        *("VARCHAR(20000)", "VARCHAR", "TEXT", "BLOB", "DATE", "TIME", "DATETIME", "TIMESTAMPTZ", "JSON"),
    ),
}
# What an engine without the type keeps in another way comes back as that; the values are all there.
CARRIERS = (
    *(
        ("uuid", "text"),
        ("uuid", "varchar"),
        ("json", "text"),
        ("json", "jsonb"),
        ("json", "longtext"),
        ("uuid", "longtext"),
    ),
    *(("jsonb", "text"), ("char", "varchar"), ("binary", "longblob"), ("bigint", "decimal")),
)
# Without digits DECIMAL has no limit on PostgreSQL and SQLite, and no end: it is refused, as is what SQLite rounds.
LOSSY = [(source, "DECIMAL", target) for source in ("postgres", "sqlite") for target in ENGINES]
LOSSY += [("postgres", "numeric(65,30)", "sqlite"), ("mysql", "decimal(65,30)", "sqlite")]
ROUND_TRIPS = [
    (text, source, target)
    for source, target in permutations(ENGINES, 2)
    for text in (*TYPES[source], *PEEWEE_TYPES)
    if (source, text, target) not in LOSSY
]

WIDENINGS: dict[Engine, list[tuple[str, str, Any]]] = {
    "postgres": [
        ("SMALLINT", "INTEGER", 32767),
        ("INTEGER", "BIGINT", -(2**31)),
        ("REAL", "DOUBLE PRECISION", 0.5),
        ("VARCHAR(3)", "VARCHAR(9)", "abc"),
        ("VARCHAR(3)", "VARCHAR", "äöü"),
        ("VARCHAR(3)", "TEXT", "abc"),
        ("NUMERIC(4, 2)", "NUMERIC(6, 2)", "12.34"),
        ("NUMERIC(4, 2)", "NUMERIC", "12.34"),
        ("TIMESTAMP(0)", "TIMESTAMP", "2026-01-02 03:04:05"),
        ("VARCHAR(3)[]", "VARCHAR(9)[]", ["abc"]),
    ],
    "mysql": [
        ("BOOL", "SMALLINT", -128),
        ("INT UNSIGNED", "BIGINT", 4294967295),
        ("INTEGER", "BIGINT", -(2**31)),
        ("FLOAT", "DOUBLE", 0.5),
        ("TINYTEXT", "VARCHAR(255)", "x" * 255),
        ("VARCHAR(16383)", "TEXT", "x" * 16383),
        ("TEXT", "MEDIUMTEXT", "x" * 65535),
        ("MEDIUMTEXT", "LONGTEXT", "äöü"),
        ("VARBINARY(3)", "BLOB", b"\x00\xff\x00"),
        ("NUMERIC(4, 2)", "NUMERIC(6, 2)", "12.34"),
        ("DATETIME", "DATETIME(6)", "2026-01-02 03:04:05"),
    ],
}
WIDENINGS["mariadb"] = WIDENINGS["mysql"]


def live_types(db: peewee.Database, engine: Engine, table: str) -> dict[str, str]:
    """Return each column's type as the server reports it."""
    query = {
        "postgres": "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = '\"{table}\"'::regclass AND attnum > 0",
        "sqlite": f"SELECT name, type FROM pragma_table_info('{table}')",
    }.get(
        engine,
        "SELECT column_name, column_type FROM information_schema.columns"
        f" WHERE table_schema = DATABASE() AND table_name = '{table}'",
    )
    return dict(db.execute_sql(query).fetchall())


def all_fields(db: peewee.Database, engine: Engine) -> type[peewee.Model]:
    """Return a model with one field of every class that *engine* takes, and three kinds of foreign key."""
    meta = {"Meta": type("Meta", (), {"database": db})}
    parents = {
        "plain": type("Plain", (peewee.Model,), dict(meta)),
        "big": type("Big", (peewee.Model,), {"id": peewee.BigAutoField(), **meta}),
        "uuid": type("Uuid", (peewee.Model,), {"id": peewee.UUIDField(primary_key=True), **meta}),
    }
    fields = {name: make() for name, make in (COMMON_FIELDS | FIELDS_OF[engine]).items()}
    keys = {name: peewee.ForeignKeyField(parent) for name, parent in parents.items()}
    model = type("Everything", (peewee.Model,), fields | keys | meta)
    # IndexedFieldMixin asks for an index of its own: types alone are looked at here.
    for field in fields.values():
        field.index = False
    db.create_tables([*parents.values(), model])
    return model


def test_type_of_every_field_reads_back_as_the_same(backend: Backend, db: peewee.Database) -> None:
    """What peewee's DDL asked for and what the server then reports are one type, for every field there is."""
    model, engine = all_fields(db, backend.engine), backend.engine
    live = live_types(db, engine, "everything")
    asked = {name: field_type_text(field, db) for name, field in model._meta.columns.items()}
    fits = {
        name: compare_types(parse_type(live[name], engine), parse_type(asked[name], engine), engine) for name in asked
    }
    assert len(fits) >= 26
    assert set(fits.values()) == {Fit.SAME}, fits


@pytest.mark.parametrize(
    ("text", "engine", "expected"),
    [
        ("character varying(16)", "postgres", ColumnType("varchar", 16)),
        ("VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "mysql", ColumnType("varchar", 16)),
        ("int(10) unsigned zerofill", "mariadb", ColumnType("integer", unsigned=True)),
        ("INTEGER AUTO_INCREMENT", "mysql", ColumnType("integer")),
        ("INT GENERATED BY DEFAULT AS IDENTITY", "postgres", ColumnType("integer")),
        ("BIGSERIAL", "postgres", ColumnType("bigint")),
        ("tinyint(1)", "mariadb", ColumnType("boolean")),
        ("tinyint(4)", "mariadb", ColumnType("tinyint")),
        ("timestamp(3) without time zone", "postgres", ColumnType("timestamp", 3)),
        ("TIMESTAMP WITH TIME ZONE", "postgres", ColumnType("timestamptz", 6)),
        ("datetime", "mysql", ColumnType("datetime", 0)),
        ("REAL", "postgres", ColumnType("float")),
        ("FLOAT", "postgres", ColumnType("double")),
        ("float(53)", "mysql", ColumnType("double")),
        ("REAL", "mysql", ColumnType("double")),
        ("DECIMAL", "mysql", ColumnType("decimal", 10, 0)),
        ("numeric", "postgres", ColumnType("decimal")),
        ("NUMERIC(10, 5)", "sqlite", ColumnType("decimal", 10, 5)),
        ("character varying(20)[]", "postgres", ColumnType("varchar[]", 20)),
        ("enum('a','b)')", "mysql", ColumnType("enum('a','b)')")),
        ("citext", "postgres", ColumnType("citext")),
    ],
)
def test_type_is_read_as_the_engine_means_it(text: str, engine: Engine, expected: ColumnType) -> None:
    """One kind for the many names of a type, its size kept, display widths dropped."""
    found = parse_type(text, engine)
    assert found.text == text
    assert (found.kind, found.length, found.scale, found.unsigned) == (
        *(expected.kind, expected.length),
        *(expected.scale, expected.unsigned),
    )


@pytest.mark.parametrize(
    ("engine", "live", "wanted", "fit"),
    [
        ("postgres", "character varying", "text", Fit.SAME),
        ("postgres", "character varying(16)", "character varying", Fit.SHORTER),
        ("postgres", "text", "VARCHAR(255)", Fit.LONGER),
        ("postgres", "boolean", "INTEGER", Fit.OTHER),
        ("postgres", "json", "JSONB", Fit.OTHER),
        ("postgres", "timestamp with time zone", "TIMESTAMP", Fit.OTHER),
        ("postgres", "numeric(10,5)", "NUMERIC(12, 5)", Fit.SHORTER),
        ("postgres", "numeric(10,5)", "NUMERIC(12, 6)", Fit.OTHER),
        ("mysql", "tinyint(1)", "TINYINT", Fit.SAME),
        ("mysql", "int unsigned", "INTEGER", Fit.OTHER),
        ("mysql", "smallint unsigned", "INTEGER", Fit.SHORTER),
        ("mysql", "varchar(20000)", "TEXT", Fit.OTHER),
        ("mysql", "longtext", "JSON", Fit.OTHER),
        ("mysql", "binary(8)", "BINARY(16)", Fit.OTHER),
        ("mysql", "datetime", "TIMESTAMP", Fit.OTHER),
        ("mariadb", "longtext", "JSON", Fit.SAME),
        ("mariadb", "text", "JSON", Fit.OTHER),
        ("sqlite", "BIGINT", "INTEGER", Fit.SAME),
        ("sqlite", "VARCHAR(16)", "VARCHAR(255)", Fit.SHORTER),
        ("sqlite", "JSON", "TEXT", Fit.OTHER),
    ],
)
def test_types_compare_as_the_engine_stores_them(engine: Engine, live: str, wanted: str, fit: Fit) -> None:
    """Same, shorter, longer or other; the mirror of each holds too."""
    one, other = parse_type(live, engine), parse_type(wanted, engine)
    mirror = {Fit.SHORTER: Fit.LONGER, Fit.LONGER: Fit.SHORTER}.get(fit, fit)
    assert (compare_types(one, other, engine), compare_types(other, one, engine)) == (fit, mirror)


@pytest.mark.engines("postgres", "mysql", "mariadb")
def test_widening_a_shorter_type_keeps_the_largest_value(backend: Backend, db: peewee.Database) -> None:
    """What compares as shorter is widened by the server, and its extreme value comes back unchanged."""
    change = "ALTER COLUMN a TYPE" if backend.engine == "postgres" else "MODIFY a"
    for live, wanted, value in WIDENINGS[backend.engine]:
        fit = compare_types(parse_type(live, backend.engine), parse_type(wanted, backend.engine), backend.engine)
        assert fit is Fit.SHORTER, (live, wanted)
        db.execute_sql(f"CREATE TABLE widened (a {live})")
        db.execute_sql("INSERT INTO widened VALUES (%s)", (value,))
        before = db.execute_sql("SELECT a FROM widened").fetchone()
        db.execute_sql(f"ALTER TABLE widened {change} {wanted}")
        assert db.execute_sql("SELECT a FROM widened").fetchone() == before, (live, wanted)
        db.execute_sql("DROP TABLE widened")


def holds(engine: Engine, narrow: str, wide: str) -> bool:
    """Say whether *wide*, of *engine* too, keeps whatever *narrow* does, by its size or as its carrier."""
    one, other = parse_type(narrow, engine), parse_type(wide, engine)
    return compare_types(one, other, engine) in (Fit.SAME, Fit.SHORTER) or (one.kind, other.kind) in CARRIERS


def test_round_trip_gives_a_type_that_holds_as_much() -> None:
    """There and back, over every type and every pair of engines: the same type, or a wider one, or its carrier."""
    narrowed = []
    for text, source, target in ROUND_TRIPS:
        first = get_equivalent_type(text, source, source)
        there = get_equivalent_type(text, source, target)
        back = get_equivalent_type(there, target, source)
        if not holds(source, first, back):
            narrowed.append((text, source, there, back))
    assert not narrowed


def test_round_trip_settles() -> None:
    """A second trip gives nothing narrower than the first, and a third gives what the second gave."""
    for text, source, target in ROUND_TRIPS:
        there = get_equivalent_type(text, source, target)
        again = get_equivalent_type(get_equivalent_type(there, target, source), source, target)
        assert holds(target, there, again), (text, source, there, again)
        assert get_equivalent_type(get_equivalent_type(again, target, source), source, target) == again


def test_every_equivalent_is_a_type_that_the_server_takes(backend: Backend, db: peewee.Database) -> None:
    """A table with one column of each equivalent can be made on the target."""
    wanted = {
        get_equivalent_type(text, source, backend.engine)
        for text, source, target in ROUND_TRIPS
        if target == backend.engine
    }
    assert len(wanted) >= 15
    for text in sorted(wanted):
        key = " PRIMARY KEY" if "AUTO_INCREMENT" in text else ""
        db.execute_sql(f"CREATE TABLE taken (a {text}{key})")
        db.execute_sql("DROP TABLE taken")


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("INTEGER[]", "postgres", "mysql"),
        ("hstore", "postgres", "sqlite"),
        ("interval", "postgres", "mariadb"),
        ("numeric", "postgres", "mysql"),
        ("DECIMAL", "postgres", "mariadb"),
        ("numeric(100,10)", "postgres", "mariadb"),
        ("decimal(38,35)", "mariadb", "mysql"),
        ("bigint unsigned", "mysql", "sqlite"),
        ("decimal(20,4)", "mysql", "sqlite"),
    ],
)
def test_type_without_a_lossless_equivalent_is_refused(text: str, source: str, target: str) -> None:
    """Nothing is narrowed silently: the error names the type, both engines and a way out."""
    with pytest.raises(UnsafeOperationError, match=f"no column type of {target} keeps every value") as caught:
        get_equivalent_type(text, source, target)
    assert text in caught.value.message
    assert caught.value.hint


def test_unknown_type_is_an_error_that_names_the_nearest() -> None:
    """A typing mistake is answered with the type that was meant."""
    with pytest.raises(ValueError, match="did you mean 'VARCHAR'"):
        get_equivalent_type("VARCHR(20)", "postgres", "mysql")
