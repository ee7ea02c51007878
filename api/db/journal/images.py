"""Images of rows: each value as a literal that gives back exactly what stood, whatever the session's settings.

An image is made from what the server says of a value, and is plain ASCII but for nothing: texts and bytes are hex.
Generated columns have no image, the server computes them. The values of one row are compared literal by literal, so
that neither a collation nor a rounding hides a difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from api.db.journal.link import Link, name
from api.db.journal.steady import settings
from api.exceptions import StatementRefusedError

Row: TypeAlias = dict[str, str]
Key: TypeAlias = tuple[str, ...]

KEYS_A_STATEMENT = 500
NULL = "NULL"
# MariaDB's HEX answers NULL, with a warning, where its text would pass max_allowed_packet (10.11; MySQL 9.7 does not).
TOO_LONG = "!"

NUMBER = ("CAST({} AS CHAR)", "{}")
TEXT = ("CAST({} AS CHAR)", "'{}'")
BYTES = ("IF({0} IS NULL, NULL, COALESCE(HEX({0}), '!'))", "x'{}'")
STRING = (BYTES[0], "_{charset} x'{}'")
# A FLOAT prints 6 digits and a CAST of a DOUBLE 22 characters, both too few (MySQL 9.7); the protocol sends them all.
REAL = ("{} * 1e0", "{}")
SHAPES = (
    *("geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon"),
    *("geometrycollection", "geomcollection"),
)
# How a value is read, and what its literal looks like, by information_schema's data_type.
FORMS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "decimal"), NUMBER),
    **dict.fromkeys(("float", "double"), REAL),
    # By number: an ENUM may hold '' as its error value, number 0, and as a member.
    **dict.fromkeys(("bit", "enum"), ("CAST({} + 0 AS CHAR)", "{}")),
    **dict.fromkeys(("date", "datetime", "time", "year", "uuid", "inet4", "inet6"), TEXT),
    "timestamp": ("CAST(UNIX_TIMESTAMP({}) AS CHAR)", "FROM_UNIXTIME({})"),
    # PAD_CHAR_TO_FULL_LENGTH would add what is not stored.
    "char": (BYTES[0].replace("{0}", "RTRIM({0})"), STRING[1]),
    **dict.fromkeys(("varchar", "tinytext", "text", "mediumtext", "longtext", "set"), STRING),
    "json": (BYTES[0].replace("{0}", "CONVERT({0} USING utf8mb4)"), "_utf8mb4 x'{}'"),
    **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), BYTES),
    # The server's own form, as mysqldump writes it: SRID and WKB, or the numbers of a vector.
    **dict.fromkeys((*SHAPES, "vector"), BYTES),
}
# Nothing of the session's may bend a value or leave out a row: zero dates, 0 in an AUTO_INCREMENT and 30 February
# are kept, an hour that a time zone has twice is two, and LIMIT is what we say.
EXACT: dict[str, Any] = {
    "sql_mode": "NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES",
    "time_zone": "+00:00",
    "sql_select_limit": 2**64 - 1,
    "foreign_key_checks": 1,
    "unique_checks": 1,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column that has an image. One that is *stamped* is set by the server at every UPDATE (ON UPDATE)."""

    name: str
    kind: str
    charset: str | None
    stamped: bool

    def read(self, alias: str) -> str:
        """Return the expression that reads the column of the table named *alias*."""
        return FORMS[self.kind][0].format(f"{name(alias)}.{name(self.name)}")

    def literal(self, value: Any) -> str:
        """Return what was read as a literal. Raises ``StatementRefusedError`` when it is too long for one."""
        if value is None:
            return NULL
        if isinstance(value, float):
            text = repr(value)
            # Without an exponent it would be a decimal.
            return text if "e" in text else f"{text}e0"
        if value == TOO_LONG:
            raise StatementRefusedError(
                f"a value of {self.name!r} is longer than half of max_allowed_packet, so no copy of it can be kept",
                hint="raise max_allowed_packet on the server, or set `atomic = False` in the migration's file",
            )
        if value == "" and self.kind in SHAPES:
            raise StatementRefusedError(
                f"{self.name!r} holds an empty value, no shape, which no statement can write again",
                hint="UPDATE it to a shape in a migration with `atomic = False`",
            )
        if self.kind == "timestamp" and not float(value):
            return "'0000-00-00 00:00:00'"
        return FORMS[self.kind][1].format(value, charset=self.charset)


