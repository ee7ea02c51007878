"""Every category of error on every engine: what provokes it and which code comes, or why it cannot occur.

One table for two uses: ``test_errors.py`` provokes each row on the real servers, and ``error_page.py`` writes
``docs/ERRORS.md`` from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import error_scenes as scenes

from api.db.dialects.categories import Category, Code
from api.db.dialects.engine import Engine

if TYPE_CHECKING:
    from conftest import Backend

ERROR = sqlite3.SQLITE_ERROR

SCHEMA = """
CREATE TABLE parent (id INT NOT NULL PRIMARY KEY, code INT);
CREATE TABLE child (
    id INT PRIMARY KEY, parent_id INT, CONSTRAINT child_parent FOREIGN KEY (parent_id) REFERENCES parent (id)
);
CREATE TABLE item (id INT PRIMARY KEY, amount INT, name VARCHAR(20), tag VARCHAR(20));
CREATE INDEX item_amount ON item (amount);
INSERT INTO parent VALUES (1, 1);
INSERT INTO child VALUES (1, 1);
INSERT INTO item VALUES (1, 5, 'abc', 'same'), (2, NULL, '12', 'same');
"""


class Case(NamedTuple):
    """*category*, the code it comes with on each engine (``None``: by its text), and what provokes it.

    *provoke* is SQL, of which only the last statement fails, or a function of ``error_scenes``.
    """

    category: Category
    codes: Mapping[Engine, Code | None]
    provoke: str | Callable[[Backend], None]


def on_all(postgres: Code, mysql: Code, mariadb: Code, sqlite: Code) -> dict[Engine, Code | None]:
    """Name the code of each engine."""
    return {"postgres": postgres, "mysql": mysql, "mariadb": mariadb, "sqlite": sqlite}


def on_mysql(mysql: Code, mariadb: Code) -> dict[Engine, Code | None]:
    """Name the code of the two that speak MySQL's SQL."""
    return {"mysql": mysql, "mariadb": mariadb}


