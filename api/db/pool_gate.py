"""The gate before a server that does not let us in: one knocks at a time, the others are told at once."""

from __future__ import annotations

import random

import peewee

from api.db.dialects.connecting import underlying

GATE_BASE_S = 0.1
GATE_CAP_S = 2.0


class ConnectPostponed(peewee.OperationalError):
    """Nobody was dialled: a connect failed just now, in *last*, and it is not yet time to try again.

    Has the driver's error of that failure, so that it is judged as that one is; *retry_after_s* says after
    how long it is of use to ask again.
    """

    def __init__(self, last: Exception, retry_after_s: float) -> None:
        super().__init__(underlying(last), f"not dialled again so soon after: {last}")
        self.last = last
        self.retry_after_s = retry_after_s


def without_frames(error: Exception) -> Exception:
    """Return the driver's error behind *error*, rid of its tracebacks: a gate keeps it for as long as it is closed.

    With them it would keep every frame of the caller, and all that is named there. *error* itself goes on its way
    with its own; one that is not a driver's is told by another.
    """
    kept = underlying(error)
    if kept is error or not isinstance(kept, Exception):
        return RuntimeError(f"{type(error).__name__}: {error}")
    met: BaseException | None = kept
    while met is not None:
        met.__traceback__ = None
        # PyMySQL's own way to name a cause.
        met = getattr(met, "original_exception", None) or met.__cause__ or met.__context__
    return kept


class Gate:
    """Open until a connect fails; then nobody dials for a while, and after that one at a time does.

    The while is anything up to 0.1 s, doubled with each failure that follows, two seconds at the most. Pure:
    the time is passed in, and whoever calls holds the pool's lock.
    """

    def __init__(self) -> None:
        self._last: Exception | None = None
        self._failures = 0
        self._closed_at_s = self._not_before_s = 0.0
        self._probe_s: float | None = None

    def ask(self, now_s: float) -> ConnectPostponed | None:
        """Return None when the caller may dial now, else what to raise instead.

        Where the gate is closed, the one who may dial is the probe for the others.
        """
        if self._last is None:
            return None
        if self._probe_s is None and now_s >= self._not_before_s:
            self._probe_s = now_s
            return None
        is_probed = self._probe_s is not None
        return ConnectPostponed(self._last, max(self._not_before_s - now_s, GATE_BASE_S if is_probed else 0.0))

    def succeeded(self) -> None:
        """Open: a connect has succeeded."""
        self._last, self._failures, self._probe_s = None, 0, None

    def failed(self, error: Exception, began_s: float, now_s: float) -> None:
        """Close, after a dial that was let in at *began_s* ended in *error*.

        Dials that were under way together and fail together are one failure.
        """
        self._end_probe(began_s)
        if self._last is None or began_s >= self._closed_at_s:
            self._failures += 1
            self._closed_at_s = now_s
            delay_s = min(GATE_CAP_S, GATE_BASE_S * 2 ** min(self._failures - 1, 16))
            self._not_before_s = now_s + random.uniform(0, delay_s)
        self._last = error

    def gave_up(self, began_s: float) -> None:
        """Let another one knock: the dial that was let in at *began_s* was broken off, and says nothing."""
        self._end_probe(began_s)

    def _end_probe(self, began_s: float) -> None:
        if self._probe_s == began_s:
            self._probe_s = None
