"""What a URL opens, and connecting with patience."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any
from urllib.parse import quote, urlsplit

import peewee
import pytest
from borrowing import at_the_first, held
from playhouse.pool import MaxConnectionsExceeded
from psycopg2.extensions import libpq_version
from sessions import SERVERS, end_session, session_number
from structlog.testing import capture_logs

from api.db import connection, lease, pool_gate
from api.db.connection import (
    DB,
    MAX_RETRIES,
    exponential_backoff,
    get_db_connection,
    log_connection_config,
    open_database,
)
from api.db.dialects.answering import libpq, refuse_another
from api.exceptions import ConfigurationError, DatabaseUnavailableError

ACCOUNTS = count(1)
ENCRYPTION_ASKED = (80877103).to_bytes(4, "big")


def with_account(url: str, user: str, password: str) -> str:
    """Return *url* for another account."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{quote(password)}@{parts.hostname}:{parts.port}").geturl()


@contextmanager
def limited_account(backend: Any) -> Iterator[str]:
    """Give the URL of an account that may have one connection only."""
    user, run = f"limited_{os.getpid()}_{next(ACCOUNTS)}", backend.server.execute
    if backend.engine == "postgres":
        create, drop = "CREATE ROLE {} LOGIN PASSWORD 'open' CONNECTION LIMIT 1", "DROP ROLE {}"
    else:
        create, drop = "CREATE USER {} IDENTIFIED BY 'open' WITH MAX_USER_CONNECTIONS 1", "DROP USER {}"
    run(create.format(user))
    try:
        if backend.engine != "postgres":
            run(f"GRANT ALL ON {urlsplit(backend.url).path[1:]}.* TO {user}")
        yield with_account(backend.url, user, "open")
    finally:
        run(drop.format(user))


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Give the port of a PostgreSQL without encryption that answers the start of every session with *reply*."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(max_workers=1) as thread:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as session:
                        if session.recv(4096)[4:8] == ENCRYPTION_ASKED:
                            session.sendall(b"N")
                            session.recv(4096)
                        session.sendall(reply)

        thread.submit(answer)
        yield listener.getsockname()[1]
        # Closing alone does not wake a thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)


