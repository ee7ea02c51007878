"""The line and the gate by themselves: who is next, and who may knock."""

from __future__ import annotations

import pytest

from api.db.pool_gate import GATE_CAP_S, ConnectPostponed, Gate
from api.db.pool_queue import Place, Slots

REFUSED = ConnectionRefusedError("refused")


class TestGate:
    """After a failed connect one knocks at a time, the others are told at once."""

    def test_an_open_gate_lets_everybody_in(self) -> None:
        """Nothing has failed, nobody is kept."""
        gate = Gate()
        assert [gate.ask(now_s) for now_s in (1.0, 1.0, 2.0)] == [None, None, None]

    def test_a_closed_gate_says_why_and_how_long(self) -> None:
        """The last error, and after how many seconds to ask again."""
        gate = Gate()
        gate.failed(REFUSED, 0.0, 0.0)
        refusal = gate.ask(0.0)
        assert isinstance(refusal, ConnectPostponed)
        assert refusal.last is REFUSED
        assert 0 <= refusal.retry_after_s <= 0.1
        assert str(refusal) == "not dialled again so soon after: refused"

    def test_then_one_at_a_time_may_knock(self) -> None:
        """The first to ask when it is time is the probe; who asks meanwhile is told to come back."""
        gate = Gate()
        gate.failed(REFUSED, 0.0, 0.0)
        assert gate.ask(5.0) is None
        refusal = gate.ask(6.0)
        assert refusal is not None
        assert refusal.retry_after_s == 0.1

    def test_a_probe_that_succeeds_opens_it(self) -> None:
        """And the failures before are forgotten."""
        gate = Gate()
        gate.failed(REFUSED, 0.0, 0.0)
        assert gate.ask(5.0) is None
        gate.succeeded()
        assert [gate.ask(5.0), gate.ask(5.0)] == [None, None]

    def test_a_probe_that_is_broken_off_makes_way(self) -> None:
        """It says nothing of the server: the next to ask is the probe."""
        gate = Gate()
        gate.failed(REFUSED, 0.0, 0.0)
        assert gate.ask(5.0) is None
        gate.gave_up(5.0)
        assert gate.ask(5.1) is None

    def test_an_old_dial_does_not_end_a_probe(self) -> None:
        """One that began before the gate closed and is broken off now leaves the probe its place."""
        gate = Gate()
        gate.failed(REFUSED, 0.0, 1.0)
        assert gate.ask(5.0) is None
        gate.gave_up(0.5)
        assert gate.ask(5.1) is not None

    def test_waits_grow_to_a_limit(self) -> None:
        """Anything up to 0.1 s, doubled with each failure, two seconds at the most."""
        gate, longest = Gate(), []
        for failures in range(8):
            now_s = 100.0 * failures
            gate.failed(REFUSED, now_s, now_s)
            refusal = gate.ask(now_s)
            longest.append(refusal.retry_after_s if refusal else 0.0)
            assert longest[-1] <= min(GATE_CAP_S, 0.1 * 2**failures)
        assert max(longest) > 0.1

    def test_dials_that_fail_together_are_one_failure(self) -> None:
        """Twenty threads that met the same outage do not make it twenty times as long."""
        gate = Gate()
        for _ in range(20):
            gate.failed(REFUSED, 0.0, 5.0)
        refusal = gate.ask(5.0)
        assert refusal is not None
        assert refusal.retry_after_s <= 0.1


class TestSlots:
    """A slot is somebody's or free, and never lost."""

    def test_a_slot_that_comes_too_late_is_still_taken(self) -> None:
        """It was handed over at the moment the wait ended: then it is the waiter's."""
        slots, first, second = Slots(1), Place(), Place()
        assert [slots.take(first), slots.take(second)] == [True, False]
        slots.give(first)
        assert slots.wait(second, 0, lambda: None)

    def test_who_gives_up_waiting_leaves_the_line(self) -> None:
        """The slot goes past him."""
        slots, first, second, third = Slots(1), Place(), Place(), Place()
        assert [slots.take(place) for place in (first, second, third)] == [True, False, False]
        assert not slots.wait(second, 0, lambda: None)
        slots.give(first)
        assert slots.wait(third, 0, lambda: None)
        assert (slots.waiting, slots.taken) == (0, 1)

    @pytest.mark.parametrize("comes", [True, False])
    def test_an_interrupted_wait_loses_no_slot(self, comes: bool) -> None:
        """Whether or not the slot came at that very moment, it is free when the place was given up."""
        slots, first, second = Slots(1), Place(), Place()
        assert [slots.take(first), slots.take(second)] == [True, False]

        def interrupt() -> None:
            if comes:
                slots.give(first)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            slots.wait(second, 5, interrupt)
        slots.give(second)
        slots.give(first)
        assert (slots.waiting, slots.taken) == (0, 0)

    def test_a_slot_given_up_twice_is_one_slot(self) -> None:
        """The second time it is another one's already."""
        slots, first, second, third = Slots(1), Place(), Place(), Place()
        assert [slots.take(place) for place in (first, second, third)] == [True, False, False]
        slots.give(first)
        slots.give(first)
        assert (slots.waiting, slots.taken) == (1, 1)
        assert slots.wait(second, 0, lambda: None)

    def test_a_larger_limit_serves_who_waits(self) -> None:
        """In the order in which they came."""
        slots, first, second, third = Slots(1), Place(), Place(), Place()
        assert [slots.take(place) for place in (first, second, third)] == [True, False, False]
        slots.limit(2)
        assert slots.wait(second, 0, lambda: None)
        assert slots.waiting == 1

    def test_a_smaller_limit_holds_for_what_comes(self) -> None:
        """A slot that is one too many is not handed on."""
        slots, places = Slots(2), [Place() for _ in range(4)]
        assert [slots.take(place) for place in places] == [True, True, False, False]
        slots.limit(1)
        slots.give(places[0])
        assert (slots.taken, slots.waiting) == (1, 2)
        slots.give(places[1])
        assert (slots.taken, slots.waiting) == (1, 1)
        assert slots.wait(places[2], 0, lambda: None)

    def test_a_wait_may_be_longer_than_the_system_can_count(self) -> None:
        """It is one without an end."""
        slots, first, second = Slots(1), Place(), Place()
        assert [slots.take(first), slots.take(second)] == [True, False]

        def serve() -> None:
            slots.give(first)

        assert slots.wait(second, 1e12, serve)
