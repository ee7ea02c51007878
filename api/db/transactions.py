"""Transactions that say at debug how they begin and end, and at warning what one was lost to."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import peewee
import psycopg2.extensions
import structlog

from api.db.dialects.answering import is_lost
from api.db.dialects.connecting import driver_code, underlying
from api.db.dialects.engine import engine_of, server_version, unwrap

log = structlog.get_logger(__name__)
# Only asked whether debug is on: structlog would build a line before it drops it.
_std_log = logging.getLogger(__name__)

# By driver connection, for as long as that lives: its level is asked for once.
_levels: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class TransactionLogger:
    """Says at debug how transactions begin and end, and at warning what one was lost to.

    With debug off it costs one level check a call, and asks the server nothing.
    """

    @classmethod
    def log_transaction_state(
        cls,
        database: Any,
        operation: str = "begin",
        *,
        isolation_level: Any = None,
        reason: BaseException | None = None,
    ) -> None:
        """Log *operation* (begin, commit, rollback) at debug with the isolation level and the *reason* for it.

        *isolation_level* is what this transaction asked for; without it the server is asked, once a connection.
        """
        if not _std_log.isEnabledFor(logging.DEBUG):
            return
        level = _isolation_level(unwrap(database), isolation_level)
        log.debug("transaction", operation=operation, isolation_level=level, **_named("reason", reason))

    @classmethod
    def log_lost_transaction(cls, reason: BaseException | None, error: BaseException) -> None:
        """Log at warning that a rollback failed with *error*, which hides the *reason* it was called for."""
        log.warning("rollback failed, the transaction is lost", **_named("reason", reason), **_named("rollback", error))


def _named(role: str, exc: BaseException | None) -> dict[str, Any]:
    """Return the kind of *exc* and its code, or where a driver gives none its text.

    Only where it gives none: beside a code the text may hold a row's values.
    """
    if exc is None:
        return {}
    cause, code = underlying(exc), driver_code(exc)
    names = {role: type(cause).__name__, f"{role}_code": code}
    if code is None and isinstance(exc, peewee.PeeweeException):
        names[f"{role}_text"] = str(cause).strip().partition("\n")[0]
    return names


def _isolation_level(database: peewee.Database, asked_for: Any) -> str | None:
    if isinstance(database, peewee.SqliteDatabase):
        return "serializable"
    if asked_for is not None:
        return str(asked_for).lower()
    if database.is_closed():
        return None
    connection = database.connection()
    try:
        if connection not in _levels:
            (answer,) = database.execute_sql(_level_query(database)).fetchone()
            _levels[connection] = answer.lower().replace("-", " ")
    except peewee.PeeweeException:
        # Lost, or its transaction is aborted: the statement that matters will say so.
        return None
    return _levels[connection]


def _level_query(database: peewee.Database) -> str:
    engine = engine_of(database)
    if engine == "postgres":
        return "SHOW transaction_isolation"
    # MariaDB has MySQL's name for it since 11.1.1; MySQL 8.0 dropped the other one.
    if engine == "mariadb" and server_version(database) < (11, 1, 1):
        return "SELECT @@tx_isolation"
    return "SELECT @@transaction_isolation"


class LoggedTransaction(peewee._transaction):
    """peewee's outermost transaction, which also tells ``TransactionLogger`` how it began and why it ended."""

    _reason: BaseException | None = None

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self._reason = exc_val
        _tell_what_the_server_said(exc_val, self.db)
        super().__exit__(exc_type, exc_val, exc_tb)

    def _begin(self) -> None:
        super()._begin()
        args, kwargs = self._begin_args
        asked_for = kwargs.get("isolation_level", *args[:1])
        TransactionLogger.log_transaction_state(self.db, "begin", isolation_level=asked_for)

    def commit(self, begin: bool = True) -> None:
        """Commit what was done so far, and begin anew if *begin*."""
        try:
            super().commit(begin=False)
        except Exception as exc:
            self._reason = exc
            _tell_what_the_server_said(exc, self.db)
            raise
        TransactionLogger.log_transaction_state(self.db, "commit")
        if begin:
            self._begin()

    def rollback(self, begin: bool = True) -> None:
        """Undo what was done so far, and begin anew if *begin*."""
        try:
            super().rollback(begin=False)
        except Exception as exc:
            TransactionLogger.log_lost_transaction(self._reason, exc)
            if self._reason is None or not _has_lost_its_session(self.db):
                raise
            # The block ends in the server's own reason, not in "connection already closed".
            return
        TransactionLogger.log_transaction_state(self.db, "rollback", reason=self._reason)
        if begin:
            self._begin()


class LoggedSavepoint(peewee._savepoint):
    """peewee's savepoint, but that a session lost within it surfaces as that, and not as a rollback that failed."""

    def rollback(self, begin: bool = True) -> None:
        """Undo what was done since the savepoint, and set it anew if *begin*."""
        try:
            super().rollback(begin)
        except Exception:
            # Without *begin* peewee is about to raise what ended the block.
            if begin or not _has_lost_its_session(self.db):
                raise


def _has_lost_its_session(database: Any) -> bool:
    return not database.is_closed() and is_lost(database.connection())


def _tell_what_the_server_said(exc: BaseException | None, database: Any) -> None:
    """Put PostgreSQL's reason for ending the session before the text of *exc*, if that is the driver's of the loss.

    libpq has "FATAL:  terminating connection ..." and then its own "server closed the connection"; psycopg2 2.9
    makes its error, with libpq 17, of the last alone. Where both are told it is in these words, one a line.
    """
    if exc is None or not isinstance(cause := underlying(exc), psycopg2.Error) or driver_code(exc) is not None:
        return
    if not _has_lost_its_session(database) or not isinstance(
        lost := database.connection(), psycopg2.extensions.connection
    ):
        return
    # The severity before it is in the server's language.
    said = (lost.info.error_message or "").partition("\n")[0].partition(":  ")[2]
    for error in (exc, cause):
        if said not in str(error):
            error.args = ("\n".join((said, *map(str, error.args))),)


class LoggedTransactions:
    """What ``DB`` and the databases it is bound to share: their transactions are logged ones."""

    def transaction(self, *args: Any, **kwargs: Any) -> LoggedTransaction:
        """Return a transaction to enter with ``with``; ``atomic()`` uses it too."""
        return LoggedTransaction(self, *args, **kwargs)

    def savepoint(self) -> LoggedSavepoint:
        """Return a savepoint to enter with ``with``; a nested ``atomic()`` uses it too."""
        return LoggedSavepoint(self)
