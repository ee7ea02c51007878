"""One migrator at a time: whom waiters see, what a dead or frozen holder leaves, what the fence is worth."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
import servers
import structlog
from race import fork
from sessions import SERVERS, end_session, session_number

from api.db import history, lease, lock_file
from api.db.batch import Options
from api.db.connection import open_database
from api.db.dialects.engine import engine_of
from api.db.lease import Lease
from api.db.lock import migrating, refuse_read_only
from api.db.migrations import migrate_db
from api.exceptions import MigrationError, MigrationLockError
from conftest import Backend

ROOT = Path(__file__).parent.parent
ME = rf"host \S+, pid {os.getpid()}, since \d\d:\d\d:\d\d"
NOBODY = 65534
MYSQL = pytest.mark.engines("mariadb", "mysql")
both_ways = pytest.mark.parametrize("transactional", [True, False], ids=["transaction", "session"])


@contextmanager
def holding(database: peewee.Database, timeout_s: float = 30.0, *, transactional: bool = True) -> Iterator[Lease]:
    """Hold the lock on *database*, for a batch of seven."""
    database.connect(reuse_if_open=True)
    with migrating(database, engine_of(database), timeout_s, 7, transactional) as held:
        yield held


def refusal(database: peewee.Database, timeout_s: float = 0.2, *, transactional: bool = True) -> str:
    """Return what the error says to who does not get the lock on *database*."""
    with pytest.raises(MigrationLockError) as caught, holding(database, timeout_s, transactional=transactional):
        pass
    return caught.value.message


def eventually(answer: Callable[[], bool]) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + 60
    while not answer():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def token(database: peewee.Database) -> int:
    """Return the lease's token."""
    return int(database.execute_sql("SELECT token FROM migration_lease").fetchone()[0])


# Whom a waiter sees --------------------------------------------------------------------------------------------


@both_ways
def test_who_gives_up_says_whom_it_waited_for(backend: Backend, transactional: bool) -> None:
    """Host, process, since when; nothing of it needs a look at another machine."""
    waiter = backend.database()
    with holding(backend.database(), transactional=transactional):
        assert re.match(rf"{ME} held the migration lock for \d+ s", refusal(waiter, transactional=transactional))


@both_ways
def test_a_waiter_sees_how_far_the_holder_is(backend: Backend, transactional: bool) -> None:
    """At which migration of how many: also while all of it is inside one transaction."""
    waiter = backend.database()
    with holding(backend.database(), transactional=transactional) as held:
        held.at("0001_first", 1)
        held.at("0004_x", 4)
        at = re.compile(rf"{ME}, at 0004_x \(4 of 7\) held")
        eventually(lambda: at.match(refusal(waiter, 0, transactional=transactional)) is not None)


def test_a_waiter_logs_at_once_whom_it_waits_for(backend: Backend) -> None:
    """As fields too, for who searches the logs of a fleet."""
    waiter = backend.database()
    with holding(backend.database()), structlog.testing.capture_logs() as lines:
        refusal(waiter)

    line = next(each for each in lines if each["event"] == "waiting for another process to finish migrating")
    assert (line["holder_pid"], line["holder_total"], line["log_level"]) == (os.getpid(), 7, "warning")
    assert json.dumps(line)


@SERVERS
def test_a_clean_end_leaves_the_token_and_names_nobody(backend: Backend, db: peewee.Database) -> None:
    """Each taking has a token of its own, larger than the one before."""
    with holding(backend.database()) as first:
        pass
    with pytest.raises(ZeroDivisionError), holding(backend.database()) as second:
        raise ZeroDivisionError

    assert second.token > first.token
    assert list(db.execute_sql("SELECT host FROM migration_lease").fetchall()) == [(None,)]


def start(backend: Backend, directory: Path) -> subprocess.Popen[str]:
    """Start `python -m api.db.migrations` on the backend."""
    command = [sys.executable, "-m", "api.db.migrations", "--json", "--database-url", backend.url]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--directory", str(directory)], cwd=ROOT, **pipes)


