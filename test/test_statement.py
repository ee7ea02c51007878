"""What a statement does is read right, in every form that MySQL and MariaDB take; what cannot be undone is refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import peewee
import pytest
from playhouse.migrate import MySQLMigrator, migrate

from api.db import operations
from api.db.journal.reading import read, split
from api.db.journal.statement import (
    Action,
    AlterTable,
    ChangeView,
    Clause,
    CreateTable,
    CreateTrigger,
    Delete,
    DropTables,
    DropTrigger,
    Free,
    Insert,
    RenameTables,
    Statement,
    TemporaryTable,
    Update,
)
from api.db.migrators import migrator_for
from api.db.models import CostRecord, PlatformConnection, Task, TaskLog
from api.exceptions import StatementRefusedError
from conftest import Backend

DATA = Path(__file__).parent.parent.parent / "shared" / "realworld"
MYSQL = pytest.mark.engines("mariadb", "mysql")

TABLES: dict[str, tuple[type, dict[str, Any]]] = {
    "CREATE TABLE t (id INT)": (CreateTable, {"table": "t", "if_not_exists": False}),
    "create table if not exists `a ``b` like u": (CreateTable, {"table": "a `b", "if_not_exists": True}),
    "CREATE TABLE `table` AS SELECT 1": (CreateTable, {"table": "table", "if_not_exists": False}),
    "CREATE TEMPORARY TABLE x (a INT)": (TemporaryTable, {"tables": ("x",), "dropped": False}),
    "CREATE OR REPLACE TEMPORARY TABLE x (a INT)": (TemporaryTable, {"tables": ("x",), "dropped": False}),
    "DROP TEMPORARY TABLE IF EXISTS x, y": (TemporaryTable, {"tables": ("x", "y"), "dropped": True}),
    "DROP TABLE t": (DropTables, {"tables": ("t",), "if_exists": False}),
    "DROP TABLES IF EXISTS a, `b c` CASCADE;": (DropTables, {"tables": ("a", "b c"), "if_exists": True}),
    "DROP TABLE a WAIT 5": (DropTables, {"tables": ("a",), "if_exists": False}),
    "RENAME TABLE a TO b, c TO a": (RenameTables, {"pairs": (("a", "b"), ("c", "a")), "if_exists": False}),
    "RENAME TABLE IF EXISTS a NOWAIT TO b": (RenameTables, {"pairs": (("a", "b"),), "if_exists": True}),
    "CREATE VIEW v (a, b) AS SELECT 1, 2": (ChangeView, {"views": ("v",)}),
    "CREATE OR REPLACE ALGORITHM=MERGE DEFINER=`a`@`%` SQL SECURITY INVOKER VIEW v AS SELECT 1": (
        ChangeView,
        {"views": ("v",)},
    ),
    "ALTER DEFINER = CURRENT_USER() VIEW v AS SELECT 1": (ChangeView, {"views": ("v",)}),
    "CREATE DEFINER=a@my.host.name VIEW v AS SELECT 1": (ChangeView, {"views": ("v",)}),
    "DROP VIEW IF EXISTS v, w RESTRICT": (ChangeView, {"views": ("v", "w")}),
    "CREATE DEFINER=`a`@`%` TRIGGER g BEFORE INSERT ON t FOR EACH ROW FOLLOWS h SET NEW.a = 1": (
        CreateTrigger,
        {"trigger": "g", "table": "t", "if_not_exists": False},
    ),
    "CREATE TRIGGER IF NOT EXISTS g AFTER UPDATE ON t FOR EACH ROW BEGIN SET @a = 1; SET @b = 2; END": (
        CreateTrigger,
        {"trigger": "g", "table": "t", "if_not_exists": True},
    ),
    "CREATE TRIGGER g AFTER UPDATE ON t FOR EACH ROW IF NEW.a THEN SET @a = 1; END IF;": (
        CreateTrigger,
        {"trigger": "g", "table": "t", "if_not_exists": False},
    ),
    "DROP TRIGGER IF EXISTS g": (DropTrigger, {"trigger": "g", "if_exists": True}),
}

CLAUSES: dict[str, dict[str, Any]] = {
    "ADD COLUMN a INT": {"action": Action.ADD_COLUMN, "name": "a", "definition": "INT"},
    "ADD `add` VARCHAR(9) DEFAULT 'x,y' COMMENT 'it''s' FIRST": {
        **{"action": Action.ADD_COLUMN, "name": "add", "position": "FIRST"},
        "definition": "VARCHAR(9) DEFAULT 'x,y' COMMENT 'it''s'",
    },
    "ADD COLUMN IF NOT EXISTS b DECIMAL(5, 2) AFTER `a`": {
        **{"action": Action.ADD_COLUMN, "name": "b", "position": "AFTER `a`", "conditional": True},
        "definition": "DECIMAL(5, 2)",
    },
    "ADD first INT": {"action": Action.ADD_COLUMN, "name": "first", "definition": "INT"},
    "ADD after INT": {"action": Action.ADD_COLUMN, "name": "after", "definition": "INT"},
    "ADD vector INT": {"action": Action.ADD_COLUMN, "name": "vector", "definition": "INT"},
    "ADD comment TEXT": {"action": Action.ADD_COLUMN, "name": "comment", "definition": "TEXT"},
    "ADD a INT AS (b + 1) STORED": {"action": Action.ADD_COLUMN, "name": "a", "definition": "INT AS (b + 1) STORED"},
    "MODIFY a BIGINT NOT NULL": {"action": Action.CHANGE_COLUMN, "name": "a", "definition": "BIGINT NOT NULL"},
    "MODIFY COLUMN IF EXISTS a INT FIRST": {
        **{"action": Action.CHANGE_COLUMN, "name": "a", "definition": "INT"},
        **{"position": "FIRST", "conditional": True},
    },
    "CHANGE a b INT": {"action": Action.CHANGE_COLUMN, "name": "a", "new_name": "b", "definition": "INT"},
    "CHANGE COLUMN a a INT AFTER c": {
        **{"action": Action.CHANGE_COLUMN, "name": "a", "definition": "INT", "position": "AFTER c"}
    },
    "DROP COLUMN a": {"action": Action.DROP_COLUMN, "name": "a"},
    "DROP `key`": {"action": Action.DROP_COLUMN, "name": "key"},
    "DROP COLUMN IF EXISTS a RESTRICT": {"action": Action.DROP_COLUMN, "name": "a", "conditional": True},
    "RENAME COLUMN a TO `b c`": {"action": Action.RENAME_COLUMN, "name": "a", "new_name": "b c"},
    "RENAME TO u": {"action": Action.RENAME_TABLE, "new_name": "u"},
    "RENAME u": {"action": Action.RENAME_TABLE, "new_name": "u"},
    "RENAME = u": {"action": Action.RENAME_TABLE, "new_name": "u"},
    "DROP INDEX i": {"action": Action.DROP_INDEX, "name": "i"},
    "DROP KEY IF EXISTS i": {"action": Action.DROP_INDEX, "name": "i", "conditional": True},
    "DROP INDEX `PRIMARY`": {"action": Action.DROP_PRIMARY_KEY, "name": "PRIMARY"},
    "DROP PRIMARY KEY": {"action": Action.DROP_PRIMARY_KEY, "name": "PRIMARY"},
    "DROP FOREIGN KEY f": {"action": Action.DROP_FOREIGN_KEY, "name": "f"},
    "DROP CHECK c": {"action": Action.DROP_CONSTRAINT, "name": "c"},
    "DROP CONSTRAINT IF EXISTS c": {"action": Action.DROP_CONSTRAINT, "name": "c", "conditional": True},
    "ADD INDEX i (a, b DESC)": {"action": Action.PART, "name": "i"},
    "ADD KEY (a)": {"action": Action.PART},
    "ADD INDEX USING BTREE (a)": {"action": Action.PART},
    "ADD UNIQUE (a)": {"action": Action.PART},
    "ADD UNIQUE INDEX IF NOT EXISTS i (a)": {"action": Action.PART, "name": "i", "conditional": True},
    "ADD FULLTEXT KEY i (a)": {"action": Action.PART, "name": "i"},
    "ADD VECTOR INDEX i (a)": {"action": Action.PART, "name": "i"},
    "ADD PRIMARY KEY (a, b)": {"action": Action.PART, "name": "PRIMARY"},
    "ADD CONSTRAINT c PRIMARY KEY (a)": {"action": Action.PART, "name": "PRIMARY"},
    "ADD CONSTRAINT c UNIQUE i (a)": {"action": Action.PART, "name": "i"},
    "ADD CONSTRAINT c UNIQUE (a)": {"action": Action.PART, "name": "c"},
    "ADD CONSTRAINT c FOREIGN KEY i (a) REFERENCES u (id)": {"action": Action.PART, "name": "c"},
    "ADD CONSTRAINT CHECK (a > 0)": {"action": Action.PART},
    "ADD CHECK (a > 0) NOT ENFORCED": {"action": Action.PART},
    "RENAME INDEX i TO j": {"action": Action.PART, "name": "i", "new_name": "j"},
    "ALTER a SET DEFAULT 5": {"action": Action.PART, "name": "a"},
    "ALTER COLUMN a DROP DEFAULT": {"action": Action.PART, "name": "a"},
    "ALTER INDEX i INVISIBLE": {"action": Action.PART, "name": "i"},
    "ALTER CHECK c NOT ENFORCED": {"action": Action.PART, "name": "c"},
    "COMMENT 'x, y'": {"action": Action.WHOLE},
    "ENGINE=InnoDB ROW_FORMAT DYNAMIC DEFAULT CHARSET = utf8mb4": {"action": Action.WHOLE},
    "DEFAULT CHARACTER SET latin1 COLLATE latin1_bin": {"action": Action.WHOLE},
    "CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin": {"action": Action.WHOLE},
    "AUTO_INCREMENT = 100": {"action": Action.WHOLE},
    "FORCE": {"action": Action.WHOLE},
    "ORDER BY a, b DESC": {"action": Action.WHOLE},
    "DISABLE KEYS": {"action": Action.WHOLE},
    "ADD PARTITION (PARTITION p VALUES LESS THAN (9))": {"action": Action.WHOLE},
    "REORGANIZE PARTITION p, q INTO (PARTITION r VALUES LESS THAN (3))": {"action": Action.WHOLE},
    "COALESCE PARTITION 2": {"action": Action.WHOLE},
    "PARTITION BY HASH (a) PARTITIONS 4": {"action": Action.PARTITION},
    "REMOVE PARTITIONING": {"action": Action.PARTITION},
}

ROWS: dict[str, tuple[type, dict[str, Any]]] = {
    "UPDATE t SET a = 1, `b` := (SELECT c FROM u WHERE d LIMIT 1)": (
        Update,
        {"tables_text": "t", "target": "t", "alias": "t", "columns": ("a", "b"), "scope": "", "tables": ("t",)},
    ),
    "UPDATE LOW_PRIORITY IGNORE `t` AS x SET x.a = 1 WHERE id IN (1, 2) ORDER BY id LIMIT 5;": (
        Update,
        {"tables_text": "`t` AS x", "target": "t", "alias": "x", "columns": ("a",), "tables": ("t",)}
        | {"scope": "WHERE id IN (1, 2) ORDER BY id LIMIT 5"},
    ),
    "UPDATE t PARTITION (p) x SET a = t.`order`, b = @limit WHERE t.where = 'a;b' RETURNING a": (
        Update,
        {"tables_text": "t PARTITION (p) x", "target": "t", "alias": "x", "columns": ("a", "b"), "tables": ("t",)}
        | {"scope": "WHERE t.where = 'a;b'"},
    ),
    "UPDATE t JOIN u ON LEFT(t.a, 1) = u.a LEFT JOIN (SELECT 1 AS z) AS d USING (z) SET t.a = u.b WHERE u.x": (
        Update,
        {"tables_text": "t JOIN u ON LEFT(t.a, 1) = u.a LEFT JOIN (SELECT 1 AS z) AS d USING (z)", "target": "t"}
        | {"alias": "t", "columns": ("a",), "scope": "WHERE u.x", "tables": ("t", "u")},
    ),
    "UPDATE t a, (u b CROSS JOIN w) SET b.x = 1": (
        Update,
        {"tables_text": "t a, (u b CROSS JOIN w)", "target": "u", "alias": "b", "columns": ("x",), "scope": ""}
        | {"tables": ("t", "u", "w")},
    ),
    "UPDATE t, u SET t.a = 1, u.b = 2": (
        Update,
        {"tables_text": "t, u", "target": None, "alias": "", "columns": ("a", "b"), "scope": "", "tables": ("t", "u")},
    ),
    "UPDATE t JOIN u SET a = 1": (
        Update,
        {"tables_text": "t JOIN u", "target": None, "alias": "", "columns": ("a",), "scope": "", "tables": ("t", "u")},
    ),
    "DELETE FROM t": (Delete, {"tables_text": "t", "target": "t", "alias": "t", "scope": "", "tables": ("t",)}),
    "DELETE QUICK FROM `t` AS x WHERE x.a ORDER BY a LIMIT 3 RETURNING a": (
        Delete,
        {"tables_text": "`t` AS x", "target": "t", "alias": "x", "tables": ("t",)}
        | {"scope": "WHERE x.a ORDER BY a LIMIT 3"},
    ),
    "DELETE a.* FROM t AS a JOIN u b ON a.id = b.id WHERE b.x": (
        Delete,
        {"tables_text": "t AS a JOIN u b ON a.id = b.id", "target": "t", "alias": "a", "scope": "WHERE b.x"}
        | {"tables": ("t", "u")},
    ),
    "DELETE FROM a USING t AS a JOIN u USING (id)": (
        Delete,
        {"tables_text": "t AS a JOIN u USING (id)", "target": "t", "alias": "a", "scope": "", "tables": ("t", "u")},
    ),
    "DELETE t, u FROM t JOIN u": (
        Delete,
        {"tables_text": "t JOIN u", "target": None, "alias": "", "scope": "", "tables": ("t", "u")},
    ),
    "INSERT INTO `t` (`a`, b) VALUES (1, 'x;y'), (-2.5e3, _binary'\\'')": (
        Insert,
        {"table": "t", "plain": True, "columns": ("a", "b"), "from_select": False},
    ),
    "INSERT t VALUES (1, NOW(), 'a' 'b'), (2, 3, 4)": (
        Insert,
        {"table": "t", "plain": True, "columns": (), "from_select": False},
    ),
    "INSERT INTO t () VALUES ()": (Insert, {"table": "t", "plain": True, "columns": (), "from_select": False}),
    "INSERT IGNORE t SET a = 1, t.b = 2": (
        Insert,
        {"table": "t", "plain": True, "columns": ("a", "b"), "from_select": False},
    ),
    "INSERT INTO t (a) VALUES (1), (2) AS n ON DUPLICATE KEY UPDATE a = n.a": (
        Insert,
        {"table": "t", "plain": False, "columns": ("a",), "from_select": False},
    ),
    "REPLACE t VALUES (1)": (Insert, {"table": "t", "plain": False, "columns": (), "from_select": False}),
    "INSERT INTO t SELECT * FROM u": (Insert, {"table": "t", "plain": True, "columns": (), "from_select": True}),
    "INSERT INTO t (a) (SELECT 1)": (Insert, {"table": "t", "plain": True, "columns": ("a",), "from_select": True}),
    "INSERT INTO t (SELECT 1)": (Insert, {"table": "t", "plain": True, "columns": (), "from_select": True}),
}

FREE = """
SELECT 1;
SELECT a FROM t WHERE b = 'DROP TABLE t; x' -- ; DROP TABLE t
SELECT * FROM t FOR UPDATE
SELECT 1 INTO @a
SELECT GET_LOCK('a', 1), RELEASE_LOCK('a')
(SELECT 1) UNION (SELECT 2)
WITH RECURSIVE c AS (SELECT 1) SELECT * FROM c FOR UPDATE
TABLE t
VALUES ROW(1, 2)
SHOW CREATE TABLE t
DESCRIBE t
DESC t
EXPLAIN DELETE FROM t
EXPLAIN ANALYZE SELECT 1 FOR UPDATE
ANALYZE FORMAT=JSON SELECT 1
ANALYZE TABLE t
OPTIMIZE LOCAL TABLE t
CHECK TABLE t
CHECKSUM TABLE t
FLUSH TABLES
DO 1
SET @global = 1, @a := 1, b = 2, SESSION c = 3, @@session.sql_mode = 'STRICT_TRANS_TABLES'
SET NAMES utf8mb4
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED
BEGIN
BEGIN WORK
START TRANSACTION WITH CONSISTENT SNAPSHOT
COMMIT
COMMIT AND NO CHAIN NO RELEASE
ROLLBACK
SAVEPOINT `a b`
ROLLBACK TO SAVEPOINT a
RELEASE SAVEPOINT a
;
-- nothing
""".strip().splitlines()

REFUSED: dict[str, str] = {
    "DROP TABLE t; DROP TABLE u": "several statements",
    "SELECT 1; SELECT 2": "several statements",
    "INSERT INTO t VALUES (1); DROP TABLE t": "several statements",
    "CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW SET @a = 1; DROP TABLE t": "several statements",
    "/*!50000 DROP TABLE t */": "executable comment",
    "/*M! DROP TABLE t */": "executable comment",
    "DROP /*! IF EXISTS */ TABLE t": "executable comment",
    "SELECT 1 /*!50000 ; DROP TABLE t": "comment",
    "SELECT 1 /*!50000 + 1 */": "executable comment",
    "INSERT INTO t VALUES (1) /*! ON DUPLICATE KEY UPDATE a = 2 */": "executable comment",
    "DROP TABLE t\u00a0": "no space",
    "DROP TABLE 't": "not closed",
    "DROP TABLE `t": "not closed",
    "ALTER TABLE t ADD a INT DEFAULT (1": "not closed",
    "TRUNCATE TABLE t": "destroys rows",
    "CALL p()": "procedure",
    "LOAD DATA INFILE 'x' INTO TABLE t": "file",
    "HANDLER t OPEN": "transactions",
    "PREPARE s FROM 'DROP TABLE t'": "prepared",
    "EXECUTE s": "prepared",
    "XA START 'x'": "transactions",
    "LOCK TABLES t WRITE": "lock out the journal",
    "UNLOCK TABLES": "lock out the journal",
    "FLUSH TABLES WITH READ LOCK": "lock out the journal",
    "FLUSH TABLES t FOR EXPORT": "lock out the journal",
    "SELECT RELEASE_ALL_LOCKS()": "the lock",
    "DO release_all_locks()": "the lock",
    "USE other": "one database",
    "KILL 5": "server",
    "RESET MASTER": "server",
    "INSTALL PLUGIN p SONAME 'x'": "server",
    "START REPLICA": "TRANSACTION was expected",
    "SET GLOBAL a = 1": "whole server",
    "SET a = 1, @@global.b = 2": "whole server",
    "SET PERSIST a = 1": "whole server",
    "SET sql_log_bin = 0": "replicas",
    "SET sql_mode = 'ANSI_QUOTES'": "sql_mode",
    "SET SESSION sql_mode = CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES')": "sql_mode",
    "SET PASSWORD = 'x'": "accounts",
    "SET STATEMENT max_statement_time = 1 FOR DROP TABLE t": "hides",
    "GRANT ALL ON *.* TO a": "accounts",
    "CREATE USER a": "accounts",
    "RENAME USER a TO b": "accounts",
    "CREATE DATABASE d": "database",
    "DROP SCHEMA d": "database",
    "CREATE PROCEDURE p() BEGIN SELECT 1; END": "several statements",
    "DROP FUNCTION f": "stored programs",
    "ALTER EVENT e DISABLE": "stored programs",
    "CREATE SEQUENCE s": "sequences",
    "CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (HOST 'x')": "server",
    "DROP TABLESPACE s": "tablespaces",
    "CREATE OR REPLACE TABLE t (a INT)": "destroys what it replaces",
    "CREATE OR REPLACE INDEX i ON t (a)": "destroys what it replaces",
    "CREATE TABLE t (a INT) WITH SYSTEM VERSIONING": "row history",
    "CREATE TABLE t (a DATE, b DATE, PERIOD FOR p (a, b))": "row history",
    "DELETE HISTORY FROM t": "row history",
    "DELETE FROM t FOR PORTION OF p FROM '2020-01-01' TO '2021-01-01'": "periods",
    "ALTER TABLE t ADD SYSTEM VERSIONING": "row history",
    "ALTER IGNORE TABLE t ADD UNIQUE (a)": "deletes the rows",
    "ALTER TABLE t ENGINE = MyISAM": "MyISAM",
    "ALTER TABLE t CONVERT TO CHARACTER SET latin1": "lose characters",
    "ALTER TABLE t DROP PARTITION p": "cannot be brought back",
    "ALTER TABLE t TRUNCATE PARTITION p": "cannot be brought back",
    "ALTER TABLE t EXCHANGE PARTITION p WITH TABLE u": "cannot be brought back",
    "ALTER TABLE t DISCARD TABLESPACE": "not undoable",
    "ALTER TABLE t DATA DIRECTORY = '/tmp'": "not undoable",
    "ALTER TABLE t ADD": "a name was expected",
    "ALTER TABLE t ADD a": "no definition",
    "ALTER TABLE t DROP COLUMN a b": "not expected",
    "ALTER TABLE t ADD CONSTRAINT c FOO (a)": "unknown kind",
    "ANALYZE UPDATE t SET a = 1": "runs the statement",
    "EXPLAIN ANALYZE DELETE a FROM t a": "runs the statement",
    "WITH c AS (SELECT 1) DELETE FROM t": "WITH before DELETE",
    "UPDATE {OJ t LEFT JOIN u ON 1} SET t.a = 1": "ODBC",
    "BEGIN NOT ATOMIC DELETE FROM t": "block",
    "COMMIT RELEASE": "close the connection",
    "FROBNICATE t": "not understood",
    "(UPDATE t SET a = 1)": "no query",
}


def _told(statement: Statement) -> dict[str, Any]:
    """Return what a statement tells beyond what all tell."""
    common = {"sql", "names", "schemas"}
    return {field.name: getattr(statement, field.name) for field in fields(statement) if field.name not in common}


@pytest.mark.parametrize("sql", [*TABLES, *ROWS])
def test_each_form_of_a_statement_is_read(sql: str) -> None:
    """Tables, views, triggers and rows: the kind, the names and the texts come out as they were written."""
    kind, told = (TABLES | ROWS)[sql]

    statement = read(sql)

    assert type(statement) is kind
    assert _told(statement) == told
    assert statement.sql == sql


@pytest.mark.parametrize("text", CLAUSES)
def test_each_clause_of_alter_table_is_read(text: str) -> None:
    """A clause says what it does to which name, alone and between others."""
    clause = Clause(text, **CLAUSES[text])
    plain = Clause("DROP COLUMN z", Action.DROP_COLUMN, "z")

    alone, beside = read(f"ALTER TABLE t {text}"), read(f"ALTER TABLE t DROP COLUMN z, {text}")

    assert isinstance(alone, AlterTable)
    assert isinstance(beside, AlterTable)
    assert (alone.table, alone.clauses, alone.options) == ("t", (clause,), "")
    assert beside.clauses == (plain, clause)
    assert alone.whole is (clause.action in (Action.WHOLE, Action.PARTITION))


def test_a_list_of_columns_is_read_as_clauses_of_their_own() -> None:
    """``ADD (…)`` holds columns, indexes and constraints; each is a clause that stands for itself."""
    statement = read("ALTER TABLE t ADD COLUMN (a INT, b SET('x,y') NOT NULL, KEY i (a), CHECK (a > 0))")

    assert isinstance(statement, AlterTable)
    assert [clause.text for clause in statement.clauses] == [
        *("ADD a INT", "ADD b SET('x,y') NOT NULL", "ADD KEY i (a)", "ADD CHECK (a > 0)")
    ]
    assert [clause.name for clause in statement.clauses] == ["a", "b", "i", None]


def test_how_an_alter_runs_is_told_apart_from_what_it_does() -> None:
    """ALGORITHM, LOCK and WAIT are no clauses; ONLINE is MariaDB's word for LOCK=NONE."""
    statement = read("ALTER TABLE IF EXISTS t WAIT 5 ADD a INT, ALGORITHM = INPLACE, LOCK NONE, DROP b")
    online = read("ALTER ONLINE TABLE t NOWAIT ADD a INT")

    assert isinstance(statement, AlterTable)
    assert (statement.if_exists, statement.waiting) == (True, "WAIT 5")
    assert statement.options == "ALGORITHM = INPLACE, LOCK NONE"
    assert [clause.text for clause in statement.clauses] == ["ADD a INT", "DROP b"]
    assert isinstance(online, AlterTable)
    assert (online.options, online.waiting) == ("LOCK=NONE", "NOWAIT")


