"""Threads that work on a pool whatever happens to the server, and keep books to hold against the pool's own numbers."""

from __future__ import annotations

import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Self
from urllib.parse import urlsplit

import peewee
import pymysql
import servers
from borrowing import until

from api.db.connection import return_db_connection
from api.db.dialects.connecting import driver_code
from api.db.lease import SESSIONS
from api.db.pool_gate import ConnectPostponed
from api.db.pool_numbers import PoolTimeout

# A thread that has not ended after this long hangs.
PATIENCE_S = 120.0
BODY = "x" * 3000
TALLY = "CREATE TABLE tally (id INT PRIMARY KEY, n INT NOT NULL)"
# What a driver raises when its server is gone.
LOST = (peewee.OperationalError, peewee.InterfaceError)


@dataclass
class Book:
    """What one thread, or many together, asked of a pool, and what they met."""

    asked: int = 0
    got: int = 0
    timeouts: int = 0
    refused: int = 0
    postponed: int = 0
    rounds: int = 0
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Book) -> Self:
        for name in (each.name for each in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def expect(self, found: object, right: object) -> None:
        """Note a wrong answer."""
        if found != right:
            self.wrong.append(f"wrong answer: {found!r:.200} instead of {right!r:.200}")


@dataclass
class Worker:
    """One thread's view of the load: its *database*, its *dice*, its *book*, and its row in ``tally``."""

    database: Any
    row: int
    dice: random.Random
    stopping: threading.Event
    book: Book = field(default_factory=Book)
    # Commits of which nobody knows whether they came through.
    unsure: int = 0
    thread: threading.Thread | None = None

    def borrow(self) -> bool:
        """Borrow a connection, asking as often as it takes; False when the load is to stop."""
        book = self.book
        while not self.stopping.is_set():
            book.asked += 1
            try:
                self.database.connect()
            except PoolTimeout:
                book.timeouts += 1
            except ConnectPostponed as exc:
                book.postponed += 1
                self.stopping.wait(exc.retry_after_s + 0.01)
            except peewee.OperationalError:
                book.refused += 1
            else:
                book.got += 1
                return True
        return False

    def query(self) -> None:
        """Ask what nobody else asks, and compare the answer."""
        number = self.dice.randrange(10**6)
        cursor = self.database.execute_sql(f"SELECT %s + 1, REPEAT('x', {len(BODY)})", (number,))
        self.book.expect(cursor.fetchone(), (number + 1, BODY))

    def transact(self) -> None:
        """Add one to this worker's row; the book knows how many it has to be."""
        is_at_commit = False
        try:
            with self.database.atomic():
                self.database.execute_sql("UPDATE tally SET n = n + 1 WHERE id = %s", (self.row,))
                self.query()
                is_at_commit = True
        except Exception:
            self.unsure += is_at_commit
            raise
        self.book.done += 1


Action = Callable[[Worker], None]
PLAIN: tuple[Action, ...] = (Worker.query, Worker.transact)


class Load:
    """So many *workers*, each a thread that borrows, does one of *actions*, and returns, until ``stop``.

    *url* leads to the server past any proxy: there the rows are that they write, from number *first_row* on.
    """

    # Whether somebody closes connections that are in use.
    takes_away = False

    def __init__(
        self,
        database: Any,
        url: str,
        workers: int,
        *,
        seed: int = 0,
        first_row: int = 0,
        actions: Sequence[Action] = PLAIN,
    ) -> None:
        self.database = database
        self._url = url
        self._actions = actions
        self.stopping = threading.Event()
        self.workers = [
            Worker(database, first_row + number, random.Random(f"{seed} {number}"), self.stopping)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Start the threads."""
        rows = ", ".join(f"({worker.row}, 0)" for worker in self.workers)
        with closing(servers.connect(self._url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(f"INSERT INTO tally VALUES {rows}")
        for worker in self.workers:
            self.employ(worker)

    def employ(self, worker: Worker) -> None:
        """Give *worker* a new thread."""
        name = f"worker {worker.row}"
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        worker.thread.start()

    def _work(self, worker: Worker) -> None:
        try:
            while worker.borrow():
                self._round(worker)
        except SystemExit:
            # Dies with a connection in its hand.
            pass
        except BaseException:  # noqa: BLE001 - whatever else comes out of a pool is wrong
            worker.book.wrong.append(traceback.format_exc())

    def _round(self, worker: Worker) -> None:
        try:
            worker.dice.choice(self._actions)(worker)
            worker.book.rounds += 1
        except LOST as exc:
            worker.book.errors[f"{type(exc).__name__} {driver_code(exc)}"] += 1
        except Exception as exc:
            # A driver whose connection another thread closes under its hands raises what it likes.
            if not self.takes_away or any(each.thread is worker.thread for each in self.database.borrows()):
                raise
            worker.book.errors[f"taken away: {type(exc).__name__}"] += 1
        return_db_connection(self.database)

    def go_on(self, rounds: int) -> None:
        """Return when each worker has done so many *rounds* more."""
        goals = [(worker, worker.book.rounds + rounds) for worker in self.workers]
        until(lambda: all(worker.book.rounds >= goal or worker.book.wrong for worker, goal in goals))

    @property
    def book(self) -> Book:
        """What all workers together met so far."""
        return _sum(worker.book for worker in self.workers)

    def stop(self) -> Book:
        """End every thread, and return the book, with what was wrong in it; a thread that hangs is wrong."""
        self.stopping.set()
        frames = sys._current_frames
        wrong = []
        for worker in self.workers:
            assert worker.thread is not None
            worker.thread.join(PATIENCE_S)
            if worker.thread.is_alive():
                stack = "".join(traceback.format_stack(frames()[worker.thread.ident or 0]))
                wrong.append(f"{worker.thread.name} hangs:\n{stack}")
        book = self.book
        book.wrong += wrong or self._miscounted()
        return book

    def _miscounted(self) -> Iterable[str]:
        with closing(servers.connect(self._url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT id, n FROM tally")
            found = dict(cursor.fetchall())
        for worker in self.workers:
            least = worker.book.done
            if not least <= found[worker.row] <= least + worker.unsure:
                yield f"row {worker.row} is {found[worker.row]}, of {least} commits and {worker.unsure} unsure ones"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()


@contextmanager
def account(server: servers.Server, url: str) -> Iterator[str]:
    """Give the name of a user, with itself as password, who may change ``tally`` in the database at *url*."""
    name = urlsplit(url).path[1:]
    guest = f"guest_of_{name}"
    with closing(servers.connect(url)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(TALLY)
        if server.engine == "postgres":
            cursor.execute(f"CREATE ROLE {guest} LOGIN PASSWORD '{guest}'")
            cursor.execute(f"GRANT ALL ON tally TO {guest}")
        else:
            cursor.execute(f"CREATE USER {guest}@'%' IDENTIFIED BY '{guest}'")
            cursor.execute(f"GRANT ALL ON {name}.* TO {guest}@'%'")
    yield guest
    if server.engine != "postgres":
        # PostgreSQL's goes with the server: as long as the table is there, it cannot be dropped.
        server.execute(f"DROP USER {guest}@'%'")


def sessions_of(server: servers.Server, guest: str, query: str | None = None) -> list[int]:
    """Return the numbers of *guest*'s sessions, all of them or those at work on *query*."""
    if server.engine == "postgres":
        sql = f"SELECT pid FROM pg_stat_activity WHERE usename = '{guest}'"
        also = f" AND state = 'active' AND query = '{query}'"
    else:
        sql = f"SELECT id FROM {SESSIONS[server.engine]} WHERE user = '{guest}'"
        also = f" AND info = '{query}'"
    return [number for (number,) in server.execute(sql + (also if query else ""))]


def end_sessions(server: servers.Server, numbers: Iterable[int]) -> None:
    """End these sessions as an administrator would; one that has ended meanwhile is fine."""
    for number in numbers:
        with suppress(pymysql.err.OperationalError):
            server.execute(
                f"SELECT pg_terminate_backend({number})" if server.engine == "postgres" else f"KILL {number}"
            )


def _sum(books: Iterable[Book]) -> Book:
    total = Book()
    for book in books:
        total += book
    return total


def quarrels(database: Any, book: Book) -> list[str]:
    """Return every number of *database*'s pool that disagrees with *book* or with another, when nobody has a slot."""
    now = database.snapshot()
    closed = sum(now.closed.values())
    pairs = {
        "active, pending, waiting": ((now.active, now.pending, now.waiting), (0, 0, 0)),
        "slots taken": (database._slots.taken, 0),
        "borrowed and returned": (now.borrowed, now.returned),
        "borrowed and timed": ((now.wait.count, now.use.count), (now.borrowed, now.borrowed)),
        "created, and closed or idle": (now.created, closed + now.idle),
        "created and timed": (now.created, now.create.count),
        "requests": (now.requests, book.asked),
        "requests and their ends": (now.requests, now.borrowed + now.timeouts + book.refused + book.postponed),
        "borrowed": (now.borrowed, book.got),
        "timeouts": (now.timeouts, book.timeouts),
        "connect errors": (now.connect_errors, book.refused),
        "errors, more than one a closed connection": (max(0, book.errors.total() - closed), 0),
    }
    return [f"{name}: {one} and {other}" for name, (one, other) in pairs.items() if one != other]
