"""Bodies and pages as the resources take them; what is wrong is an ``ExecutionError`` that names the field."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import peewee
from flask import request
from flask.typing import ResponseReturnValue
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from werkzeug.exceptions import UnsupportedMediaType

from api.exceptions import ExecutionError

LIMIT_MAX = 100
Answer = ResponseReturnValue
BIGGEST_BIGINT = 2**63 - 1


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold the character NUL, which PostgreSQL cannot store")
    return text


def Text(max_length: int) -> tuple[Any, ...]:  # noqa: N802 - stands where a type's parts stand
    """Return what makes a ``str`` one that is not empty and has at most *max_length* characters."""
    return Field(min_length=1, max_length=max_length), AfterValidator(_without_nul)


# Nine million calls of this size fit the sum, a signed 64-bit integer on SQLite.
Tokens = Annotated[int, Field(ge=0, le=10**12)]


class Body(BaseModel):
    """A request's JSON body: no field is unknown, and no value is of another type than asked."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for: *limit* rows, the newest first, after *offset* of them."""

    limit: int
    offset: int

    def of(self, query: Any) -> list[Any]:
        """Return this page's rows of *query*, newest first; rows of the same moment keep one order."""
        model = query.model
        ordered = query.order_by(model.created_at.desc(), model.id)
        return list(ordered.limit(self.limit).offset(self.offset))


def read_body(kind: type[B]) -> B:
    """Return the request's JSON body as a *kind*; raises ``ExecutionError`` that names fields, never values."""
    if not request.is_json:
        raise UnsupportedMediaType("send the body as JSON, with the header 'Content-Type: application/json'")
    try:
        return kind.model_validate_json(request.get_data() or b"{}")
    except ValidationError as exc:
        problems = "; ".join(_describe(error["loc"], error["msg"]) for error in exc.errors(include_input=False))
    raise ExecutionError(f"the body is not as asked: {problems}")


def _describe(location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in location)
    reason = message.removeprefix("Value error, ").replace("Input should be", "should be", 1)
    return f"{name!r} {reason}" if name else reason


def read_page() -> Page:
    """Return the page the query string asks for: ``limit`` (50, at most 100) and ``offset`` (0)."""
    limit = _number("limit", default=50, lowest=1, highest=LIMIT_MAX)
    return Page(limit, _number("offset", default=0, lowest=0, highest=BIGGEST_BIGINT))


def _number(name: str, *, default: int, lowest: int, highest: int) -> int:
    text = request.args.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and lowest <= int(text) <= highest):
        raise ExecutionError(f"{name!r} should be a number from {lowest} to {highest}, not {text[:32]!r}")
    return int(text)


def as_json(row: peewee.Model, *fields: peewee.Field) -> dict[str, Any]:
    """Return the named *fields* of *row* as JSON takes them: ids and amounts as text, times in ISO 8601."""
    names = [getattr(field, "object_id_name", field.name) for field in fields]
    return {name: _plain(getattr(row, name)) for name in names}


def dollars(amount: Any) -> str:
    """Return *amount* as a decimal string with six places; the noise of SQLite's floating sums is beyond them."""
    return f"{Decimal(str(amount)):.6f}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return dollars(value)
    return str(value) if isinstance(value, uuid.UUID) else value
