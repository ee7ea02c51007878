"""Many processes boot at once: each migration runs once and every process serves, also when the migrator is killed.

``python test/race.py --processes 32 --rounds 20 --engine postgres`` prints what came of it; ``test_race.py`` runs a few
rounds on each engine. The processes are forked from one that has everything loaded, and let go together; each boots the
real app. MySQL is the server that ``TEST_MYSQL_URL`` leads to.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import servers
from cryptography.fernet import Fernet

from api import create_app
from api.db.connection import open_database
from api.db.dialects.engine import ENGINES, Engine
from api.db.migrations import migrate_db
from api.logs import configure_logging
from api.settings import load_settings

SCENES = ("empty", "pending", "killed")
MIGRATIONS = 6
# It runs outside a transaction, and so splits the batch: the lock is given up and taken again.
ALONE = 4
DEADLINE_S = 300.0
FIRST = "    db.execute_sql('CREATE TABLE race_run (name VARCHAR(64), pid INTEGER, PRIMARY KEY (name, pid))')\n"
TEXT = """import os
import time
{atomic}

def up(migrator, db):
{first}    meet(0)
    db.execute_sql("CREATE TABLE race_{number} (id INTEGER PRIMARY KEY)")
    meet(1)
    db.execute_sql(f"INSERT INTO race_run (name, pid) VALUES ('{name}', {{os.getpid()}})")
    meet(2)


def meet(point):
    if point != {meet}:
        return
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    with open({meeting!r}, "w") as meeting:
        meeting.write(str(os.getpid()))
    time.sleep(600)
"""


@dataclass
class Round:
    """What one round came to: *exits* counts the processes by their exit code (minus the signal), *wrong* says why."""

    scene: str
    exits: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0


def fork(function: Callable[[], object], output: Path | None = None) -> int:
    """Run *function* in a forked child, and return its process id; the child's exit code is 1 when it raises."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if output:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        function()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not run the parent's clean-up
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def play(url: str, folder: Path, scene: str, processes: int, rng: random.Random) -> Round:
    """Play *scene* once on the empty database at *url*, with files in *folder*, which is empty as well."""
    round_ = Round(scene)
    applied = 0 if scene == "empty" else rng.randrange(1, ALONE)
    victim = rng.randrange(applied + 1, MIGRATIONS + 1) if scene == "killed" else None
    _write(folder, range(1, applied + 1), victim, rng)
    _migrate(url, folder / "versions")
    _write(folder, range(applied + 1, MIGRATIONS + 1), victim, rng)
    started = time.monotonic()
    with _booting(url, folder, processes) as children:
        killed = _kill_who_comes(folder / "meeting") if victim else None
        round_.exits = Counter(_wait_for(children, started + DEADLINE_S))
    round_.elapsed_s = time.monotonic() - started
    expected = Counter({0: processes}) if killed is None else Counter({0: processes - 1, -signal.SIGKILL: 1})
    if round_.exits != expected:
        output = (folder / "output").read_text()
        told = [line for line in output.splitlines() if " [warning " not in line]
        round_.wrong.append("\n".join([f"the processes ended with {dict(round_.exits)}:", *told[-80:]]))
    round_.wrong += _odd_counts(url)
    return round_


def _write(folder: Path, numbers: Sequence[int], victim: int | None, rng: random.Random) -> None:
    versions, meeting = folder / "versions", folder / "meeting"
    versions.mkdir(exist_ok=True)
    if not meeting.exists():
        os.mkfifo(meeting)
    for number in numbers:
        name = f"{number:04d}_race"
        text = TEXT.format(
            name=name,
            number=number,
            first=FIRST if number == 1 else "",
            # What is killed outside a transaction is another proof's subject.
            atomic="\natomic = False\n" if number == ALONE and victim is None else "",
            meet=rng.randrange(3) if number == victim else None,
            mark=str(folder / "met"),
            meeting=str(meeting),
        )
        (versions / f"{name}.py").write_text(text)


def _migrate(url: str, versions: Path) -> None:
    database = open_database(url)
    try:
        migrate_db(directory=versions, database=database)
    finally:
        database.close_all()


