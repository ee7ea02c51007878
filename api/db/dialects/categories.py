"""What an error can be, and what follows from it; the codes of each engine are in the files beside this one."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from api.exceptions import ErrorSeverity

Code = str | int


class Category(StrEnum):
    """What went wrong, in one word for all engines."""

    DUPLICATE_COLUMN = "duplicate_column"
    DUPLICATE_TABLE = "duplicate_table"
    DUPLICATE_INDEX = "duplicate_index"
    DUPLICATE_CONSTRAINT = "duplicate_constraint"
    MISSING_COLUMN = "missing_column"
    MISSING_TABLE = "missing_table"
    MISSING_INDEX = "missing_index"
    MISSING_CONSTRAINT = "missing_constraint"
    INCOMPATIBLE_TYPE = "incompatible_type"
    NOT_NULL_VIOLATION = "not_null_violation"
    UNIQUE_VIOLATION = "unique_violation"
    FOREIGN_KEY_VIOLATION = "foreign_key_violation"
    CHECK_VIOLATION = "check_violation"
    DEPENDENT_OBJECT = "dependent_object"
    LIMIT_EXCEEDED = "limit_exceeded"
    UNSUPPORTED = "unsupported"
    SYNTAX_ERROR = "syntax_error"
    INSIDE_TRANSACTION = "inside_transaction"
    TRANSACTION_ENDED = "transaction_ended"
    LOCK_TIMEOUT = "lock_timeout"
    DEADLOCK = "deadlock"
    CANCELLED = "cancelled"
    PERMISSION_DENIED = "permission_denied"
    READ_ONLY_SERVER = "read_only_server"
    DISK_FULL = "disk_full"
    ACCESS_DENIED = "access_denied"
    MISSING_DATABASE = "missing_database"
    LOST_CONNECTION = "lost_connection"
    CONNECTION_REFUSED = "connection_refused"
    SERVER_STARTING = "server_starting"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    UNKNOWN = "unknown"


class Meaning(NamedTuple):
    """One of several things that a single code says: *words* is the pattern that decides for *category*."""

    words: str
    category: Category


class Trait(NamedTuple):
    """What follows from a category: how bad it is, and the one line that says what to do now."""

    severity: ErrorSeverity
    remedy: str


SKIPPED = frozenset(category for category in Category if category.value.startswith(("duplicate_", "missing_"))) - {
    Category.MISSING_DATABASE
}
"""The schema may already be as asked: read it. The words alone never prove that it is."""

TRANSIENT = frozenset(
    {
        Category.LOCK_TIMEOUT,
        Category.DEADLOCK,
        Category.LOST_CONNECTION,
        Category.CONNECTION_REFUSED,
        Category.SERVER_STARTING,
        Category.TOO_MANY_CONNECTIONS,
    }
)
"""The same call may succeed later without anyone changing anything."""

EXPECTED = SKIPPED | {
    Category.LOCK_TIMEOUT,
    Category.DEADLOCK,
    Category.SERVER_STARTING,
    Category.TOO_MANY_CONNECTIONS,
}
"""A healthy fleet meets these: a race, a half-done schema, or a busy server."""

_LOW, _MEDIUM, _HIGH, _CRITICAL = ErrorSeverity

TRAITS: dict[Category, Trait] = {
    Category.DUPLICATE_COLUMN: Trait(
        _LOW, "compare the column with the one the migration asks for; rename one of them if they differ"
    ),
    Category.DUPLICATE_TABLE: Trait(
        _LOW, "compare the table with the one the migration asks for; rename one of them if they differ"
    ),
    Category.DUPLICATE_INDEX: Trait(
        _LOW, "compare columns and uniqueness of the index; drop it or rename the new one if they differ"
    ),
    Category.DUPLICATE_CONSTRAINT: Trait(
        _LOW, "compare the two constraints; drop the old one or rename the new one if they differ"
    ),
    Category.MISSING_COLUMN: Trait(
        _LOW, "correct the column's name in the migration, or add the migration that creates it before this one"
    ),
    Category.MISSING_TABLE: Trait(
        _LOW, "correct the table's name in the migration, or add the migration that creates it before this one"
    ),
    Category.MISSING_INDEX: Trait(
        _LOW, "list the table's indexes and correct the name; drop the statement if the index is gone for good"
    ),
    Category.MISSING_CONSTRAINT: Trait(
        _LOW, "list the table's constraints and correct the name; drop the statement if it is gone for good"
    ),
    Category.INCOMPATIBLE_TYPE: Trait(
        _HIGH, "convert or shorten the existing values first, or choose a type that holds them"
    ),
    Category.NOT_NULL_VIOLATION: Trait(
        _HIGH, "fill the NULLs (UPDATE ... WHERE column IS NULL) or give the column a default, then run again"
    ),
    Category.UNIQUE_VIOLATION: Trait(
        _HIGH, "find the doubles (GROUP BY ... HAVING COUNT(*) > 1), merge or delete them, then run again"
    ),
    Category.FOREIGN_KEY_VIOLATION: Trait(
        _HIGH, "delete or repair the rows that point at no parent (or still have children), then run again"
    ),
    Category.CHECK_VIOLATION: Trait(
        _HIGH, "find the rows that break the check (WHERE NOT the condition), correct them, then run again"
    ),
    Category.DEPENDENT_OBJECT: Trait(
        _HIGH, "drop or change what depends on it, as the server names it, before this statement"
    ),
    Category.LIMIT_EXCEEDED: Trait(
        _HIGH, "make it smaller: a shorter name, type or key, fewer columns, TEXT instead of VARCHAR"
    ),
    Category.UNSUPPORTED: Trait(
        _HIGH, "use another form of the statement, or let the migration require the capability it needs"
    ),
    Category.SYNTAX_ERROR: Trait(
        _HIGH, "correct the statement at the place the server names; check that it is written for this engine"
    ),
    Category.INSIDE_TRANSACTION: Trait(
        _HIGH, "move the statement to a migration of its own and set `atomic = False` in it"
    ),
    Category.TRANSACTION_ENDED: Trait(
        _HIGH, "look at the error before this one: it ended the transaction, and it is the one to correct"
    ),
    Category.LOCK_TIMEOUT: Trait(
        _MEDIUM, "run again; if it stays, end the transaction that holds the table or raise the lock timeout"
    ),
    Category.DEADLOCK: Trait(_MEDIUM, "roll back and run the whole transaction again"),
    Category.CANCELLED: Trait(
        _MEDIUM, "ask who stopped the statement; raise the server's statement time limit if it was that"
    ),
    Category.PERMISSION_DENIED: Trait(
        _CRITICAL, "grant the database user the right the server names, or migrate as the owner of the tables"
    ),
    Category.READ_ONLY_SERVER: Trait(
        _CRITICAL, "point DATABASE_URL at the primary, or make the server, session or file writable"
    ),
    Category.DISK_FULL: Trait(
        _CRITICAL, "free or add disk space on the server (or raise the limit it names), then run again"
    ),
    Category.ACCESS_DENIED: Trait(
        _CRITICAL, "correct user and password in DATABASE_URL, and let the server accept them from this host"
    ),
    Category.MISSING_DATABASE: Trait(
        _CRITICAL, "create the database (or schema, or the file's folder), or correct its name in DATABASE_URL"
    ),
    Category.LOST_CONNECTION: Trait(_CRITICAL, "read in the server's log why it closed the connection, then run again"),
    Category.CONNECTION_REFUSED: Trait(_CRITICAL, "check that the server runs, and host and port in DATABASE_URL"),
    Category.SERVER_STARTING: Trait(_MEDIUM, "wait until the server has finished starting, then run again"),
    Category.TOO_MANY_CONNECTIONS: Trait(
        _MEDIUM, "wait, lower DB_POOL_MAX times the number of workers, or raise the server's connection limit"
    ),
    Category.UNKNOWN: Trait(
        _HIGH, "read the server's message; if the migration is right, look the code up in the server's manual"
    ),
}
