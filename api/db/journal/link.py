"""The driver's connection below the statement hook: what the journal itself says to the server goes this way.

What is PyMySQL's own business, and no promise of it, is used here only; ``test_link.py`` holds it to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# PyMySQL keeps the server's last status word (MySQL manual, "Status Flags").
IN_TRANSACTION = 0x0001


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
        """Let *query* stand in for the connection's own during the block: every cursor's statement goes through it."""
        self.connection.query = query
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
        self.connection._result, self.connection._affected_rows = answer

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version; MariaDB may put 5.5.5- in front of its own."""
        text = str(self.connection.get_server_info()).removeprefix("5.5.5-")
        return tuple(int(part) for part in re.findall(r"\d+", text.partition("-")[0]))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on the server, by its own word."""
        return bool(self.connection.server_status & IN_TRANSACTION)


def name(text: str) -> str:
    """Return *text* as a quoted name."""
    return "`" + text.replace("`", "``") + "`"
