"""Which column type of one engine keeps whatever a column type of another engine keeps.

The rule is that nothing is lost: the answer is the smallest type that holds every value of the source's type,
or an error. SQLite's INTEGER and REAL are read as 64 bits, for peewee declares all its integers and floats so;
the lengths that SQLite's declarations name are believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from api.db.dialects import mysql, postgres, sqlite
from api.db.dialects.capabilities import CAPABILITIES, known_engine
from api.db.dialects.engine import ENGINES, Engine
from api.db.dialects.types import ColumnType, Fit, compare_types, parse_type
from api.exceptions import UnsafeOperationError

_COLUMN_TYPES: dict[Engine, dict[str, str]] = {
    "postgres": postgres.COLUMN_TYPES,
    "mysql": mysql.COLUMN_TYPES,
    "mariadb": mysql.COLUMN_TYPES,
    "sqlite": sqlite.COLUMN_TYPES,
}
_TYPE_NAMES: dict[Engine, dict[str, str]] = {
    "postgres": postgres.TYPE_NAMES,
    "mysql": mysql.TYPE_NAMES,
    "mariadb": mysql.MARIADB_TYPE_NAMES,
    "sqlite": sqlite.TYPE_NAMES,
}
# MySQL's TIMESTAMP is a moment, as is PostgreSQL's timestamptz; its DATETIME a clock's reading, as is timestamp.
_PORTABLE: dict[Engine, dict[str, str]] = {
    "postgres": {"timestamp": "datetime", "timestamptz": "instant", "jsonb": "json"},
    "mysql": {"timestamp": "instant", "year": "smallint"},
    "mariadb": {"timestamp": "instant", "year": "smallint"},
    "sqlite": {"timestamptz": "instant", "jsonb": "json"},
}
_INTEGERS = ("tinyint", "smallint", "mediumint", "integer", "bigint")
_SERIALS = {"smallint": "SMALLSERIAL", "integer": "SERIAL", "bigint": "BIGSERIAL"}
_COUNTED = re.compile(r"\b(small|big)?serial[248]?\b|\bauto_?increment\b|\bas identity\b", re.IGNORECASE)
_DOUBLE_DIGITS = 15  # SQLite turns a longer decimal into a double, which is sure of 15 digits

PEEWEE_TYPES: dict[str, ColumnType] = {
    "AUTO": ColumnType("integer", text="AUTO_INCREMENT"),
    "BIGAUTO": ColumnType("bigint", text="AUTO_INCREMENT"),
    "BIGINT": ColumnType("bigint"),
    "BLOB": ColumnType("blob"),
    "BOOL": ColumnType("boolean"),
    "CHAR": ColumnType("char", 1),
    "DATE": ColumnType("date"),
    "DATETIME": ColumnType("datetime", 6),
    "DECIMAL": ColumnType("decimal", 10, 5),
    "DOUBLE": ColumnType("double"),
    "FLOAT": ColumnType("float"),
    "INT": ColumnType("integer"),
    "JSON": ColumnType("json"),
    "JSONB": ColumnType("json"),
    "SMALLINT": ColumnType("smallint"),
    "TEXT": ColumnType("text"),
    "TIME": ColumnType("time", 6),
    "TIMESTAMPTZ": ColumnType("instant", 6),
    "UUID": ColumnType("uuid"),
    "UUIDB": ColumnType("varbinary", 16),
    "VARCHAR": ColumnType("varchar", 255),
}
"""A peewee ``field_type`` -> what it keeps; for names that the source's engine has no type of."""


def get_equivalent_type(field_type: str, source_db: str, target_db: str) -> str:
    """Return the column type of *target_db* that keeps whatever *field_type* keeps on *source_db*.

    *field_type* is a column type of *source_db* (``VARCHAR(255)``, ``tinyint(1)``, ``JSONB``) or a peewee
    ``field_type`` (``AUTO``, ``UUIDB``). ``ValueError`` is raised for a name that neither knows,
    and ``UnsafeOperationError`` when no type of *target_db* keeps every value.
    """
    source, target = known_engine(source_db), known_engine(target_db)
    column = parse_type(field_type, source)
    if not _is_known(column, source):
        column = _peewee_type(field_type, source)
    elif source == target:
        return field_type
    return _Writer(target, field_type, source).write(_portable(column, source))


def _is_known(column: ColumnType, source: Engine) -> bool:
    if column.kind == "varchar" and column.length is None and source in ("mysql", "mariadb"):
        return False
    return column.kind.removesuffix("[]") in _TYPE_NAMES[source].values() or "(" in column.kind


def _peewee_type(name: str, source: Engine) -> ColumnType:
    found = PEEWEE_TYPES.get(name.strip().upper())
    if found is None:
        known = [*_TYPE_NAMES[source], *(word.lower() for word in PEEWEE_TYPES)]
        near = get_close_matches(name.split("(")[0].strip().lower(), known, n=1, cutoff=0.4)
        also = f": did you mean {near[0].upper()!r}?" if near else ""
        raise ValueError(f"{name!r} is neither a column type of {source} nor a field_type of peewee{also}")
    return found


