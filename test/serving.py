"""A server of the app as an operator starts it: a process that is asked over HTTP and tells by its log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from api.settings import ROOT

GUNICORN = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket")
LISTENING = r"Listening at: http://([\d.]+:\d+)"
GIVE_UP_AFTER_S = 60


@dataclass
class Server:
    """A server process and what it has logged so far; a thread reads it, so that the server never waits for us."""

    process: subprocess.Popen[str]
    address: str = ""
    log: list[str] = field(default_factory=list)
    grown: threading.Condition = field(default_factory=threading.Condition)
    has_ended: bool = False

    def read_log(self) -> None:
        """Read the log until it ends."""
        assert self.process.stderr
        for line in self.process.stderr:
            with self.grown:
                self.log.append(line)
                self.grown.notify_all()
        with self.grown:
            self.has_ended = True
            self.grown.notify_all()

    def read_until(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Return as soon as *pattern* stands in the log *times* times, and with it the last match."""
        with self.grown:
            while True:
                found = list(re.finditer(pattern, "".join(self.log)))
                if len(found) >= times:
                    return found[-1]
                assert not self.has_ended, f"the server ended without {pattern!r}:\n{''.join(self.log)}"
                self.grown.wait()

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the JSON lines logged so far whose event is *event*."""
        lines = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    def ask(self, path: str) -> tuple[int, Any]:
        """Return status and JSON of *path*."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=GIVE_UP_AFTER_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)


def environment(url: str, **settings: str) -> dict[str, str]:
    """Return the environment of a server on *url*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "GUNICORN_"))}
    return kept | {"DATABASE_URL": url, "LOG_FORMAT": "json"} | settings


@contextmanager
def serving(command: tuple[str, ...], url: str, **settings: str) -> Iterator[Server]:
    """Run *command* from the project's root until the block ends, and read its log to the end; kill it if it hangs."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(url, **settings),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    guard = threading.Timer(GIVE_UP_AFTER_S, _kill_all, [process.pid])
    guard.start()
    server = Server(process)
    reader = threading.Thread(target=server.read_log)
    reader.start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait()
        # A worker that hangs outlives its master, and holds the log open.
        _kill_all(process.pid)
        reader.join()
        guard.cancel()
        assert process.stderr
        process.stderr.close()


def _kill_all(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
