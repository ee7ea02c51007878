"""The lock on a Galera cluster, where GET_LOCK excludes on one node only. Skipped where Galera is not installed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
import servers
from test_lock import Child, eventually, holding, most_at_once, refusal

from api.db import lease
from conftest import Backend

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
pytestmark = pytest.mark.skipif(not PROVIDER.exists(), reason="galera is not installed: apt-get install galera-4")
# Galera starts a script of this name to copy a whole server. There is nothing to copy here: the second node begins as
# a copy of the first, and what happened since is sent by Galera itself.
SCRIPT = """#!/bin/sh
case "$*" in
*joiner*) echo ready 127.0.0.1:1; echo {place} ;;
*) echo done {place} ;;
esac
"""


class Node(servers.MariaDBServer):
    """A node of a cluster of two. The second is made from the *first*, which was shut down, and starts it again."""

    def __init__(self, first: Node | None = None) -> None:
        self.first = first
        self.address = f"127.0.0.1:{servers._free_port()}"
        super().__init__()

    def shut_down(self) -> None:
        """End the server in order, so that its data can be copied."""
        with suppress(pymysql.err.OperationalError):
            self.execute("SHUTDOWN")
        self._wait()

    def start(self) -> None:
        """Start the node, the first one before the second."""
        if self.first is not None:
            self.first.start()
        super().start()

    def _initialise(self) -> None:
        if self.first is None:
            super()._initialise()
            return
        place = ":".join(re.findall(r"(?:uuid|seqno):\s*(\S+)", (self.first.folder / "data/grastate.dat").read_text()))
        for node in (self, self.first):
            script = node.folder / "wsrep_sst_same"
            script.write_text(SCRIPT.format(place=place))
            script.chmod(0o755)
        shutil.copy(self.first.folder / "init.sql", self.folder)
        (self.folder / "tmp").mkdir()
        # As the server's user, who owns the copy then.
        copy = ["cp", "-r", str(self.first.folder / "data"), str(self.folder)]
        subprocess.run(copy, check=True, **self._identity)
        servers._give(self.folder / "tmp", self._identity)

    @property
    def _surroundings(self) -> dict[str, Any]:
        own = super()._surroundings
        own["env"]["PATH"] = f"{self.folder}:{own['env']['PATH']}"
        return own

    def _command(self) -> list[str]:
        host, port = self.address.split(":")
        options = f"gmcast.listen_addr=tcp://{self.address};base_host={host};base_port={port};"
        return [
            *super()._command(),
            "--wsrep-on=ON",
            f"--wsrep-provider={PROVIDER}",
            f"--wsrep-cluster-address=gcomm://{self.first.address if self.first else ''}",
            f"--wsrep-node-address={host}",
            f"--wsrep-provider-options={options}ist.recv_addr={host}:{servers._free_port()}",
            "--wsrep-sst-method=same",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
        ]


@pytest.fixture(scope="module", name="nodes")
def _nodes() -> Iterator[tuple[Node, Node]]:
    with ExitStack() as started:
        first = Node()
        started.callback(first.stop)
        first.shut_down()
        second = Node(first)
        started.callback(second.stop)
        eventually(lambda: "Synced" in str(second.execute("SHOW STATUS LIKE 'wsrep_local_state_comment'")))
        yield first, second


@pytest.fixture(name="backends")
def _backends(nodes: tuple[Node, Node], request: pytest.FixtureRequest) -> Iterator[tuple[Backend, Backend]]:
    """Give the test a fresh database, by each of the nodes."""
    first, second = nodes
    url = first.create_database(request.node.name[:40])
    one = Backend("mariadb", url, first)
    two = Backend("mariadb", url.replace(f":{first.port}/", f":{second.port}/"), second)
    eventually(lambda: url.rpartition("/")[2] in str(second.execute("SHOW DATABASES")))
    with closing(one), closing(two):
        yield one, two
    first.drop_database(url.rpartition("/")[2])


def test_a_holder_on_another_node_is_waited_for(backends: tuple[Backend, Backend]) -> None:
    """By its lease, while its heart beats; the next one, on the other node, sees what it did."""
    one, two = backends
    holder, waiter = one.database(), two.database()
    with holding(holder) as held:
        held.at("0001_x", 1)
        eventually(lambda: "at 0001_x (1 of 7)" in refusal(waiter, 0))
        holder.execute_sql("CREATE TABLE done (id INTEGER PRIMARY KEY)")
    with holding(waiter):
        assert "done" in waiter.get_tables()


def test_a_holder_killed_on_another_node_is_replaced(
    backends: tuple[Backend, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as its heartbeat is stale."""
    one, two = backends
    child = Child(one)
    child.signal(signal.SIGKILL)
    child.end()
    monkeypatch.setattr(lease, "STALE_S", 2)

    with holding(two.database()) as held:
        assert held.holds()


def test_threads_on_both_nodes_hold_it_one_after_another(backends: tuple[Backend, Backend]) -> None:
    """Also while they race for the tables of the lock itself."""
    assert most_at_once(*backends, number=12) == 1
