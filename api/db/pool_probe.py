"""Asking the server, apart from the pool, whether it still takes connections; off unless switched on."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import peewee

from api.db import pool_private as private
from api.db.dialects.connecting import connect_failure
from api.db.pool_dialling import dial
from api.db.pool_lines import Line, probe_line
from api.db.pool_numbers import PoolSnapshot


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to a probe: nothing wrong, or the *reason*, its *code*, and the *hint* for it."""

    reason: str | None = None
    code: int | str | None = None
    hint: str | None = None


class Probe:
    """Connects every *every_s* seconds from a thread of its own, and hangs up; never when that is None.

    A connect is the question: it needs the server's answer, and the connect timeout ends it, which would not end a
    query. The pool's slots stay untouched; of the server's own limit a probe takes one connection for a moment.
    """

    def __init__(self, every_s: float | None) -> None:
        self._every_s = every_s
        self._asked_s = -float("inf")
        self._thread: threading.Thread | None = None
        self._answer = self._said = Answer()

    def look(self, database: peewee.Database, seen: PoolSnapshot, now_s: float) -> list[Line]:
        """Return a line if the server's answer has changed, and ask anew when it is time and nobody asks."""
        if self._every_s is None:
            return []
        answer, before, self._said = self._answer, self._said, self._answer
        is_asking = self._thread is not None and self._thread.is_alive()
        if not is_asking and now_s - self._asked_s >= self._every_s:
            self._asked_s = now_s
            self._thread = threading.Thread(target=self._ask, args=(database,), name="pool-probe", daemon=True)
            self._thread.start()
        return [] if answer == before else [probe_line(seen, answer.reason, answer.code, answer.hint)]

    def _ask(self, database: peewee.Database) -> None:
        try:
            connection = dial(database)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the answer
            failure = connect_failure(exc, database)
            self._answer = Answer(failure.reason, failure.code, failure.hint)
        else:
            private.hang_up(database, connection)
            self._answer = Answer()
