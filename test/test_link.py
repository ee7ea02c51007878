"""PyMySQL keeps to what ``link.py`` takes from it without a promise: its status word, its query hook, its answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest
import servers

from api.db.journal.link import Link
from conftest import Backend

pytestmark = pytest.mark.engines("mariadb", "mysql")

TABLE = "CREATE TABLE item (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20) NOT NULL)"
INSERT = "INSERT INTO item (name) VALUES ('one'), ('two')"
SELECT = "SELECT id, name FROM item ORDER BY id"
PROCEDURE = "CREATE PROCEDURE twice() BEGIN SELECT 1; SELECT 2; END"


@pytest.fixture(name="link")
def _link(backend: Backend) -> Iterator[Link]:
    # Who waits for an answer that is not there fails, and does not hang.
    with closing(servers.connect(backend.url, read_timeout=20)) as connection:
        link = Link(connection)
        link.execute(TABLE)
        yield link


class Interrupting:
    """Stands in for the connection's query: sends statements of its own after each that is not, as the journal does."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.plain = link.connection.query
        self.seen: list[str] = []

    def __call__(self, sql: Any, unbuffered: bool = False) -> Any:
        """Send *sql*, and others behind it, whose answers nobody is to see."""
        if self.link.own:
            return self.plain(sql, unbuffered)
        self.seen.append(sql if isinstance(sql, str) else sql.decode())
        touched = self.plain(sql, unbuffered)
        answer = self.link.answer
        self.link.execute("INSERT INTO item VALUES (100, 'x') ON DUPLICATE KEY UPDATE name = 'y'")
        self.link.rows("SELECT 'another', 'answer', 'wide'")
        self.link.answer = answer
        return touched


# Sending -------------------------------------------------------------------------------------------------------


def test_a_percent_sign_is_formatted_only_beside_parameters(link: Link) -> None:
    """Without parameters the text is sent as it stands."""
    assert link.rows("SELECT '%d %% %s'") == [("%d %% %s",)]
    assert link.rows("SELECT %s, '%%'", ["it's"]) == [("it's", "%")]


def test_the_number_of_touched_rows_is_returned(link: Link) -> None:
    """It is what the server counts: 0 for DDL, and for an UPDATE that changes nothing."""
    assert link.execute(INSERT) == 2
    assert link.execute("UPDATE item SET name = name") == 0
    assert link.execute("ALTER TABLE item COMMENT = 'x'") == 0


def test_an_error_is_the_drivers_with_the_servers_number(link: Link) -> None:
    """And what is sent next is no longer the journal's own."""
    with pytest.raises(pymysql.err.ProgrammingError) as caught:
        link.rows("SELECT * FROM no_such_table")
    assert caught.value.args[0] == 1146
    assert not link.own


def test_the_version_is_the_servers_own(link: Link) -> None:
    """MariaDB's is not the 5.5.5 that its greeting begins with."""
    ((said,),) = link.rows("SELECT VERSION()")
    assert link.version == tuple(int(part) for part in re.findall(r"\d+", said.partition("-")[0]))
    assert link.version > (8,)


# The status word -----------------------------------------------------------------------------------------------


def test_an_open_transaction_is_seen_in_every_answer(link: Link) -> None:
    """After rows as after none, until it ends; and an error inside it does not hide it."""
    seen = [link.in_transaction]
    for sql in ("BEGIN", "SELECT 1", INSERT, SELECT):
        link.execute(sql)
        seen.append(link.in_transaction)
    with pytest.raises(pymysql.err.IntegrityError):
        link.execute("INSERT INTO item SELECT id, name FROM item")
    assert [*seen, link.in_transaction] == [False, True, True, True, True, True]
    link.connection.commit()
    assert not link.in_transaction


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK", "CREATE TABLE other (id INT)"])
def test_the_end_of_a_transaction_is_seen(link: Link, ending: str) -> None:
    """Also where DDL commits it without a word."""
    link.execute("BEGIN")
    link.execute(INSERT)
    link.execute(ending)
    assert not link.in_transaction


def test_a_transaction_that_nobody_began_is_seen(link: Link) -> None:
    """Without autocommit the first statement that writes opens one."""
    link.connection.autocommit(False)
    assert not link.in_transaction
    link.execute(INSERT)
    assert link.in_transaction


