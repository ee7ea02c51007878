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
from api.db.pool_dialling import dial
from api.db.pool_gate import ConnectPostponed, Gate, without_frames
from api.db.pool_numbers import CloseReason, Counters, Link
from api.db.pool_queue import Place, Slots
from api.logs import one_line

LIFETIME_JITTER = 0.1
# Looking at a socket lets another thread run: among 16 of them that costs a tenth of the throughput.
JUST_RETURNED_S = 0.001
ERROR_LIMIT = 200


class OpeningPool(PooledDatabase):
    """The half of the pool that talks to the server, never with a lock held. Whoever asks has a slot.

    A connection taken from the idle ones or opened is its *place*'s before anything can go wrong with it.

    The connection returned last is lent first. One returned less than *validate_after_s* ago, on which nothing
    has come in since, is taken to live, and less than a millisecond ago without a look; any other must answer
    first, within the connect timeout. playhouse's ``stale_timeout`` is the age a connection may reach, less up to a
    tenth, so that what was opened together is not replaced together.
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
        # Of the place that the pool leads to; init() begins another.
        self._era = 0

    def _take_idle(self, place: Place) -> bool:
        """Give *place* the idle connection returned last that is young enough and lives; False if there is none."""
        began_s = now_s = time.monotonic()
        while self._pop_idle(place):
            link = place.link
            if now_s >= link.expires_s:
                self._drop(place, "stale")
            elif self._is_taken_to_live(link, now_s - link.returned_s) or self._answers(place):
                return True
            now_s = time.monotonic()
            if now_s - began_s >= private.answer_limit_of(self):
                # Not one more: the caller has waited for as long as a connect may take.
                error = peewee.OperationalError(silence := no_answer(link.connection), *silence.args)
                self._count_failure(error, began_s)
                raise error
        return False

    def _is_taken_to_live(self, link: Link, idle_s: float) -> bool:
        return idle_s < self._validate_after_s and (idle_s < JUST_RETURNED_S or link.is_quiet())

    def _pop_idle(self, place: Place) -> bool:
        with self._slots.lock:
            if not self._idle:
                return False
            place.link = self._idle[-1]
            del self._idle[-1]
            return True

    def _answers(self, place: Place) -> bool:
        """Say whether the connection of *place* answers; close it if not."""
        is_closed = True
        try:
            is_closed = self._is_closed(place.link.connection)
        finally:
            # Also when it was broken off in the middle of the answer.
            if is_closed:
                self._drop(place, "lost")
        return not is_closed

    def _dial(self, place: Place) -> None:
        """Give *place* a new connection."""
        refuse_late_patch()
        began_s, era = time.monotonic(), self._era
        try:
            self._pass_the_gate(began_s)
            with peewee.__exception_wrapper__:
                connection = dial(self)
            self._welcome(place, connection, began_s, era)
        except ConnectPostponed:
            raise
        except BaseException as exc:
            try:
                if isinstance(exc, Exception):
                    self._count_failure(exc, began_s)
            finally:
                with self._slots.lock:
                    self._gate.gave_up(began_s)
            raise

    def _welcome(self, place: Place, connection: Any, began_s: float, era: int) -> None:
        now_s = time.monotonic()
        lifetime_s = private.lifetime_of(self) * random.uniform(1 - LIFETIME_JITTER, 1)
        link = Link(connection, now_s + lifetime_s, listener(connection), era)
        with self._slots.lock:
            place.link = link
            self._counters.created += 1
            self._gate.succeeded()
            self._counters.create.record(now_s - began_s)

    def _pass_the_gate(self, now_s: float) -> None:
        with self._slots.lock:
            refusal = self._gate.ask(now_s)
            self._counters.postponed += refusal is not None
        if refusal is not None:
            raise refusal from refusal.last

    def _count_failure(self, error: Exception, began_s: float) -> None:
        now_s = time.monotonic()
        with self._slots.lock:
            self._counters.connect_errors += 1
            self._counters.last_failure = (one_line(str(error), ERROR_LIMIT), now_s)
            # A file has no queue at its door.
            if not isinstance(self, peewee.SqliteDatabase):
                self._gate.failed(without_frames(error), began_s, now_s)

    def _drop(self, place: Place, reason: CloseReason) -> None:
        """Close the connection of *place*, which nobody has borrowed."""
        link, place.link = place.link, None
        try:
            private.hang_up(self, link.connection)
        finally:
            with self._slots.lock:
                self._counters.closed[reason] += 1
