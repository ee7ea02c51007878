"""How each engine writes a constant: the literals that stand behind DEFAULT in its DDL."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from typing import Any

import peewee

from api.db.dialects.engine import Engine

# MySQL refuses a literal DEFAULT on these with error 1101 and takes an expression, also that of a constant, since
# 8.0.13 (8.4 manual, 13.6); MariaDB allows both since 10.2.1.
EXPRESSION_ONLY_ON_MYSQL = ("TEXT", "BLOB", "JSON", "GEOMETRY")
# Of X'ff' MariaDB 10.11 keeps the byte itself, which makes SHOW CREATE TABLE a text that no driver can decode.
BYTES: dict[Engine, str] = {"postgres": "'\\x{}'", "mariadb": "unhex('{}')"}


def default_literal(field: peewee.Field, engine: Engine) -> str | None:
    """Return *field*'s constant default as *engine* writes it after DEFAULT, or None.

    None means that the field has no default, that it is a callable, or that the engine cannot keep it. MySQL's is
    in parentheses where its type takes an expression only. The text is plain SQL: a driver that formats with ``%s``
    needs its percent signs doubled (see ``for_driver``).
    """
    if field.default is None or callable(field.default):
        return None
    text = literal(stored_value(field), engine)
    return f"({text})" if text and not takes_literal_default(field, engine) else text


def takes_literal_default(field: peewee.Field, engine: Engine) -> bool:
    """Say whether *engine* takes a literal DEFAULT for *field*'s type, or an expression only."""
    return engine != "mysql" or not str(field.field_type).upper().endswith(EXPRESSION_ONLY_ON_MYSQL)


def with_constant_default(field: peewee.Field) -> peewee.Field:
    """Return a copy of *field* whose default is a constant: a callable default is called, once."""
    constant = field.clone()
    constant.default = field.default() if callable(field.default) else field.default
    return constant


def with_server_default(field: peewee.Field, engine: Engine) -> peewee.Field:
    """Return a copy of *field* whose DDL says its constant default; *field* itself when there is none to say.

    Only a NOT NULL column needs the server to know it: an INSERT that does not name a nullable one leaves NULL there,
    as peewee does on every engine. A DEFAULT that is written among the field's constraints stays the only one.
    """
    text = default_literal(field, engine)
    if field.null or text is None or says_default(field):
        return field
    described = field.clone()
    described.constraints = [peewee.SQL(f"DEFAULT {for_driver(text, engine)}"), *(field.constraints or ())]
    return described


def says_default(field: peewee.Field) -> bool:
    """Say whether a DEFAULT was written by hand among *field*'s constraints."""
    written = (constraint.sql for constraint in field.constraints or () if isinstance(constraint, peewee.SQL))
    return any(sql.lstrip().upper().startswith("DEFAULT") for sql in written)


def stored_value(field: peewee.Field) -> Any:
    """Return *field*'s default as the database stores it; works on a field that no model holds yet."""
    if isinstance(field.default, bytes | bytearray | memoryview):
        return bytes(field.default)
    if isinstance(field, peewee.BlobField):
        # Only a model's field knows its driver's class for bytes; plain bytes are good for every driver.
        unbound = field.clone()
        unbound._constructor = bytes
        return unbound.db_value(field.default)
    if field.field_type.upper().startswith("JSON"):
        return json.dumps(field.default)
    return field.db_value(field.default)


def literal(value: Any, engine: Engine) -> str | None:
    """Return *value* as a constant of *engine*'s SQL, or None when no constant says it on every version."""
    if isinstance(value, bool):
        return str(value).upper() if engine == "postgres" else str(int(value))
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, bytes):
        return BYTES.get(engine, "X'{}'").format(value.hex())
    if isinstance(value, str):
        return quoted(str.__str__(value), engine)
    if isinstance(value, datetime.date | datetime.time):
        return quoted(str(value), engine)
    return None


def quoted(text: str, engine: Engine) -> str:
    """Return *text* as a string constant.

    In MySQL and MariaDB a backslash escapes (unless ``NO_BACKSLASH_ESCAPES`` is set, which the layer never
    does); in PostgreSQL and SQLite it is a character like any other.
    """
    if engine in ("mysql", "mariadb"):
        text = text.replace("\\", "\\\\")
    return "'" + text.replace("'", "''") + "'"


def for_driver(sql: str, engine: Engine) -> str:
    """Return *sql* as the driver wants it: psycopg2 and PyMySQL format every statement with ``%``."""
    return sql if engine == "sqlite" else sql.replace("%", "%%")


def _number(value: float | Decimal) -> str | None:
    """Return a finite number without loss and without a type's name; NaN and infinity have no literal."""
    if not math.isfinite(value):
        return None
    return format(value, "f") if isinstance(value, Decimal) else repr(float(value))