def test_new_names_are_told() -> None:
    """The columns that get another name, and the table's own new one."""
    statement = read(
        "ALTER TABLE t CHANGE a b INT, RENAME COLUMN c TO d, CHANGE e e INT, RENAME INDEX i TO j, RENAME u"
    )

    assert isinstance(statement, AlterTable)
    assert statement.renamed_columns == {"a": "b", "c": "d"}
    assert statement.new_table == "u"


@pytest.mark.parametrize(
    ("sql", "action", "name", "options"),
    [
        ("CREATE INDEX i ON t (a, b DESC)", Action.PART, "i", ""),
        ("CREATE UNIQUE INDEX i USING BTREE ON t (a) COMMENT 'LOCK' LOCK NONE", Action.PART, "i", "LOCK NONE"),
        ("CREATE FULLTEXT INDEX i ON t (a)", Action.PART, "i", ""),
        ("DROP INDEX i ON t LOCK=NONE", Action.DROP_INDEX, "i", "LOCK=NONE"),
        ("DROP INDEX `PRIMARY` ON t", Action.DROP_PRIMARY_KEY, "PRIMARY", ""),
    ],
)
def test_an_index_statement_is_an_alter_of_one_clause(sql: str, action: Action, name: str, options: str) -> None:
    """CREATE INDEX and DROP INDEX change a table as ALTER TABLE does."""
    statement = read(sql)

    assert isinstance(statement, AlterTable)
    assert (statement.table, statement.options) == ("t", options)
    assert statement.clauses == (Clause(sql, action, name),)


