"""Getting an open connection: an idle one that lives, else a new one; and closing those that nobody has."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Any

import peewee
from playhouse.pool import PooledDatabase

from api.db import pool_private as private
from api.db.dialects.answering import listener, no_answer
from api.db.dialects.green import refuse_late_patch
from api.db.pool_gate import Gate
from api.db.pool_numbers import CloseReason, Counters, Link
from api.db.pool_queue import Slots
from api.logs import one_line

LIFETIME_JITTER = 0.1
ERROR_LIMIT = 200


class OpeningPool(PooledDatabase):
    """The half of the pool that talks to the server, never with a lock held. Whoever asks has a slot.

    The connection returned last is lent first. One returned less than *validate_after_s* ago, on which nothing
    has come in since, is taken to live; any other must answer first, within the connect timeout. playhouse's
    ``stale_timeout`` is the age a connection may reach, less up to a tenth, so that what was opened together is
    not replaced together.
    """

    def __init__(self, *args: Any, validate_after_s: float = 0.5, **kwargs: Any) -> None:
        self._validate_after_s = validate_after_s
        self._begin_anew()
        super().__init__(*args, **kwargs)

    def _begin_anew(self) -> None:
        self._slots = Slots()
        self._idle: deque[Link] = deque()
        self._counters = Counters()
        self._gate = Gate()

    def _open_link(self) -> Link:
        """Return an idle or a new connection for this thread's slot; give the slot up where that fails."""
        try:
            return self._idle_link() or self._dial()
        except BaseException:
            with self._slots.lock:
                self._slots.give()
            raise

    def _idle_link(self) -> Link | None:
        """Return the idle connection returned last that is young enough and lives, or None."""
        began_s = now_s = time.monotonic()
        while (link := self._pop_idle()) is not None:
            if now_s >= link.expires_s:
                self._discard(link, "stale")
            elif self._lives(link, now_s):
                return link
            now_s = time.monotonic()
            if now_s - began_s >= private.answer_limit_of(self):
                # Not one more: the caller has waited for as long as a connect may take.
                error = peewee.OperationalError(silence := no_answer(link.connection), *silence.args)
                self._count_failure(error, began_s)
                raise error
        return None

    def _pop_idle(self) -> Link | None:
        with self._slots.lock:
            return self._idle.pop() if self._idle else None

    def _lives(self, link: Link, now_s: float) -> bool:
        """Say whether *link* may be lent; close it if not."""
        if now_s - link.returned_s < self._validate_after_s and link.is_quiet():
            return True
        is_closed = True
        try:
            is_closed = self._is_closed(link.connection)
        finally:
            # Also when it was broken off in the middle of the answer.
            if is_closed:
                self._discard(link, "lost")
        return not is_closed

    def _dial(self) -> Link:
        refuse_late_patch()
        began_s = time.monotonic()
        self._pass_the_gate(began_s)
        try:
            with peewee.__exception_wrapper__:
                connection = private.dial(self)
        except Exception as exc:
            self._count_failure(exc, began_s)
            raise
        except BaseException:
            with self._slots.lock:
                self._gate.gave_up(began_s)
            raise
        now_s = time.monotonic()
        with self._slots.lock:
            self._counters.created += 1
            self._counters.create.record(now_s - began_s)
            self._gate.succeeded()
        lifetime_s = private.lifetime_of(self) * random.uniform(1 - LIFETIME_JITTER, 1)
        return Link(connection, now_s + lifetime_s, listener(connection))

    def _pass_the_gate(self, now_s: float) -> None:
        with self._slots.lock:
            refusal = self._gate.ask(now_s)
        if refusal is not None:
            raise refusal from refusal.last

    def _count_failure(self, error: Exception, began_s: float) -> None:
        with self._slots.lock:
            self._counters.connect_errors += 1
            self._counters.last_connect_error = one_line(str(error), ERROR_LIMIT)
            # A file has no queue at its door.
            if not isinstance(self, peewee.SqliteDatabase):
                self._gate.failed(error, began_s, time.monotonic())

    def _discard(self, link: Link, reason: CloseReason) -> None:
        """Close a connection that nobody has."""
        private.hang_up(self, link.connection)
        with self._slots.lock:
            self._counters.closed[reason] += 1
