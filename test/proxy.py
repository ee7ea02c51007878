"""A TCP proxy that adds a delay each way, and can stall, cut, and refuse; Linux only.

In a thread of the test's own: ``with Proxy("127.0.0.1", 5432) as proxy: ... proxy.cut()``. As its own process, for a
bench and for programs that fork: ``python test/proxy.py --to 127.0.0.1:5432 --delay-ms 0.5`` prints the port it listens
on, and serves until it is killed; ``ProxyProcess`` starts one and steers it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import IO, Any, Self

PATIENCE_S = 60.0
PR_SET_TIMERSLACK = 29
# How late a sleeper wakes on a virtual machine, and what a message has taken when it is read and will be written.
OVERSLEPT_S = 0.0001
PASSED_S = 0.00003
CHUNK = 1 << 18
# close() then sends a reset, and the other side loses what it has not read.
AT_ONCE = struct.pack("ii", 1, 0)
ORDERS = ("stall", "hold", "cut", "cut_after", "refuse", "pass_on", "accepted", "open")


class _End:
    """One socket of a connection through the proxy; what its *other* one reads is written here."""

    __slots__ = ("events", "fd", "has_ended", "has_shut", "is_server", "left", "other", "sock", "unsent")

    def __init__(self, sock: socket.socket, *, is_server: bool, left: int | None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.is_server = is_server
        self.other = self
        self.unsent: deque[bytes] = deque()
        self.has_ended = self.has_shut = False
        self.left = left
        self.events = select.EPOLLIN


class Proxy:
    """Listens on *port* of 127.0.0.1 and passes all to *host*, *to_port*, each way *delay_s* later.

    Its faults hold until ``pass_on``, for the connections there are and for new ones; each is in force when
    its method returns. It runs in a thread of its own, and ends with the block it is the context of.
    """

    def __init__(self, host: str, to_port: int, *, delay_s: float = 0.0) -> None:
        self._to = (host, to_port)
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._ends: dict[int, _End] = {}
        self._held: list[socket.socket] = []
        self._late: deque[tuple[float, _End, bytes]] = deque()
        self._limit: int | None = None
        self._is_stalled = self._is_holding = self._is_refusing = self._is_over = False
        self._epoll = select.epoll()
        self._wake_reader, self._wake = os.pipe()
        for fd in (self._listener.fileno(), self._wake_reader):
            self._epoll.register(fd, select.EPOLLIN)
        self._orders: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """How many connections go through it at the moment, those held in a stall included."""
        return len(self._ends) // 2 + len(self._held)

    def stall(self) -> None:
        """Be a black hole: accept connections, keep all of them open, and pass nothing on."""
        self._order(self._stall)

    def hold(self) -> None:
        """Be a black hole for new connections only; those there are go on."""
        self._order(self._hold)

    def cut(self) -> None:
        """Reset every connection there is; new ones are served."""
        self._order(self._cut)

    def cut_after(self, size: int) -> None:
        """Reset each connection, also each new one, in the middle of what the server sends, after *size* bytes."""
        self._order(lambda: self._limit_answers(size))

    def refuse(self) -> None:
        """Take no new connections: whoever dials is refused by the kernel."""
        self._order(self._refuse)

    def pass_on(self) -> None:
        """End every fault; what a stall kept is passed on now."""
        self._order(self._pass_on)

    def close(self) -> None:
        """Reset every connection, and end."""
        self._order(self._end)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What other threads ask for is done in the proxy's own.

    def _order(self, action: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self._orders.append((action, done))
        os.write(self._wake, b"!")
        return done.result(PATIENCE_S)

    def _obey(self) -> None:
        os.read(self._wake_reader, 1)
        action, done = self._orders.popleft()
        try:
            done.set_result(action())
        except BaseException as exc:  # noqa: BLE001 - whoever gave the order is told
            done.set_exception(exc)

    def _stall(self) -> None:
        if not self._is_stalled:
            self._is_stalled = True
            for fd in self._ends:
                self._epoll.unregister(fd)

    def _hold(self) -> None:
        self._is_holding = True

    def _cut(self) -> None:
        for end in list(self._ends.values()):
            self._drop(end)
        while self._held:
            _close(self._held.pop(), is_reset=True)

    def _limit_answers(self, size: int | None) -> None:
        self._limit = size
        for end in self._ends.values():
            end.left = size

    def _refuse(self) -> None:
        if not self._is_refusing:
            self._is_refusing = True
            self._listener.close()
            # Bound without listening: nobody else gets the port, and no dial can be given it as its own.
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self.port))
            self._listener.setblocking(False)

    def _pass_on(self) -> None:
        self._limit_answers(None)
        if self._is_refusing:
            self._is_refusing = False
            self._listener.listen(512)
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        if self._is_stalled:
            self._is_stalled = False
            for end in self._ends.values():
                self._epoll.register(end.fd, end.events)
        self._is_holding = False
        while self._held:
            self._pair(self._held.pop())

    def _end(self) -> None:
        self._is_over = True
        self._cut()
        self._listener.close()

    # The loop

    def _run(self) -> None:
        # The kernel may wake a sleeper 50 us late otherwise, a twentieth of the millisecond that is to be measured.
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        while not self._is_over:
            self._wait()
            for fd, events in self._epoll.poll(0):
                if fd == self._wake_reader:
                    self._obey()
                elif fd == self._listener.fileno():
                    self._accept()
                elif (end := self._ends.get(fd)) is not None and not self._is_stalled:
                    self._serve(end, events)
            while self._late and self._late[0][0] <= time.monotonic() and not self._is_stalled:
                _, end, data = self._late.popleft()
                self._deliver(end, data)
        self._epoll.close()
        os.close(self._wake_reader)
        os.close(self._wake)

    def _wait(self) -> None:
        """Sleep until something comes in or is nearly due, then go round and round; epoll counts in milliseconds."""
        left_s = None
        if self._late and not self._is_stalled:
            left_s = max(0.0, self._late[0][0] - time.monotonic() - OVERSLEPT_S)
        select.select([self._epoll], [], [], left_s)

    def _accept(self) -> None:
        # Nobody there any more; or it refuses since a moment ago.
        with suppress(OSError):
            client, _ = self._listener.accept()
            self.accepted += 1
            if self._is_stalled or self._is_holding:
                self._held.append(client)
            else:
                self._pair(client)

    def _pair(self, client: socket.socket) -> None:
        server = socket.socket()
        ends = _End(client, is_server=False, left=self._limit), _End(server, is_server=True, left=self._limit)
        ends[0].other, ends[1].other = ends[1], ends[0]
        for end in ends:
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends[end.fd] = end
        # Whether it succeeds, the loop finds out.
        server.connect_ex(self._to)
        for end in ends:
            self._epoll.register(end.fd, end.events)

    def _serve(self, end: _End, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send(end)
        if events & ~select.EPOLLOUT and end.fd in self._ends:
            self._receive(end)

    def _receive(self, end: _End) -> None:
        try:
            data = end.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(end)
            return
        if not data:
            if end.has_ended:
                return
            end.has_ended = True
            self._listen_for(end, end.events & ~select.EPOLLIN)
        if self._delay_s:
            self._late.append((time.monotonic() + self._delay_s - PASSED_S, end.other, data))
        else:
            self._deliver(end.other, data)

    def _deliver(self, end: _End, data: bytes) -> None:
        """Write *data* to *end*; nothing means that the other side has ended."""
        if end.fd not in self._ends or self._ends[end.fd] is not end:
            return
        answers = end.other
        if answers.is_server and answers.left is not None:
            data = data[: answers.left]
            answers.left -= len(data)
        end.unsent.append(data)
        self._send(end)
        if answers.is_server and answers.left == 0 and end.fd in self._ends:
            self._drop(end)

    def _send(self, end: _End) -> None:
        try:
            while end.unsent:
                data = end.unsent[0]
                if data:
                    sent = end.sock.send(data)
                else:
                    end.sock.shutdown(socket.SHUT_WR)
                    end.has_shut, sent = True, 0
                if sent < len(data):
                    end.unsent[0] = data[sent:]
                else:
                    end.unsent.popleft()
        except BlockingIOError:
            self._listen_for(end, end.events | select.EPOLLOUT)
            return
        except OSError:
            self._drop(end)
            return
        if end.events & select.EPOLLOUT:
            self._listen_for(end, end.events & ~select.EPOLLOUT)
        if end.has_shut and end.other.has_shut:
            self._drop(end, is_reset=False)

    def _listen_for(self, end: _End, events: int) -> None:
        end.events = events
        self._epoll.modify(end.fd, events)

    def _drop(self, end: _End, *, is_reset: bool = True) -> None:
        for each in (end, end.other):
            if self._ends.pop(each.fd, None) is not None:
                if not self._is_stalled:
                    self._epoll.unregister(each.fd)
                _close(each.sock, is_reset=is_reset)


def _close(sock: socket.socket, *, is_reset: bool) -> None:
    if is_reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    sock.close()


class ProxyProcess:
    """A proxy in a process of its own, which a fork does not copy, and whose work does not slow its user down."""

    def __init__(self, host: str, to_port: int, *, delay_s: float = 0.0) -> None:
        command = [
            sys.executable,
            __file__,
            "--to",
            f"{host}:{to_port}",
            "--delay-ms",
            str(delay_s * 1000),
            "--steered",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()
        self.port = int(self._answer())

    def order(self, order: str, *values: int) -> int:
        """Let it do one of ``ORDERS``, and return what came of it; safe from any thread."""
        with self._lock:
            assert self._process.stdin is not None
            print(order, *values, file=self._process.stdin, flush=True)
            return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """Reset every connection, and end the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _steer(proxy: Proxy, orders: IO[str]) -> None:
    """Do what each line of *orders* says, and answer with a number, until they end."""
    for line in orders:
        name, *values = line.split()
        if name not in ORDERS:
            raise SystemExit(f"no order is called {name!r}")
        asked = getattr(proxy, name)
        print(asked(*map(int, values)) or 0 if callable(asked) else asked, flush=True)


def main() -> None:
    """Serve until killed, or with ``--steered`` until the orders end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way")
    parser.add_argument("--steered", action="store_true", help="take orders from the standard input")
    chosen = parser.parse_args()
    host, _, port = chosen.to.rpartition(":")
    with Proxy(host, int(port), delay_s=chosen.delay_ms / 1000) as proxy:
        print(proxy.port, flush=True)
        if chosen.steered:
            _steer(proxy, sys.stdin)
        else:
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


if __name__ == "__main__":
    main()
