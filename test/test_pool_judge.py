"""The judge says what a pool's numbers mean, and is neither late nor noisy about it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from api.db.pool_judge import FINE, Finding, Health, Judge, Past, Reason, Rules, grade
from api.db.pool_leaks import LeakWatch, current_stack
from api.db.pool_numbers import Borrow, Histogram, PoolSnapshot

IDLE = PoolSnapshot(name="db:5432/shop", pid=1, max=20, active=0, idle=0, total=0)
INTERVAL_S = 5.0


def used(active: int, **numbers: Any) -> PoolSnapshot:
    """Return what a pool of twenty with *active* connections in use says."""
    return replace(IDLE, active=active, peak=active, **numbers)


def told(snapshots: Iterable[PoolSnapshot], *, interval_s: float = INTERVAL_S, rules: Rules | None = None) -> list[str]:
    """Return what a judge says about *snapshots*, one every *interval_s*, as "second change health"."""
    judge = Judge(rules or Rules(), IDLE)
    lines = []
    for number, snapshot in enumerate(snapshots):
        finding = judge.look(snapshot, number * interval_s)
        if finding:
            lines.append(f"{number * interval_s:g} {finding.change} {finding.health}")
    return lines


def looked(judge: Judge, snapshot: PoolSnapshot, now_s: float, **more: Any) -> Finding:
    """Return what *judge* says about *snapshot*, which is something."""
    finding = judge.look(snapshot, now_s, **more)
    assert finding is not None
    return finding


@pytest.mark.parametrize(
    ("active", "held", "health"),
    [
        *((15, "fine", "fine"), (16, "fine", "warning"), (18, "fine", "warning"), (19, "fine", "critical")),
        *((14, "warning", "warning"), (13, "warning", "fine"), (17, "critical", "critical")),
        *((16, "critical", "warning"), (13, "critical", "fine")),
    ],
)
def test_a_state_is_left_below_where_it_was_entered(active: int, held: str, health: str) -> None:
    """Entered at 80 and 95 %, left below 70 and 85 %."""
    assert grade(used(active), Rules(), None, Health(held)).health == health


def test_the_busiest_moment_since_the_last_look_counts() -> None:
    """A burst that is over when somebody looks was there all the same."""
    assert grade(replace(used(2), peak=20), Rules()).health is Health.CRITICAL


def test_a_threshold_may_be_very_low() -> None:
    """Also a state entered at 5 % is left again."""
    assert grade(used(0), Rules(warning=0.05), None, Health.WARNING) == FINE


@pytest.mark.parametrize(
    ("numbers", "health", "reason"),
    [
        ({"active": 19}, "critical", Reason.BUSY),
        ({"active": 20, "waiting": 2, "pending": 2}, "critical", Reason.SATURATED),
        ({"active": 20, "waiting": 2, "pending": 2, "oldest_wait_s": 1.5}, "critical", Reason.SATURATED),
        ({"active": 5, "pending": 3, "oldest_wait_s": 1.5}, "warning", Reason.SLOW),
        ({"active": 5, "pending": 3, "oldest_wait_s": 0.5}, "fine", Reason.NONE),
        ({"active": 2, "waiting": 9, "pending": 27, "oldest_wait_s": 3.0}, "warning", Reason.SLOW),
        ({"active": 2, "connect_errors": 4}, "warning", Reason.FAILING),
        ({"active": 2, "timeouts": 1}, "critical", Reason.SLOW),
        ({"active": 2, "timeouts": 1, "connect_errors": 1}, "critical", Reason.FAILING),
    ],
)
def test_the_reason_says_where_to_look(numbers: dict[str, Any], health: str, reason: Reason) -> None:
    """Only busy, saturated, or the database: a connect that takes long is no pool that is too small."""
    found = grade(used(**numbers), Rules(), Past(before=IDLE, served=IDLE))
    assert (found.health, found.reason) == (health, reason)


def test_slots_that_are_taken_by_connects_are_no_full_pool() -> None:
    """It was full, then its connections were lost, and now all wait for the server: that is what is slow."""
    now = used(2, waiting=10, pending=28, oldest_wait_s=3.0)
    assert grade(replace(now, peak=20), Rules(warning=1, critical=1)).reason is Reason.SLOW


@pytest.mark.parametrize(
    ("active", "waiting", "health"), [(1, 0, "fine"), (2, 0, "fine"), (2, 1, "warning"), (2, 2, "critical")]
)
@pytest.mark.parametrize("rules", [Rules(), Rules(by_share=False)])
def test_a_small_pool_is_judged_by_who_waits(active: int, waiting: int, health: str, rules: Rules) -> None:
    """A pool of two that is full is in normal use."""
    small = replace(used(active), max=2, waiting=waiting, pending=waiting)
    assert grade(small, rules).health == health


def test_a_pool_may_be_judged_without_shares() -> None:
    """Where connections cost nothing, one that is full is fine until somebody waits."""
    assert grade(used(20), Rules(by_share=False)) == FINE
    assert grade(used(20, waiting=1, pending=1), Rules(by_share=False)).health is Health.WARNING


def test_without_a_limit_there_is_nothing_to_run_out_of() -> None:
    """No maximum: any number in use is fine."""
    assert grade(replace(used(500), max=None), Rules()) == FINE


def test_one_busy_sample_says_nothing() -> None:
    """A state is entered when two samples in a row agree."""
    assert told([used(19), used(3), used(19), used(3)]) == []
    assert told([used(19), used(19)]) == ["5 entered critical"]


def test_a_timeout_is_said_at_once() -> None:
    """The first look that sees it speaks, with how many there were."""
    judge = Judge(Rules(), used(20, timeouts=7))
    finding = looked(judge, used(20, waiting=3, pending=3, timeouts=9), 0.2, alarmed=True)
    assert (finding.health, finding.reason, finding.timeouts_new) == (Health.CRITICAL, Reason.SATURATED, 2)


def test_a_borrow_that_took_long_is_said_by_the_next_sample() -> None:
    """A connect of two seconds is seen when it is over: no waiter rings for it."""
    waits = Histogram()
    judge = Judge(Rules(), used(1, wait=waits.picture()))
    waits.record(0.9)
    assert judge.look(used(1, wait=waits.picture()), 5) is None
    waits.record(2.0)
    finding = looked(judge, used(1, wait=waits.picture()), 10)
    assert (finding.reason, finding.long_waits_new) == (Reason.SLOW, 1)


def test_borrows_that_hang_at_the_server_are_a_slow_database() -> None:
    """Asked at one look and not served over a second later, nor anybody else; not where others are served."""
    judge = Judge(Rules(), IDLE)
    assert [judge.look(used(0, pending=2), now_s) for now_s in (0, 0.5, 1)] == [None] * 3
    assert looked(judge, used(0, pending=2), 1.1).reason is Reason.SLOW
    busy = Judge(Rules(), IDLE)
    assert [busy.look(used(1, pending=2, borrowed=number), number) for number in range(9)] == [None] * 9


def test_connects_that_fail_are_a_state_until_one_succeeds() -> None:
    """Nobody tries for minutes after a failure: that is no recovery. A borrow that is served begins one."""
    failed = [used(0, connect_errors=1)] * 40
    assert told([IDLE, *failed, *[used(0, connect_errors=1, borrowed=1)] * 9]) == [
        *("10 entered warning", "70 repeated warning", "130 repeated warning", "190 repeated warning"),
        "215 recovered fine",
    ]


def test_a_wait_that_is_over_when_somebody_looks_is_said_too() -> None:
    """The pool's alarm is enough, also when the numbers are quiet again."""
    assert looked(Judge(Rules(), IDLE), replace(used(3), peak=20), 0.2, alarmed=True).reason is Reason.SATURATED
    assert looked(Judge(Rules(), IDLE), used(3), 0.2, alarmed=True).reason is Reason.SLOW


