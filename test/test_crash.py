"""No crash leaves a half-made schema: a seeded sample of what ``test/crash.py`` and ``test/crash_server.py`` try."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import crash
import crash_server
import pytest
from crash_batch.start import TABLES
from crash_places import Place, place_of

KILLS = 60
# Some kills come too late: there are points at which nothing is left to recover.
SAMPLE = 72
SERVER_KILLS = 3
CHANGES = re.compile(r"(ALTER|CREATE|DROP|RENAME|UPDATE|DELETE|INSERT)\b(?!.*\bmigration_)", re.S)
# What a crash could leave behind, each too little to be seen by a look at the tables' names.
HALVES = (
    "UPDATE customer SET score = score + 1 WHERE id = 1",
    "DELETE FROM stock WHERE product_id = 3",
    "CREATE INDEX left_behind ON audit (message)",
    "ALTER TABLE purchase ADD COLUMN left_behind INTEGER",
    "DROP VIEW open_purchase",
)


def test_a_killed_migrator_leaves_no_half_state(backend: Any, seed: int, request: pytest.FixtureRequest) -> None:
    """Killed at whatever statement of up, down, undo or recovery: the next `up` ends in the whole new state."""
    with crash.harness(backend.engine, backend.url) as harness:
        report = harness.explore(crash.sample(harness, SAMPLE, random.Random(seed)))
    request.node.user_properties.append(("told", str(report)))
    assert not report.half, "\n\n".join([*report.half, str(report)])
    assert report.kills >= KILLS


@pytest.mark.engines("sqlite", "postgres", "mariadb")
def test_a_killed_server_leaves_no_half_state(backend: Any, seed: int) -> None:
    """Whenever the server dies, the next `up` on it ends in the whole new state."""
    server = None if backend.engine == "sqlite" else backend.private
    with crash.harness(backend.engine, backend.url) as harness:
        report = crash_server.explore(harness, server, SERVER_KILLS, random.Random(seed))
    assert not report.half, "\n\n".join([*report.half, str(report)])


@pytest.mark.engines("mysql")
def test_a_killed_mysql_leaves_no_half_state(backend: Any, seed: int) -> None:
    """As the others; the MySQL that is killed is one of ours, of the same program."""
    if crash_server.running_mysqld() is None:
        pytest.skip("the MySQL of TEST_MYSQL_URL does not run on this machine")
    with crash_server.private_place("mysql") as (url, server), crash.harness("mysql", url) as harness:
        report = crash_server.explore(harness, server, SERVER_KILLS, random.Random(seed))
    assert not report.half, "\n\n".join([*report.half, str(report)])


@pytest.mark.engines("sqlite", "postgres", "mariadb")
@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.split(" SET ")[0])
def test_the_harness_sees_a_half_state(backend: Any, half: str) -> None:
    """One row, one index, one column, one view that is not as it was is told from the old state."""
    with built(backend) as place:
        old = place.state()
        database = backend.database()
        database.connect()
        database.execute_sql(half)
        database.close_all()
        assert place.state() != old


def test_a_saved_state_comes_back_whole(backend: Any) -> None:
    """What the harness goes back to between two kills is what it saved, to the last row."""
    with built(backend) as place:
        old = place.state()
        place.save("old")
        crash.up(backend.database())
        place.restore("old")
        assert place.state() == old


@pytest.mark.engines("postgres")
def test_the_batch_is_a_large_one(backend: Any) -> None:
    """At least 30 statements that change something, and at least 8 tables."""
    with crash.harness(backend.engine, backend.url) as harness:
        changes = [sql for sql in harness.traces["up"] if CHANGES.match(sql)]
    assert len(changes) >= 30
    assert len(TABLES) >= 8


@contextmanager
def built(backend: Any) -> Iterator[Place]:
    """Give the place at *backend*'s database for the block, with the start in it."""
    place = place_of(backend.engine, backend.url)
    place.build()
    try:
        yield place
    finally:
        for database in backend.opened:
            database.close_all()
        place.close()
