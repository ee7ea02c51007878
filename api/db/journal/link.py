"""The driver's connection below the statement hook: what the journal itself says to the server goes this way.

What is PyMySQL's own business, and no promise of it, is used here only; ``test_link.py`` holds it to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pymysql

# PyMySQL keeps the server's last status word (MySQL manual, "Status Flags").
IN_TRANSACTION = 0x0001
COUNTER = re.compile(r" AUTO_INCREMENT=\d+")


class Link:
    """One PyMySQL connection. Raises PyMySQL's own errors, whose ``args[0]`` is the server's number.

    What it sends passes the statement hook by: *own* is true meanwhile.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.own = False

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Send *sql* and return the number of rows that it touched."""
        with self.connection.cursor() as cursor:
            self._send(cursor, sql, parameters)
            return int(cursor.rowcount)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Send *sql* and return what it selects."""
        with self.connection.cursor() as cursor:
            self._send(cursor, sql, parameters)
            return list(cursor.fetchall())

    def _send(self, cursor: Any, sql: str, parameters: Sequence[Any]) -> None:
        outer, self.own = self.own, True
        try:
            # Without parameters the driver formats nothing: a % in the text stays one.
            cursor.execute(sql, tuple(parameters) or None)
        finally:
            self.own = outer

    @contextmanager
    def hooked(self, query: Callable[..., Any]) -> Iterator[None]:
        """Let *query* stand in for the connection's own during the block: every cursor's statement goes through it.

        What this link sends itself goes past it. After an error ``in_transaction`` is asked anew.
        """
        plain = self.connection.query

        def stand_in(sql: str | bytes | bytearray, unbuffered: bool = False) -> Any:
            if self.own:
                return plain(sql, unbuffered)
            try:
                return query(sql, unbuffered)
            except pymysql.err.MySQLError:
                self.refresh()
                raise

        self.connection.query = stand_in
        try:
            yield
        finally:
            del self.connection.query

    @property
    def answer(self) -> tuple[Any, int]:
        """What a cursor reads next: the answer to the last statement, and how many rows that touched."""
        return self.connection._result, self.connection._affected_rows

    @answer.setter
    def answer(self, answer: tuple[Any, int]) -> None:
        if answer[0] is not self.connection._result:
            answer[0].has_next = False  # what followed it, as a procedure's results do, was read past meanwhile
        self.connection._result, self.connection._affected_rows = answer

    def answered(self) -> tuple[int, int, tuple[str, ...], tuple[tuple[Any, ...], ...]]:
        """Return what the last statement answered: rows touched, last id, names of columns, and rows."""
        result, touched = self.answer
        return (
            touched,
            result.insert_id or 0,
            tuple(column[0] for column in result.description or ()),
            result.rows or (),
        )

    def answer_with(self, touched: int, last_id: int, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Let the last statement have answered so."""
        result, _ = self.answer
        result.affected_rows, result.insert_id = touched, last_id
        if columns:
            result.description = tuple((column, *[None] * 6) for column in columns)
            result.rows, result.field_count = tuple(rows), len(columns)
        self.answer = result, touched

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version; MariaDB may put 5.5.5- in front of its own."""
        text = str(self.connection.get_server_info()).removeprefix("5.5.5-")
        return tuple(int(part) for part in re.findall(r"\d+", text.partition("-")[0]))

    def refresh(self) -> None:
        """Ask the server for its word on the transaction: no error brings it, and a deadlock ends the transaction."""
        with suppress(pymysql.err.MySQLError):
            self.connection.ping(reconnect=False)

    @property
    def is_mariadb(self) -> bool:
        """Whether the server is a MariaDB, by its greeting."""
        return "mariadb" in str(self.connection.get_server_info()).lower()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on the server, by its own last word."""
        return bool(self.connection.server_status & IN_TRANSACTION)


class Memory:
    """What the server said of its schema to one session, which asks again after each DDL statement of its own.

    Another session's ALTER of the table itself is seen too, its trigger or foreign key made meanwhile is not.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.is_mariadb = link.is_mariadb
        self._said: dict[tuple[str, tuple[Any, ...]], list[tuple[Any, ...]]] = {}
        self._definitions: dict[str, str | None] = {}

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return what *sql* selects, or selected when it was asked before."""
        question = (sql, tuple(parameters))
        if question not in self._said:
            self._said[question] = self.link.rows(*question)
        return self._said[question]

    def compare(self, table: str, definition: str | None) -> None:
        """Forget everything unless *definition* of *table* is what it was, its counter aside."""
        definition = definition and COUNTER.sub("", definition)
        if self._definitions.get(table) != definition:
            self.forget()
        self._definitions[table] = definition

    def forget(self) -> None:
        """Ask anew from now on."""
        self._said.clear()
        self._definitions.clear()


def name(text: str) -> str:
    """Return *text* as a quoted name."""
    return "`" + text.replace("`", "``") + "`"
