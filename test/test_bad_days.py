"""Days that need a server of their own: its disk is full, or it takes no writes from anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import crash_server
import peewee
import pytest
import servers
from test_journal import assert_same, picture, running

from api.db.connection import open_database
from api.db.migrations import migrate_db, recover
from api.exceptions import MigrationError, MigrationFailedError


class SmallServer(servers.MariaDBServer):
    """A MariaDB that keeps all tables in two files, which do not grow until *grows* is set."""

    grows = False

    def _command(self) -> list[str]:
        files = "ibdata1:12M;ibdata2:24M" + (":autoextend" if self.grows else "")
        return [*super()._command(), "--innodb-file-per-table=0", f"--innodb-data-file-path={files}"]


S = TypeVar("S", bound=servers.PrivateServer)


@contextmanager
def running_server(kind: Callable[[], S]) -> Iterator[tuple[S, str]]:
    """Give a server of *kind* for the block, and the URL of an empty database on it."""
    server = kind()
    try:
        yield server, server.create_database("bad_day")
    finally:
        server.stop()


@contextmanager
def connected(url: str) -> Iterator[peewee.Database]:
    """Give a database for the block, connected, and its pool empty afterwards."""
    database: Any = open_database(url)
    database.connect()
    try:
        yield database
    finally:
        database.close_all()


TABLE = "CREATE TABLE big (id INT AUTO_INCREMENT PRIMARY KEY, body VARCHAR(2000) NOT NULL, n INT NULL)"
ROWS = "INSERT INTO big (body, n) VALUES " + ", ".join(["(REPEAT('x', 1900), 1)"] * 200)
FILLING = (
    "ALTER TABLE big ADD COLUMN extra INT NULL",
    "UPDATE big SET n = 2 WHERE id < 100",
    "ALTER TABLE big DROP COLUMN n",
    "CREATE TABLE made (id INT PRIMARY KEY)",
    "ALTER TABLE big MODIFY body VARCHAR(2000) COLLATE utf8mb4_bin NOT NULL, ALGORITHM=COPY",
)


@pytest.mark.engines("mariadb")
def test_a_batch_that_met_a_full_disk_is_undone_once_there_is_room(backend: Any) -> None:
    """Where not even the journal can write, the batch stays open and nothing is lost; the next `recover` undoes it."""
    with running_server(SmallServer) as (server, url):
        with connected(url) as database:
            for sql in (TABLE, *[ROWS] * 40):
                database.execute_sql(sql)
            before = picture(database)
            with pytest.raises(MigrationFailedError, match=r"No more room|is full"):
                migrate_db([("0001_fill", running(*FILLING))], database=database)

        server.kill()
        server.grows = True
        server.start()
        with connected(url) as database:
            recover(database=database)
            assert_same(picture(database), before)


@pytest.mark.engines("mysql")
def test_a_server_that_takes_no_writes_from_anybody_is_refused(backend: Any) -> None:
    """`super_read_only` holds for an administrator too, and is said by its name before anything runs."""
    with running_server(crash_server.PrivateMySQL) as (_, url), connected(url) as database:
        database.execute_sql("SET GLOBAL super_read_only = ON")
        with pytest.raises(MigrationError, match=r"nothing ran: the database is read-only \(.*super_read_only"):
            migrate_db([("0001_a", running("CREATE TABLE made (id INT PRIMARY KEY)"))], database=database)
        assert database.get_tables() == []
