"""The server killed at random moments of a batch: after it is up again, the next ``up`` ends in the whole new schema.

By hand: ``python test/crash_server.py --engine mariadb --kills 50 --seed 7``. The servers are private ones, also for
MySQL: one more of the program that runs behind ``TEST_MYSQL_URL``, which has to be on this machine. SQLite has no
server but the process that migrates: that is what dies there, at any moment, also in the middle of a write. Every
other time the migrating process dies with the server. Exits 1 when a state was neither the old nor the new one.
"""

from __future__ import annotations

import argparse
import random
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import crash
import servers
from crash import OUTCOMES, SHARES, TASKS, Crash, HalfStateError, Report, Scenario
from crash_child import PATIENCE_S, Child, StuckError

from api.db.dialects.engine import ENGINES, Engine


class PrivateMySQL(servers.PrivateServer):
    """A MySQL of ours: the program of the one behind ``TEST_MYSQL_URL``, also if that lives in a folder of its own."""

    engine: ClassVar[Engine] = "mysql"

    def _initialise(self) -> None:
        (self.folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS {servers.USER}@'127.0.0.1' IDENTIFIED BY '{servers.PASSWORD}';\n"
            f"GRANT ALL ON *.* TO {servers.USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        self._run(*self._program(), "--initialize-insecure")

    def _program(self) -> list[str]:
        program = running_mysqld()
        if program is None:
            raise servers.ServerError("no mysqld runs on this machine whose program could be started once more")
        root = program.parents[2]
        # The libraries of another system's folder are found by that system's own loader.
        loader = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(root / "usr/lib/x86_64-linux-gnu")]
        return [
            *([] if root == Path("/") else loader),
            str(program),
            "--no-defaults",
            f"--basedir={root / 'usr'}",
            f"--lc-messages-dir={root / 'usr/share/mysql'}",
            f"--character-sets-dir={root / 'usr/share/mysql/charsets'}",
            f"--datadir={self.folder}/data",
            f"--tmpdir={self.folder}",
        ]

    def _command(self) -> list[str]:
        return [
            *self._program(),
            f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid",
            f"--init-file={self.folder}/init.sql",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--mysqlx=OFF",
            "--secure-file-priv=NULL",
            "--skip-name-resolve",
            # The kernel has each commit, and outlives the server.
            "--innodb-flush-log-at-trx-commit=2",
            "--sync-binlog=0",
        ]


def running_mysqld() -> Path | None:
    """Return the program of a mysqld that runs here, wherever its root is; ``None`` when there is none."""
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            program = link.readlink()
        except OSError:
            continue  # ended meanwhile, or somebody else's
        if program.name == "mysqld":
            return program
    return None


def explore(harness: Crash, server: servers.PrivateServer | None, kills: int, dice: random.Random) -> Report:
    """Kill *server*, or on SQLite the migrating process, *kills* times while a batch runs, and judge what it left."""
    report = Report(harness.place.engine)
    started = time.monotonic()
    while report.kills < kills:
        scenario = dice.choices(list(SHARES), list(SHARES.values()))[0]
        delay_s = dice.uniform(0, harness.durations[scenario])
        harness.begin(scenario)
        if not _kill(harness.place.url, scenario, server, delay_s, with_client=dice.random() < 0.5):
            report.missed += 1
            continue
        report.kills += 1
        duration_ms = round(harness.durations[scenario] * 1000)
        what = f"kill {report.kills}: {scenario}, after {delay_s * 1000:.0f} of {duration_ms} ms"
        try:
            harness.mend(OUTCOMES[scenario], what, report, by_recover=dice.random() < 0.5, by_up=True)
        except HalfStateError as exc:
            report.half.append(str(exc))
    report.seconds = time.monotonic() - started
    return report


def _kill(
    url: str, scenario: Scenario, server: servers.PrivateServer | None, delay_s: float, *, with_client: bool
) -> bool:
    """Run *scenario* in a child and crash it after *delay_s*; return whether that came before its end."""
    child = Child(url, TASKS[scenario])
    in_time = not select.select([child.exit], [], [], delay_s)[0]
    if in_time and (with_client or server is None):
        child.end()
    if in_time and server:
        server.kill()
        server.start()
    if not select.select([child.exit], [], [], PATIENCE_S)[0]:
        child.end()
        child.wait()
        raise StuckError("the child outlived its server")
    child.wait()
    return in_time


@contextmanager
def private_place(engine: Engine) -> Iterator[tuple[str, servers.PrivateServer | None]]:
    """Give an empty database for the block, and the private server that it is on."""
    if engine == "sqlite":
        with crash.empty_database(engine) as url:
            yield url, None
        return
    kinds: dict[str, type[servers.PrivateServer]] = {
        "postgres": servers.PostgresServer,
        "mariadb": servers.MariaDBServer,
        "mysql": PrivateMySQL,
    }
    server = kinds[engine]()
    try:
        yield server.create_database("plinth_crash"), server
    finally:
        server.stop()


def main() -> int:
    """Kill as often as the command line asks for, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    with private_place(chosen.engine) as (url, server), crash.harness(chosen.engine, url) as harness:
        report = explore(harness, server, chosen.kills, random.Random(chosen.seed))
    print(*report.half, report, sep="\n\n")
    return 1 if report.half else 0


if __name__ == "__main__":
    sys.exit(main())
