"""A batch killed at every statement it sends: whatever the point, the next ``up`` ends in the whole new schema.

By hand: ``python test/crash.py --engine mariadb --all``, ``--sample 60 --seed 7``, or one point again:
``--point up@17:after``. A point names what runs (*up*, *down*, or *undo*: a batch whose last migration fails) and the
statement at which it dies; a second one after ``+`` kills the next ``up`` too, which recovers first. At every other
point ``recover`` runs first, and must end in the state before the batch or after it; in a sample it is then the next
point's turn. MySQL is the one that ``TEST_MYSQL_URL`` leads to. Exits 1 when a state was neither.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import peewee
import servers
from crash_child import Kill, Moment, Proxy, Run, Task, run_plain
from crash_places import Place, State, differences, place_of

from api.db import files, migrations
from api.db.dialects.engine import ENGINES, Engine

Scenario = Literal["up", "down", "undo"]
BATCH = Path(__file__).parent / "crash_batch"
# Sent by the batch that fails: what comes after it is the undo.
LAST_WORDS = "SELECT 'this batch fails now'"
MOMENTS: tuple[Moment, ...] = ("before", "during", "after")
TELL_EVERY = 100
Tell = Callable[[str], None]
KIND = re.compile(
    r"\s*((?:INSERT INTO|UPDATE|DELETE FROM) migration_\w+|ALTER TABLE|CREATE (?:UNIQUE )?\w+|DROP \w+|SHOW \w+|\w+)"
    r"(?:.*? (ADD|DROP|RENAME|MODIFY|ALTER)\b)?",
    re.IGNORECASE | re.DOTALL,
)
# Of ten points in a sample that kill once: how many each scenario has.
SHARES: dict[Scenario, int] = {"up": 5, "down": 2, "undo": 3}


@dataclass(frozen=True, slots=True)
class Point:
    """What runs and when it dies: *again* is when the recovery dies too."""

    scenario: Scenario
    kill: Kill
    again: Kill | None = None

    def __str__(self) -> str:
        return f"{self.scenario}@{self.kill}" + (f"+{self.again}" if self.again else "")

    @classmethod
    def read(cls, text: str) -> Point:
        """Return the point that was written as *text*: ``up@17:after``, ``undo@99:before+12:during``."""
        match = re.fullmatch(r"(up|down|undo)@(\d+):(before|during|after)(?:\+(\d+):(before|during|after))?", text)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is no point such as up@17:after or undo@99:before+12:during")
        scenario, number, moment, number_again, moment_again = match.groups()
        again = Kill(int(number_again), moment_again) if number_again else None  # type: ignore[arg-type]
        return cls(scenario, Kill(int(number), moment), again)  # type: ignore[arg-type]


class HalfStateError(AssertionError):
    """What stands is neither the old state nor the new one, or no ``up`` gets through any more."""


@dataclass(slots=True)
class Report:
    """What came of the points: *found* counts the states met, *missed* the kills that came after the end."""

    engine: Engine
    kills: int = 0
    missed: int = 0
    found: Counter[str] = field(default_factory=Counter)
    kinds: set[str] = field(default_factory=set)
    half: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        states = ", ".join(f"{name} {count}" for name, count in sorted(self.found.items()))
        where = f" at {len(self.kinds)} kinds of statement" if self.kinds else ""
        return (
            f"{self.engine}: {self.kills} kills{where}, {self.missed} came too late; states found: {states or 'none'};"
            f" half-states: {len(self.half)}; {self.seconds:.0f} s"
        )


def up(database: peewee.Database) -> None:
    """Apply the batch."""
    migrations.migrate_db(directory=BATCH, database=database)


def down(database: peewee.Database) -> None:
    """Revert the whole batch."""
    first = files.list_files(BATCH)[0].name
    migrations.revert(first, directory=BATCH, database=database)


def fail(database: peewee.Database) -> None:
    """Apply the batch with one more migration, which fails."""
    loaded = files.load(files.list_files(BATCH))
    migrations.migrate_db([*((each.name, each.up) for each in loaded), ("9999_fail", _raise)], database=database)


def recover(database: peewee.Database) -> None:
    """Undo or finish what a crash left, and nothing more."""
    migrations.recover(database=database)


def _raise(migrator: object, db: peewee.Database) -> None:
    db.execute_sql(LAST_WORDS)
    raise RuntimeError("this batch fails")


TASKS: dict[Scenario, Task] = {"up": up, "down": down, "undo": fail}
STARTS: dict[Scenario, str] = {"up": "old", "down": "new", "undo": "old"}
OUTCOMES: dict[Scenario, set[str]] = {"up": {"old", "new"}, "down": {"new", "back"}, "undo": {"old"}}


class Crash:
    """The harness on one place: the states that may be found, and the runs that are killed."""

    def __init__(self, place: Place, proxy: Proxy) -> None:
        self.place, self.proxy = place, proxy
        # SQLite runs a statement in the very process that dies.
        self.moments: tuple[Moment, ...] = ("before",) if place.engine == "sqlite" else MOMENTS
        # The state that is known to stand, when it is.
        self.standing = ""
        self.states: dict[str, State] = {}
        self.traces: dict[Scenario, list[str]] = {}
        self.durations: dict[Scenario, float] = {}
        place.build()
        self._keep("old")
        self._trace("up")
        self._keep("new")
        self._trace("down")
        self._keep("back")
        self._trace("up")
        self.judge({"new"}, "up after down")
        place.restore("old")
        self._trace("undo")
        self.states["undone"] = place.state()

    def _keep(self, name: str) -> None:
        self.states[name] = self.place.state()
        self.place.save(name)

    def _trace(self, scenario: Scenario) -> None:
        run = self.proxy.run(TASKS[scenario])
        if scenario != "undo":
            _refuse_failure(run, f"{scenario}, which nobody killed")
        self.traces.setdefault(scenario, run.statements)
        self.durations[scenario] = run.seconds

    def judge(self, allowed: Iterable[str], when: str) -> str:
        """Return which of the states *allowed* stands."""
        state = self.place.state()
        names = [name for name in allowed if self.states[name] == state]
        if not names:
            told = [f"not {name}:\n{differences(state, self.states[name])}" for name in sorted(allowed)]
            raise HalfStateError(f"{when}: a half-state\n" + "\n".join(told))
        return names[0]

    def last(self, scenario: Scenario) -> int:
        """Return how many statements the run of *scenario* sends when nobody kills it."""
        return len(self.traces[scenario])

    def first(self, scenario: Scenario) -> int:
        """Return the first statement of interest: an undo begins where the batch failed."""
        if scenario != "undo":
            return 1
        return next(n for n, sql in enumerate(self.traces["undo"], 1) if LAST_WORDS in sql)

    def explore(self, points: Sequence[Point], *, thorough: bool = False, tell: Tell = lambda text: None) -> Report:
        """Try each of *points*; a half-state is kept in the report, with how to repeat it, and told at once.

        Points come in the order that saves time: first those that start where the one before has ended. With
        *thorough* an ``up`` follows ``recover`` too.
        """
        report = Report(self.place.engine)
        started = time.monotonic()
        if left := differences(self.states["undone"], self.states["old"]):
            report.half.append(f"a batch that fails, and that nobody killed, is not undone:\n{left}")
            tell(report.half[-1])
        waiting = {scenario: [each for each in points if each.scenario == scenario] for scenario in TASKS}
        while starts := [scenario for scenario in TASKS if waiting[scenario]]:
            scenario = next((each for each in starts if STARTS[each] == self.standing), starts[0])
            point = waiting[scenario].pop(0)
            report.kinds.add(kind_of(self.statement_at(point)))
            try:
                self._try(point, report, thorough=thorough)
            except HalfStateError as exc:
                again = f"again: python test/crash.py --engine {self.place.engine} --point {point}"
                report.half.append(f"{exc}\nat: {self.statement_at(point)}\n{again}")
                tell(report.half[-1])
            report.seconds = time.monotonic() - started
            if (left_over := sum(map(len, waiting.values()))) and left_over % TELL_EVERY == 0:
                tell(f"{report}; {left_over} points to go")
        return report

    def statement_at(self, point: Point) -> str:
        """Return the statement at which *point* kills, as far as runs are alike."""
        trace = self.traces[point.scenario]
        return trace[min(point.kill.number, len(trace)) - 1]

    def _try(self, point: Point, report: Report, *, thorough: bool) -> None:
        self.begin(point.scenario)
        if not self._killed(TASKS[point.scenario], point.kill, report):
            return
        allowed = OUTCOMES[point.scenario]
        if point.again:
            self._killed(up, point.again, report)
            allowed = allowed | {"new"}
        by_recover = point.kill.number % 2 == 1
        self.mend(allowed, str(point), report, by_recover=by_recover, by_up=thorough or not by_recover)

    def begin(self, scenario: Scenario) -> None:
        """Bring the database to where *scenario* starts."""
        if self.standing != STARTS[scenario]:
            self.place.restore(STARTS[scenario])
        self.standing = ""

    def mend(self, allowed: set[str], what: str, report: Report, *, by_recover: bool, by_up: bool) -> None:
        """Let ``recover``, then the next ``up``, end what a crash left; raise unless each ends where it must."""
        if by_recover:
            self._succeed(recover, f"{what}: recover")
            self.standing = self.judge(allowed, f"{what}: after recover")
            report.found[self.standing] += 1
        if by_up:
            self._succeed(up, f"{what}: the next up")
            self.standing = self.judge({"new"}, f"{what}: after the next up")
            report.found[self.standing] += 1

    def _succeed(self, task: Task, what: str) -> None:
        self.standing = ""
        _refuse_failure(run_plain(self.place.url, task), what)

    def _killed(self, task: Task, kill: Kill, report: Report) -> bool:
        run = self.proxy.run(task, kill)
        report.kills += run.killed
        report.missed += not run.killed
        return run.killed


def _refuse_failure(run: Run, what: str) -> None:
    if run.status:
        raise HalfStateError(f"{what}: it ended with {run.status}:\n{run.said[-4000:]}")


def kind_of(sql: str) -> str:
    """Return what *sql* does in a word or two: ``ALTER TABLE ADD``."""
    match = KIND.match(sql)
    return " ".join(word.upper() for word in match.groups() if word) if match else "?"


def all_points(crash: Crash) -> Iterator[Point]:
    """Yield a point for each statement of each scenario, at each moment."""
    for scenario in SHARES:
        for number in range(crash.first(scenario), crash.last(scenario) + 1):
            for moment in crash.moments:
                yield Point(scenario, Kill(number, moment))


def sample(crash: Crash, kills: int, dice: random.Random) -> list[Point]:
    """Draw points for *kills* kills, each kind of statement as often as any other; half of the kills are in twos."""
    twice = kills // 4
    return once(crash, kills - 2 * twice, dice) + double(crash, twice, dice)


def once(crash: Crash, size: int, dice: random.Random) -> list[Point]:
    """Draw *size* points that kill once, of each scenario its share."""
    points: list[Point] = []
    rare: tuple[Scenario, ...] = ("undo", "down")
    for scenario in rare:
        points += _drawn(crash, scenario, size * SHARES[scenario] // 10, dice)
    return points + _drawn(crash, "up", size - len(points), dice)


def double(crash: Crash, size: int, dice: random.Random) -> list[Point]:
    """Draw *size* points at which the batch is killed, and then the ``up`` that recovers."""
    return [
        Point(point.scenario, point.kill, Kill(dice.randint(1, 10 + point.kill.number), dice.choice(crash.moments)))
        for point in once(crash, size, dice)
    ]


def _drawn(crash: Crash, scenario: Scenario, size: int, dice: random.Random) -> list[Point]:
    by_kind: dict[str, list[int]] = {}
    numbers = list(range(crash.first(scenario), crash.last(scenario) + 1))
    dice.shuffle(numbers)
    for number in numbers:
        by_kind.setdefault(kind_of(crash.traces[scenario][number - 1]), []).append(number)
    drawn: list[Point] = []
    while by_kind and len(drawn) < size:
        for kind in list(by_kind)[: size - len(drawn)]:
            drawn.append(Point(scenario, Kill(by_kind[kind].pop(), dice.choice(crash.moments))))
            if not by_kind[kind]:
                del by_kind[kind]
    return drawn


@contextmanager
def harness(engine: Engine, url: str) -> Iterator[Crash]:
    """Set the harness up at *url*, an empty database that nobody else uses."""
    with closing(place_of(engine, url)) as place, closing(Proxy(engine, url)) as proxy:
        yield Crash(place, proxy)


@contextmanager
def empty_database(engine: Engine) -> Iterator[str]:
    """Give an empty database of *engine* for the block, on a server of its own or the one TEST_MYSQL_URL names."""
    if engine == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/crash.db"
        return
    with servers.Fleet() as fleet:
        name = f"plinth_crash_{random.randrange(10**9)}"
        yield fleet[engine].create_database(name)
        fleet[engine].drop_database(name)


def main() -> int:
    """Try the points that the command line asks for, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--all", action="store_true", help="every statement at every moment, and --double")
    parser.add_argument("--sample", type=int, default=60, help="how many kills to draw points for (60)")
    parser.add_argument(
        "--double", type=int, default=100, help="with --all: how many points kill the recovery too (100)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--point", type=Point.read, action="append", help="only this point")
    parser.add_argument("--moment", choices=MOMENTS, action="append", help="with --all: only this moment (all three)")
    parser.add_argument("--part", type=_part, default=(1, 1), help="with --all: 1/2 takes one half of the points")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    dice = random.Random(chosen.seed)
    with empty_database(chosen.engine) as url, harness(chosen.engine, url) as crash:
        print({scenario: crash.last(scenario) for scenario in SHARES}, "statements", flush=True)
        points = chosen.point or (everything(crash, chosen, dice) if chosen.all else sample(crash, chosen.sample, dice))
        report = crash.explore(points, thorough=chosen.all, tell=lambda text: print(text, flush=True))
    print(report)
    return 1 if report.half else 0


def everything(crash: Crash, chosen: argparse.Namespace, dice: random.Random) -> list[Point]:
    """Return what ``--all`` tries: its part of the statements at the chosen moments, and points that kill twice."""
    crash.moments = tuple(each for each in crash.moments if each in (chosen.moment or MOMENTS))
    part, parts = chosen.part
    return [*list(all_points(crash))[part - 1 :: parts], *double(crash, chosen.double, dice)]


def _part(text: str) -> tuple[int, int]:
    part, parts = (int(number) for number in text.split("/"))
    return part, parts


if __name__ == "__main__":
    sys.exit(main())
