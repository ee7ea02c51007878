"""A minute of what ``python test/pool_storm.py`` does for as long as one likes, and that it sees what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import crash_server
import pool_storm
import pytest
from pool_load import Book, Load, account, quarrels
from sessions import SERVERS

from api.db.pool_queue import Place

PROGRAM = Path(pool_storm.__file__)
MINUTES = 20 / 60


@SERVERS
def test_in_a_storm_every_process_s_numbers_add_up(backend: Any, seed: int, request: pytest.FixtureRequest) -> None:
    """Threads and forked children on a server that fails in every way: no slot is lost, no commit, and no thread."""
    if backend.engine == "mysql" and crash_server.running_mysqld() is None:
        pytest.skip("the MySQL of TEST_MYSQL_URL does not run on this machine")
    # In a process of its own, which may fork as it likes.
    command = [sys.executable, PROGRAM, "--engine", backend.engine, "--minutes", str(MINUTES), "--seed", str(seed)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    request.node.user_properties.append(("told", ran.stdout.strip()))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_slot_that_is_lost_is_seen(db: Any) -> None:
    """One taken and never given back is what the numbers quarrel about: who has it is for ever about to be served."""
    db.close()
    book = Book(asked=1, got=1)
    assert quarrels(db, book) == []
    db._slots.take(Place())
    assert quarrels(db, book) == ["active, pending, waiting: (0, 1, 0) and (0, 0, 0)", "slots taken: 1 and 0"]


@SERVERS
def test_a_wrong_answer_and_a_lost_commit_are_seen(backend: Any) -> None:
    """A thread that meets another one's answer, and a row that is short of a commit."""
    with account(backend.server, backend.url):
        load = Load(backend.database(), backend.url, 1)
        load.start()
        load.go_on(1)
        (worker,) = load.workers
        worker.book.expect(1, 2)
        worker.book.done += 1
        wrong = load.stop().wrong
    assert len(wrong) == 2
    assert wrong[0] == "wrong answer: 1 instead of 2"
    assert wrong[1].startswith("row 0 is ")
