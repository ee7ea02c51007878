"""What the pool costs beside the one it wraps and beside others; off by default: ``python test/bench_pool.py``.

Starts a PostgreSQL and a MariaDB of its own. Contestants run in turn in short rounds, so that a noisy machine is noisy
for all; printed are medians, and ratios to bare playhouse taken round by round, with their spread: the tenth to the
ninetieth in a hundred, or of few rounds the least to the most. Ours has everything on: the thread that watches, the
defaults of ``open_database``, an endpoint and a correlation id to note at each borrow. The cycle of a single thread is
measured with client and server on one core: left to the scheduler, the same code takes once and twice as long. What
was aimed at stands beside the figure, and last the driver without any pool, each thread with a connection that it
keeps: the most that the machine can carry. ``--peers`` adds psycopg_pool and SQLAlchemy, which are no requirement:
``pip install "psycopg[binary]" psycopg_pool sqlalchemy`` before it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from urllib.parse import quote, urlsplit

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import bench_peers
import servers
from bench_peers import BARE, KEPT, OURS, Contestant
from borrowing import PATIENCE_S, held, until
from proxy import ProxyProcess

from api.db.connection import PoolDiagnostics, open_database
from api.db.pool_numbers import ENDPOINT
from api.logs import bind_correlation_id, configure_logging

NAME = "bench_pool"
THREADS = (1, 4, 16)
DELAY_S = 0.0005
WARM_UP_S, ROUND_S = 0.1, 0.3
CYCLES = 100
CROWD, PAIR, HOLD_S = 8, 2, 0.004
MEMORY_OF = 50
HELD, FAST_LOOK_S, FAST_LOOKS = 16, 0.005, 400
INTERVAL_S = 5.0
MOST_OF_CYCLE, LEAST_OF_THROUGHPUT, LONGEST_WAIT_MS, MONITOR_PERCENT = 0.75, 10.0, 50.0, 0.1
Rounds = dict[str, list[float]]


class SocketPostgres(servers.PostgresServer):
    """A PostgreSQL that listens on a Unix socket too."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", f"unix_socket_directories={self.folder}"]


class SocketMariaDB(servers.MariaDBServer):
    """A MariaDB that lets us in through its socket too: to it, that is another user."""

    def _initialise(self) -> None:
        super()._initialise()
        with (self.folder / "init.sql").open("a") as file:
            account = f"{servers.USER}@localhost"
            file.write(f"CREATE OR REPLACE USER {account} IDENTIFIED BY '{servers.PASSWORD}';\n")
            file.write(f"GRANT ALL ON *.* TO {account};\n")


SERVERS: dict[str, type[servers.PrivateServer]] = {"postgres": SocketPostgres, "mariadb": SocketMariaDB}


