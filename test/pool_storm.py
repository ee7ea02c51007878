"""A long run of everything at once: threads and forked processes on one pool, and a server that fails in every way.

``python test/pool_storm.py --minutes 60 --seed 7 --engine mariadb``. Threads query, commit, stream, leave transactions
open, and die with a connection in their hands, while connections are cut, refused, kept waiting and ended, and the
server is stopped and killed. After every round each process holds its own books against the pool's numbers, and the
rows against the commits. Exits 1, and says the seed, when anything does not add up, or a thread or process hangs.
The servers are private ones; MySQL is there if one runs on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import servers
from borrowing import until
from crash_server import private_place
from pool_load import PATIENCE_S, Action, Book, Load, Worker, account, end_sessions, quarrels, sessions_of
from proxy import ProxyProcess

from api.db.connection import open_database
from api.db.dialects.engine import Engine
from api.logs import configure_logging

SIZE, WORKERS, CHILD_WORKERS = 5, 10, 4
ROWS = 300
STREAM = f"WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) SELECT n FROM s"
ENGINES: tuple[Engine, ...] = ("postgres", "mariadb", "mysql")


def stream(worker: Worker) -> None:
    """Read rows one by one, and sometimes stop in the middle."""
    last = ROWS if worker.dice.random() < 0.7 else worker.dice.randrange(ROWS)
    for expected, (number,) in enumerate(worker.database.execute_sql(STREAM), start=1):
        worker.book.expect(number, expected)
        if expected % 100 == 0:
            worker.stopping.wait(0.002)
        if expected >= last:
            break


def undo(worker: Worker) -> None:
    """Undo a part of a transaction, and commit the rest."""
    is_at_commit = False
    try:
        with worker.database.atomic():
            with worker.database.atomic() as part:
                _add(worker)
                part.rollback()
            _add(worker)
            is_at_commit = True
    except Exception:
        worker.unsure += is_at_commit
        raise
    worker.book.done += 1


def leave_open(worker: Worker) -> None:
    """Forget to end a transaction: what was written in it must not stay."""
    worker.database.atomic().__enter__()
    _add(worker)


def die(worker: Worker) -> None:
    """End the thread, with the connection and perhaps a transaction in its hands."""
    if worker.dice.random() < 0.5:
        leave_open(worker)
    raise SystemExit


def hang_up(worker: Worker) -> None:
    """Close the connection for good."""
    worker.query()
    worker.database.manual_close()


def linger(worker: Worker) -> None:
    """Hold the connection for nothing, long enough for it to be called stale."""
    worker.stopping.wait(worker.dice.uniform(0.05, 0.4))
    worker.query()


def _add(worker: Worker) -> None:
    worker.database.execute_sql("UPDATE tally SET n = n + 1 WHERE id = %s", (worker.row,))


ACTIONS: tuple[Action, ...] = (
    *[Worker.query, Worker.transact, stream] * 6,
    *[undo, leave_open, hang_up] * 3,
    *[linger, die],
)


class Janitor:
    """Looks after a *load*: takes back what the dead hold, and employs somebody in their place."""

    def __init__(self, load: Load) -> None:
        self.reclaimed = 0
        self._load = load
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._load.stopping.wait(0.02):
            self.reclaim()
            for worker in self._load.workers:
                if worker.thread is not None and not worker.thread.is_alive() and not worker.book.wrong:
                    self._load.employ(worker)

    def reclaim(self) -> None:
        """Take back what the dead hold."""
        database = self._load.database
        self.reclaimed += sum(database.reclaim(borrow) for borrow in database.borrows())

    def stop(self) -> None:
        """End, when the load has been told to."""
        self._thread.join(PATIENCE_S)


@dataclass
class Report:
    """What a storm did, and what of it was *wrong*."""

    engine: Engine
    rounds: int = 0
    book: Book = field(default_factory=Book)
    faults: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    child_borrows: int = 0
    child_errors: int = 0
    checks: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        book = self.book
        lines = (
            f"{self.engine}: {self.rounds} rounds, {book.got} borrows ({self.child_borrows} more in children), "
            f"{book.done} commits, {self.checks} checks, {len(self.wrong)} wrong",
            f"borrows in vain: {book.timeouts} timeouts, {book.refused} refused, {book.postponed} postponed",
            f"errors: {_counts(book.errors)}; in children {self.child_errors}",
            f"faults: {_counts(self.faults)}",
            f"closed: {_counts(self.closed)}",
        )
        return "\n  ".join(lines)


@dataclass
class Child:
    """A forked process, and the pipe that its answer comes through."""

    pid: int
    answer: int
    is_killed: bool = False


class Storm:
    """Rounds of trouble for one pool, as the dice fall."""

    def __init__(self, server: servers.PrivateServer, url: str, guest: str, proxy: ProxyProcess, seed: int) -> None:
        self.report = Report(server.engine)
        self._server, self._url, self._guest, self._proxy = server, url, guest, proxy
        self._dice = random.Random(seed)
        self._seed = seed
        self._rows = 0
        self._children: list[Child] = []
        self._reclaimed = 0
        far = urlsplit(url)._replace(netloc=f"{guest}:{guest}@127.0.0.1:{proxy.port}").geturl()
        self._database: Any = open_database(
            far,
            pool_max=SIZE,
            pool_timeout_s=0.3,
            connect_timeout_s=2,
            validate_after_s=0.02,
            max_lifetime_s=3.0,
        )
        self._faults: dict[Callable[[], None], int] = {
            self._cut: 3,
            self._cut_in_the_middle: 3,
            self._refuse: 2,
            self._stall: 2,
            self._end_a_session: 4,
            self._end_sessions: 1,
            self._close_idle: 3,
            self._close_stale: 2,
            self._fork: 3,
            self._kill_a_child: 1,
            self._pause_server: 1,
        }

    def play(self, disturbances: int = 25) -> None:
        """Let a load run through so many disturbances, then hold every number against every other one."""
        load = self._load(WORKERS)
        load.start()
        janitor = Janitor(load)
        for fault in self._dice.choices(list(self._faults), list(self._faults.values()), k=disturbances):
            fault()
            self._go_on(0.1)
        if self._dice.random() < 0.1:
            self._collect()
            self._crash_server()
        self._proxy.order("pass_on")
        try:
            load.go_on(1)
        except AssertionError:
            self.report.wrong.append(f"all is well, and not every worker goes on: {self._database.snapshot()}")
        book = self._finish(load, janitor)
        self._collect()
        self._check(book)

    def _load(self, workers: int) -> Load:
        load = Load(
            self._database, self._url, workers, seed=self._dice.randrange(10**9), first_row=self._rows, actions=ACTIONS
        )
        load.takes_away = True
        self._rows += workers
        return load

    def _finish(self, load: Load, janitor: Janitor) -> Book:
        load.stopping.set()
        # First, for it employs people.
        janitor.stop()
        book = load.stop()
        janitor.reclaim()
        self._reclaimed += janitor.reclaimed
        return book

    def _check(self, book: Book) -> None:
        report = self.report
        self._database.close_idle()
        report.rounds += 1
        report.checks += 1
        report.book += book
        report.wrong += book.wrong
        now = self._database.snapshot()
        report.closed = Counter(now.closed)
        report.wrong += quarrels(self._database, report.book)
        if now.closed["orphan"] != self._reclaimed:
            report.wrong.append(f"orphans: {now.closed['orphan']} closed, {self._reclaimed} reclaimed")
        try:
            until(lambda: not sessions_of(self._server, self._guest))
        except AssertionError:
            report.wrong.append("the server has sessions left that no pool knows")

    def _go_on(self, most_s: float) -> None:
        # How long trouble lasts is a matter of the dice: nothing is waited for.
        time.sleep(self._dice.uniform(0, most_s))

    def _count(self, fault: str) -> None:
        self.report.faults[fault] += 1

    # Faults

    def _cut(self) -> None:
        self._count("cut")
        self._proxy.order("cut")

    def _cut_in_the_middle(self) -> None:
        self._for_a_while("cut_after", self._dice.choice((1, 30, 200, 1500, 5000)))

    def _refuse(self) -> None:
        self._for_a_while("refuse")

    def _stall(self) -> None:
        self._for_a_while("stall")

    def _for_a_while(self, order: str, *values: int) -> None:
        self._count(order)
        self._proxy.order(order, *values)
        self._go_on(0.4)
        self._proxy.order("pass_on")

    def _end_a_session(self) -> None:
        self._count("session ended")
        if numbers := sessions_of(self._server, self._guest):
            end_sessions(self._server, [self._dice.choice(numbers)])

    def _end_sessions(self) -> None:
        self._count("all sessions ended")
        end_sessions(self._server, sessions_of(self._server, self._guest))

    def _close_idle(self) -> None:
        self._count("close_idle")
        self._database.close_idle()

    def _close_stale(self) -> None:
        self._count("close_stale")
        self._database.close_stale(age=0.2)

    def _pause_server(self) -> None:
        self._count("server stopped")
        self._server.pause()
        self._go_on(0.5)
        self._server.resume()

    def _crash_server(self) -> None:
        self._count("server killed")
        self._server.kill()
        self._go_on(0.5)
        self._server.start()

    # Children

    def _fork(self) -> None:
        self._count("fork")
        reader, writer = os.pipe()
        load = self._load(CHILD_WORKERS)
        work_s = self._dice.uniform(0.2, 1.5)
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads, which is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._be_a_child(load, work_s, writer)
        os.close(writer)
        self._children.append(Child(pid, reader))

    def _be_a_child(self, load: Load, work_s: float, writer: int) -> NoReturn:
        """Do as the parent does, check the numbers of this process, and say what came of it."""
        answer: dict[str, Any] = {"wrong": [], "borrows": 0, "errors": 0}
        try:
            self._reclaimed = 0
            load.start()
            janitor = Janitor(load)
            time.sleep(work_s)
            book = self._finish(load, janitor)
            now = self._database.snapshot()
            answer = {
                "wrong": book.wrong + quarrels(self._database, book),
                "borrows": now.borrowed,
                "errors": book.errors.total(),
            }
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
            answer["wrong"].append(traceback.format_exc())
        answer["wrong"] = [text[:5000] for text in answer["wrong"][:5]]
        os.write(writer, json.dumps(answer).encode())
        # Not sys.exit: the child must not run the parent's clean-up.
        os._exit(0)

    def _kill_a_child(self) -> None:
        alive = [child for child in self._children if not child.is_killed]
        if alive:
            self._count("child killed")
            child = self._dice.choice(alive)
            os.kill(child.pid, signal.SIGKILL)
            child.is_killed = True

    def _collect(self) -> None:
        """Wait for every child, and take over what it says."""
        self._proxy.order("pass_on")
        for child in self._children:
            if not select.select([child.answer], [], [], PATIENCE_S)[0]:
                self.report.wrong.append(f"child {child.pid} hangs")
                os.kill(child.pid, signal.SIGABRT)
            os.waitpid(child.pid, 0)
            with os.fdopen(child.answer) as answers:
                said = answers.read()
            if said:
                self._take_over(child, json.loads(said))
            elif not child.is_killed:
                self.report.wrong.append(f"child {child.pid} said nothing")
        self._children = []

    def _take_over(self, child: Child, answer: dict[str, Any]) -> None:
        self.report.checks += 1
        self.report.child_borrows += answer["borrows"]
        self.report.child_errors += answer["errors"]
        self.report.wrong += [f"child {child.pid}: {text}" for text in answer["wrong"]]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


@contextmanager
def a_storm(engine: Engine, seed: int) -> Iterator[Storm]:
    """Give a storm for the block, on a server of its own."""
    with private_place(engine) as (url, server):
        assert server is not None
        with account(server, url) as guest, ProxyProcess("127.0.0.1", server.port) as proxy:
            yield Storm(server, url, guest, proxy, seed)


def main() -> int:
    """Let it storm for as long as the command line asks, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="postgres")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    configure_logging("ERROR")
    with a_storm(chosen.engine, chosen.seed) as storm:
        end_s = time.monotonic() + chosen.minutes * 60
        while time.monotonic() < end_s and not storm.report.wrong:
            storm.play()
    print(*storm.report.wrong, storm.report, sep="\n\n")
    if storm.report.wrong:
        print(f"wrong with seed {chosen.seed}, in round {storm.report.rounds}")
    return 1 if storm.report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