@pytest.mark.parametrize("atomic", ["", "atomic = False\n"], ids=["atomic", "alone"])
def test_commands_that_wait_find_it_done(backend: Backend, db: peewee.Database, tmp_path: Path, atomic: str) -> None:
    """Three wait, and say so; one of them migrates, none fails."""
    for number in range(1, 4):
        text = f"def up(migrator, db):\n    db.execute_sql('CREATE TABLE t{number} (id INTEGER PRIMARY KEY)')\n"
        (tmp_path / f"000{number}_t.py").write_text(atomic + text)
    with holding(db, transactional=not atomic):
        boots = [start(backend, tmp_path) for _ in range(3)]
        for boot in boots:
            assert any("waiting for another process" in line for line in boot.stderr or ())
    results = [json.loads(boot.communicate(timeout=60)[0]) for boot in boots]

    assert [boot.returncode for boot in boots] == [0] * 3
    assert sum(len(result["applied"]) for result in results) == 3
    assert len(history.read_attempts(db)) == 3


def test_nothing_runs_here_while_another_migrates(backend: Backend) -> None:
    """Not even the tables of the history are made."""
    waiter = backend.database()
    with holding(backend.database()), pytest.raises(MigrationLockError, match=ME):
        migrate_db([("0001_a", lambda: None)], database=waiter, options=Options(lock_timeout_s=0.3))

    assert "migration_history" not in waiter.get_tables()


# One at a time -------------------------------------------------------------------------------------------------


