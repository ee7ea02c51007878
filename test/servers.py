"""Private database servers for the tests and the bench: started from what is installed, ended with us.

A server listens on 127.0.0.1 only, keeps its data in a temporary folder, and belongs to the process that made
it: a guard beside it ends it and removes the folder when that process is gone, even if it was killed.
Settings are for data that is thrown away: nothing is flushed to the disk, yet every commit reaches the kernel,
so that a killed server comes back with what it had promised. Linux only.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from sqlite3 import sqlite_version
from typing import Any, ClassVar, Self
from urllib.parse import quote, unquote, urlsplit

import psycopg2
import pymysql

from api.db.dialects.engine import Engine
from api.db.lease import SESSIONS

USER = "plinth"
# The @ has to be quoted in a URL: every test on a private server also proves that quoting works.
PASSWORD = "open@sesame"
START_TIMEOUT_S = 60.0
PROGRAMS: dict[Engine, tuple[str, ...]] = {
    "postgres": ("postgres", "initdb"),
    "mariadb": ("mariadbd", "mariadb-install-db"),
}

# Reads the pid it has to end from its standard input, one a start, until its starter is gone.
_GUARD = """
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -CONT "$pid"; kill "-$2" "$pid"
    for _ in $(seq 200); do [ -e "/proc/$pid/exe" ] || break; sleep 0.05; done
