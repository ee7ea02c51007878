"""Threads that hold connections and threads that wait for them, for the tests of the pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import peewee

PATIENCE_S = 20.0


@contextmanager
def held(database: peewee.Database, count: int) -> Iterator[Callable[[], None]]:
    """Let *count* threads hold a connection each until the block ends, or calls what it was given."""
    release, ready = threading.Event(), threading.Barrier(count + 1)

    def hold() -> None:
        with database.connection_context():
            ready.wait(PATIENCE_S)
            release.wait()

    with ThreadPoolExecutor(max_workers=max(count, 1)) as threads:
        holders = [threads.submit(hold) for _ in range(count)]
        try:
            ready.wait(PATIENCE_S)
            yield release.set
        finally:
            release.set()
    for holder in holders:
        holder.result()


@contextmanager
def waiting(database: peewee.Database, count: int) -> Iterator[list[Future[bool]]]:
    """Let *count* threads wait for a connection of a full pool.

    The block ends when each has had one.
    """

    def borrow() -> bool:
        with database.connection_context():
            return True

    with ThreadPoolExecutor(max_workers=count) as threads:
        waiters = [threads.submit(borrow) for _ in range(count)]
        until(lambda: database.snapshot().waiting == count)
        yield waiters


@contextmanager
def locks_held(database: Any) -> Iterator[None]:
    """Let another thread hold every lock of *database* while the block runs."""
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with database._lock, database._pool_lock, database._slots.lock:
            locked.set()
            release.wait()

    with ThreadPoolExecutor(max_workers=1) as threads:
        threads.submit(hold)
        locked.wait()
        try:
            yield
        finally:
            release.set()


def until(is_so: Callable[[], bool]) -> None:
    """Return as soon as *is_so*; fail when it does not come to be."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def watchers_of(database: peewee.Database) -> list[threading.Thread]:
    """Return the living threads that look at *database*'s pool."""
    name = f"pool-health {database.database}"
    return [thread for thread in threading.enumerate() if thread.name == name]


@contextmanager
def at_the_first(lines: list[Any], action: Callable[[], Any]) -> Iterator[None]:
    """Do *action* as soon as *lines* holds one, while the block runs."""
    with ThreadPoolExecutor(max_workers=1) as thread:

        def wait_and_act() -> None:
            until(lambda: bool(lines))
            action()

        done = thread.submit(wait_and_act)
        yield
    done.result()