def test_a_timeout_after_a_long_wait_is_said_at_once_too() -> None:
    """First somebody waits long, ten seconds later in vain: each is news."""
    judge = Judge(Rules(), IDLE)
    assert looked(judge, used(20, waiting=1, pending=1, oldest_wait_s=1.1), 1, alarmed=True).timeouts_new == 0
    assert judge.look(used(20, waiting=1, pending=1, oldest_wait_s=9), 9, alarmed=True) is None
    assert looked(judge, used(20, timeouts=1), 10, alarmed=True).timeouts_new == 1


def test_an_alarm_in_a_state_that_was_said_is_news_once() -> None:
    """Used up, and then somebody waits in vain: said at once; what follows comes with the repeat, counted."""
    judge = Judge(Rules(), IDLE)
    assert judge.look(used(20), 0) is None
    assert looked(judge, used(20), 5).change == "entered"
    assert looked(judge, used(20, timeouts=1), 6, alarmed=True).timeouts_new == 1
    assert [judge.look(used(20, timeouts=second), second, alarmed=True) for second in range(7, 66)] == [None] * 59
    finding = looked(judge, used(20, timeouts=66), 66, alarmed=True)
    assert (finding.change, finding.timeouts_new, finding.lasted_s) == ("repeated", 65, 61)


def test_a_state_that_lasts_is_said_every_minute() -> None:
    """With how long it has lasted, until it ends."""
    assert told([used(19)] * 40) == [
        "5 entered critical",
        "65 repeated critical",
        "125 repeated critical",
        "185 repeated critical",
    ]


def test_recovery_is_one_line_with_duration_and_peak() -> None:
    """Three calm samples end it; the time until the first of them is how long it lasted."""
    judge = Judge(Rules(), IDLE)
    samples = [used(17), used(17), used(18), used(16), used(9), used(3), used(3)]
    *_, last = [judge.look(snapshot, 5 * number) for number, snapshot in enumerate(samples)]
    assert last is not None
    assert (last.change, last.health, last.lasted_s, last.peak) == ("recovered", Health.FINE, 15, 18)


def test_what_gets_milder_waits_for_its_turn() -> None:
    """Critical that becomes a warning is no recovery: the next repeat says it."""
    assert told([used(20)] * 2 + [used(16)] * 15) == ["5 entered critical", "65 repeated warning"]


