"""Connections held for too long, and those whose holder is dead: told from the records of what is in use."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from api.db.pool_numbers import Borrow

FRAMES_SHOWN = 15


@dataclass(slots=True)
class Leaks:
    """What one look at the borrows found: new *leaks*, leaks that came *back*, and *orphans* of dead threads."""

    leaks: list[Borrow] = field(default_factory=list)
    back: list[Borrow] = field(default_factory=list)
    orphans: list[Borrow] = field(default_factory=list)


class LeakWatch:
    """Remembers which borrows were said to last too long, so that each is said once, and its return too.

    A thread that is alive may still need its connection, however long that takes; a dead one cannot give it back.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        # By key and time: a driver's connection, and so its key, is borrowed again and again.
        self._said: dict[tuple[int, float], Borrow] = {}

    def look(self, borrows: Iterable[Borrow], now_s: float) -> Leaks:
        """Compare what is in use at *now_s* with what was said before."""
        in_use = {(borrow.key, borrow.since_s): borrow for borrow in borrows}
        found = Leaks()
        for name, borrow in in_use.items():
            if borrow.is_orphan:
                found.orphans.append(borrow)
                self._said.pop(name, None)
            elif name not in self._said and now_s - borrow.since_s >= self._after_s:
                found.leaks.append(borrow)
        found.back = [self._said.pop(name) for name in self._said.keys() - in_use.keys()]
        self._said |= {(borrow.key, borrow.since_s): borrow for borrow in found.leaks}
        return found


def current_stack(borrow: Borrow) -> list[str]:
    """Return where the holder's thread is now, the innermost call last; empty when it has just ended.

    Only places, neither source nor values. Nothing is recorded at the borrow, so a borrow pays nothing for it.
    """
    ident = borrow.thread.ident
    frame = sys._current_frames().get(ident) if ident is not None else None
    places: list[str] = []
    while frame is not None and len(places) < FRAMES_SHOWN:
        code = frame.f_code
        places.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return places[::-1]
