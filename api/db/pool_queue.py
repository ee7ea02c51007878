"""Slots, and the line before them: how many may hold a connection at once, and who is next."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

LONG_WAIT_S = 1.0


class Waiter:
    """One thread in the line, asleep on a lock of its own until the slot is its."""

    __slots__ = ("is_served", "since_s", "wake")

    def __init__(self) -> None:
        self.since_s = time.monotonic()
        self.is_served = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Slots:
    """Slots for connections; who finds none free stands in line, first come, first served.

    A slot that is given up goes to the head of the line and is never free in between, so that nobody who
    comes later can take it. *lock* guards this and whatever the pool keeps beside it, for a few instructions at
    a time; ``take`` and ``give`` are called with it held, ``wait`` without.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._taken = 0
        self._line: deque[Waiter] = deque()

    def take(self, limit: float) -> Waiter | None:
        """Take one of *limit* slots and return None, or a place in the line to ``wait`` in."""
        if self._taken < limit and not self._line:
            self._taken += 1
            return None
        waiter = Waiter()
        self._line.append(waiter)
        return waiter

    def give(self) -> None:
        """Hand a slot to the head of the line, or free it when nobody waits."""
        if self._line:
            waiter = self._line.popleft()
            waiter.is_served = True
            waiter.wake.release()
        else:
            self._taken -= 1

    def wait(self, waiter: Waiter, timeout_s: float, when_long: Callable[[], object]) -> bool:
        """Sleep until the slot is *waiter*'s, and return True, or False when it was not within *timeout_s*.

        *when_long* is called once, after a second.
        """
        try:
            is_awake = waiter.wake.acquire(timeout=min(timeout_s, LONG_WAIT_S))
            if not is_awake and timeout_s > LONG_WAIT_S:
                when_long()
                waiter.wake.acquire(timeout=-1 if math.isinf(timeout_s) else timeout_s - LONG_WAIT_S)
        except BaseException:
            # An interrupt, a green thread that is ended: the slot may have come at this very moment.
            if not self._leave(waiter):
                with self.lock:
                    self.give()
            raise
        return not self._leave(waiter)

    def _leave(self, waiter: Waiter) -> bool:
        """Leave the line; False when the slot has come meanwhile, and is the waiter's."""
        with self.lock:
            if waiter.is_served:
                return False
            self._line.remove(waiter)
            return True

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
