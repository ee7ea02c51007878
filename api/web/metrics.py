"""The pool's numbers for Prometheus, under OpenTelemetry's names; nothing here stands in the way of a borrow.

A pool counts by itself. What is new since the last look goes into prometheus-client when the pool's watch looks,
when somebody asks ``/metrics``, and when the process ends: of a process that is killed the last seconds are missing.
https://opentelemetry.io/docs/specs/semconv/database/database-metrics has the names; ``.`` becomes ``_``, and the unit
and ``_total`` are added, as Prometheus has it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import peewee
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.db.dialects.engine import unwrap
from api.db.pool import snapshot_of
from api.db.pool_numbers import BOUNDS_S, PoolSnapshot, Timings

log = structlog.get_logger(__name__)

# prometheus_client has looked at it at its import: api/web/gunicorn_hooks.py sets it.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REGISTRY = CollectorRegistry()
POOL = ("db_client_connection_pool_name",)
STATE = "db_client_connection_state"


class Durations(Histogram):
    """A histogram that takes what somebody else has counted.

    prometheus_client's private names of it, ``_buckets`` and ``_sum``, stand here only; ``test/test_metrics.py`` fails
    on a release that changed them.
    """

    def add(self, counts: Sequence[int], seconds: float) -> None:
        """Add durations: how many in each bucket, in order, and how many *seconds* in all."""
        self._sum.inc(seconds)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


# Each worker has its own gauges, and the scrape adds those of living ones up.
COUNT = Gauge(
    "db_client_connection_count",
    "Connections, idle or in use",
    (*POOL, STATE),
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
MAX = Gauge(
    "db_client_connection_max",
    "Connections allowed at most",
    POOL,
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
PENDING = Gauge(
    "db_client_connection_pending_requests",
    "Borrows that have asked for a connection and have none yet",
    POOL,
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
TIMEOUTS = Counter(
    "db_client_connection_timeouts", "Borrows that waited for a connection in vain", POOL, registry=REGISTRY
)
WAIT = Durations(
    "db_client_connection_wait_time_seconds",
    "From asking for a connection to having it",
    POOL,
    registry=REGISTRY,
    buckets=BOUNDS_S,
)
USE = Durations(
    "db_client_connection_use_time_seconds",
    "From having a connection to giving it back",
    POOL,
    registry=REGISTRY,
    buckets=BOUNDS_S,
)
CREATE = Durations(
    "db_client_connection_create_time_seconds",
    "Opening a connection",
    POOL,
    registry=REGISTRY,
    buckets=BOUNDS_S,
)


class PoolMetrics:
    """Carries what pools have counted to prometheus_client; held weakly, each pool's totals by themselves.

    Of pools that lead to one database, and so share a name, totals and numbers of the moment are added up.
    """

    def __init__(self) -> None:
        self._pushed: weakref.WeakKeyDictionary[peewee.Database, PoolSnapshot | None] = weakref.WeakKeyDictionary()
        self._begin_anew()

    def before_fork(self) -> None:
        """Let no push be under way at a fork: the locks in prometheus_client would stay held for ever in the child."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, as the pools do: nothing of theirs was pushed in this process."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._pushes_at_exit = False
        self._names: set[str] = set()
        for database in self._pushed:
            self._pushed[database] = None

    def include(self, database: peewee.Database) -> None:
        """Let *database*'s numbers be pushed too, from now on."""
        with self._lock:
            self._pushed.setdefault(unwrap(database), None)

    def push(self, _: PoolSnapshot | None = None) -> None:
        """Bring prometheus_client up to date; from any thread.

        The numbers are read here, one push after the other: an older look that came second would seem a fall.
        """
        with self._lock:
            moments: dict[str, list[PoolSnapshot]] = defaultdict(list)
            for database, before in list(self._pushed.items()):
                now = self._pushed[database] = snapshot_of(database)
                moments[now.name].append(now)
                _add(now, before if before is not None and _goes_on(before, now) else None)
            self._names |= moments.keys()
            for name in self._names:
                _set(name, moments[name])

    def push_at_exit(self) -> None:
        """Push once more when this process ends; cheap enough for every request, and a forked child asks anew."""
        if not self._pushes_at_exit:
            self._pushes_at_exit = True
            atexit.register(self._push_last, os.getpid())

    def _push_last(self, pid: int) -> None:
        # A forked child inherits what its parent has to do at the end.
        if pid == os.getpid():
            try:
                # Without the folder the master has ended before, and nobody asks any more.
                with suppress(FileNotFoundError):
                    self.push()
            except OSError as exc:
                log.warning("the last numbers of the pool could not be kept", error=str(exc))


def _goes_on(before: PoolSnapshot, now: PoolSnapshot) -> bool:
    """Say whether *now* counts on from *before*: a total that fell began anew, with ``dispose()`` or a fork."""
    pairs: list[tuple[float, float]] = [(now.timeouts, before.timeouts)]
    for new, old in _timings(now, before):
        pairs += [(new.sum_s, old.sum_s), *zip(new.counts, old.counts, strict=True)]
    return all(new >= old for new, old in pairs)


def _timings(now: PoolSnapshot, before: PoolSnapshot) -> list[tuple[Timings, Timings]]:
    return [(now.wait, before.wait), (now.use, before.use), (now.create, before.create)]


def _add(now: PoolSnapshot, before: PoolSnapshot | None) -> None:
    before = before or PoolSnapshot(now.name, now.pid, now.max, 0, 0, 0)
    TIMEOUTS.labels(now.name).inc(now.timeouts - before.timeouts)
    for metric, (new, old) in zip((WAIT, USE, CREATE), _timings(now, before), strict=True):
        new_counts = [count - was for count, was in zip(new.counts, old.counts, strict=True)]
        metric.labels(now.name).add(new_counts, new.sum_s - old.sum_s)


def _set(name: str, moments: Sequence[PoolSnapshot]) -> None:
    COUNT.labels(name, "idle").set(sum(now.idle for now in moments))
    COUNT.labels(name, "used").set(sum(now.active for now in moments))
    PENDING.labels(name).set(sum(now.pending for now in moments))
    limits = [now.max for now in moments if now.max is not None]
    if limits or not moments:
        MAX.labels(name).set(sum(limits))


def render(accept: str) -> tuple[bytes, str]:
    """Return the numbers in a form that *accept*, a request's header, takes, and that form's content type.

    Under gunicorn they are those of all its workers: of this one as of now, of the others as of their last push.
    """
    METRICS.push()
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # A version that is no number (prometheus_client 0.26).
        encode, content_type = choose_encoder("")
    folder = os.environ.get(FOLDER)
    return _encode_all(folder, encode) if folder else encode(REGISTRY), content_type


def _encode_all(folder: str, encode: Callable[[Collector], bytes]) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Meanwhile gunicorn_hooks moves no dead worker's totals from one file to another.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return encode(registry)
    finally:
        os.close(descriptor)


METRICS = PoolMetrics()
os.register_at_fork(
    before=METRICS.before_fork,
    after_in_parent=METRICS.after_fork_in_parent,
    after_in_child=METRICS.after_fork_in_child,
)