@pytest.mark.parametrize("sql", FREE)
def test_what_changes_nothing_is_free(sql: str) -> None:
    """Questions, the session's own settings and transactions are let through."""
    assert type(read(sql)) is Free


@pytest.mark.parametrize("sql", REFUSED)
def test_what_cannot_be_undone_is_refused_with_reason_and_remedy(sql: str) -> None:
    """The error says why, shows the statement, and says what to do instead."""
    with pytest.raises(StatementRefusedError, match=REFUSED[sql]) as refusal:
        read(sql)

    assert refusal.value.hint


def test_a_refusal_shows_no_secret() -> None:
    """A password in the refused statement is masked in the message."""
    with pytest.raises(StatementRefusedError) as refusal:
        read("CREATE USER 'a' IDENTIFIED BY 'open sesame'")

    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE o.t ADD a INT",
        "ALTER TABLE t RENAME TO o.t",
        "DROP TABLE a, `o`.b",
        "CREATE TABLE o . t (a INT)",
        "RENAME TABLE a TO o.a",
        "CREATE INDEX i ON o.t (a)",
        "CREATE VIEW o.v AS SELECT 1",
        "CREATE TRIGGER g AFTER INSERT ON o.t FOR EACH ROW SET @a = 1",
        "UPDATE o.t SET a = 1",
        "UPDATE o.t JOIN u SET t.a = 1",
        "DELETE o.t FROM o.t JOIN u",
        "INSERT INTO o.t VALUES (1)",
    ],
)
def test_another_schema_is_told(sql: str) -> None:
    """The schema before the name of what changes is told, so that the journal can refuse another one."""
    assert read(sql).schemas == {"o"}