@contextmanager
def _booting(url: str, folder: Path, processes: int) -> Iterator[list[int]]:
    """Fork *processes* that boot the app, all at the same moment; kill those that are left at the end."""
    gate, opener = os.pipe()
    settings = load_settings(
        env_file=Path("/nonexistent/.env"),
        database_url=url,
        migration_directory=folder / "versions",
        migration_lock_timeout_s=DEADLINE_S,
        encryption_keys=Fernet.generate_key().decode(),
        log_level="WARNING",
    )

    def boot() -> None:
        os.close(opener)
        os.read(gate, 1)
        create_app(settings)

    children = [fork(boot, folder / "output") for _ in range(processes)]
    os.close(gate)
    os.close(opener)
    try:
        yield children
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _kill_who_comes(meeting: Path) -> int:
    """Kill the process that says, through the pipe *meeting*, that it is half-way, and return its id."""
    reader = os.open(meeting, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ready, _, _ = select.select([reader], [], [], DEADLINE_S)
        told = os.read(reader, 32) if ready else b""
    finally:
        os.close(reader)
    assert told, "nobody migrates"
    os.kill(int(told), signal.SIGKILL)
    return int(told)


def _wait_for(children: list[int], deadline: float) -> Iterator[int]:
    """Yield the exit codes, and take from *children* who has ended."""
    while children and time.monotonic() < deadline:
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(child)
                yield os.waitstatus_to_exitcode(status)
        time.sleep(0.01)


def _odd_counts(url: str) -> list[str]:
    """Say which migration left other than one row and one successful attempt."""
    database = open_database(url)
    try:
        ran = Counter(name for (name,) in database.execute_sql("SELECT name FROM race_run").fetchall())
        sql = "SELECT migration_name FROM migration_attempt WHERE status = 'success'"
        attempts = Counter(name for (name,) in database.execute_sql(sql).fetchall())
        tables = {table for table in database.get_tables() if table.startswith("race_")}
    finally:
        database.close_all()
    names = [f"{number:04d}_race" for number in range(1, MIGRATIONS + 1)]
    once = Counter(dict.fromkeys(names, 1))
    expected = {"race_run", *(f"race_{number}" for number in range(1, MIGRATIONS + 1))}
    wrong = [] if ran == once else [f"rows: {dict(ran)}"]
    wrong += [] if attempts == once else [f"attempts: {dict(attempts)}"]
    return wrong + ([] if tables == expected else [f"tables: {sorted(tables)}"])


def main() -> int:
    """Play the rounds that the command line asks for and print the figures; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--scene", choices=SCENES, action="append")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    configure_logging("CRITICAL")
    print(f"seed {asked.seed}")
    failures = 0
    with servers.Fleet() as fleet:
        for engine in asked.engine or ENGINES:
            for scene in asked.scene or SCENES:
                rng = random.Random(f"{asked.seed} {engine} {scene}")
                rounds = [_play_on(fleet, engine, scene, asked.processes, rng) for _ in range(asked.rounds)]
                failures += sum(bool(round_.wrong) for round_ in rounds)
                _print(engine, scene, rounds)
    return 1 if failures else 0


def _play_on(fleet: servers.Fleet, engine: Engine, scene: str, processes: int, rng: random.Random) -> Round:
    with tempfile.TemporaryDirectory() as folder:
        if engine == "sqlite":
            return play(f"sqlite:///{folder}/race.db", Path(folder), scene, processes, rng)
        server, name = fleet[engine], f"plinth_race_{os.getpid()}"
        url = server.create_database(name)
        try:
            return play(url, Path(folder), scene, processes, rng)
        finally:
            server.drop_database(name)


def _print(engine: Engine, scene: str, rounds: list[Round]) -> None:
    exits: Counter[int] = sum((round_.exits for round_ in rounds), Counter())
    longest_s = max(round_.elapsed_s for round_ in rounds)
    bad = [round_ for round_ in rounds if round_.wrong]
    served, killed = exits[0], exits[-signal.SIGKILL]
    print(
        f"{engine:9} {scene:8} {len(rounds)} rounds, {exits.total()} processes: "
        f"{served} served, {killed} killed, {exits.total() - served - killed} failed; "
        f"{len(bad)} rounds wrong; longest {longest_s:.1f} s",
        flush=True,
    )
    for round_ in bad[:1]:
        print("\n".join(round_.wrong), flush=True)


if __name__ == "__main__":
    sys.exit(main())