fi
rm -rf "$1"
"""


class ServerError(RuntimeError):
    """A server is not installed, or did not start; the message ends with what its log says."""


class Server:
    """A running server that gives out fresh databases; *url* leads to it with the right to do everything."""

    engine: ClassVar[Engine]

    def __init__(self, url: str) -> None:
        self.url = url
        self._created: set[str] = set()

    @property
    def version(self) -> str:
        """The version as the server says it, short: ``15.18``."""
        with closing(connect(self.url)) as connection:
            if self.engine == "postgres":
                return short_version(connection.get_parameter_status("server_version"))
            return short_version(connection.get_server_info())

    def create_database(self, name: str) -> str:
        """Create the empty database *name*, and return the URL that leads to it."""
        self.execute(f"CREATE DATABASE {name}")
        self._created.add(name)
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, name: str) -> None:
        """End the connections to *name* and drop it. Refuses a database that this object did not create."""
        if name not in self._created:
            raise ValueError(f"{name!r} was not created here, so it is not dropped here")
        if self.engine == "postgres":
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        else:
            self._end_connections(name)
            self.execute(f"DROP DATABASE IF EXISTS {name}")
        self._created.discard(name)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run *sql* on a connection of its own, and return the rows if there are any."""
        with closing(connect(self.url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def ensure_running(self) -> None:
        """Undo what a test did to the server; nothing to do for a server that is not ours."""

    def stop(self) -> None:
        """End the server for good; nothing to do for a server that is not ours."""

    def _end_connections(self, name: str) -> None:
        # On MySQL and MariaDB a transaction left open holds a metadata lock that DROP DATABASE waits for.
        # Not SHOW PROCESSLIST: it cuts the statements after 100 bytes, also in the middle of a character.
        sessions = SESSIONS[self.engine]
        for (number,) in self.execute(f"SELECT id FROM {sessions} WHERE db = '{name}'"):
            with suppress(pymysql.err.OperationalError):
                self.execute(f"KILL {number}")


class MySQLServer(Server):
    """The MySQL that ``TEST_MYSQL_URL`` leads to: it runs already, and is never stopped."""

    engine = "mysql"

    def __init__(self) -> None:
        super().__init__(os.environ["TEST_MYSQL_URL"])


class PrivateServer(Server, ABC):
    """A server of ours, started when it is made; a test may pause, kill and start it again.

    Raises ``ServerError`` when its programs are missing or it does not come up within ``START_TIMEOUT_S``.
    """

    database: ClassVar[str] = ""
    # A bench sets this: every commit is flushed to the disk, as the server does when nobody tells it otherwise.
    durable: ClassVar[bool] = False
    stop_signal: ClassVar[signal.Signals] = signal.SIGKILL
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        if reason := missing(self.engine):
            raise ServerError(f"{self.engine} cannot start: {reason}")
        self.port = _free_port()
        super().__init__(f"{self.engine}://{USER}:{quote(PASSWORD)}@127.0.0.1:{self.port}/{self.database}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"plinth-{self.engine}-"))
        self._identity = _unprivileged(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", str(self.folder), str(int(self.stop_signal))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the server on its data and wait until it answers; also after ``kill``, on the same port."""
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, start_new_session=True, **self._surroundings
            )
        self._tell_guard(str(process.pid))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"{self.engine} did not start; its log ends:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def pause(self) -> None:
        """Freeze the server and every process of it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        # A signal is on its way until each has been scheduled.
        while any(_state(pid) not in "tTZX" for pid in self._family()):
            self._signal(signal.SIGSTOP)
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server and every process of it as a crash would, and return when they are gone."""
        self._tell_guard("")
        family = self._family()
        self._signal(signal.SIGKILL)
        self._wait()
        # PostgreSQL does not start again while a process of the old server holds its shared memory.
        while any(os.path.exists(f"/proc/{pid}/exe") for pid in family):
            time.sleep(0.01)

    def shut_down(self) -> None:
        """End the server in good order: it tells every session that it ends; return when it is gone."""
        self._tell_guard("")
        assert self._process is not None
        self._process.send_signal(self.shutdown_signal)
        self._wait()

    def ensure_running(self) -> None:
        """Undo what a test did to the server: resume it, or start it again."""
        if self._family():
            self.resume()
        else:
            self.start()

    def stop(self) -> None:
        """End the server and remove its folder; the guard does it, as it would if we had crashed."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._wait()
        self._guard.wait()

    @property
    def log(self) -> Path:
        """The file that the server writes its messages to."""
        return self.folder / "log"

    @abstractmethod
    def _initialise(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @property
    def _surroundings(self) -> dict[str, Any]:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        environment = {"PATH": path, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)}
        return {"stdin": subprocess.DEVNULL, "cwd": self.folder, "env": environment, **self._identity}

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._surroundings)
        if done.returncode:
            raise ServerError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _answers(self) -> bool:
        try:
            connect(self.url).close()
        except (psycopg2.OperationalError, pymysql.err.OperationalError):
            return False
        return True

    def _family(self) -> list[int]:
        """Return the ids of the server's running processes: PostgreSQL has many, MariaDB one."""
        if self._process is None or self._process.poll() is not None:
            return []
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait(self) -> None:
        if self._process:
            self._process.wait()

    def _tell_guard(self, pid: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid}\n")
        self._guard.stdin.flush()


class PostgresServer(PrivateServer):
    """A private PostgreSQL; the user is a superuser."""

    engine = "postgres"
    database = "postgres"
    # Immediate shutdown; a killed postmaster would leave its System V shared memory behind.
    stop_signal = signal.SIGQUIT
    # Fast shutdown; SIGTERM would wait until every client has gone.
    shutdown_signal = signal.SIGINT

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._run(
            _program("initdb"),
            f"--pgdata={self.folder}/data",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
        )

    def _command(self) -> list[str]:
        settings: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "autovacuum": "off",
            "max_connections": 200,
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": 0}
        pairs = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return [_program("postgres"), "-D", f"{self.folder}/data", *pairs]


class MariaDBServer(PrivateServer):
    """A private MariaDB; the user may do everything, also grant."""

    engine = "mariadb"

    def _initialise(self) -> None:
        (self.folder / "tmp").mkdir()
        _give(self.folder / "tmp", self._identity)
        (self.folder / "init.sql").write_text(
            f"CREATE OR REPLACE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON *.* TO {USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        self._run(
            _program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--tmpdir={self.folder}/tmp",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-flush-method=nosync",
        )

    def _command(self) -> list[str]:
        # 2 hands each commit to the kernel; 0 would lose a second of them when the server is killed.
        fast = ["--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync"]
        return [
            _program("mariadbd"),
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--tmpdir={self.folder}/tmp",
            f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid",
            f"--init-file={self.folder}/init.sql",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--max-connections=200",
            "--character-set-server=utf8mb4",
            *([] if self.durable else fast),
        ]


class Fleet:
    """The servers of one session: started side by side when first asked for, stopped together.

    Also a context manager: ``with Fleet() as fleet: fleet["postgres"].create_database("bench")``.
    """

    CLASSES: ClassVar[dict[Engine, type[Server]]] = {
        "postgres": PostgresServer,
        "mariadb": MariaDBServer,
        "mysql": MySQLServer,
    }

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(max_workers=len(self.CLASSES), thread_name_prefix="fleet")
        self._servers: dict[Engine, Future[Server]] = {}

    def start(self, engines: Iterable[Engine]) -> None:
        """Begin to start *engines* in the background, those that do not run yet; SQLite needs no server."""
        for engine in engines:
            if engine in self.CLASSES and engine not in self._servers:
                self._servers[engine] = self._workers.submit(self.CLASSES[engine])

    def __getitem__(self, engine: Engine) -> Server:
        self.start([engine])
        return self._servers[engine].result()

    def stop(self) -> None:
        """Stop every server that was started; one that failed to start was reported to who asked for it."""
        for future in self._servers.values():
            with suppress(ServerError):
                future.result().stop()
        self._workers.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def connect(url: str, **options: Any) -> Any:
    """Return a bare, self-committing driver connection to the PostgreSQL, MariaDB or MySQL at *url*."""
    parts = urlsplit(url)
    account: dict[str, Any] = {
        "host": parts.hostname or "127.0.0.1",
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.lstrip("/") or None,
        "connect_timeout": 5,
        **options,
    }
    if parts.scheme != "postgres":
        return pymysql.connect(port=parts.port or 3306, autocommit=True, **account)
    connection = psycopg2.connect(port=parts.port or 5432, **account)
    connection.autocommit = True
    return connection


def find_program(name: str) -> str | None:
    """Return the path of *name*: the newest PostgreSQL's under /usr/lib, else on PATH or in an sbin folder."""
    packaged = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = max(packaged, key=lambda path: float(path.parts[4]), default=None)
    return str(newest) if newest else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@cache
def missing(engine: Engine) -> str | None:
    """Say why *engine* cannot be had here, and the remedy; ``None`` when it can."""
    if engine == "mysql":
        return _missing_mysql(os.environ.get("TEST_MYSQL_URL"))
    absent = next((name for name in PROGRAMS.get(engine, ()) if find_program(name) is None), None)
    return f"{absent} is not installed: bash .ci/setup --servers" if absent else None


def version_at_hand(engine: Engine) -> str:
    """Return the version of *engine* without starting it: of library, program, or the running MySQL."""
    if engine == "sqlite":
        return sqlite_version
    if engine == "mysql":
        return MySQLServer().version
    answer = subprocess.run([_program(PROGRAMS[engine][0]), "--version"], capture_output=True, text=True, check=True)
    return short_version(answer.stdout)


def short_version(text: str) -> str:
    """Return the version number in *text*: ``10.11.19`` of ``5.5.5-10.11.19-MariaDB-0+deb12u1``."""
    match = re.search(r"\d+(\.\d+)+", text.removeprefix("5.5.5-"))
    return match.group() if match else text.strip()


def _missing_mysql(url: str | None) -> str | None:
    if not url:
        return "TEST_MYSQL_URL is not set"
    try:
        connect(url).close()
    except pymysql.err.OperationalError as exc:
        return f"TEST_MYSQL_URL leads nowhere: error {exc.args[0]}"
    return None


def _program(name: str) -> str:
    path = find_program(name)
    if path is None:
        raise ServerError(f"{name} is not installed: bash .ci/setup --servers")
    return path


def _state(pid: int) -> str:
    """Return the letter that the kernel has for a process's state: ``T`` is stopped, ``Z`` and ``X`` are dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _free_port() -> int:
    # Below the kernel's range of client ports: a client that retries a dead server's port in that range can be
    # given the very same port as its own, and then talks to itself.
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Say as whom the server runs, both refusing to run as root, and give *folder* to that user."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    account = names.get("postgres") or names["nobody"]
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    _give(folder, identity)
    return identity


def _give(folder: Path, identity: dict[str, Any]) -> None:
    if identity:
        os.chown(folder, identity["user"], identity["group"])
