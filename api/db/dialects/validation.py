"""Why an engine cannot keep a peewee field: it refuses the DDL, or it changes values without an error.

What merely is otherwise (a UUID kept as text, a boolean as an integer) or fails loudly at the write (a text over
MySQL's 65535 bytes) is no reason. Each reason names the server's error code where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import peewee

from api.db.dialects.capabilities import CAPABILITIES, known_engine
from api.db.dialects.engine import Engine
from api.db.dialects.types import ColumnType, field_type_text, parse_type

_UTF8_BYTES = 4  # utf8mb4 reserves four bytes a character
_MYSQL: tuple[Engine, ...] = ("mysql", "mariadb")
_MYSQL_BYTES = {
    "boolean": 1, "tinyint": 1, "smallint": 2, "mediumint": 3, "integer": 4, "bigint": 8, "float": 4, "double": 8,
    "date": 3, "time": 3, "timestamp": 4, "datetime": 5, "uuid": 16, "json": 12,
    "tinytext": 9, "text": 10, "mediumtext": 11, "longtext": 12,
    "tinyblob": 9, "blob": 10, "mediumblob": 11, "longblob": 12,
}  # fmt: skip
_POSTGRES_ONLY = ("HSTORE", "INTERVAL", "JSONB", "TIMESTAMPTZ", "TSVECTOR")
_MYSQL_INDEX_TYPES = ("BTREE", "HASH", "FULLTEXT", "SPATIAL")
_SQLITE_DECIMAL_DIGITS = 15
_LITERAL_DEFAULT = re.compile(r"\s*DEFAULT\s+(?!\()", re.IGNORECASE)

_What = Literal["primary key", "unique index", "index"]


@dataclass(frozen=True, slots=True)
class _Question:
    """Whether *engine* keeps *field*, of *model* if it has one, whose DDL says *text*."""

    field: peewee.Field
    engine: Engine
    model: type[peewee.Model] | None
    text: str
    column: ColumnType

    def limit(self, capability: str) -> int | None:
        value = CAPABILITIES[self.engine][capability]
        return value if isinstance(value, int) else None


def validate_field(field: peewee.Field, engine: str, *, model: type[peewee.Model] | None = None) -> list[str]:
    """Return the reasons why *engine* cannot keep *field*; empty when it can.

    With a *model*, or a field that is bound to one, the table's name, its row and its composite indexes count
    too. Runs no query. Raises ``ValueError`` for an unknown *engine*.
    """
    known = known_engine(engine)
    text = field_type_text(field, _writer(known))
    model = model or getattr(field, "model", None)
    question = _Question(field, known, model, text, parse_type(text, known))
    return [reason for check in _CHECKS for reason in check(question)]


@cache
def _writer(engine: Engine) -> peewee.Database:
    """Return a database that is never connected: peewee asks it how the engine's types are called."""
    kinds: dict[Engine, type[peewee.Database]] = {
        "postgres": peewee.PostgresqlDatabase,
        "mysql": peewee.MySQLDatabase,
        "mariadb": peewee.MySQLDatabase,
        "sqlite": peewee.SqliteDatabase,
    }
    return kinds[engine](None)


def _name(question: _Question) -> Iterator[str]:
    """Names are counted in bytes by PostgreSQL, which only shortens them, and in characters by MySQL."""
    limit = question.limit("max_identifier_length")
    for what, name in _names(question):
        if limit is not None and question.engine == "postgres" and len(name.encode()) > limit:
            yield f"postgres shortens the {what} name {name!r} to {limit} bytes without an error"
        elif limit is not None and question.engine != "postgres" and len(name) > limit:
            yield f"{question.engine} refuses the {what} name {name!r}: over {limit} characters (1059)"


def _column_name(field: peewee.Field) -> str:
    return str(field.column_name or getattr(field, "name", "") or type(field).__name__)


def _names(question: _Question) -> Iterator[tuple[str, str]]:
    if question.field.column_name:
        yield "column", question.field.column_name
    if question.model is not None and question.model._meta.sorted_fields[0] is question.field:
        yield "table", question.model._meta.table_name


