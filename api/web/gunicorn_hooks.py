"""gunicorn's settings for numbers that are right with several workers: one folder that they all count into.

``gunicorn --config python:api.web.gunicorn_hooks 'api:create_app()'``; your own settings go onto the command line, or
into a module that begins with ``from api.web.gunicorn_hooks import *``.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

# Each master has its own, never one that an earlier one has left behind, or left in our environment by SIGUSR2.
DIRECTORY = os.path.join(tempfile.gettempdir(), f"plinth-metrics-{uuid.uuid4().hex}")
# Here, for prometheus_client looks at its import, and with --preload that comes before every hook.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = DIRECTORY


def pre_fork(server: Any, _worker: Any) -> None:
    """Make the folder, also anew if somebody has tidied it away; it belongs to the user that the workers run as."""
    with _no_harm_to(server):
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        os.chown(DIRECTORY, server.cfg.uid, server.cfg.gid)
        # Also for one whose end gunicorn has told nobody: it was gone when gunicorn wanted to end it.
        _bury(server)


def child_exit(server: Any, _worker: Any) -> None:
    """Take a dead worker's connections off the numbers of the moment, however it died; its totals stay."""
    with _no_harm_to(server):
        _bury(server)


def on_exit(_server: Any) -> None:
    """Remove the folder with the master."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)


@contextmanager
def _no_harm_to(server: Any) -> Iterator[None]:
    """Log what goes wrong in the block: what a hook raises ends the master (gunicorn 27)."""
    try:
        yield
    except Exception as exc:
        server.log.error("the workers' numbers: %r", exc, exc_info=exc)


@contextmanager
def _nobody_reading() -> Iterator[bool]:
    """Say whether no worker answers ``/metrics`` in the block; one that does is not waited for."""
    descriptor = os.open(DIRECTORY, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _bury(server: Any) -> None:
    """Remove what dead workers have left in the folder, and keep their totals in one file.

    Their own would pile up with ``--max-requests``, and each scrape reads all. One that could not be added, for
    somebody read just then, is the next time.
    """
    empty = (path for path in _files_of_the_dead(server, "*") if not os.path.getsize(path))
    # An empty one, of a worker killed just then, cannot be read.
    for path in {*empty, *_files_of_the_dead(server, "gauge_live*")}:
        os.remove(path)
    with _nobody_reading() as is_mine:
        if is_mine:
            _keep_totals(server, "counter")
            _keep_totals(server, "histogram")


def _files_of_the_dead(server: Any, kind: str) -> list[str]:
    # The master has some too, if it has served before it forked.
    alive = {"kept", str(os.getpid()), *map(str, server.WORKERS)}
    paths = glob.glob(os.path.join(DIRECTORY, f"{kind}_*.db"))
    return [path for path in paths if path.removesuffix(".db").rpartition("_")[2] not in alive]


def _keep_totals(server: Any, kind: str) -> None:
    # Not at the top: a gevent worker patches the standard library after this file is read.
    from prometheus_client.mmap_dict import MmapedDict

    dead = _files_of_the_dead(server, kind)
    if not dead:
        return
    kept = os.path.join(DIRECTORY, f"{kind}_kept.db")
    with closing(MmapedDict(kept)) as totals:  # type: ignore[no-untyped-call]
        os.chown(kept, server.cfg.uid, server.cfg.gid)
        for path in dead:
            values = list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
            for key, value, _, _ in values:
                totals.write_value(key, totals.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
            os.remove(path)