def test_a_schema_that_is_only_read_is_not_told() -> None:
    """A join may read from another schema, and a foreign key may refer to it."""
    assert not read("UPDATE t JOIN o.u ON t.id = u.id SET t.a = 1").schemas
    assert not read("CREATE TABLE t (a INT, FOREIGN KEY (a) REFERENCES o.u (id))").schemas


def test_the_names_of_a_statement_hold_every_identifier() -> None:
    """Whatever name a DDL statement has, quoted or not, is among its names in lower case."""
    names = read("ALTER TABLE Tab ADD `Col Umn` INT REFERENCES Other (`Id`), ADD KEY ix (c1)").names

    assert names >= {"tab", "col umn", "other", "id", "ix", "c1"}


def test_strings_and_comments_hold_no_grammar() -> None:
    """Words, semicolons, commas and comment marks within quotes are text, within comments nothing."""
    text = "INT DEFAULT ';/*!' # DROP b\n COMMENT '--, ''x\\''', y'"
    statement = read(f"ALTER TABLE t /* , DROP a; */ ADD `;` {text} -- ;")

    assert isinstance(statement, AlterTable)
    assert [clause.name for clause in statement.clauses] == [";"]
    assert statement.clauses[0].definition == text


# Forms, varied ----------------------------------------------------------------------------------------------------