def _type(question: _Question) -> Iterator[str]:
    """Types of one engine are unknown to the others; SQLite takes any name, but not every value."""
    engine, text = question.engine, question.text
    is_array = text.endswith("]")
    if engine in _MYSQL and (is_array or text.startswith((*_POSTGRES_ONLY, "ANY"))):
        yield f"{engine} has no type {text} (1064, 4161 on MariaDB): use JSONField, TextField or DateTimeField"
    if engine == "sqlite" and (is_array or text.startswith(("HSTORE", "INTERVAL"))):
        yield f"sqlite declares {text}, but its driver takes no such value: use JSONField or TextField"
    if engine == "postgres" and text.startswith("ANY"):
        yield "postgres has no type ANY for columns (42601): name the type"
    if engine != "sqlite" and not text:
        yield f"{engine} has no columns without a type: only sqlite takes a {type(question.field).__name__}"
    if engine != "postgres" and "AS IDENTITY" in text:
        yield f"{engine} has no identity columns: use AutoField"


def _characters(question: _Question) -> Iterator[str]:
    kind, length = question.column.kind, question.column.length
    if kind not in ("char", "varchar"):
        return
    limit = question.limit(f"max_{kind}")
    if question.engine in _MYSQL and length is None:
        yield f"{question.engine} refuses a VARCHAR without a length (1064): name one, or use TextField"
    if limit is not None and length is not None and length > limit:
        code = "22023" if question.engine == "postgres" else "1074"
        yield f"{question.engine} refuses {question.text}: over {limit} characters ({code}): use TextField"


def _decimal(question: _Question) -> Iterator[str]:
    engine, column = question.engine, question.column
    if column.kind != "decimal":
        return
    digits, scale = column.length or 0, column.scale or 0
    most, scale_most = question.limit("max_decimal_digits"), question.limit("max_decimal_scale")
    if most is not None and digits > most:
        yield f"{engine} refuses {question.text}: over {most} digits ({'22023' if engine == 'postgres' else '1426'})"
    if engine in _MYSQL and scale_most is not None and scale > scale_most:
        yield f"{engine} refuses {question.text}: over {scale_most} digits after the point (1425)"
    if engine in _MYSQL and scale > digits:
        yield f"{engine} refuses {question.text}: more digits after the point than in all (1427)"
    if engine == "sqlite" and digits > _SQLITE_DECIMAL_DIGITS:
        yield f"sqlite keeps {question.text} as a double, sure of {_SQLITE_DECIMAL_DIGITS} digits: use TextField"


def _precision(question: _Question) -> Iterator[str]:
    engine, column = question.engine, question.column
    if engine in _MYSQL and column.kind in ("datetime", "timestamp", "time") and column.length == 0:
        how = "rounds" if engine == "mysql" else "cuts"
        yield f"{engine} {how} {question.text} to whole seconds: use a field whose type is {question.text}(6)"
    if engine != "sqlite" and column.kind == "float":
        yield f"{engine} keeps {question.text} to about 7 digits, a float of Python has 15: use DoubleField"


def _default(question: _Question) -> Iterator[str]:
    """MySQL 8.4 manual, "Data Type Default Values": a literal is refused on these types, an expression is not.

    A field's own default is no matter: ``DataBaseModel`` and the migrators write it as an expression.
    """
    field = question.field
    if question.engine != "mysql" or not question.column.kind.endswith(("text", "blob", "json")):
        return
    written = [part.sql for part in field.constraints or () if isinstance(part, peewee.SQL)]
    if any(_LITERAL_DEFAULT.match(sql) for sql in written):
        yield f"mysql refuses a literal DEFAULT on {question.text} (1101): put it in parentheses"


def _sequence(question: _Question) -> Iterator[str]:
    if question.engine != "postgres" and question.field.sequence:
        yield f"{question.engine} does not read peewee's NEXTVAL('{question.field.sequence}'): use AutoField"