C = Category
CASES: tuple[Case, ...] = (
    Case(C.DUPLICATE_COLUMN, on_all("42701", 1060, 1060, ERROR), "ALTER TABLE item ADD COLUMN amount INT"),
    Case(C.DUPLICATE_COLUMN, on_all("42701", 1060, 1060, ERROR), "ALTER TABLE item RENAME COLUMN name TO tag"),
    Case(C.DUPLICATE_TABLE, on_all("42P07", 1050, 1050, ERROR), "CREATE TABLE item (id INT)"),
    Case(C.DUPLICATE_TABLE, on_all("42P07", 1050, 1050, ERROR), "ALTER TABLE child RENAME TO item"),
    Case(C.DUPLICATE_INDEX, on_all("42P07", 1061, 1061, ERROR), "CREATE INDEX item_amount ON item (name)"),
    Case(
        C.DUPLICATE_CONSTRAINT,
        {"postgres": "42710", "mysql": 1826, "mariadb": 1005},
        "ALTER TABLE child ADD CONSTRAINT child_parent FOREIGN KEY (parent_id) REFERENCES parent (id)",
    ),
    Case(
        C.DUPLICATE_CONSTRAINT,
        {"postgres": "42710", "mysql": 3822, "mariadb": 1826},
        "ALTER TABLE item ADD CONSTRAINT named CHECK (amount > 0); "
        "ALTER TABLE item ADD CONSTRAINT named CHECK (amount > 0)",
    ),
    Case(
        C.DUPLICATE_CONSTRAINT,
        on_all("42P16", 1068, 1068, ERROR),
        "CREATE TABLE two (a INT PRIMARY KEY, b INT, PRIMARY KEY (b))",
    ),
    Case(C.MISSING_COLUMN, on_all("42703", 1091, 1091, ERROR), "ALTER TABLE item DROP COLUMN gone"),
    Case(C.MISSING_COLUMN, on_all("42703", 1054, 1054, ERROR), "ALTER TABLE item RENAME COLUMN gone TO found"),
    Case(C.MISSING_COLUMN, on_all("42703", 1054, 1054, ERROR), "INSERT INTO item (gone) VALUES (1)"),
    Case(C.MISSING_COLUMN, on_all("42703", 1072, 1072, ERROR), "CREATE INDEX item_gone ON item (gone)"),
    Case(C.MISSING_COLUMN, {"mysql": 3734}, "ALTER TABLE child ADD FOREIGN KEY (parent_id) REFERENCES parent (gone)"),
    Case(C.MISSING_TABLE, on_all("42P01", 1051, 1051, ERROR), "DROP TABLE gone"),
    Case(C.MISSING_TABLE, on_all("42P01", 1146, 1146, ERROR), "ALTER TABLE gone ADD COLUMN more INT"),
    Case(C.MISSING_TABLE, {"mysql": 1824}, "ALTER TABLE item ADD FOREIGN KEY (amount) REFERENCES gone (id)"),
    Case(C.MISSING_INDEX, {"postgres": "42704", "sqlite": ERROR}, "DROP INDEX gone"),
    Case(C.MISSING_INDEX, {"postgres": "42P01"}, "ALTER INDEX gone RENAME TO found"),
    Case(C.MISSING_INDEX, on_mysql(1091, 1091), "DROP INDEX gone ON item"),
    Case(C.MISSING_INDEX, on_mysql(1176, 1176), "ALTER TABLE item RENAME INDEX gone TO found"),
    Case(
        C.MISSING_CONSTRAINT,
        {"postgres": "42704", "mysql": 3940, "mariadb": 1091},
        "ALTER TABLE item DROP CONSTRAINT gone",
    ),
    Case(C.MISSING_CONSTRAINT, on_mysql(1091, 1091), "ALTER TABLE child DROP FOREIGN KEY gone"),
    Case(C.MISSING_CONSTRAINT, {"mysql": 3821}, "ALTER TABLE item DROP CHECK gone"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "42804"}, "ALTER TABLE item ALTER COLUMN name TYPE INT"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "22P02"}, "ALTER TABLE item ALTER COLUMN name TYPE INT USING name::INT"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "22001"}, "ALTER TABLE item ALTER COLUMN name TYPE VARCHAR(2)"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "22003"}, "ALTER TABLE item ALTER COLUMN id TYPE SMALLINT USING 99999"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "42846"}, "ALTER TABLE item ALTER COLUMN id TYPE DATE USING id::DATE"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "22007"}, "ALTER TABLE item ALTER COLUMN name TYPE DATE USING name::DATE"),
    Case(C.INCOMPATIBLE_TYPE, {"postgres": "22008"}, "SELECT DATE '2026-02-30'"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1366, 1292), "ALTER TABLE item MODIFY name INT"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1265, 1265), "ALTER TABLE item MODIFY name VARCHAR(2)"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1292, 1292), "ALTER TABLE item MODIFY name DATE"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1366, 1366), "INSERT INTO item (id) VALUES ('abc')"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1264, 1264), "INSERT INTO item (id) VALUES (99999999999)"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1406, 1406), "INSERT INTO item (id, name) VALUES (3, REPEAT('x', 21))"),
    Case(C.INCOMPATIBLE_TYPE, on_mysql(1067, 1067), "ALTER TABLE item ADD COLUMN day DATE DEFAULT 'abc'"),
    Case(
        C.INCOMPATIBLE_TYPE,
        {"postgres": "42804", "mysql": 3780, "mariadb": 1005},
        "CREATE TABLE other (parent_id VARCHAR(5), FOREIGN KEY (parent_id) REFERENCES parent (id))",
    ),
    Case(C.INCOMPATIBLE_TYPE, {"sqlite": 3091}, "CREATE TABLE exact (n INT) STRICT; INSERT INTO exact VALUES ('abc')"),
    Case(
        C.INCOMPATIBLE_TYPE,
        {"sqlite": sqlite3.SQLITE_MISMATCH},
        "CREATE TABLE keyed (id INTEGER PRIMARY KEY); INSERT INTO keyed VALUES ('abc')",
    ),
    Case(
        C.INCOMPATIBLE_TYPE,
        {"sqlite": ERROR},
        "CREATE TABLE other (code INT REFERENCES parent (code)); INSERT INTO other VALUES (1)",
    ),
    Case(C.NOT_NULL_VIOLATION, {"postgres": "23502"}, "ALTER TABLE item ALTER COLUMN amount SET NOT NULL"),
    Case(
        C.NOT_NULL_VIOLATION,
        {"postgres": "23502", "sqlite": ERROR},
        "ALTER TABLE item ADD COLUMN more INT NOT NULL",
    ),
    Case(C.NOT_NULL_VIOLATION, on_mysql(1138, 1265), "ALTER TABLE item MODIFY amount INT NOT NULL"),
    Case(C.NOT_NULL_VIOLATION, on_mysql(1364, 1364), "INSERT INTO parent (code) VALUES (1)"),
    Case(
        C.NOT_NULL_VIOLATION,
        on_all("23502", 1048, 1048, sqlite3.SQLITE_CONSTRAINT_NOTNULL),
        "CREATE TABLE full_item (amount INT NOT NULL); INSERT INTO full_item VALUES (NULL)",
    ),
    Case(
        C.UNIQUE_VIOLATION,
        on_all("23505", 1062, 1062, sqlite3.SQLITE_CONSTRAINT_UNIQUE),
        "CREATE UNIQUE INDEX item_tag ON item (tag)",
    ),
    Case(
        C.UNIQUE_VIOLATION,
        on_all("23505", 1062, 1062, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY),
        "INSERT INTO parent (id) VALUES (1)",
    ),
    Case(
        C.UNIQUE_VIOLATION,
        {"postgres": "23P01"},
        "ALTER TABLE item ADD EXCLUDE (tag WITH =)",
    ),
    Case(
        C.FOREIGN_KEY_VIOLATION,
        on_all("23503", 1452, 1452, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY),
        "INSERT INTO child VALUES (2, 99)",
    ),
    Case(
        C.FOREIGN_KEY_VIOLATION,
        on_all("23503", 1451, 1451, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY),
        "DELETE FROM parent",
    ),
    Case(
        C.CHECK_VIOLATION,
        {"postgres": "23514", "mysql": 3819, "mariadb": 4025},
        "ALTER TABLE item ADD CONSTRAINT large CHECK (amount > 100)",
    ),
    Case(
        C.CHECK_VIOLATION,
        {"sqlite": sqlite3.SQLITE_CONSTRAINT_CHECK},
        "CREATE TABLE positive (n INT CHECK (n > 0)); INSERT INTO positive VALUES (-1)",
    ),
    Case(
        C.DEPENDENT_OBJECT,
        {"postgres": "2BP01", "sqlite": ERROR},
        "CREATE VIEW named AS SELECT name FROM item; ALTER TABLE item DROP COLUMN name",
    ),
    Case(
        C.DEPENDENT_OBJECT,
        {"postgres": "0A000"},
        "CREATE VIEW named AS SELECT name FROM item; ALTER TABLE item ALTER COLUMN name TYPE TEXT",
    ),
    Case(C.DEPENDENT_OBJECT, on_mysql(1828, 1553), "ALTER TABLE child DROP COLUMN parent_id"),
    Case(C.DEPENDENT_OBJECT, on_mysql(1553, 1553), "DROP INDEX child_parent ON child"),
    Case(C.DEPENDENT_OBJECT, {"mysql": 3730}, "DROP TABLE parent"),
    Case(
        C.DEPENDENT_OBJECT,
        on_mysql(3108, 1054),
        "ALTER TABLE item ADD COLUMN twice INT AS (amount * 2) STORED; ALTER TABLE item DROP COLUMN amount",
    ),
    Case(
        C.DEPENDENT_OBJECT,
        {"mysql": 3959},
        "ALTER TABLE item ADD CONSTRAINT either CHECK (amount > 0 OR id > 0); ALTER TABLE item DROP COLUMN amount",
    ),
    Case(C.DEPENDENT_OBJECT, {"sqlite": ERROR}, "ALTER TABLE item DROP COLUMN id"),
    Case(
        C.LIMIT_EXCEEDED,
        {"postgres": "54000"},
        "CREATE TABLE long_key (s TEXT PRIMARY KEY); "
        "INSERT INTO long_key SELECT string_agg(md5(i::TEXT), '') FROM generate_series(1, 500) i",
    ),
    Case(C.LIMIT_EXCEEDED, on_mysql(1074, 1074), "CREATE TABLE wide (s VARCHAR(70000))"),
    Case(C.LIMIT_EXCEEDED, on_mysql(1071, 1071), "CREATE TABLE long_key (s VARCHAR(2000) PRIMARY KEY)"),
    Case(C.LIMIT_EXCEEDED, on_mysql(1118, 1118), "CREATE TABLE wide (a VARCHAR(9000), b VARCHAR(9000))"),
    Case(C.LIMIT_EXCEEDED, on_mysql(1059, 1059), f"ALTER TABLE item ADD COLUMN {'x' * 65} INT"),
    Case(C.LIMIT_EXCEEDED, {"sqlite": sqlite3.SQLITE_TOOBIG}, "SELECT zeroblob(2000000000)"),
    Case(C.UNSUPPORTED, {"postgres": "0A000"}, "CREATE EXTENSION gone"),
    Case(C.UNSUPPORTED, on_mysql(1846, 1846), "ALTER TABLE item MODIFY name INT, ALGORITHM=INSTANT"),
    Case(C.UNSUPPORTED, on_mysql(1286, 1286), "CREATE TABLE other (id INT) ENGINE=gone"),
    Case(C.UNSUPPORTED, {"sqlite": ERROR}, "ALTER TABLE item ADD COLUMN more INT UNIQUE"),
    Case(C.SYNTAX_ERROR, on_all("42601", 1064, 1064, ERROR), "ALTER TABEL item ADD COLUMN more INT"),
    Case(C.SYNTAX_ERROR, on_all("42601", 1064, 1064, ERROR), "SELECT 'never closed"),
    Case(C.INSIDE_TRANSACTION, {"postgres": "25001", "sqlite": ERROR}, "BEGIN; VACUUM"),
    Case(C.TRANSACTION_ENDED, {"postgres": "3B001", "sqlite": ERROR}, "BEGIN; RELEASE SAVEPOINT gone"),
    Case(C.TRANSACTION_ENDED, on_mysql(1305, 1305), "RELEASE SAVEPOINT gone"),
    Case(C.TRANSACTION_ENDED, {"postgres": "25P02"}, scenes.go_on_after_error),
    Case(
        C.LOCK_TIMEOUT,
        {"postgres": "55P03", "mysql": 1205, "mariadb": 1205},
        scenes.wait_for_locked_table,
    ),
    Case(C.LOCK_TIMEOUT, {"postgres": "55P03", "mysql": 3572, "mariadb": 1205}, scenes.ask_for_locked_row),
    Case(C.LOCK_TIMEOUT, {"sqlite": sqlite3.SQLITE_BUSY}, scenes.write_to_locked_file),
    Case(C.DEADLOCK, {"postgres": "40P01", "mysql": 1213, "mariadb": 1213}, scenes.cross_two_updates),
    Case(C.DEADLOCK, {"sqlite": sqlite3.SQLITE_BUSY_SNAPSHOT}, scenes.write_after_stale_read),
    Case(C.CANCELLED, {"postgres": "57014"}, "SET statement_timeout = '20ms'; SELECT pg_sleep(60)"),
    Case(C.CANCELLED, on_mysql(1317, 1317), "KILL QUERY CONNECTION_ID()"),
    Case(C.CANCELLED, {"mysql": 3024}, "SET max_execution_time = 20; SELECT SLEEP(60) FROM item"),
    Case(C.CANCELLED, {"mariadb": 1969}, "SET max_statement_time = 0.02; SELECT SLEEP(60) FROM item"),
    Case(C.CANCELLED, {"sqlite": sqlite3.SQLITE_INTERRUPT}, scenes.interrupt_query),
    Case(C.PERMISSION_DENIED, {"postgres": "42501"}, scenes.alter_as_other_role),
    Case(C.PERMISSION_DENIED, on_mysql(1142, 1142), scenes.alter_as_reader),
    Case(C.PERMISSION_DENIED, {"sqlite": sqlite3.SQLITE_AUTH}, scenes.be_refused_by_authorizer),
    Case(
        C.READ_ONLY_SERVER,
        {"postgres": "25006"},
        "SET default_transaction_read_only = on; ALTER TABLE item ADD COLUMN more INT",
    ),
    Case(
        C.READ_ONLY_SERVER,
        on_mysql(1792, 1792),
        "SET SESSION TRANSACTION READ ONLY; ALTER TABLE item ADD COLUMN more INT",
    ),
    Case(C.READ_ONLY_SERVER, {"mariadb": 1290}, scenes.write_to_read_only_server),
    Case(C.READ_ONLY_SERVER, {"sqlite": sqlite3.SQLITE_READONLY}, scenes.write_to_read_only_file),
    Case(C.DISK_FULL, {"postgres": "53100"}, "COPY (SELECT generate_series(1, 100000)) TO '/dev/full'"),
    Case(
        C.DISK_FULL,
        on_mysql(1114, 1114),
        "SET max_heap_table_size = 16384; CREATE TABLE small (s CHAR(200)) ENGINE=MEMORY; "
        "INSERT INTO small SELECT REPEAT('x', 200) FROM information_schema.columns",
    ),
    Case(
        C.DISK_FULL,
        {"sqlite": sqlite3.SQLITE_FULL},
        "PRAGMA max_page_count = 1; CREATE TABLE more (id INT)",
    ),
    Case(
        C.ACCESS_DENIED,
        {"postgres": None, "mysql": 1045, "mariadb": 1045},
        scenes.connect_with_wrong_password,
    ),
    Case(
        C.MISSING_DATABASE,
        {"postgres": None, "mysql": 1049, "mariadb": 1049},
        scenes.connect_to_missing_database,
    ),
    Case(C.MISSING_DATABASE, {"postgres": "3D000", "mysql": 1008, "mariadb": 1008}, "DROP DATABASE plinth_gone"),
    Case(C.MISSING_DATABASE, {"postgres": "3F000", "mysql": 1049, "mariadb": 1049}, "CREATE TABLE gone.t (id INT)"),
    Case(C.MISSING_DATABASE, {"sqlite": sqlite3.SQLITE_CANTOPEN}, scenes.connect_to_folder),
    Case(C.MISSING_DATABASE, {"sqlite": sqlite3.SQLITE_NOTADB}, scenes.connect_to_other_file),
    Case(C.LOST_CONNECTION, {"postgres": None}, scenes.use_terminated_backend),
    Case(C.LOST_CONNECTION, on_mysql(2013, 2013), scenes.use_killed_connection),
    Case(C.LOST_CONNECTION, {"mariadb": 1927}, "KILL CONNECTION_ID()"),
    Case(
        C.LOST_CONNECTION,
        {"postgres": None, "mysql": 0, "mariadb": 0, "sqlite": None},
        scenes.use_closed_connection,
    ),
    Case(
        C.CONNECTION_REFUSED,
        {"postgres": None, "mysql": 2003, "mariadb": 2003},
        scenes.connect_to_closed_port,
    ),
    Case(C.SERVER_STARTING, {"postgres": None}, scenes.connect_during_shutdown),
    Case(C.TOO_MANY_CONNECTIONS, {"postgres": None}, scenes.connect_over_role_limit),
    Case(C.TOO_MANY_CONNECTIONS, on_mysql(1226, 1226), scenes.connect_over_user_limit),
    Case(C.UNKNOWN, on_all("42883", 1305, 1305, ERROR), "SELECT gone(1)"),
)

FILE = "a file has no server, no port and no users"
NOT_BEFORE_READY = "the server does not listen before it is ready: connection_refused"
DDL_COMMITS = "no statement minds an open transaction: DDL commits it"
CANNOT_OCCUR: dict[Category, dict[Engine, str]] = {
    C.MISSING_CONSTRAINT: {"sqlite": "ALTER TABLE has no DROP CONSTRAINT: syntax_error"},
    C.INSIDE_TRANSACTION: {"mysql": DDL_COMMITS, "mariadb": DDL_COMMITS},
    C.ACCESS_DENIED: {"sqlite": FILE},
    C.CONNECTION_REFUSED: {"sqlite": FILE},
    C.SERVER_STARTING: {"mysql": NOT_BEFORE_READY, "mariadb": NOT_BEFORE_READY, "sqlite": FILE},
    C.TOO_MANY_CONNECTIONS: {"sqlite": FILE},
}
