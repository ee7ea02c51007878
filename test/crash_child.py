"""A child process that dies at the n-th statement which it sends to the server.

The child's connections lead through a proxy in its parent, which reads the client's half of the protocol just well
enough to tell one statement from the next, whatever sends it: the migration, the journal, the lock's heartbeat. At the
chosen one it ends the child by SIGKILL. SQLite has no server: there the child's own trace of statements kills it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from urllib.parse import urlsplit

import peewee

from api.db.connection import open_database
from api.db.dialects.engine import Engine
from api.logs import configure_logging

Moment = Literal["before", "during", "after"]
Task = Callable[[peewee.Database], object]
# Nothing that a batch of the harness does takes this long: the child waits for what never comes.
PATIENCE_S = 120.0
MYSQL_QUERY = 3
POSTGRES_STARTUP = 196608  # protocol 3.0; what asks for encryption has another number


class StuckError(RuntimeError):
    """A child neither ended nor said anything to its server for ``PATIENCE_S`` seconds."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL at statement *number*: before the server gets it, while it runs, or after it answered to nobody."""

    number: int
    moment: Moment

    def __str__(self) -> str:
        return f"{self.number}:{self.moment}"


@dataclass(slots=True)
class Run:
    """How a child ended: *status* is its exit code, negative for a signal; *said* its log and its error."""

    statements: list[str] = field(default_factory=list)
    status: int = 0
    said: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        """Whether the child died of a SIGKILL, not by itself."""
        return self.status == -signal.SIGKILL


class Child:
    """A forked child that runs *task* on a database opened at *url* as the app does it."""

    def __init__(self, url: str, task: Task, kill: Kill | None = None) -> None:
        self._said, self._sent = os.memfd_create("said"), os.memfd_create("sent")
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(url, task, kill)
        self.exit = os.pidfd_open(self.pid)

    def _live(self, url: str, task: Task, kill: Kill | None) -> NoReturn:
        status = 1
        try:
            with os.fdopen(self._said, "w", buffering=1) as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout = sys.stderr = said
                configure_logging("INFO", stream=said)
                try:
                    task(self._open(url, kill))
                    status = 0
                except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
                    traceback.print_exc(file=said)
        finally:
            # Not sys.exit: the child must not run the parent's clean-up.
            os._exit(status)

    def _open(self, url: str, kill: Kill | None) -> peewee.Database:
        database = open_database(url)
        if isinstance(database, peewee.SqliteDatabase):
            database.connect()
            database.connection().set_trace_callback(_Trace(self._sent, kill))
        return database

    def end(self) -> None:
        """Kill the child."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Run:
        """Return how the child ended, when it has."""
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self._started
        said, sent = _contents(self._said), _contents(self._sent)
        os.close(self.exit)
        return Run([json.loads(line) for line in sent.splitlines()], os.waitstatus_to_exitcode(status), said, seconds)


def _contents(file: int) -> str:
    with os.fdopen(file, "rb") as opened:
        opened.seek(0)
        return opened.read().decode(errors="replace")


@dataclass(slots=True)
class _Trace:
    """What SQLite calls before each statement."""

    file: int
    kill: Kill | None
    number: int = 0

    def __call__(self, sql: str) -> None:
        self.number += 1
        os.write(self.file, json.dumps(sql).encode() + b"\n")
        if self.kill and self.number == self.kill.number:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class _Wire:
    """One connection of the child, and the one to the server that stands for it."""

    client: socket.socket
    server: socket.socket
    messages: Callable[[bytearray], Iterator[tuple[bytes, str | None]]]
    unread: bytearray = field(default_factory=bytearray)
    is_last: bool = False

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """Stands before the server at *url*; children connect to ``Proxy.url`` instead. SQLite needs none."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine, self.url = engine, url
        if engine == "sqlite":
            return
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or (5432 if engine == "postgres" else 3306))
        self._listener = socket.create_server(("127.0.0.1", 0))
        account = parts.netloc.rpartition("@")[0]
        plain = {"postgres": "sslmode=disable"}.get(engine, "ssl_disabled=true")
        netloc = f"{account}@127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = parts._replace(netloc=netloc, query=plain).geturl()

    def close(self) -> None:
        """Stop listening."""
        if self.engine != "sqlite":
            self._listener.close()

    def run(self, task: Task, kill: Kill | None = None) -> Run:
        """Run *task* in a child to its end, or to the moment of *kill*; return what it sent and how it ended."""
        child = Child(self.url, task, kill)
        if self.engine == "sqlite":
            return child.wait()
        watch = _Watch(self._listener, self._target, child, kill, self.engine)
        try:
            watch.until_the_end()
        except BaseException:
            child.end()
            raise
        finally:
            run = child.wait()
            watch.close()
        run.statements = watch.statements
        return run