_NOISE = (" ", "  ", "\n", "\t", "\r\n", " /* , ; */ ", "/**/", " -- ;\n", "# it's\n", "/* ` */")


_TEXTS = {"text", "definition", "position", "options", "waiting", "tables_text", "scope"}


def _varied(sql: str, rng: random.Random) -> str:
    """Return *sql* with other spaces, comments and capitals, which mean nothing to a server."""
    words, text, end = split(sql), "", 0
    for token, word in zip(words.tokens, words.words, strict=True):
        gap = sql[end : token.start]
        loose = gap or word in ("(", ")", ",") or text.endswith(("(", ")", ","))
        text += rng.choice(_NOISE) if loose and text else ""
        written = sql[token.start : token.end]
        text += rng.choice((written.upper, written.lower, written.title))() if word.isalpha() else written
        end = token.end
    return text + rng.choice(("", ";", " ;;\n", " -- end", "/* end */"))


def _meaning(statement: Any) -> Any:
    """Return what *statement* tells, in small letters, and its texts as their words."""
    if isinstance(statement, tuple):
        return [_meaning(each) for each in statement]
    if not is_dataclass(statement):
        return statement.lower() if type(statement) is str else statement
    told = {field.name: getattr(statement, field.name) for field in fields(statement) if field.name != "sql"}
    texts = {name: [token.text.lower() for token in split(told[name] or "").tokens] for name in _TEXTS & told.keys()}
    return {name: _meaning(each) for name, each in told.items()} | texts