@dataclass(frozen=True, slots=True)
class Shape:
    """What an image of *table*'s rows consists of: its *columns*, those of the primary *key* among them."""

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    auto_increment: str | None = None

    def select(self, alias: str | None = None) -> str:
        """Return the expressions that read a row of the table, which the statement names *alias*."""
        return ", ".join(column.read(alias or self.table) for column in self.columns)

    def row(self, values: Sequence[Any]) -> Row:
        """Return the image of the row that was read as *values*."""
        return {column.name: column.literal(value) for column, value in zip(self.columns, values, strict=True)}

    def by_key(self, rows: Sequence[Sequence[Any]]) -> dict[Key, Row]:
        """Return the images of *rows*, by their keys."""
        images = map(self.row, rows)
        return {tuple(image[column] for column in self.key): image for image in images}

    def condition(self, keys: Sequence[Key]) -> str:
        """Return the condition that is true for the rows of *keys*."""
        columns = ", ".join(f"{name(self.table)}.{name(column)}" for column in self.key)
        if len(self.key) == 1:
            return f"{columns} IN ({', '.join(key[0] for key in keys)})"
        values = ", ".join(f"({', '.join(key)})" for key in keys)
        return f"({columns}) IN ({values})"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one row of *table*: from *old* to *new*, each None where the row was not there.

    The values are literals. Of a changed row *old* and *new* hold the columns that differ, of another one all. *key*
    names the row by its primary key.
    """

    table: str
    key: Row
    old: Row | None
    new: Row | None

    def to_json(self) -> str:
        """Return the change as the journal stores it."""
        return json.dumps((self.table, self.key, self.old, self.new), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Change:
        """Return the change that ``to_json`` wrote as *text*."""
        return cls(*json.loads(text))

    def __str__(self) -> str:
        where = ", ".join(f"{column} = {shown(value)}" for column, value in self.key.items())
        return f"{self.table} ({where})"


def shown(literal: str) -> str:
    """Return *literal* as a person reads it: hex becomes text where it is text."""
    before, mark, rest = literal.partition("x'")
    if not mark or before.strip() in ("_ucs2", "_utf16", "_utf16le", "_utf32"):
        return literal
    with suppress(UnicodeDecodeError):
        return repr(bytes.fromhex(rest[:-1]).decode())
    return literal


def find(link: Link, shape: Shape, keys: Sequence[Key]) -> dict[Key, Row]:
    """Read the rows of *keys* as they are now, and lock them and the places of those that are not there.

    Each is returned by the key that was asked for: a row may answer to a key that is written otherwise, ``'a'`` to
    ``'A'``. Call it within ``exact``.
    """
    found: dict[Key, Row] = {}
    for at in range(0, len(keys), KEYS_A_STATEMENT):
        asked = keys[at : at + KEYS_A_STATEMENT]
        rows = _locked(link, shape, asked)
        if not rows.keys() <= set(asked):
            apart = ((key, own, row) for key in asked for own, row in _locked(link, shape, [key]).items())
            rows = {key: row for key, own, row in apart if own == key or own not in asked}
        found |= rows
    return found


def _locked(link: Link, shape: Shape, keys: Sequence[Key]) -> dict[Key, Row]:
    table = f"{name(shape.table)} FORCE INDEX (PRIMARY)"
    sql = f"SELECT {shape.select()} FROM {table} WHERE {shape.condition(keys)} FOR UPDATE"
    return shape.by_key(link.rows(sql))


def exact(link: Link) -> AbstractContextManager[None]:
    """Set the session so that every literal is stored and found as what it says; restore it afterwards."""
    return settings(link, EXACT)