def _row(question: _Question) -> Iterator[str]:
    """The row's limit is told of its longest column, once a table."""
    limit, model = question.limit("max_row_bytes"), question.model
    if question.engine not in _MYSQL or model is None or limit is None:
        return
    fields = model._meta.sorted_fields
    sizes = [_stored_bytes(field, question.engine) for field in fields]
    total = sum(sizes) + (sum(bool(field.null) for field in fields) + 7) // 8
    if total > limit and fields[sizes.index(max(sizes))] is question.field:
        yield (
            f"{question.engine} refuses the row of {model._meta.table_name!r}: {total} bytes in utf8mb4, the limit is"
            f" {limit} (1118): make {question.field.name!r} a TextField"
        )


def _stored_bytes(field: peewee.Field, engine: Engine) -> int:
    column = parse_type(field_type_text(field, _writer(engine)), engine)
    size = _key_bytes(column)
    if column.kind in ("varchar", "varbinary"):
        return size + (1 if size < 2**8 else 2)
    return size


def _key_bytes(column: ColumnType) -> int:
    length = column.length or 0
    if column.kind in ("char", "varchar"):
        return length * _UTF8_BYTES
    if column.kind in ("binary", "varbinary"):
        return length
    if column.kind == "decimal":
        whole, fraction = length - (column.scale or 0), column.scale or 0
        return sum(digits // 9 * 4 + (digits % 9 + 1) // 2 for digits in (whole, fraction))
    return _MYSQL_BYTES.get(column.kind, 0) + (length + 1) // 2  # the fraction of a second, two digits a byte


def _index(question: _Question) -> Iterator[str]:
    engine, limit = question.engine, question.limit("max_index_bytes")
    if engine not in _MYSQL or limit is None:
        return
    for what, fields in _keys(question):
        columns = [parse_type(field_type_text(field, _writer(engine)), engine) for field in fields]
        names = ", ".join(repr(_column_name(field)) for field in fields)
        if _without_length(engine, what, columns):
            yield f"{engine} refuses the {what} on {names}: {question.text} has no length (1170, JSON 3152)"
        elif sum(map(_key_bytes, columns)) > limit and _too_long(engine, what, columns):
            yield f"{engine} refuses the {what} on {names}: over {limit} bytes in utf8mb4 (1071)"


def _without_length(engine: Engine, what: str, columns: list[ColumnType]) -> bool:
    endless = any(column.kind.endswith(("text", "blob", "json")) for column in columns)
    return endless and (engine == "mysql" or what == "primary key")


def _too_long(engine: Engine, what: str, columns: list[ColumnType]) -> bool:
    # MariaDB hashes a long unique key since 10.4, and takes the beginning of a long column that is indexed alone.
    return engine == "mysql" or what == "primary key" or (what == "index" and len(columns) > 1)


def _keys(question: _Question) -> Iterator[tuple[_What, list[peewee.Field]]]:
    """Yield the field's own key, and the composite ones that begin with it."""
    field, model = question.field, question.model
    if field.primary_key:
        yield "primary key", [field]
    elif field.unique:
        yield "unique index", [field]
    elif field.index:
        yield "index", [field]
    if model is None:
        return
    entries = [entry for entry in model._meta.indexes if not isinstance(entry, peewee.Node)]
    named: list[tuple[_What, Any]] = [("unique index" if unique else "index", parts) for parts, unique in entries]
    if isinstance(model._meta.primary_key, peewee.CompositeKey):
        named.append(("primary key", model._meta.primary_key.field_names))
    for what, parts in named:
        fields = [model._meta.combined[part] for part in parts if isinstance(part, str)]
        if fields and fields[0] is field:
            yield what, fields


def _index_type(question: _Question) -> Iterator[str]:
    kind = question.field.index_type
    if not kind or not (question.field.index or question.field.unique):
        return
    if question.engine == "sqlite" or (question.engine in _MYSQL and kind.upper() not in _MYSQL_INDEX_TYPES):
        yield f"{question.engine} has no index of type {kind}: leave index_type out, or the index"


_CHECKS: tuple[Callable[[_Question], Iterator[str]], ...] = (
    _name,
    _type,
    _characters,
    _decimal,
    _precision,
    _default,
    _sequence,
    _row,
    _index,
    _index_type,
)