def main() -> None:
    """Measure the engines asked for, one after the other, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="psycopg_pool and SQLAlchemy too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds: for a glance, not to be quoted")
    parser.add_argument("--engine", choices=SERVERS, action="append")
    asked = parser.parse_args()
    configure_logging("ERROR")
    bind()
    print(f"{_load()}; processors: {len(os.sched_getaffinity(0))}")
    looks: list[list[float]] = []
    for engine in asked.engine or SERVERS:
        server = SERVERS[engine]()
        try:
            looks += _measure(server, rounds=1 if asked.quick else 10, peers=asked.peers)
        finally:
            server.stop()
    _print_watches(looks)
    print(f"\n{_load()}")


def bind() -> None:
    """Give this thread an endpoint and a correlation id, as each request has them."""
    ENDPOINT.set("bench.cycle")
    bind_correlation_id()


def _load() -> str:
    return "load of the machine in the last 1, 5, 15 minutes: " + ", ".join(f"{load:.1f}" for load in os.getloadavg())


def _measure(server: servers.PrivateServer, *, rounds: int, peers: bool) -> list[list[float]]:
    """Measure one server; return the looks of our watches meanwhile."""
    print(f"\n{server.engine} {server.version}")
    url = server.create_database(NAME)
    nearby, looks = _on_socket(server, url), []
    with bench_peers.entered(nearby, peers=peers) as contestants:
        looks.append(contestants[OURS].looks)
        with _on_one_core(server):
            cycles = _in_turn(contestants, rounds * 6, _cycle_us)
        _print_rounds("a cycle on a socket, 1 thread, one core, us", cycles, _most(MOST_OF_CYCLE))
        for threads in THREADS[1:]:
            _print_throughput("on a socket", threads, contestants, rounds)
    with ProxyProcess("127.0.0.1", server.port, delay_s=DELAY_S) as proxy:
        far = urlsplit(url)._replace(netloc=urlsplit(url).netloc.replace(f":{server.port}", f":{proxy.port}")).geturl()
        with bench_peers.entered(far, peers=peers) as contestants:
            looks.append(contestants[OURS].looks)
            for threads in THREADS:
                _print_throughput("1 ms away", threads, contestants, rounds)
    _print_crowd(nearby, peers, seconds=0.3 * rounds)
    _print_memory(nearby)
    _print_look(nearby)
    return looks


def _on_socket(server: servers.PrivateServer, url: str) -> str:
    account = f"{servers.USER}:{quote(servers.PASSWORD)}"
    if server.engine == "postgres":
        return f"postgres://{account}@{urlsplit(url).path}?host={server.folder}&port={server.port}"
    return f"mysql://{account}@localhost{urlsplit(url).path}?unix_socket={server.folder}/socket"


# Cycles and throughput -------------------------------------------------------------------------------------------


@contextmanager
def _on_one_core(server: servers.PrivateServer) -> Iterator[None]:
    """Keep this thread, and every thread of *server*, on one core while the block runs."""
    cores = os.sched_getaffinity(0)
    _keep_on({max(cores)}, server)
    try:
        yield
    finally:
        _keep_on(cores, server)


def _keep_on(cores: set[int], server: servers.PrivateServer) -> None:
    os.sched_setaffinity(0, cores)
    # What the server starts from now on inherits it.
    for pid in server._family():
        # Some of what it had started ends of itself.
        with suppress(ProcessLookupError, FileNotFoundError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cores)


def _in_turn(contestants: dict[str, Contestant], rounds: int, measure: Callable[[Contestant], float]) -> Rounds:
    """Return what *measure* found in each round; who goes first changes, and a round before the first warms up."""
    found: Rounds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        first = number % len(contestants)
        for name in [*contestants, *contestants][first : first + len(contestants)]:
            figure = measure(contestants[name])
            if number:
                found[name].append(figure)
    return found


def _cycle_us(contestant: Contestant) -> float:
    cycle, clock, took = contestant.cycle, time.perf_counter_ns, []
    for _ in range(CYCLES):
        began = clock()
        cycle()
        took.append(clock() - began)
    return median(took) / 1000


def _print_throughput(where: str, threads: int, contestants: dict[str, Contestant], rounds: int) -> None:
    seconds = min(ROUND_S, rounds / 10)
    found = _in_turn(contestants, max(1, rounds // 2), lambda each: _cycles_a_second(each, threads, seconds))
    is_aim = threads == THREADS[-1] and where == "1 ms away"
    verdict = _least(LEAST_OF_THROUGHPUT) if is_aim else None
    _print_rounds(f"cycles a second {where}, {threads} thread{'s' * (threads > 1)}", found, verdict)


def _cycles_a_second(contestant: Contestant, threads: int, seconds: float) -> float:
    ready = threading.Barrier(threads + 1)

    def work() -> int:
        bind()
        cycle, clock, done = contestant.cycle, time.perf_counter, 0
        ready.wait(PATIENCE_S)
        end = clock() + seconds
        while clock() < end:
            cycle()
            done += 1
        return done

    with ThreadPoolExecutor(threads) as team:
        counts = [team.submit(work) for _ in range(threads)]
        ready.wait(PATIENCE_S)
        began = time.perf_counter()
        done = sum(count.result() for count in counts)
        return done / (time.perf_counter() - began)


# A crowd before a small pool ---------------------------------------------------------------------------------------


def _print_crowd(url: str, peers: bool, seconds: float) -> None:
    print(f"  {CROWD} threads, {PAIR} connections held for {HOLD_S * 1000:g} ms, no pause between")
    with bench_peers.entered(url, size=PAIR, peers=peers) as contestants:
        del contestants[KEPT]
        for name, contestant in contestants.items():
            _crowd(contestant, WARM_UP_S)
            longest_s, served = _crowd(contestant, seconds)
            least, most = (100 * share / sum(served) for share in (min(served), max(served)))
            verdict = _most(LONGEST_WAIT_MS)(longest_s * 1000) if name == OURS else ""
            print(
                f"    {name:<22}longest wait {longest_s * 1000:7.1f} ms"
                f"   a thread's share {least:4.1f} to {most:4.1f} %{verdict}"
            )


def _crowd(contestant: Contestant, seconds: float) -> tuple[float, list[int]]:
    """Return the longest wait for a connection, and how often each thread got one."""
    ready = threading.Barrier(CROWD)

    def work() -> tuple[float, int]:
        bind()
        longest_s, served, clock = 0.0, 0, time.perf_counter
        ready.wait(PATIENCE_S)
        end = clock() + seconds
        while (asked := clock()) < end:
            handle = contestant.borrow()
            longest_s, served = max(longest_s, clock() - asked), served + 1
            time.sleep(HOLD_S)
            contestant.give(handle)
        return longest_s, served

    with ThreadPoolExecutor(CROWD) as team:
        results = [each.result() for each in [team.submit(work) for _ in range(CROWD)]]
    return max(longest_s for longest_s, _ in results), [served for _, served in results]


# Memory ------------------------------------------------------------------------------------------------------------


def _print_memory(url: str) -> None:
    ours = open_database(url, pool_max=MEMORY_OF)
    print(f"  bytes that Python allocates for a connection, of {MEMORY_OF}; the driver's C library has its own besides")
    for name, contestant in {
        "the driver's alone": bench_peers.driver(ours),
        OURS: bench_peers.plinth(ours),
        BARE: bench_peers.playhouse(ours, MEMORY_OF),
    }.items():
        # What the first connection allocates once and for all.
        contestant.give(contestant.borrow())
        contestant.close()
        borrowed, idle = _bytes_each(contestant)
        contestant.close()
        print(f"    {name:<22}borrowed {borrowed:8.0f}   idle {idle:8.0f}")


def _bytes_each(contestant: Contestant) -> tuple[float, float]:
    """Return how many bytes a connection takes while its thread has it, and when it is idle."""
    step = threading.Barrier(MEMORY_OF + 1, timeout=PATIENCE_S)

    def work() -> None:
        bind()
        step.wait()
        handle = contestant.borrow()
        step.wait()
        contestant.give(handle)

    tracemalloc.start()
    try:
        before = _allocated()
        threads = [threading.Thread(target=work) for _ in range(MEMORY_OF)]
        for thread in threads:
            thread.start()
        until(lambda: step.n_waiting == MEMORY_OF)
        ready = _allocated()
        step.wait()
        until(lambda: step.n_waiting == MEMORY_OF)
        borrowed = _allocated()
        step.wait()
        for thread in threads:
            thread.join()
        del threads, thread
        return (borrowed - ready) / MEMORY_OF, (_allocated() - before) / MEMORY_OF
    finally:
        tracemalloc.stop()


def _allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# The watch ---------------------------------------------------------------------------------------------------------


def _print_look(url: str) -> None:
    """Print what a look and a snapshot cost while some connections are in use."""
    database, looks, enough = open_database(url), [], threading.Event()

    def count(_: object) -> None:
        looks.append(time.thread_time())
        if len(looks) > FAST_LOOKS:
            enough.set()

    with held(database, HELD):
        PoolDiagnostics.start_health_monitoring(database, FAST_LOOK_S, on_sample=count)
        enough.wait(PATIENCE_S)
        PoolDiagnostics.stop_health_monitoring(database)
        snapshot_us, stats_us = (
            _call_us(call) for call in (database.snapshot, partial(PoolDiagnostics.get_pool_stats, database))
        )
    database.close_all()
    look_s = (looks[-1] - looks[0]) / (len(looks) - 1)
    print(f"  {HELD} connections in use: snapshot() takes {snapshot_us:.1f} us, get_pool_stats() {stats_us:.1f} us")
    print(f"    {_watch(look_s)}")


def _call_us(call: Callable[[], object]) -> float:
    took = []
    for _ in range(1000):
        began = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - began)
    return median(took) / 1000


def _print_watches(pools: list[list[float]]) -> None:
    """Print what a look took in this run, with five seconds of other work between two."""
    count = sum(max(0, len(looks) - 1) for looks in pools)
    if count:
        look_s = sum(looks[-1] - looks[0] for looks in pools if looks) / count
        print(f"\nthe watches of the pools during this run, {count} looks\n    {_watch(look_s)}")


def _watch(look_s: float) -> str:
    percent = 100 * look_s / INTERVAL_S
    verdict = _most(MONITOR_PERCENT)(percent)
    return f"a look takes {look_s * 1e6:.0f} us, one every {INTERVAL_S:g} s is {percent:.4f} % of a core{verdict}"


# Tables ------------------------------------------------------------------------------------------------------------

Verdict = Callable[[float], str]


def _most(aim: float) -> Verdict:
    return lambda figure: f"   at most {aim:g}: {'met' if figure <= aim else 'NOT MET'}"


def _least(aim: float) -> Verdict:
    return lambda figure: f"   at least {aim:g}: {'met' if figure >= aim else 'NOT MET'}"


def _print_rounds(title: str, found: Rounds, verdict: Verdict | None) -> None:
    print(f"  {title}")
    for name, figures in found.items():
        ratios = [figure / bare for figure, bare in zip(figures, found[BARE], strict=True)]
        said = verdict(median(ratios)) if verdict and name == OURS else ""
        print(
            f"    {name:<22}{median(figures):9.1f}  ({_spread(figures, 1)})"
            f"   of {BARE} {median(ratios):6.2f}  ({_spread(ratios, 2)}){said}",
            flush=True,
        )


def _spread(figures: list[float], digits: int) -> str:
    ordered, cut = sorted(figures), len(figures) // 10
    return f"{ordered[cut]:.{digits}f} to {ordered[-1 - cut]:.{digits}f}"


if __name__ == "__main__":
    main()