def _forms() -> Iterator[str]:
    yield from (*TABLES, *ROWS, *(sql for sql in FREE if "--" not in sql))
    # CHANGE a A is a rename: capitals do mean something to it.
    yield from (f"ALTER TABLE `t t` ADD q INT, {text}" for text in CLAUSES if not text.startswith("CHANGE COLUMN a a"))


@pytest.mark.parametrize("seed", range(20))
def test_spaces_comments_and_capitals_change_nothing(seed: int) -> None:
    """Every form, with random spaces and comments between its words and random capitals, is read as before."""
    rng = random.Random(seed)
    for sql in _forms():
        varied = _varied(sql, rng)
        assert _meaning(read(varied)) == _meaning(read(sql)), varied


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_literals_are_skipped_without_harm(seed: int) -> None:
    """What follows a thousand rows is read, whatever the rows hold."""
    rng = random.Random(seed)
    pieces = (
        "1",
        "-2.5e3",
        "NULL",
        "'a''b'",
        "'\\''",
        "'(;)'",
        "_binary'\\\\'",
        "x'00'",
        "'/*!'",
        "DEFAULT",
        "'\u00a0'",
    )
    rows = ", ".join(f"({', '.join(rng.choices(pieces, k=3))})" for _ in range(1000))
    plain, updating = read(f"INSERT INTO t (a, b, c) VALUES {rows}"), f"REPLACE t VALUES {rows}, (NOW(), 1, 2); x"

    assert isinstance(plain, Insert)
    assert (plain.plain, plain.columns) == (True, ("a", "b", "c"))
    assert rows in plain.sql
    with pytest.raises(StatementRefusedError, match="several statements"):
        read(updating)


