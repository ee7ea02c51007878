"""Slots, and the line before them: how many may hold a connection at once, and who is next."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

LONG_WAIT_S = 1.0


class Place:
    """What one who asks for a connection has got so far: a place in the line, a slot, the *link*, the *borrow*.

    Made before anything is taken: whatever breaks a borrow off, and wherever, this says what to give back.
    """

    __slots__ = ("borrow", "link", "since_s", "wake")

    def __init__(self) -> None:
        self.since_s = time.monotonic()
        self.link: Any = None
        self.borrow: Any = None
        # Who waits sleeps on a lock of its own until the slot is its.
        self.wake: threading.Lock | None = None


class Slots:
    """*limit* slots for connections; who finds none free stands in line, first come, first served.

    A slot that is given up goes to the head of the line and is never free in between, so that nobody who
    comes later can take it. *lock* guards this and whatever the pool keeps beside it, for a few instructions at
    a time; ``take``, ``give`` and ``limit`` are called with it held, ``wait`` without.

    An exception from outside (a signal, a thread or green thread that is told to end) strikes after a call, and
    between two calls not: what belongs together here has none in it.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.lock = threading.Lock()
        self._limit = limit
        self._holders: dict[Place, None] = {}
        self._line: deque[Place] = deque()

    def take(self, place: Place) -> bool:
        """Take a slot for *place* and return True, or let it stand in line, to ``wait``."""
        if len(self._holders) < self._limit and not self._line:
            self._holders[place] = None
            return True
        place.wake = wake = threading.Lock()
        wake.acquire()
        self._line.append(place)
        return False

    def give(self, place: Place) -> None:
        """Give up the slot of *place*, or its place in the line, if it has one; whoever is next is served."""
        try:
            self._holders.pop(place, None)
            if place.wake is not None and place in self._line:
                self._line.remove(place)
        finally:
            if self._line:
                self._serve()

    def limit(self, limit: float) -> None:
        """Let there be *limit* slots from now on; who has one that is too many keeps it."""
        self._limit = limit
        self._serve()

    def _serve(self) -> None:
        while self._line and len(self._holders) < self._limit:
            place = self._line[0]
            del self._line[0]
            self._holders[place] = None
            place.wake.release()  # type: ignore[union-attr]

    def wait(self, place: Place, timeout_s: float, when_long: Callable[[], object]) -> bool:
        """Sleep until *place* has its slot, and return True, or False when it had none within *timeout_s*.

        *when_long* is called once, after a second. Whoever is woken by an exception gives *place* up.
        """
        wake = place.wake
        assert wake is not None
        is_awake = wake.acquire(timeout=min(timeout_s, LONG_WAIT_S))
        if not is_awake and timeout_s > LONG_WAIT_S:
            when_long()
            left_s = timeout_s - LONG_WAIT_S
            wake.acquire(timeout=left_s if left_s < threading.TIMEOUT_MAX else -1)
        with self.lock:
            # Or at the very moment that the time was up.
            if place in self._holders:
                place.wake = None
                return True
            self.give(place)
            return False

    @property
    def taken(self) -> int:
        """How many slots are taken; read without the lock."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """How many stand in line; read without the lock."""
        return len(self._line)

    def oldest_wait_s(self, now_s: float) -> float:
        """Return for how long the head of the line has waited; read without the lock."""
        try:
            return now_s - self._line[0].since_s
        except IndexError:
            return 0.0