# The query hook ------------------------------------------------------------------------------------------------


def test_every_cursors_statement_goes_through_the_hook(link: Link) -> None:
    """That of one made before the block too, bytes, and each of several sets of parameters; the link's own goes by."""
    hook = Interrupting(link)
    with link.connection.cursor() as before, link.hooked(hook), link.connection.cursor() as cursor:
        before.execute("SELECT 1")
        cursor.execute(b"SELECT 2")
        cursor.executemany("UPDATE item SET name = %s WHERE id = 1", [("a",), ("b",)])
        link.execute("SELECT 3")
    updates = [f"UPDATE item SET name = '{name}' WHERE id = 1" for name in "ab"]
    assert hook.seen == ["SELECT 1", "SELECT 2", *updates]


def test_after_the_block_the_driver_sends_by_itself_again(link: Link) -> None:
    """Also after an error, which the hook lets out."""
    hook = Interrupting(link)
    with pytest.raises(pymysql.err.MySQLError), link.hooked(hook), link.connection.cursor() as cursor:
        cursor.execute("SELECT no_such_column")
    with link.connection.cursor() as cursor:
        cursor.execute("SELECT 2")
    assert hook.seen == ["SELECT no_such_column"]


# Answers -------------------------------------------------------------------------------------------------------


def test_a_cursor_reads_the_answer_to_its_own_statement(link: Link) -> None:
    """Whatever was sent behind it: rows touched, last id, names of columns, and rows."""
    with link.hooked(Interrupting(link)), link.connection.cursor() as cursor:
        assert cursor.execute(INSERT) == 2
        assert (cursor.rowcount, cursor.lastrowid, cursor.description) == (2, 1, None)
        assert link.connection.insert_id() == 1
        assert link.connection.affected_rows() == 2

        assert cursor.execute("SELECT id FROM item WHERE id < 3 ORDER BY id") == 2
        assert [column[0] for column in cursor.description] == ["id"]
        assert cursor.fetchall() == ((1,), (2,))


def test_an_answer_put_back_has_nothing_behind_it(link: Link) -> None:
    """A procedure's further results were read past: to wait for them again would hang, or mix up the answers."""
    link.execute(PROCEDURE)
    with link.hooked(Interrupting(link)), link.connection.cursor() as cursor:
        cursor.execute("CALL twice()")
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset() is None
        cursor.execute("SELECT 3")
        assert cursor.fetchall() == ((3,),)


def test_an_answer_that_was_never_away_keeps_what_is_behind_it(link: Link) -> None:
    """Put back where nothing was sent since, it still leads to a procedure's further results."""
    link.execute(PROCEDURE)
    with link.connection.cursor() as cursor:
        cursor.execute("CALL twice()")
        link.answer = link.answer
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)


def test_what_was_answered_can_be_told(link: Link) -> None:
    """Rows touched, last id, columns and rows: of a statement that returns rows, and of one that returns none."""
    link.execute(INSERT)
    assert link.answered() == (2, 1, (), ())
    link.rows(SELECT)
    assert link.answered() == (2, 0, ("id", "name"), ((1, "one"), (2, "two")))
    link.execute("DELETE FROM item")
    assert link.answered() == (2, 0, (), ())


def test_an_answer_of_before_can_be_given_again(link: Link) -> None:
    """A cursor reads it as if its statement had been answered so; the table is as it was."""

    def replay(sql: Any, unbuffered: bool = False) -> Any:
        plain("DO 0")
        link.answer_with(*given.pop(0))
        return link.answer[1]

    plain = link.connection.query
    given: list[Any] = [(3, 7, (), ()), (1, 0, ("a", "b"), [(5, None)])]
    with link.hooked(replay), link.connection.cursor() as cursor:
        assert cursor.execute(INSERT) == 3
        assert (cursor.rowcount, cursor.lastrowid) == (3, 7)
        assert (link.connection.affected_rows(), link.connection.insert_id()) == (3, 7)
        cursor.execute(SELECT)
        assert [column[0] for column in cursor.description] == ["a", "b"]
        assert (cursor.rowcount, cursor.fetchall()) == (1, ((5, None),))
    assert link.rows(SELECT) == []
