"""An exception from outside may strike after any call and at any function's beginning, and costs no slot."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import peewee
import pytest
from borrowing import PATIENCE_S, held

from api.db.connection import open_database
from api.db.pool_dialling import _apart, _others
from api.db.pool_numbers import PoolTimeout

Action = Callable[[Any], object]
# What may be done by another than the one who holds a connection.
FILES = ("/api/db/pool", "/peewee.py")


class Struck(BaseException):
    """What comes from outside: a signal, the end of a green thread."""


class Strike:
    """Raises ``Struck`` in this thread at the one of the places that has *number*; *where* says which that was.

    CPython looks for signals and the like when a function begins and when a call has returned (3.11).
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self.where: str | None = None

    def __call__(self, frame: Any, event: str, _: object) -> None:
        """Hear from CPython where it is."""
        path = frame.f_code.co_filename
        if event not in ("call", "c_return", "c_exception") or not any(part in path for part in FILES):
            return
        self._left -= 1
        if self._left < 0 and self.where is None:
            self.where = f"{path}:{frame.f_lineno} {event}"
            raise Struck


def struck(database: Any, strike: Strike, before: Action, action: Action) -> None:
    """Do *before*, and then *action* until *strike* ends it, in a thread which then returns what it still has."""

    def work() -> None:
        before(database)
        sys.setprofile(strike)
        try:
            action(database)
        except (Struck, PoolTimeout, peewee.PeeweeException):
            pass
        finally:
            sys.setprofile(None)
        if not database.is_closed():
            database.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), strike.where
    # A fork would wait for it, and a connect for the other, in vain.
    assert not _others(_apart._connecting), strike.where
    assert not _others(_apart._forking), strike.where


def nothing(_: Any) -> None:
    """Do nothing."""


def connect(database: Any) -> None:
    """Borrow a connection."""
    database.connect()


def begin(database: Any) -> None:
    """Borrow a connection, and begin a transaction on it."""
    database.connect()
    database.execute_sql("BEGIN")


def borrow_once(database: Any) -> None:
    """Leave one idle connection."""
    with database.connection_context():
        pass


def knock(database: Any) -> None:
    """Meet a closed gate at which it is time to knock."""
    with suppress(peewee.OperationalError):
        database.connect()
    database._gate._not_before_s = 0.0


def orphan(database: Any) -> None:
    """Let a thread die with a connection."""
    thread = threading.Thread(target=database.connect)
    thread.start()
    thread.join()


def reclaim(database: Any) -> None:
    """Take back what dead threads have."""
    for borrow in database.borrows():
        database.reclaim(borrow)


SITUATIONS: dict[str, tuple[Action, Action]] = {
    "a new connection": (nothing, connect),
    "an idle connection": (borrow_once, connect),
    "a return": (connect, lambda database: database.close()),
    "a return in a transaction": (begin, lambda database: database.close()),
    "a manual close": (connect, lambda database: database.manual_close()),
    "a dead thread's": (orphan, reclaim),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("options", [{}, {"validate_after_s": 0, "max_lifetime_s": 1e-9}], ids=["usual", "stale"])
def test_wherever_it_strikes_every_slot_comes_back(tmp_path: Any, situation: str, options: dict[str, Any]) -> None:
    """And every connection that was opened is idle or closed."""
    for number in range(1000):
        database: Any = open_database(f"sqlite:///{tmp_path}/a.db", pool_timeout_s=0.01, **options)
        strike = Strike(number)
        struck(database, strike, *SITUATIONS[situation])
        # What was not begun yet is left for the next attempt.
        reclaim(database)
        now = database.snapshot()
        assert (database._slots.taken, now.active, now.pending, now.waiting) == (0, 0, 0, 0), strike.where
        assert now.created == now.idle + sum(now.closed.values()), strike.where
        assert now.borrowed == now.returned, strike.where
        database.close_idle()
        if strike.where is None:
            break
    assert number >= 9


def test_a_wait_that_is_struck_leaves_the_line(tmp_path: Any) -> None:
    """Nobody is served after that who is not there any more."""
    for number in range(1000):
        database: Any = open_database(f"sqlite:///{tmp_path}/a.db", pool_max=1, pool_timeout_s=0.001)
        strike = Strike(number)
        with held(database, 1):
            struck(database, strike, nothing, connect)
            assert (database.snapshot().waiting, database.snapshot().pending) == (0, 0), strike.where
        assert database._slots.taken == 0, strike.where
        database.close_idle()
        if strike.where is None:
            break
    assert number >= 9


def test_a_knock_that_is_struck_lets_the_next_one_knock() -> None:
    """The gate does not wait for ever for who was to say whether the server is back."""
    for number in range(1000):
        database: Any = open_database("postgresql://u@127.0.0.1:1/x", pool_timeout_s=0.01)
        strike = Strike(number)
        struck(database, strike, knock, connect)
        assert database._gate._probe_s is None, strike.where
        assert database._slots.taken == 0, strike.where
        if strike.where is None:
            break
    assert number >= 9