class _Watch:
    """The proxy's work for one child."""

    def __init__(
        self, listener: socket.socket, target: tuple[str, int], child: Child, kill: Kill | None, engine: Engine
    ) -> None:
        self.statements: list[str] = []
        self._target, self._child, self._kill, self._engine = target, child, kill, engine
        self._selector = selectors.DefaultSelector()
        self._wires: list[_Wire] = []
        self._ended = False
        self._selector.register(child.exit, selectors.EVENT_READ, self._end)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))

    def until_the_end(self) -> None:
        """Pass on what comes until the child has ended."""
        while not self._ended:
            ready = self._selector.select(PATIENCE_S)
            if not ready:
                raise StuckError(f"the child said nothing for {PATIENCE_S:.0f} s after: {self.statements[-3:]}")
            for key, _ in ready:
                # Its connection may be gone by what came before it in the same round.
                if self._is_waited_for(key):
                    key.data()

    def _is_waited_for(self, key: selectors.SelectorKey) -> bool:
        return not self._ended and key.fd in self._selector.get_map()

    def close(self) -> None:
        """Let go of the child's connections, as its death did."""
        self._selector.close()
        for wire in self._wires:
            wire.close()

    def _end(self) -> None:
        self._ended = True

    def _kill_child(self) -> None:
        self._child.end()
        self._ended = True

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        messages = _postgres_messages() if self._engine == "postgres" else _mysql_messages
        wire = _Wire(client, socket.create_connection(self._target), messages)
        for each in (wire.client, wire.server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wires.append(wire)
        self._selector.register(wire.client, selectors.EVENT_READ, lambda: self._from_client(wire))
        self._selector.register(wire.server, selectors.EVENT_READ, lambda: self._from_server(wire))

    def _from_client(self, wire: _Wire) -> None:
        data = _received(wire.client)
        wire.unread += data
        for message, statement in wire.messages(wire.unread):
            moment = self._moment(statement)
            if moment == "before":
                return self._kill_child()
            with suppress(OSError):
                wire.server.sendall(message)
            if moment == "during":
                return self._kill_child()
            wire.is_last |= moment == "after"
        if not data:
            self._hang_up(wire)
        return None

    def _moment(self, statement: str | None) -> Moment | None:
        if statement is None:
            return None
        self.statements.append(statement)
        is_chosen = self._kill is not None and len(self.statements) == self._kill.number
        return self._kill.moment if self._kill and is_chosen else None

    def _from_server(self, wire: _Wire) -> None:
        data = _received(wire.server)
        if wire.is_last:
            self._kill_child()
        elif data:
            with suppress(OSError):
                wire.client.sendall(data)
        else:
            self._hang_up(wire)

    def _hang_up(self, wire: _Wire) -> None:
        for each in (wire.client, wire.server):
            self._selector.unregister(each)
        wire.close()
        self._wires.remove(wire)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def _mysql_messages(unread: bytearray) -> Iterator[tuple[bytes, str | None]]:
    """Take the complete packets out of *unread*, each with its statement if it begins one (COM_QUERY)."""
    while len(unread) >= 4 and len(unread) >= (size := 4 + int.from_bytes(unread[:3], "little")):
        packet = bytes(unread[:size])
        del unread[:size]
        is_query = packet[3] == 0 and packet[4:5] == bytes([MYSQL_QUERY])
        yield packet, packet[5:].decode(errors="replace") if is_query else None


def _postgres_messages() -> Callable[[bytearray], Iterator[tuple[bytes, str | None]]]:
    """Return what takes the complete messages out of a connection's bytes, each with its statement if it runs one."""
    is_started = False

    def messages(unread: bytearray) -> Iterator[tuple[bytes, str | None]]:
        nonlocal is_started
        while len(unread) >= 8 or (is_started and len(unread) >= 5):
            at = 1 if is_started else 0
            size = at + struct.unpack_from("!i", unread, at)[0]
            if len(unread) < size:
                return
            message = bytes(unread[:size])
            del unread[:size]
            if is_started:
                yield message, message[5:-1].decode(errors="replace") if message[:1] in b"QE" else None
            else:
                is_started = struct.unpack_from("!i", message, 4)[0] == POSTGRES_STARTUP
                yield message, None

    return messages


def run_plain(url: str, task: Task) -> Run:
    """Run *task* in a child on *url*, without a proxy, to its end."""
    return Child(url, task).wait()