def _portable(column: ColumnType, source: Engine) -> ColumnType:
    kind = _PORTABLE[source].get(column.kind, column.kind)
    if source == "sqlite" and kind in _INTEGERS:
        return replace(column, kind="bigint", unsigned=False)
    if source == "sqlite" and kind == "float":
        kind = "double"
    if source == "sqlite" and kind in ("time", "datetime", "instant"):
        return replace(column, kind=kind, length=6)
    if source in ("postgres", "sqlite") and kind in ("text", "blob"):
        return replace(column, kind="long" + kind)
    if kind == "varchar" and column.length is None:
        return replace(column, kind="longtext")
    return replace(column, kind=kind)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes types of the *target*; *asked* and *source* are for its errors."""

    target: Engine
    asked: str
    source: Engine

    def write(self, column: ColumnType) -> str:
        kind = column.kind
        if kind in _INTEGERS:
            return self._integer(column)
        if kind == "decimal":
            return self._decimal(column)
        if kind in ("char", "varchar"):
            return self._characters(column)
        if kind.endswith(("text", "blob", "binary")):
            return self._long(column)
        if kind in ("time", "datetime", "instant"):
            return self._moment(column)
        if self.target == "sqlite" and kind == "float":
            kind = "double"
        if kind in _COLUMN_TYPES[self.target]:
            return _COLUMN_TYPES[self.target][kind]
        if {self.source, self.target} == {"mysql", "mariadb"}:
            return self.asked
        raise self._refusal("keep it as JSON, or as TEXT")

    def _integer(self, column: ColumnType) -> str:
        unsigned = column.unsigned and self.target in ("mysql", "mariadb")
        for kind in _INTEGERS:
            wide = ColumnType(kind, unsigned=unsigned)
            fits = compare_types(column, wide, "mysql") in (Fit.SAME, Fit.SHORTER)
            if fits and kind in _COLUMN_TYPES[self.target]:
                return self._counted(kind, unsigned=unsigned, counted=bool(_COUNTED.search(column.text)))
        if self.target == "postgres" and not _COUNTED.search(column.text):
            return "NUMERIC(20, 0)"
        raise self._refusal("keep it as TEXT, or narrow it to a signed BIGINT first")

    def _counted(self, kind: str, *, unsigned: bool, counted: bool) -> str:
        if counted and self.target == "postgres":
            return _SERIALS[kind]
        words = [_COLUMN_TYPES[self.target][kind]]
        words += ["UNSIGNED"] if unsigned else []
        words += ["AUTO_INCREMENT"] if counted and self.target != "sqlite" else []
        return " ".join(words)

    def _decimal(self, column: ColumnType) -> str:
        name = _COLUMN_TYPES[self.target]["decimal"]
        most, scale_most = self._limit("max_decimal_digits"), self._limit("max_decimal_scale")
        if self.target == "sqlite":
            most = scale_most = _DOUBLE_DIGITS
        if column.length is None and self.target == "postgres":
            return name
        scale = column.scale or 0
        digits = max(column.length or most + 1, scale)
        if digits > most or not 0 <= scale <= scale_most:
            raise self._refusal(f"name at most {most} digits, {scale_most} of them after the point, or use TEXT")
        return f"{name}({digits}, {scale})"

    def _characters(self, column: ColumnType) -> str:
        length = column.length or 1
        for kind in ("char", "varchar") if column.kind == "char" else ("varchar",):
            if length <= self._limit("max_" + kind):
                return f"{_COLUMN_TYPES[self.target][kind]}({length})"
        return self._long(ColumnType("mediumtext" if length * 4 < 2**24 else "longtext"))

    def _long(self, column: ColumnType) -> str:
        if self.target in ("mysql", "mariadb"):
            size = f"({column.length})" if column.kind.endswith("binary") else ""
            return _COLUMN_TYPES[self.target][column.kind] + size
        return _COLUMN_TYPES[self.target]["text" if column.kind.endswith("text") else "blob"]

    def _moment(self, column: ColumnType) -> str:
        name = _COLUMN_TYPES[self.target][column.kind]
        usual = {"postgres": 6, "mysql": 0, "mariadb": 0, "sqlite": column.length}[self.target]
        return name if column.length == usual else f"{name}({column.length})"

    def _limit(self, capability: str) -> int:
        value = CAPABILITIES[self.target][capability]
        return value if isinstance(value, int) else 2**31

    def _refusal(self, remedy: str) -> UnsafeOperationError:
        return UnsafeOperationError(
            f"no column type of {self.target} keeps every value of {self.asked!r} of {self.source}", hint=remedy
        )


def equivalence_table() -> str:
    """Return the column type that each peewee ``field_type`` becomes on each engine, as Markdown."""
    head = [f"| field_type | {' | '.join(ENGINES)} |", "|---|" + "---|" * len(ENGINES)]
    rows = [
        f"| `{name}` | {' | '.join(f'`{_written(name, engine)}`' for engine in ENGINES)} |" for name in PEEWEE_TYPES
    ]
    return "\n".join(head + rows)


def _written(name: str, engine: Engine) -> str:
    return _Writer(engine, name, engine).write(PEEWEE_TYPES[name])