def test_what_gets_worse_is_said_at_once() -> None:
    """A warning that becomes critical does not wait for the repeat."""
    assert told([used(17)] * 3 + [used(19)] * 2) == ["5 entered warning", "20 entered critical"]


def noisy(draw: Callable[[], float], interval_s: float) -> list[PoolSnapshot]:
    """Return an hour of samples of a pool whose use changes four times a second as *draw* makes it."""
    hour = []
    for _ in range(int(3600 / interval_s)):
        moments = [max(0, min(20, round(draw()))) for _ in range(int(4 * interval_s))]
        hour.append(replace(used(moments[-1]), peak=max(moments)))
    return hour


@pytest.mark.parametrize("interval_s", [1.0, 5.0])
@pytest.mark.parametrize("centre", [14, 16, 18])
@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_a_noisy_hour_is_thirty_lines_at_the_most(centre: int, spread: float, interval_s: float, seed: int) -> None:
    """A pool that swings around a threshold does not fill the log, whether its peaks or its moments do."""
    source = random.Random(seed)
    lines = told(noisy(lambda: source.gauss(centre, spread), interval_s), interval_s=interval_s)
    assert len(lines) <= 30


@pytest.mark.parametrize("interval_s", [1.0, 5.0])
@pytest.mark.parametrize("samples", [2, 3, 4, 6, 10, 15, 25, 50, 100, 150, 200])
def test_no_swing_makes_an_hour_noisy(samples: int, interval_s: float) -> None:
    """However long the pool is busy and then calm, in turns: thirty lines at the most."""
    wave = [used(17)] * 2 + [used(20)] * 2 + [used(3)] * samples
    hour = (wave * 2000)[: int(3600 / interval_s)]
    assert len(told(hour, interval_s=interval_s)) <= 30


def test_not_even_noise_that_knows_the_rules_makes_an_hour_noisy() -> None:
    """Back in trouble the moment the recovery was said: each time the recovery takes longer to believe."""
    judge, lines, busy = Judge(Rules(), IDLE), 0, 0
    for second in range(3600):
        busy = 0 if busy == 4 else busy
        is_calm = judge.health is Health.CRITICAL
        lines += judge.look(used(3) if is_calm else used(17 if busy < 2 else 20), second) is not None
        busy += not is_calm
    assert 0 < lines <= 30


def test_a_pool_that_was_quiet_for_long_recovers_fast_again() -> None:
    """The patience with a pool that swings is forgotten after a quarter of an hour."""
    trouble = [used(19)] * 2 + [used(3)] * 200
    assert told(trouble * 3) == [
        *("5 entered critical", "20 recovered fine", "1015 entered critical", "1030 recovered fine"),
        *("2025 entered critical", "2040 recovered fine"),
    ]


def borrow(*, since_s: float = 0.0, key: int = 1, thread: threading.Thread | None = None) -> Borrow:
    """Return the record of a connection in use."""
    return Borrow(thread or threading.current_thread(), "tasks.create", "req-7", since_s, key)


def test_a_long_borrow_is_said_once_and_its_return_too() -> None:
    """Not before its time, and not again."""
    watch, held = LeakWatch(60), borrow()
    assert [len(watch.look([held], now_s).leaks) for now_s in (0, 59, 60, 65, 600)] == [0, 0, 1, 0, 0]
    assert [watch.look([], now_s).back for now_s in (605, 610)] == [[held], []]


def test_a_short_borrow_says_nothing_when_it_ends() -> None:
    """Only what was said to last too long is said to be back."""
    watch = LeakWatch(60)
    watch.look([borrow()], 59)
    assert watch.look([], 61).back == []


def test_the_next_borrow_of_the_same_connection_is_another_one() -> None:
    """A connection said to be held too long, returned and lent again, starts anew."""
    watch, again = LeakWatch(60), borrow(since_s=99)
    watch.look([borrow()], 60)
    found = watch.look([again], 100)
    assert (found.leaks, len(found.back)) == ([], 1)
    assert watch.look([again], 160).leaks == [again]


def test_a_dead_thread_s_borrow_is_an_orphan_at_once() -> None:
    """It is no leak that may come back, whatever was said of it before."""
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    watch, held = LeakWatch(60), borrow(thread=thread)
    assert watch.look([held], 61).leaks == [held]
    leave.set()
    thread.join()
    found = watch.look([held], 66)
    assert (found.orphans, found.leaks) == ([held], [])
    assert watch.look([], 71).back == []


def test_the_stack_is_where_the_holder_is_now() -> None:
    """The innermost call stands last; a thread that has ended has none."""
    entered, leave = threading.Event(), threading.Event()

    def hold_on() -> None:
        entered.set()
        leave.wait()

    thread = threading.Thread(target=hold_on)
    thread.start()
    entered.wait()
    try:
        stack = current_stack(borrow(thread=thread))
    finally:
        leave.set()
        thread.join()
    assert any("test_pool_judge.py" in place and place.endswith("hold_on") for place in stack)
    assert stack[-1].endswith("Condition.wait")
    assert current_stack(borrow(thread=thread)) == []