def most_at_once(*backends: Backend, number: int = 6) -> int:
    """Return how many of *number* threads, which begin together on an empty database, held the lock at once."""
    inside, most = [0], [0]
    start, counting = threading.Barrier(number), threading.Lock()

    def hold(number: int) -> None:
        database = backends[number % len(backends)].database()
        database.connect()
        start.wait()
        with holding(database, 60, transactional=number % 3 > 0):
            with counting:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            database.execute_sql("SELECT 1")
            time.sleep(0.01)
            with counting:
                inside[0] -= 1

    threads = [threading.Thread(target=hold, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


def test_threads_that_begin_together_hold_it_one_after_another(backend: Backend) -> None:
    """In a transaction or outside of one; they also race for the tables of the lock itself."""
    assert most_at_once(backend) == 1


@pytest.mark.engines("postgres")
def test_threads_that_share_sessions_hold_it_one_after_another(backend: Backend, tmp_path: Path) -> None:
    """Behind PgBouncer with transaction pooling a session's own lock is granted to several at once."""
    with pgbouncer(backend, tmp_path) as bounced:
        clients = [bounced.database() for _ in range(2)]
        asked = [client.execute_sql("SELECT pg_try_advisory_lock(1)").fetchone() for client in clients]
        assert asked == [(True,), (True,)]
        assert most_at_once(bounced) == 1
        with holding(bounced.database()) as held:
            held.at("0001_x", 1)
            assert ", at 0001_x (1 of 7) held" in refusal(bounced.database(), transactional=False)


@contextmanager
def pgbouncer(backend: Backend, folder: Path) -> Iterator[Backend]:
    """Put a PgBouncer, with fewer sessions than clients, before the backend."""
    program = servers.find_program("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    port = servers._free_port()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={backend.private.port} user={servers.USER} "
        f"password='{servers.PASSWORD}'\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nauth_type=any\n"
        "unix_socket_dir=\npool_mode=transaction\ndefault_pool_size=4\n"
    )
    folder.chmod(0o755)
    settings.chmod(0o644)
    # It refuses to run as root.
    command = [program, *(["-u", "nobody"] if os.geteuid() == 0 else []), str(settings)]
    bounced = Backend("postgres", backend.url.replace(f":{backend.private.port}/", f":{port}/"), backend.server)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: answers(bounced.url))
            with closing(bounced):
                yield bounced
        finally:
            process.kill()


def answers(url: str) -> bool:
    """Say whether a connection to *url* can be had."""
    try:
        servers.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@SERVERS
def test_two_databases_of_one_server_are_migrated_at_once(backend: Backend) -> None:
    """GET_LOCK is the server's, not the database's: the lock's name tells them apart."""
    assert backend.server is not None
    name = f"plinth_second_{os.getpid()}"
    other = open_database(backend.server.create_database(name))
    try:
        with holding(backend.database()), holding(other, 0):
            pass
    finally:
        other.close()
        backend.server.drop_database(name)


@pytest.mark.engines("postgres")
def test_who_waited_sees_what_the_holder_did(backend: Backend, db: peewee.Database) -> None:
    """Even where the database's own isolation is REPEATABLE READ: a snapshot from before would run it all again."""
    db.execute_sql(f'ALTER DATABASE "{db.database}" SET default_transaction_isolation = "repeatable read"')
    db.execute_sql("CREATE TABLE done (id INTEGER)")
    waiter, waiting = backend.database(), threading.Event()
    counts: list[int] = []

    def wait() -> None:
        waiter.connect()
        waiting.set()
        with holding(waiter):
            counts.append(waiter.execute_sql("SELECT count(*) FROM done").fetchone()[0])

    thread = threading.Thread(target=wait)
    holder = backend.database()
    with holding(holder):
        thread.start()
        waiting.wait()
        holder.execute_sql("INSERT INTO done VALUES (1)")
    thread.join()

    assert counts == [1]


@pytest.mark.engines("postgres")
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_an_index_is_built_concurrently_beside_the_guard(db: peewee.Database, isolation: str) -> None:
    """CREATE INDEX CONCURRENTLY waits for every older snapshot: the transaction that holds the lock keeps none."""
    db.execute_sql(f'ALTER DATABASE "{db.database}" SET default_transaction_isolation = "{isolation}"')
    db.execute_sql("CREATE TABLE a (n INTEGER)")
    with holding(db, transactional=False) as held:
        held.at("0001_a", 1)
        db.execute_sql("CREATE INDEX CONCURRENTLY a_n ON a (n)")

    assert [index.name for index in db.get_indexes("a")] == ["a_n"]


@pytest.mark.engines("sqlite")
def test_the_file_beside_the_database_is_gone_afterwards(db: peewee.Database, tmp_path: Path) -> None:
    """It is there while the lock is held, and names the holder."""
    with holding(db, transactional=False):
        assert json.loads((tmp_path / "test.db-migrate").read_text())["pid"] == os.getpid()

    assert not (tmp_path / "test.db-migrate").exists()


@pytest.mark.engines("sqlite")
def test_a_writer_that_does_not_migrate_is_waited_for_too(backend: Backend, db: peewee.Database) -> None:
    """SQLite has one writer at a time, whatever it writes."""
    waiter = backend.database()
    with db.atomic("IMMEDIATE"):
        assert "another process held the file's write lock" in refusal(waiter)

    with holding(waiter, 0):
        pass


# The dead and the frozen ---------------------------------------------------------------------------------------


class Child:
    """A forked process that holds the lock until it is told to go on; its exit code is 0 when it still held it."""

    def __init__(self, backend: Backend, *, transactional: bool = True, sql: str | None = None) -> None:
        reader, writer = os.pipe()
        gate, self._opener = os.pipe()

        def hold() -> None:
            os.close(self._opener)
            # Not the parent's pool: its connections are the parent's.
            database = open_database(backend.url)
            with holding(database, transactional=transactional) as held:
                held.at("0001_child", 1)
                os.write(writer, b"held")
                if sql:
                    database.execute_sql(sql).fetchall()
                os.read(gate, 1)
                assert held.holds()

        self.pid = fork(hold)
        os.close(writer)
        os.close(gate)
        assert os.read(reader, 4) == b"held"
        os.close(reader)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Let it go on, and return its exit code."""
        os.close(self._opener)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@both_ways
def test_a_killed_holder_needs_no_human(backend: Backend, transactional: bool) -> None:
    """Its lock ends with it, whatever its lease still says."""
    child = Child(backend, transactional=transactional)
    child.signal(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL

    with holding(backend.database(), transactional=transactional) as held:
        assert held.holds()


@MYSQL
def test_a_frozen_holder_is_ended_and_cannot_come_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session is idle and its heartbeat stale: it is ended, and when it thaws it no longer holds anything."""
    child = Child(backend)
    child.signal(signal.SIGSTOP)
    monkeypatch.setattr(lease, "STALE_S", 2)
    monkeypatch.setattr("api.db.lock.SAY_EVERY_S", 0.5)
    try:
        with holding(backend.database(), 60) as held:
            assert held.holds()
    finally:
        child.signal(signal.SIGCONT)

    assert child.end() == 1


@MYSQL
def test_a_frozen_holder_whose_statement_runs_is_not_ended(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, db: peewee.Database
) -> None:
    """The statement would be cut in the middle, or go on alone: nobody migrates before it has ended."""
    db.execute_sql("CREATE TABLE done (id INTEGER PRIMARY KEY, slept INTEGER)")
    child = Child(backend, sql="INSERT INTO done VALUES (1, SLEEP(4))")
    eventually(lambda: "INSERT INTO done" in str(db.execute_sql("SHOW FULL PROCESSLIST").fetchall()))
    child.signal(signal.SIGSTOP)
    monkeypatch.setattr(lease, "STALE_S", 1)
    monkeypatch.setattr("api.db.lock.SAY_EVERY_S", 0.5)
    try:
        with holding(backend.database(), 60):
            rows = list(db.execute_sql("SELECT slept FROM done").fetchall())
    finally:
        child.signal(signal.SIGCONT)
        child.end()

    assert rows == [(0,)]


@MYSQL
def test_a_living_holder_is_waited_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle in its session for longer than the limit, but its heart beats."""
    child = Child(backend)
    monkeypatch.setattr(lease, "STALE_S", 2)
    monkeypatch.setattr("api.db.lock.SAY_EVERY_S", 0.5)

    assert "0001_child" in refusal(backend.database(), 5)
    assert child.end() == 0


@MYSQL
def test_a_dead_holders_row_does_not_get_the_next_one_killed(
    backend: Backend, db: peewee.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between GET_LOCK and the lease row the row is still the dead one's, with a heartbeat long stale."""
    with holding(backend.database()) as held:
        pass
    db.execute_sql("UPDATE migration_lease SET host = 'dead', session = 1")
    db.execute_sql("SELECT GET_LOCK(%s, 0)", (held.lock_name,))
    monkeypatch.setattr("api.db.lock.SAY_EVERY_S", 0.1)

    refusal(backend.database(), 1)

    assert db.execute_sql("SELECT RELEASE_LOCK(%s)", (held.lock_name,)).fetchone() == (1,)


# The fence -----------------------------------------------------------------------------------------------------


@SERVERS
def test_a_lock_that_was_lost_is_told_at_the_end(backend: Backend) -> None:
    """The session that held it was ended; what ran since ran beside whoever came next."""
    with pytest.raises(MigrationLockError, match="was lost"):
        hold_and_lose(backend)

    with holding(backend.database(), transactional=False):
        pass


def hold_and_lose(backend: Backend) -> None:
    """Hold the lock outside a transaction while an administrator ends the session that has it."""
    assert backend.server is not None
    holder = backend.database()
    with holding(holder, transactional=False) as held:
        held.at("0001_lost", 1)
        assert held.holds()
        if backend.engine == "postgres":
            sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'plinth 1/7 0001_lost'"
            ((number,),) = backend.server.execute(sql)
        else:
            number = session_number(holder)
        end_session(backend, number)
        eventually(lambda: not held.holds())


@SERVERS
def test_the_condition_holds_for_the_holder_alone(backend: Backend, db: peewee.Database) -> None:
    """Every write of the journal is made under it: who has been replaced writes nothing more."""
    holder = backend.database()
    with holding(holder) as held:
        sql, parameters = held.condition
        assert list(holder.execute_sql(f"SELECT 1 WHERE {sql}", parameters).fetchall()) == [(1,)]
    with holding(backend.database()):
        assert list(holder.execute_sql(f"SELECT 1 WHERE {sql}", parameters).fetchall()) == []
        assert list(db.execute_sql(f"SELECT 1 WHERE {sql}", parameters).fetchall()) == []


@MYSQL
def test_an_open_transaction_of_the_holder_does_not_stop_its_heart(backend: Backend, db: peewee.Database) -> None:
    """What is written under the condition locks the lease row until it is committed; the heartbeat has its own."""
    holder = backend.database()
    db.execute_sql("CREATE TABLE journal (id INTEGER PRIMARY KEY)")

    def heart() -> Any:
        return db.execute_sql("SELECT heartbeat_at FROM migration_heartbeat").fetchone()

    with holding(holder) as held, holder.atomic():
        sql, parameters = held.condition
        holder.execute_sql(f"INSERT INTO journal SELECT 1 FROM DUAL WHERE {sql}", parameters)
        before = heart()
        eventually(lambda: heart() > before)


@MYSQL
def test_a_session_without_autocommit_is_seen_to_migrate(backend: Backend, db: peewee.Database) -> None:
    """An earlier part may have switched it off: the lease is committed all the same, or others end a living holder."""
    holder = backend.database()
    holder.execute_sql("SET autocommit = 0")
    with holding(holder):
        assert db.execute_sql("SELECT host FROM migration_lease").fetchone() != (None,)


# Read-only -----------------------------------------------------------------------------------------------------


@pytest.mark.engines("postgres", "mysql", "mariadb")
def test_a_read_only_session_is_refused_before_anything_runs(backend: Backend, db: peewee.Database) -> None:
    """Not by the first statement that fails, with half of the batch before it."""
    if backend.engine == "postgres":
        db.execute_sql("SET default_transaction_read_only = on")
    else:
        db.execute_sql("SET SESSION TRANSACTION READ ONLY")

    with pytest.raises(MigrationError, match=r"nothing ran: the database is read-only \(.*_read_only is on\)"):
        refuse_read_only(db, backend.engine)


@pytest.mark.engines("mariadb")
def test_a_replica_is_refused_to_an_administrator_too(backend: Backend, db: peewee.Database) -> None:
    """The server would let one write there: only what it says of itself keeps the two servers alike."""
    db.execute_sql("SET GLOBAL read_only = ON")
    try:
        with pytest.raises(MigrationError, match=r"\(read_only is on\)"):
            refuse_read_only(db, backend.engine)
    finally:
        db.execute_sql("SET GLOBAL read_only = OFF")

    refuse_read_only(db, backend.engine)


@pytest.mark.engines("sqlite")
def test_a_file_that_may_not_be_written_is_refused(backend: Backend, db: peewee.Database, tmp_path: Path) -> None:
    """Nor a connection that was told not to write."""
    refuse_read_only(db, "sqlite")
    db.execute_sql("PRAGMA query_only = 1")
    with pytest.raises(MigrationError, match="query_only"):
        refuse_read_only(db, "sqlite")
    uri = peewee.SqliteDatabase(f"file:{tmp_path}/test.db?mode=ro", uri=True)
    with closing(uri), pytest.raises(MigrationError, match="readonly database"):
        refuse_read_only(uri, "sqlite")


@pytest.fixture
def foreign_file() -> Iterator[Path]:
    """Give a lock file that this user may read and not write, in a folder that it may write in."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.db-migrate")
        path.write_text("{}")
        path.chmod(0o444)
        os.chmod(folder, 0o777)
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield path
        finally:
            if is_root:
                os.seteuid(0)


def test_a_lock_file_that_another_user_left_is_locked(foreign_file: Path) -> None:
    """To read it is enough; meanwhile it is locked to others too."""
    file = lock_file.take(str(foreign_file))

    assert file is not None
    assert lock_file.take(str(foreign_file)) is None
    os.close(file)


def test_a_lock_file_that_cannot_be_read_is_named(foreign_file: Path) -> None:
    """The error says which file, and that it may be deleted."""
    hidden = foreign_file.with_name("b.db-migrate")
    hidden.touch(0)

    with pytest.raises(PermissionError) as raised:
        lock_file.take(str(hidden))

    error = lock_file.refusal(str(hidden), raised.value)
    assert str(hidden) in error.message
    assert "delete it" in error.hint