class TestOpening:
    """A URL becomes a pooled database of its engine, and a bad one an error without a secret."""

    @pytest.mark.parametrize(
        ("scheme", "base"),
        [
            ("postgres", peewee.PostgresqlDatabase),
            ("postgresql+psycopg2", peewee.PostgresqlDatabase),
            ("mysql+pymysql", peewee.MySQLDatabase),
            ("mariadb", peewee.MySQLDatabase),
        ],
    )
    def test_a_scheme_names_its_engine(self, scheme: str, base: Any) -> None:
        """Every scheme in use elsewhere opens the engine it means, parts decoded, nothing connected."""
        database = open_database(f"{scheme}://a%40b:p%2Fw@db.example:77/shop%20one")
        params = database.connect_params
        assert isinstance(database, base)
        assert database.is_closed()
        assert (database.database, params["user"], params["password"]) == ("shop one", "a@b", "p/w")
        assert (params["host"], params["port"], params["connect_timeout"]) == ("db.example", 77, 5)

    @pytest.mark.parametrize(
        "url",
        [
            "u:SECRET@host/name",
            "oracle://u:SECRET@host/name",
            "postgresql://u:SECRET@host",
            "postgresql://u:SECRET@host:port/name",
            "postgresql://u:SEC/RET@host/name",
            "postgresql://u:12/SECRET@host/name",
            "postgresql://u:12?SECRET@host/name",
            "postgresql://u:12#SECRET@host/name",
            "mysql://u:SECRET@host/name?colour=blue",
            "postgresql://u:SECRET@host/name?colour=blue",
            "sqlite://u:SECRET@host/name",
            "sqlite://name.db",
            "sqlite:///name.db?mode=SECRET",
        ],
    )
    def test_a_bad_url_is_refused_without_its_secret(self, url: str) -> None:
        """The error says what to write instead, and no part of the URL that may be a password."""
        with pytest.raises(ConfigurationError) as caught:
            open_database(url)
        assert caught.value.hint
        assert "SEC" not in str(caught.value.as_dict())
        assert "RET" not in str(caught.value.as_dict())

    @pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e12])
    @pytest.mark.parametrize("name", ["pool_max", "pool_timeout_s", "connect_timeout_s", "max_lifetime_s"])
    def test_a_number_that_makes_no_pool_is_refused(self, name: str, value: Any) -> None:
        """By its name, and not by a wait without an end or an error of the system's at the first borrow."""
        with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
            open_database("sqlite://", **{name: value})

    @pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
    def test_always_and_never_to_validate_are_numbers_too(self, value: float) -> None:
        """Always is 0."""
        assert open_database("sqlite://", validate_after_s=0).snapshot().total == 0
        with pytest.raises(ConfigurationError, match=f"validate_after_s is {value}") as caught:
            open_database("sqlite://", validate_after_s=value)
        assert caught.value.hint == "give a number of 0 or more, and not infinite"

    def test_another_libpq_than_psycopg2_s_is_refused(self) -> None:
        """It would read psycopg2's connections as its own, and end the process."""
        assert libpq().PQlibVersion() == libpq_version()
        for found, text in ((90_000, "is found 90000"), (0, "is found none")):
            with pytest.raises(ConfigurationError, match=text):
                refuse_another(found)

    def test_the_url_s_own_options_win(self) -> None:
        """What the query of the URL says goes to the driver."""
        database = open_database("postgresql://host/name?connect_timeout=9&application_name=shop&sslmode=require")
        params = database.connect_params
        assert (params["connect_timeout"], params["application_name"], params["sslmode"]) == (9, "shop", "require")

    @pytest.mark.engines("postgres")
    def test_postgres_knows_who_is_connected(self, db: peewee.Database) -> None:
        """An administrator sees whose session it is, and a dead peer is noticed by keepalives."""
        assert db.execute_sql("SHOW application_name").fetchone() == ("plinth",)
        assert db.execute_sql("SHOW tcp_keepalives_idle").fetchone() is not None
        assert db.connect_params["keepalives"] == 1

    @pytest.mark.engines("mariadb", "mysql")
    def test_mysql_speaks_utf8mb4(self, db: peewee.Database) -> None:
        """A character outside the basic plane arrives as it was sent."""
        assert db.execute_sql("SELECT @@character_set_client, '🪨'").fetchone() == ("utf8mb4", "🪨")

    @pytest.mark.engines("mariadb", "mysql")
    def test_a_second_connect_reads_no_certificates(self, backend: Any, db: peewee.Database) -> None:
        """One TLS context serves all connects that check none; to make one takes longer than the rest of a connect."""
        connections = [db.connection(), lease.dial(backend.database())]
        assert connections[0].ctx is connections[1].ctx
        assert connections[0].ctx.verify_mode == ssl.CERT_NONE
        connections[1].close()

    @pytest.mark.engines("mariadb", "mysql")
    def test_a_long_statement_outlives_the_connect_timeout(self, backend: Any) -> None:
        """The limit of the handshake is not a limit of what follows."""
        database = backend.database(connect_timeout_s=1)
        assert database.execute_sql("SELECT SLEEP(1.5)").fetchone() == (0,)

    @pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
    def test_a_server_that_never_answers_does_not_hold_the_caller(self, scheme: str) -> None:
        """A port that accepts and stays silent is given up after the connect timeout."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"{scheme}://u:SECRET@127.0.0.1:{silent.getsockname()[1]}/name"
            database = open_database(url, connect_timeout_s=2)
            with pytest.raises(DatabaseUnavailableError) as caught:
                get_db_connection(database, deadline_s=0)
        assert "SECRET" not in str(caught.value)


class TestConnecting:
    """What can pass is tried again; what cannot is said at once."""

    @pytest.mark.engines("postgres", "mariadb")
    def test_a_server_that_starts_late_is_waited_for(self, backend: Any) -> None:
        """Refused, then starting up, then connected; each failure a warning with attempt and delay."""
        database = backend.database()
        backend.private.kill()
        with capture_logs() as lines, at_the_first(lines, backend.private.start):
            get_db_connection(database)
        assert database.execute_sql("SELECT 1").fetchone() == (1,)
        assert [line["attempt"] for line in lines] == list(range(1, len(lines) + 1))
        assert {line["log_level"] for line in lines} == {"warning"}
        assert all(isinstance(line["delay_ms"], int) for line in lines)
        assert lines[0]["code"] == "ECONNREFUSED"

    def test_a_server_that_starts_is_known_in_any_language(self) -> None:
        """By the SQLSTATE, which psycopg2 does not pass on: the text is whatever the server speaks."""
        fields = b"SFATAL\0VFATAL\0C57P03\0Mdas Datenbanksystem startet\0\0"
        with answering(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields) as port, capture_logs() as lines:
            database = open_database(f"postgresql://u@127.0.0.1:{port}/name")
            with pytest.raises(DatabaseUnavailableError, match="server starting"):
                get_db_connection(database, deadline_s=0.2)
        assert {line["code"] for line in lines} <= {"57P03"}

    @SERVERS
    def test_a_full_server_is_waited_for(self, backend: Any) -> None:
        """A role that has used up its connections gets the next one as soon as one is closed."""
        with limited_account(backend) as url:
            holder, database = open_database(url), open_database(url)
            holder.connect()
            with capture_logs() as lines, at_the_first(lines, holder.close_all):
                get_db_connection(database)
            database.close_all()
        assert lines[0]["reason"] == "too many connections"

    @SERVERS
    def test_a_wrong_password_is_one_clear_error(self, backend: Any) -> None:
        """Said at once, with place and remedy, and without the password that was tried."""
        with limited_account(backend) as url, capture_logs() as lines:
            database = open_database(with_account(url, urlsplit(url).username or "", "SECRET"))
            with pytest.raises(DatabaseUnavailableError) as caught:
                get_db_connection(database)
        assert "access denied" in str(caught.value)
        assert f"{urlsplit(url).hostname}:{urlsplit(url).port}" in str(caught.value)
        assert caught.value.hint.startswith("correct user and password in DATABASE_URL")
        assert "SECRET" not in f"{caught.value.as_dict()}{caught.value.__cause__!r}{lines}"
        assert lines == []

    @SERVERS
    def test_an_unknown_database_is_one_clear_error(self, backend: Any) -> None:
        """Said at once, with its name."""
        database = open_database(f"{backend.url}_missing")
        with capture_logs() as lines, pytest.raises(DatabaseUnavailableError) as caught:
            get_db_connection(database)
        assert f"{database.database} as" in str(caught.value)
        assert "missing database" in str(caught.value)
        assert lines == []

    @pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
    def test_an_unknown_host_is_one_clear_error(self, scheme: str) -> None:
        """A name that no server answers to is not tried again."""
        with capture_logs() as lines, pytest.raises(DatabaseUnavailableError, match="no such host name"):
            get_db_connection(open_database(f"{scheme}://u:p@plinth.invalid/name"))
        assert lines == []

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://127.0.0.1:1/name",
            "postgresql:///name?host=/nowhere",
            "mysql://127.0.0.1:1/name",
        ],
    )
    def test_patience_ends_with_the_deadline(self, url: str) -> None:
        """A server that stays away is an error in the end, with the last reason and its remedy."""
        with pytest.raises(DatabaseUnavailableError, match="nothing listens there") as caught:
            get_db_connection(open_database(url), deadline_s=0.3)
        assert caught.value.hint == "start the server, or correct host and port in DATABASE_URL"
        assert isinstance(caught.value.__cause__, peewee.OperationalError)

    def test_patience_ends_with_the_attempts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long the deadline, so many attempts and no more: every one but the last is announced."""
        monkeypatch.setattr(connection, "BACKOFF_CAP_S", 0.001)
        monkeypatch.setattr(pool_gate, "GATE_CAP_S", 0.001)
        with capture_logs() as lines, pytest.raises(DatabaseUnavailableError):
            get_db_connection(open_database("mysql://127.0.0.1:1/name"), deadline_s=600)
        assert [line["attempt"] for line in lines] == list(range(1, MAX_RETRIES))

    @pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/name", "mysql://127.0.0.1:1/name"])
    def test_threads_that_wait_together_dial_in_turn(self, url: str) -> None:
        """All are told the reason in the end; most of the time they waited for one that tried."""
        database = open_database(url)
        with ThreadPoolExecutor(max_workers=8) as threads, capture_logs() as lines:
            calls = [threads.submit(get_db_connection, database, deadline_s=1.5) for _ in range(8)]
        for call in calls:
            with pytest.raises(DatabaseUnavailableError, match="nothing listens there"):
                call.result()
        now = database.snapshot()
        assert now.connect_errors < now.requests
        assert len(lines) <= now.connect_errors

    @pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/name", "mysql://127.0.0.1:1/name"])
    @pytest.mark.parametrize("calls", [1, 2])
    def test_a_server_that_stays_away_keeps_nothing_of_its_callers_alive(self, url: str, calls: int) -> None:
        """The error that is told to others has no frames, with whatever is named in them."""

        class Request:
            pass

        def call() -> weakref.ref[Request]:
            request = Request()
            with suppress(peewee.OperationalError):
                database.connect()
            return weakref.ref(request)

        database = open_database(url)
        requests = [call() for _ in range(calls)]
        gc.collect()
        assert [request() for request in requests] == [None] * calls

    @SERVERS
    def test_threads_with_a_wrong_password_are_all_told_at_once(self, backend: Any) -> None:
        """Those whom the gate keeps from dialling do not wait for what cannot come."""
        parts = urlsplit(backend.url)
        url = with_account(backend.url, parts.username or "", "SECRET")
        if backend.engine == "mysql" and not parts.password:
            url = with_account(backend.url, "nobody_here", "SECRET")
        database = open_database(url)
        with ThreadPoolExecutor(max_workers=8) as threads:
            calls = [threads.submit(get_db_connection, database, deadline_s=600) for _ in range(8)]
        for call in calls:
            with pytest.raises(DatabaseUnavailableError, match="access denied"):
                call.result()

    def test_delays_grow_to_a_limit_and_are_spread(self) -> None:
        """Attempt n waits anything up to a limit that doubles, five seconds at the most, also for a huge n."""
        for attempt, limit_s in [(1, 0.1), (2, 0.2), (5, 1.6), (7, 5.0), (10_000, 5.0)]:
            delays = {exponential_backoff(attempt) for _ in range(50)}
            assert 0 <= min(delays) < max(delays) <= limit_s

    @SERVERS
    def test_a_killed_connection_does_not_come_back(self, backend: Any) -> None:
        """A session that ended while its connection was idle costs the next borrower nothing."""
        database = backend.database()
        with database.connection_context():
            first = session_number(database)
        end_session(backend, first)
        with database.connection_context():
            assert session_number(database) != first
        assert database.snapshot().active == 0

    @SERVERS
    def test_a_lost_connection_is_replaced(self, backend: Any, db: peewee.Database) -> None:
        """Outside a transaction this thread gets another one."""
        first = session_number(db)
        end_session(backend, first)
        with pytest.raises(peewee.PeeweeException):
            db.execute_sql("SELECT 1")
        get_db_connection(db)
        assert session_number(db) != first
        assert db.snapshot().active == 1

    @SERVERS
    def test_a_connection_lost_in_a_transaction_is_not_replaced(self, backend: Any, db: peewee.Database) -> None:
        """The rest of the block must not be kept without its beginning."""
        with suppress(peewee.PeeweeException), db.atomic():
            end_session(backend, session_number(db))
            with suppress(peewee.PeeweeException):
                db.execute_sql("SELECT 1")
            with pytest.raises(DatabaseUnavailableError, match="lost inside a transaction"):
                get_db_connection(db)
        assert not db.in_transaction()

    @pytest.mark.engines("sqlite")
    def test_an_exhausted_pool_is_not_retried(self, backend: Any) -> None:
        """The pool has waited already: its error is raised as it is."""
        database = backend.database(pool_max=1, pool_timeout_s=0.01)
        with held(database, 1), capture_logs() as lines, pytest.raises(MaxConnectionsExceeded):
            get_db_connection(database)
        assert lines == []

    def test_the_app_s_database_is_the_default(self) -> None:
        """Without an argument it is ``DB``, and one that nobody bound says so."""
        database = open_database("sqlite://")
        DB.initialize(database)
        try:
            assert get_db_connection() is database.connection()
        finally:
            database.close_all()
            DB.initialize(None)
        with pytest.raises(AttributeError, match="not bound"):
            get_db_connection()

    def test_the_configuration_is_one_line_without_the_password(self, backend: Any) -> None:
        """Engine, place, sizes and timeouts."""
        database = backend.database(pool_max=3, pool_timeout_s=2, connect_timeout_s=7)
        database.connect()
        with capture_logs() as lines:
            log_connection_config(database)
        (line,) = lines
        assert (line["log_level"], line["engine"], line["pool_max"]) == ("info", backend.engine, 3)
        assert (line["database"], line["pool_timeout_s"]) == (database.database, 2)
        assert line.get("connect_timeout_s") == (None if backend.engine == "sqlite" else 7)
        assert "sesame" not in str(line)
