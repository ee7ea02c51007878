"""Column types as an engine means them: read from a server or a DDL, and compared.

Read are the types that the servers report (PostgreSQL: ``format_type(atttypid, atttypmod)``; MySQL and MariaDB:
``COLUMN_TYPE``; SQLite: ``PRAGMA table_info``) and those of peewee's DDL (``INTEGER AUTO_INCREMENT``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from typing import Any

import peewee

from api.db.dialects import mysql, postgres, sqlite
from api.db.dialects.engine import Engine, unwrap

_NAMES: dict[Engine, dict[str, str]] = {
    "postgres": postgres.TYPE_NAMES,
    "mysql": mysql.TYPE_NAMES,
    "mariadb": mysql.MARIADB_TYPE_NAMES,
    "sqlite": sqlite.TYPE_NAMES,
}
_DEFAULTS: dict[Engine, dict[str, tuple[int | None, int | None]]] = {
    "postgres": postgres.TYPE_DEFAULTS,
    "mysql": mysql.TYPE_DEFAULTS,
    "mariadb": mysql.TYPE_DEFAULTS,
    "sqlite": sqlite.TYPE_DEFAULTS,
}
_PARTS = re.compile(r"(?P<name>[^(]*)(?:\((?P<args>.*)\))?(?P<rest>[^)]*)", re.DOTALL)
_NOT_TYPE = re.compile(
    r"\b(unsigned|signed|zerofill|auto_increment|generated\b.*|character set \S+|charset \S+|collate \S+)",
    re.DOTALL,
)
_BITS = {"tinyint": 8, "boolean": 8, "smallint": 16, "mediumint": 24, "integer": 32, "bigint": 64}
_MANTISSA = {"float": 24, "double": 53}
_BYTES = {"tiny": 2**8 - 1, "": 2**16 - 1, "medium": 2**24 - 1, "long": 2**32 - 1}
_FLOAT4_BITS = 24  # FLOAT(n): up to 24 bits of mantissa are four bytes, on PostgreSQL and MySQL alike
_UTF8_BYTES = 4  # utf8mb4: a character takes up to four bytes


@dataclass(frozen=True, slots=True)
class ColumnType:
    """One column type: its *kind* in our one word for it, its size, and the *text* that was read.

    *length* is characters, bytes, digits or fractional-second digits, by kind; None is none stated, which on
    PostgreSQL means no limit. *scale* is a decimal's digits after the point. An array's kind ends in ``[]``.
    """

    kind: str
    length: int | None = None
    scale: int | None = None
    unsigned: bool = False
    text: str = ""


class Fit(StrEnum):
    """How a live type stands to the wanted one."""

    SAME = "same"
    SHORTER = "shorter"
    LONGER = "longer"
    OTHER = "other"


def parse_type(text: str, engine: Engine) -> ColumnType:
    """Read a column type's *text* as *engine* means it; a name nobody knows is its own kind.

    Display widths are dropped (``int(11)`` is ``integer``), except that MySQL's ``tinyint(1)`` is ``boolean``;
    defaults are filled in (MySQL's ``DECIMAL`` is 10, 0; PostgreSQL's ``timestamp``, 6). Never raises.
    """
    if engine == "postgres" and text.rstrip().endswith("[]"):
        element = parse_type(text.replace("[]", ""), engine)
        return replace(element, kind=element.kind + "[]", text=text)
    parts = _PARTS.fullmatch(text.strip())
    assert parts is not None, "the pattern takes any text"
    args = parts["args"] or ""
    words = f"{parts['name']} {parts['rest']}".lower()
    name = " ".join(_NOT_TYPE.sub(" ", words).split())
    unsigned = bool(re.search(r"\b(unsigned|zerofill)\b", words)) or (name == "serial" and engine != "postgres")
    kind = _kind(name, args, unsigned=unsigned, engine=engine)
    length, scale = _size(kind, args, engine)
    return ColumnType(kind, length, scale, unsigned, text)


def _kind(name: str, args: str, *, unsigned: bool, engine: Engine) -> str:
    kind = _NAMES[engine].get(name, name)
    if engine == "sqlite":
        return kind
    if name == "float" and args.isdecimal():
        return "float" if int(args) <= _FLOAT4_BITS else "double"
    if kind == "tinyint" and args == "1" and not unsigned:
        return "boolean"
    if kind in ("enum", "set"):
        return f"{kind}({args})"
    return kind


def _size(kind: str, args: str, engine: Engine) -> tuple[int | None, int | None]:
    numbers = [int(number) for number in re.findall(r"-?\d+", args)]
    if kind in _MANTISSA and len(numbers) == 2:
        return numbers[0], numbers[1]
    if kind in _BITS or kind in _MANTISSA or "'" in args:
        return None, None
    if not numbers:
        return _DEFAULTS[engine].get(kind, (None, None))
    if kind == "decimal":
        return numbers[0], numbers[1] if len(numbers) > 1 else 0
    return numbers[0], None


@dataclass(frozen=True, slots=True)
class _Extent:
    """What a type may contain at most (*needs*) and is sure to hold (*has*): ranges within one *family*.

    They differ where a limit is in bytes: MySQL's TEXT may contain 65535 characters, and is sure of 16383.
    """

    family: str
    needs: tuple[tuple[float, float], ...]
    has: tuple[tuple[float, float], ...]

    def holds(self, other: _Extent) -> bool:
        """Say whether every value of *other* fits, unchanged."""
        ranges = zip(self.has, other.needs, strict=True)
        return self.family == other.family and all(
            low <= least and most <= high for (low, high), (least, most) in ranges
        )


def compare_types(live: ColumnType, wanted: ColumnType, engine: Engine) -> Fit:
    """Say how *live* stands to *wanted*; both were parsed for the same *engine*.

    SAME: the engine keeps the same values in both. SHORTER: *live* holds less, and widening it loses nothing.
    LONGER: *live* holds all that *wanted* does, and more. OTHER: anything else; so is a decimal's other scale,
    which changes how values round, and a longer BINARY, which MySQL pads with zero bytes.
    """
    if _identity(live, engine) == _identity(wanted, engine):
        return Fit.SAME
    mine, asked = _extent(live, engine), _extent(wanted, engine)
    if mine is None or asked is None:
        return Fit.OTHER
    match mine.holds(asked), asked.holds(mine):
        case True, True:
            return Fit.SAME
        case True, False:
            return Fit.LONGER
        case False, True:
            return Fit.SHORTER
    return Fit.OTHER


def _identity(column: ColumnType, engine: Engine) -> tuple[object, ...]:
    # MariaDB's JSON is an alias: the server reports longtext, with a CHECK (json_valid(...)) beside it.
    kind = "longtext" if engine == "mariadb" and column.kind == "json" else column.kind
    return kind, column.length, column.scale, column.unsigned


def _extent(column: ColumnType, engine: Engine) -> _Extent | None:
    kind = column.kind
    if kind.endswith("[]"):
        element = _extent(replace(column, kind=kind[:-2]), engine)
        return element and replace(element, family=element.family + "[]")
    if kind in _BITS:
        return _integer(column, engine)
    if kind in _MANTISSA and column.length is None:
        return _exactly(f"float {column.unsigned}", (0, _MANTISSA["double" if engine == "sqlite" else kind]))
    if kind == "decimal":
        return _decimal(column)
    if kind in ("char", "time", "timetz", "datetime", "timestamp", "timestamptz"):
        return _exactly(kind, (0, column.length or 0))
    return _string(column, engine)


def _exactly(family: str, *ranges: tuple[float, float]) -> _Extent:
    return _Extent(family, ranges, ranges)


def _integer(column: ColumnType, engine: Engine) -> _Extent:
    # PostgreSQL's boolean is no number; SQLite keeps any integer in 64 bits whatever its column says.
    if engine == "postgres" and column.kind == "boolean":
        return _exactly("boolean")
    bits = 64 if engine == "sqlite" else _BITS[column.kind]
    if column.unsigned:
        return _exactly("integer", (0, 2**bits - 1))
    return _exactly("integer", (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def _decimal(column: ColumnType) -> _Extent:
    family = f"decimal {column.unsigned}"
    if column.length is None:
        return _exactly(family, (0, inf), (-inf, inf))
    scale = column.scale or 0
    return _exactly(family, (0, column.length - scale), (scale, scale))


def _string(column: ColumnType, engine: Engine) -> _Extent | None:
    kind = column.kind
    if kind in ("varchar", "varbinary"):
        limit = inf if column.length is None else column.length
        return _exactly("text" if kind == "varchar" else "blob", (0, limit))
    if not kind.endswith(("text", "blob")):
        return None
    family, bytes_held = kind[-4:], _BYTES.get(kind[:-4])
    if bytes_held is None:
        return None
    if engine in ("postgres", "sqlite"):
        return _exactly(family, (0, inf))
    surely = bytes_held if family == "blob" else bytes_held // _UTF8_BYTES
    return _Extent(family, ((0, bytes_held),), ((0, surely),))


def field_type_text(field: peewee.Field, database: Any) -> str:
    """Return the column type that peewee's DDL writes for *field* on *database*, such as ``VARCHAR(128)``.

    Empty for a ``BareField``, which has no type. A foreign key that is bound to no model yet takes the type
    of its target's primary key. Runs no query.
    """
    if isinstance(field, peewee.ForeignKeyField) and field.rel_field is None:
        target = field.rel_model._meta.primary_key
        return field_type_text(peewee.ForeignKeyField(field.rel_model, field=target), database)
    context: Any = unwrap(database).get_sql_context()
    node = field.ddl_datatype(context)
    return "" if node is None else str(context.sql(node).query()[0])
