"""Connecting, kept apart from forks: no child of this process begins with somebody's connect half done.

To connect, libraries of C take locks of their own (OpenSSL 3's for TLS, Kerberos's in libpq). Nobody frees one in a
child that was forked meanwhile by another thread: its first connect would wait for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from api.db import pool_private as private

# Time for every handshake. Who waits longer waits for a server, and waiting takes no lock.
FORK_PATIENCE_S = 1.0


class _Apart:
    """Lets connects run side by side, and a fork wait for their end, while no new one begins.

    Each is known by its thread: one that an exception from outside has cut short holds up nobody for long.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        self._turn = threading.Condition()
        self._connecting: set[threading.Thread] = set()
        self._forking: set[threading.Thread] = set()

    @contextmanager
    def connecting(self) -> Iterator[None]:
        me = threading.current_thread()
        with self._turn:
            self._turn.wait_for(lambda: not _others(self._forking), FORK_PATIENCE_S)
            self._connecting.add(me)
        try:
            yield
        finally:
            self._connecting.discard(me)
            with self._turn:
                self._turn.notify_all()

    def before_fork(self) -> None:
        self._forking.add(threading.current_thread())
        self._turn.acquire()
        self._turn.wait_for(lambda: not _others(self._connecting), FORK_PATIENCE_S)

    def after_fork_in_parent(self) -> None:
        self._forking.discard(threading.current_thread())
        # Not held where the wait for it was cut short.
        with suppress(RuntimeError):
            self._turn.notify_all()
            self._turn.release()


def _others(threads: set[threading.Thread]) -> bool:
    me = threading.current_thread()
    return any(thread is not me and thread.is_alive() for thread in tuple(threads))


_apart = _Apart()
os.register_at_fork(
    before=_apart.before_fork,
    after_in_parent=_apart.after_fork_in_parent,
    after_in_child=_apart.begin_anew,
)


def dial(database: Any) -> Any:
    """Open a connection of *database*, not while this process forks; raises what the driver raises."""
    with _apart.connecting():
        return private.dial(database)