# What servers get -------------------------------------------------------------------------------------------------

_LITERALS = (
    *("'it''s'", r"'a\'b'", r"'\\'", '"x""y"', r'"\""', "_utf8mb4'z'", "_utf8mb4 'z'", "n'x'", "x'41'", "0x41"),
    *("'\"'", '"\'"', "'`'", "'--'", "'#'", "'/*'", "''", '""', "''''", "'a' 'b'", "1.5e-3", ".5", "1--1", "1 - -1"),
    *("@v", "@@sql_mode", "@`a b`", "@x := 1", "1/* ' */", '2 # "\n', "3 -- '\n", "4 --\t`\n", "5/**/", "(6)"),
    *('7 /* unlike " */', "8#> '\n", "'\n'", "'é\u00a0'", "!1", "~1", "1 <=> 2", "NULL", "b'01'", "'%'"),
    *("CONCAT('a', ',', \"b\")", "IF(1, ')', '(')"),
)


@MYSQL
@pytest.mark.parametrize("seed", range(5))
def test_a_server_finds_the_same_commas(db: peewee.Database, seed: int) -> None:
    """A server returns as many columns as the reader finds between commas, whatever quotes and comments stand there."""
    rng = random.Random(seed)
    cursor = db.connection().cursor()
    for _ in range(40):
        sql = "SELECT " + rng.choice(("", " ")).join(f"{each}," for each in rng.choices(_LITERALS, k=12)) + "'end'"
        cursor.execute(sql)
        words = split(sql)
        words.expect("SELECT")
        assert len(list(words.parts())) == len(cursor.description), sql


@MYSQL
@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD (a INT, b INT DEFAULT 5, KEY i (a)), DROP COLUMN z, ALGORITHM=COPY PARTITION BY KEY (id)",
        "ALTER TABLE t ADD a INT AFTER id, COMMENT 'x', ROW_FORMAT=DYNAMIC STATS_PERSISTENT=1, ALTER z SET DEFAULT 3",
        "ALTER TABLE t RENAME COLUMN z TO y, LOCK=DEFAULT, ADD UNIQUE (y)",
        "ALTER TABLE t FORCE, ORDER BY z",
    ],
)
def test_a_rebuilt_alter_does_the_same(db: peewee.Database, sql: str) -> None:
    """An ALTER put together again from its clauses makes of a table what the written one makes of it."""
    made = []
    statement = read(sql)
    assert isinstance(statement, AlterTable)
    for text in (sql, statement.rebuilt([clause.text for clause in statement.clauses])):
        db.execute_sql("CREATE TABLE t (id INT PRIMARY KEY, z INT)")
        db.execute_sql(text)
        made.append(db.execute_sql("SHOW CREATE TABLE t").fetchone())
        db.execute_sql("DROP TABLE t")

    assert made[0] == made[1]


@pytest.fixture(name="sent")
def _sent(db: peewee.Database) -> Callable[[], list[Statement]]:
    """Read all that peewee has sent so far, as the driver writes it out for the server."""
    events: list[Any] = []
    db.query_hooks.append(events.append)

    def sent() -> list[Statement]:
        cursor = db.connection().cursor()
        assert events
        return [read(cursor.mogrify(event.sql, event.params or ())) for event in events]

    return sent


class Item(peewee.Model):
    """A table with what playhouse's operations need."""

    label = peewee.CharField(null=True)
    size = peewee.IntegerField(default=0)


