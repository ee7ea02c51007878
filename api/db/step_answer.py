"""What a statement answered, as text that is stored with its step, and back: a resume replays it."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

MOST_ROWS = 1_000
MOST_CHARACTERS = 1_000_000

KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "decimal": (Decimal, str, Decimal),
    "datetime": (dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),
    "date": (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    "time": (dt.time, dt.time.isoformat, dt.time.fromisoformat),
    "timedelta": (dt.timedelta, lambda it: (it.days, it.seconds, it.microseconds), lambda parts: dt.timedelta(*parts)),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "tuple": (tuple, lambda it: [_plain(each) for each in it], lambda it: tuple(_value(each) for each in it)),
    "dict": (dict, lambda it: {key: _plain(each) for key, each in it.items()}, lambda it: _values(it)),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a cursor tells after a statement: rows *touched*, the last id, and what RETURNING gave.

    *rows* is ``None`` where they are too many to be kept, or of a type that is not known here.
    """

    touched: int = -1
    last_id: int | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] | None = ()

    def text(self) -> str:
        """Return the answer as JSON, its rows left out where they cannot be kept."""
        rows: Any = None
        if self.rows is not None and len(self.rows) <= MOST_ROWS:
            try:
                rows = [[_plain(value) for value in row] for row in self.rows]
            except TypeError:
                rows = None
        text = json.dumps([self.touched, self.last_id, self.columns, rows])
        return text if len(text) <= MOST_CHARACTERS else json.dumps([self.touched, self.last_id, self.columns, None])

    @classmethod
    def read(cls, text: str | None) -> Answer:
        """Return the answer that *text* says; that of a statement which tells nothing where there is none."""
        if text is None:
            return cls()
        touched, last_id, columns, rows = json.loads(text)
        kept = None if rows is None else tuple(tuple(_value(value) for value in row) for row in rows)
        return cls(touched, last_id, tuple(columns), kept)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, memoryview | bytearray):
        value = bytes(value)
    for kind, (type_, plain, _) in KINDS.items():
        if type(value) is type_:
            return {kind: plain(value)}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(each) for each in plain]
    if isinstance(plain, dict):
        ((kind, text),) = plain.items()
        return KINDS[kind][2](text)
    return plain


def _values(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: _value(each) for key, each in plain.items()}