@MYSQL
def test_all_that_playhouse_migrate_sends_is_read(db: peewee.Database, sent: Callable[[], list[Statement]]) -> None:
    """Each operation of MySQLMigrator is understood."""
    mine = MySQLMigrator(db)
    with db.bind_ctx([Item]):
        db.create_tables([Item])
        parent = peewee.ForeignKeyField(Item, null=True, field=Item.id, on_delete="CASCADE")
        migrate(
            mine.add_column("item", "name", peewee.CharField(default="x", index=True)),
            mine.add_column("item", "parent_id", parent),
            mine.drop_foreign_key_constraint("item", "parent_id"),
            mine.add_foreign_key_constraint("item", "parent_id", "item", "id"),
            mine.drop_column("item", "parent_id"),
            mine.rename_column("item", "name", "title"),
            mine.drop_not_null("item", "title"),
            mine.add_not_null("item", "title"),
            mine.alter_column_type("item", "title", peewee.CharField(max_length=99)),
            mine.add_index("item", ("label", "size"), True),
            mine.drop_index("item", "item_label_size"),
            mine.add_constraint("item", "positive", peewee.Check("size >= 0")),
            mine.add_unique("item", "size"),
            mine.add_column_default("item", "size", 5),
            mine.drop_column_default("item", "size"),
            mine.rename_table("item", "thing"),
        )
    kinds = {type(statement) for statement in sent()}

    assert kinds >= {CreateTable, AlterTable, RenameTables, Update}


@MYSQL
def test_all_that_our_operations_send_is_read(db: peewee.Database, sent: Callable[[], list[Statement]]) -> None:
    """Each operation of ours is understood, and what it looks up is free."""
    ours = migrator_for(db)
    with db.bind_ctx([Item]):
        db.create_tables([Item])
        Item.create(label="a")
    operations.add_column(ours, "item", "name", peewee.CharField(default="it's 100%", index=True))
    operations.add_column(ours, "item", "parent_id", peewee.ForeignKeyField(Item, null=True))
    operations.column_type(ours, "item", "name", peewee.CharField(max_length=300, default="x"))

    operations.rename_column(ours, "item", "name", "title")
    operations.add_index(ours, "item", ["label", "size"], unique=True)
    operations.drop_index(ours, "item", ["label", "size"])
    operations.add_not_null(ours, "item", "label")
    operations.drop_column(ours, "item", "parent_id")

    assert {type(statement) for statement in sent()} >= {Free, CreateTable, AlterTable, Insert}


@MYSQL
def test_all_that_our_models_send_is_read(db: peewee.Database, sent: Callable[[], list[Statement]]) -> None:
    """Tables made, rows written in each of peewee's ways, tables dropped."""
    models = [Task, TaskLog, CostRecord, PlatformConnection, Item]
    with db.bind_ctx(models):
        db.create_tables(models)
        Item.insert_many([{"label": f"it's \\ {n};", "size": n} for n in range(5)]).execute()
        Item.insert(id=1, size=2).on_conflict(preserve=[Item.size], update={Item.label: "x"}).execute()
        Item.insert(id=1).on_conflict_ignore().execute()
        Item.replace(id=1, label="y").execute()
        Item.insert_from(Item.select(Item.label, Item.size), [Item.label, Item.size]).execute()
        Item.bulk_update(list(Item.select()), [Item.size])
        Item.update(size=Item.size + 1).where(Item.id.in_([1, 2])).execute()
        Item.delete().where(Item.label.contains("%;")).execute()
        db.drop_tables(models)
    statements = sent()

    assert {type(each) for each in statements} >= {CreateTable, AlterTable, Insert, Update, Delete, DropTables}
    assert all(each.target == "item" for each in statements if isinstance(each, Update | Delete))
    assert {each.plain for each in statements if isinstance(each, Insert)} == {True, False}


@pytest.mark.skipif(not DATA.exists(), reason="../shared/realworld is not here")
def test_a_dump_is_read_but_for_its_executable_comments_and_locks() -> None:
    """Every DROP, CREATE and INSERT of a real dump is understood."""
    text = "".join(path.read_text() for path in sorted(DATA.glob("*_mysql.sql")))
    statements = [each for each in re.split(r";\n", text) if each.strip()]
    plain = [each for each in statements if not each.strip().startswith(("/*!", "LOCK ", "UNLOCK "))]

    assert {type(read(each)) for each in plain} == {DropTables, CreateTable, Insert}
    assert len(plain) > 100


@MYSQL
@pytest.mark.skipif(not DATA.exists(), reason="../shared/realworld is not here")
def test_the_steps_of_a_real_app_are_read(
    db: peewee.Database, backend: Backend, sent: Callable[[], list[Statement]]
) -> None:
    """All that our operations send for the 46 steps of a real history, on its own tables, is understood."""
    db.execute_sql("SET SESSION sql_mode = ''")
    for path in sorted(DATA.glob("*_mysql.sql")):
        for create in re.findall(r"CREATE TABLE .*?;\n", path.read_text(), re.DOTALL):
            db.execute_sql(create.replace("%", "%%"))
    ours = migrator_for(db)
    for step in json.loads((DATA / "ragflow_steps_v0.15_to_v0.24.json").read_text()):
        _run_step(ours, step)
    altered = [each for each in sent() if isinstance(each, AlterTable)]

    assert len(altered) > 30


def _run_step(migrator: Any, step: dict[str, Any]) -> None:
    if step["op"] == "rename_column":
        operations.rename_column(migrator, step["table"], step["column"], step["new_name"])
        return
    kind, options = step["field"]["type"], {key: value for key, value in step["field"].items() if key != "type"}
    is_long = kind in ("JSONField", "LongTextField")
    field = (peewee.TextField if is_long else getattr(peewee, kind))(**options)
    if is_long:
        field.field_type = "LONGTEXT"
    run = {"add_column": operations.add_column, "alter_column_type": operations.column_type}[step["op"]]
    run(migrator, step["table"], step["column"], field)
