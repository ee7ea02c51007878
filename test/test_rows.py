"""What a migration did to rows on MySQL and MariaDB is read ahead, kept exactly, and put back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pymysql
import pytest
import servers

from api.db.journal.images import Change
from api.db.journal.link import Link
from api.db.journal.put_back import put_back
from api.db.journal.reading import read
from api.db.journal.rows import Scope, scope_of
from api.db.journal.statement import Delete, Insert, Update
from api.exceptions import MigrationError, StatementRefusedError
from conftest import Backend

pytestmark = pytest.mark.engines("mariadb", "mysql")

LIMIT = 1000
ITEM = """CREATE TABLE item (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20) UNIQUE, size INT NOT NULL DEFAULT 0,
          label VARCHAR(20))"""
ITEMS = (
    "INSERT INTO item (name, size, label) VALUES ('one', 1, NULL), ('two', 2, 'x'), ('three', 3, 'X'), ('four', 4, '')"
)


class Session(Link):
    """A connection of the test's own, which can do to rows what the journal does."""

    def dump(self, table: str = "item") -> list[tuple[Any, ...]]:
        """Return all rows, in the order of the first column."""
        return self.rows(f"SELECT * FROM {table} ORDER BY 1")

    def run(self, sql: str, limit: int = LIMIT) -> list[Change]:
        """Run a statement as the journal does, commit it, and return what it changed, as the journal stored it."""
        self.execute("BEGIN")
        try:
            scope = self.scope(sql, limit)
            changes = scope.changes(self, self.execute(sql))
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")
        return [Change.from_json(change.to_json()) for change in changes]

    def scope(self, sql: str, limit: int = LIMIT) -> Scope:
        """Read what a statement may touch."""
        statement = read(sql)
        assert isinstance(statement, Update | Delete | Insert)
        return scope_of(self, statement, limit)

    def undo(self, changes: list[Change]) -> list[str]:
        """Put back what was changed, and commit it."""
        self.execute("BEGIN")
        try:
            left = put_back(self, changes)
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")
        return left


@contextmanager
def session_on(backend: Backend) -> Iterator[Session]:
    """Give a session on the test's database."""
    with closing(servers.connect(backend.url)) as connection:
        yield Session(connection)


@pytest.fixture(name="link")
def _link(backend: Backend) -> Iterator[Session]:
    """A session on a database with a table ``item`` of four rows."""
    with session_on(backend) as link:
        link.execute(ITEM)
        link.execute(ITEMS)
        yield link


@pytest.fixture(name="other")
def _other(backend: Backend, link: Session) -> Iterator[Session]:
    """Another session on the same database, which does not wait for locks."""
    with session_on(backend) as other:
        other.execute("SET SESSION innodb_lock_wait_timeout = 1")
        yield other


# Statements ----------------------------------------------------------------------------------------------------

STATEMENTS = {
    "all": "UPDATE item SET label = 'new'",
    "where": "UPDATE item SET size = size + 10, label = CONCAT(name, '%s') WHERE size BETWEEN 2 AND 3",
    "nothing": "UPDATE item SET label = 'new' WHERE id = 99",
    "same": "UPDATE item SET size = size",
    "limited": "UPDATE item SET label = 'new' ORDER BY size DESC LIMIT 2",
    "alias": "UPDATE item AS i SET i.label = 'new' WHERE i.size > 1",
    "join": "UPDATE item i JOIN tag t ON t.item_id = i.id SET i.label = t.word",
    "comma": "UPDATE item, tag SET item.label = tag.word WHERE tag.item_id = item.id",
    "subquery": "UPDATE item SET label = 'new' WHERE id IN (SELECT item_id FROM tag)",
    "unique shift": "UPDATE item SET name = CONCAT('t', name) ORDER BY name DESC",
    "key": "UPDATE item SET id = id + 1 ORDER BY id DESC",
    "random": "UPDATE item SET label = 'new' WHERE RAND() < 0.5",
    "variable": "UPDATE item SET label = 'new' WHERE (@n := COALESCE(@n, 0) + 1) <= 2",
    "both": "UPDATE item, tag SET item.label = 'new', tag.word = CONCAT(tag.word, '!') WHERE tag.item_id = item.id",
    "delete": "DELETE FROM item WHERE size > 2",
    "delete all": "DELETE FROM item",
    "delete limited": "DELETE FROM item ORDER BY id LIMIT 1",
    "delete join": "DELETE i FROM item i LEFT JOIN tag t ON t.item_id = i.id WHERE t.word IS NULL",
    "delete both": "DELETE item, tag FROM item JOIN tag ON tag.item_id = item.id",
    "insert": "INSERT INTO item (name, size) VALUES ('five', 5), ('six', 6)",
    "insert key": "INSERT INTO item (id, name) VALUES (-5, 'five'), (0x10, 'six')",
    "insert counted": "INSERT INTO item VALUES (NULL, 'five', 5, 'x'), (-1, 'six', 6, 'x')",
    "insert zero": "INSERT INTO item (id, name) VALUES (0, 'five')",
    "insert set": "INSERT INTO item SET name = 'five'",
    "insert ignore": "INSERT IGNORE INTO item (name) VALUES ('one'), ('five')",
    "insert select": "INSERT INTO item (name, size) SELECT CONCAT(name, name), size FROM item WHERE size > 2",
    "insert text key": "INSERT INTO tag (word, item_id) VALUES ('it''s \\\\ \\'q\\'', 1), ('ünï', 2)",
    "replace": "REPLACE INTO item (id, name, size) VALUES (1, 'two', 7), (9, 'nine', 9)",
    "upsert": "INSERT INTO item (name, size) VALUES ('one', 9), ('9', 9) ON DUPLICATE KEY UPDATE size = VALUES(size)",
}


@pytest.mark.parametrize("sql", STATEMENTS.values(), ids=STATEMENTS)
def test_every_kind_of_statement_is_undone(link: Session, sql: str) -> None:
    """All rows are afterwards what they were, and the statement did what it does without us."""
    link.execute("CREATE TABLE tag (word VARCHAR(20) PRIMARY KEY, item_id INT)")
    link.execute("INSERT INTO tag VALUES ('red', 1), ('green', 2), ('blue', 2)")
    before = link.dump(), link.dump("tag")
    changes = link.run(sql)
    assert ((link.dump(), link.dump("tag")) == before) == (not changes)
    assert link.undo(changes) == []
    assert (link.dump(), link.dump("tag")) == before


def test_a_change_holds_the_columns_that_differ(link: Session) -> None:
    """Of a changed row only those are kept, so that the journal stays small."""
    (change,) = link.run("UPDATE item SET label = 'é', size = 1 WHERE id = 1")
    assert (change.key, change.old, change.new) == ({"id": "1"}, {"label": "NULL"}, {"label": "_utf8mb4 x'C3A9'"})


def test_a_composite_key_names_a_row(link: Session) -> None:
    """Both columns of a key count, in whatever order they stand."""
    link.execute("CREATE TABLE pair (b VARCHAR(9), n INT, a INT, PRIMARY KEY (a, b))")
    link.execute("INSERT INTO pair VALUES ('x', 1, 1), ('y', 2, 1), ('x', 3, 2)")
    before = link.dump("pair")
    changes = link.run("UPDATE pair SET n = n * 10 WHERE b = 'x'") + link.run("DELETE FROM pair WHERE b = 'y'")
    assert changes[0].key == {"b": "_utf8mb4 x'78'", "a": "1"}
    assert link.undo(changes) == []
    assert sorted(link.dump("pair")) == sorted(before)


def test_strange_names_are_quoted(link: Session) -> None:
    """A backtick, a space, a percent sign and letters beyond ASCII are parts of a name like any other."""
    link.execute("CREATE TABLE `a ``b%s é` (`k ``%` INT PRIMARY KEY, `v 'é` INT)")
    link.execute("INSERT INTO `a ``b%s é` VALUES (1, 1), (2, 2)")
    changes = link.run("UPDATE `a ``b%s é` SET `v 'é` = 5") + link.run("DELETE FROM `a ``b%s é` WHERE `k ``%` = 2")
    assert link.undo(changes[2:]) == link.undo(changes[:2]) == []
    assert link.dump("`a ``b%s é`") == [(1, 1), (2, 2)]


def test_many_rows_are_put_back(link: Session) -> None:
    """More rows than one statement takes come back, each with its own value."""
    link.execute("CREATE TABLE many (id INT PRIMARY KEY, v INT, w INT)")
    link.execute("INSERT INTO many VALUES " + ", ".join(f"({n}, {n % 7}, {n})" for n in range(1500)))
    before = link.dump("many")
    first = link.run("UPDATE many SET v = 9, w = w + 1", 2000)
    second = link.run("DELETE FROM many WHERE id < 1400", 2000)
    assert (len(first), len(second)) == (1500, 1400)
    assert link.undo(second) == link.undo(first) == []
    assert link.dump("many") == before


def _random_statement(chance: random.Random) -> str:
    column, size = chance.choice(["size", "label", "name", "seen"]), chance.randrange(-5, 12)
    value = f"'{chance.choice('aAbBéz')}{size}'" if column in ("name", "label") else str(size)
    where = chance.choice(
        [f"size > {size}", f"id IN ({size}, {size + 1})", f"label = {value!s}", "id % 3 = 1", "id > -99"]
    )
    ending = chance.choice(["", "", f" ORDER BY name, id LIMIT {chance.randrange(4)}"])
    rows = ", ".join(
        f"({chance.randrange(-3, 30)}, '{chance.choice('abAB')}{n}', {n})" for n in range(chance.randrange(1, 4))
    )
    return chance.choice(
        [
            f"UPDATE IGNORE item SET {column} = {value}, size = size + 1 WHERE {where}{ending}",
            f"UPDATE IGNORE item SET id = id + {size} WHERE {where} ORDER BY id DESC",
            f"UPDATE item a JOIN item b ON b.id = a.id + 1 SET a.label = b.name, a.size = b.size WHERE a.{where}",
            f"DELETE FROM item WHERE {where}{ending}",
            f"INSERT IGNORE INTO item (name, size) VALUES ({value}, 1), ('{size}', 2)",
            f"INSERT IGNORE INTO item (name, size) SELECT CONCAT(name, '+'), size FROM item AS i WHERE i.{where}",
            f"REPLACE INTO item (id, name, size) VALUES {rows}",
            f"INSERT INTO item (id, name, size) VALUES {rows} ON DUPLICATE KEY UPDATE size = VALUES(size) + 1",
        ]
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_statements_are_undone_one_by_one(link: Session, seed: int) -> None:
    """Whatever was run, undoing from the newest to the oldest meets every state again."""
    chance = random.Random(seed)
    link.execute("ALTER TABLE item ADD seen TIMESTAMP(6) NULL ON UPDATE CURRENT_TIMESTAMP(6)")
    link.execute("SET SESSION sql_mode = ''")
    done: list[tuple[str, list[Any], list[Change]]] = []
    for _ in range(40):
        sql, before = _random_statement(chance), link.dump()
        done.append((sql, before, link.run(sql)))
    for sql, before, changes in reversed(done):
        assert link.undo(changes) == [], sql
        assert link.dump() == before, sql


# Values --------------------------------------------------------------------------------------------------------

VALUES: dict[str, list[str]] = {
    "TINYINT": ["-128", "127"],
    "BIGINT UNSIGNED": ["18446744073709551615", "0"],
    "BIGINT": ["-9223372036854775808"],
    "INT(6) ZEROFILL": ["42"],
    "DECIMAL(65,30)": ["-99999999999999999999999999999999999.999999999999999999999999999999", "1e-30", "0"],
    "DECIMAL(65,0)": ["9" * 65],
    "FLOAT": ["0.1", "-3.4028234e38", "1.17549435e-38", "16777217", "1e-45"],
    "FLOAT(7,2)": ["12345.67"],
    "DOUBLE": [
        "0.1",
        "-1.7976931348623157e308",
        "2.2250738585072014e-308",
        "-2.2250738585072014e-308",
        "5e-324",
        "-0e0",
    ],
    "DOUBLE(20,4)": ["0.1", "-1234567890123.4567"],
    "BIT(1)": ["0", "1"],
    "BIT(64)": ["18446744073709551615", "9223372036854775808"],
    "DATE": ["'0000-00-00'", "'2024-02-31'", "'9999-12-31'", "'2024-00-00'"],
    "TIME(6)": ["'-838:59:59'", "'-00:00:00.000001'", "'838:59:59'"],
    "DATETIME": ["'0000-00-00'", "'1000-01-01 00:00:00'"],
    "DATETIME(6)": ["'9999-12-31 23:59:59.999999'"],
    "TIMESTAMP NULL": ["0", "FROM_UNIXTIME(1)", "FROM_UNIXTIME(1729989000)", "FROM_UNIXTIME(1729992600)"],
    "TIMESTAMP(6) NULL": ["0", "FROM_UNIXTIME(1729992600.000001)"],
    "YEAR": ["0", "1901", "2155"],
    "CHAR(5)": ["'a '", "''", "'é'"],
    "CHAR(5) CHARACTER SET latin1": ["0x80819F"],
    "VARCHAR(20)": ["'a '", "''", "'NULL'", "'it''s \\\\ %s'", "'\U0001f600'", "0x00097F"],
    "VARCHAR(20) CHARACTER SET latin1": ["_latin1 x'808190A0FF'"],
    "VARCHAR(20) CHARACTER SET utf16": ["'\U0001f600a'"],
    "VARCHAR(20) CHARACTER SET sjis": ["_sjis x'835C815F8160'"],
    "TEXT": ["REPEAT('é', 9999)"],
    "LONGTEXT": ["REPEAT('x', 300000)"],
    "BINARY(4)": ["x'00FF'", "x'27'"],
    "VARBINARY(9)": ["x'00275C22FF0A'", "x''"],
    "LONGBLOB": ["REPEAT(x'FF00', 9999)"],
    "ENUM('b','a','') CHARACTER SET latin1": ["0", "1", "3"],
    "SET('p','q''','é')": ["0", "7", "4"],
    "SET(" + ",".join(f"'m{n}'" for n in range(64)) + ")": ["18446744073709551615", "9223372036854775808"],
    "JSON": ['\'{"a": [1, 1.0, 18446744073709551615, 1e300, null, "\\\\u00e9\\\\""]}\'', "'null'", "'\"\"'"],
    "GEOMETRY": ["ST_GeomFromText('POINT(1 2)', 4326)", "ST_GeomFromText('GEOMETRYCOLLECTION(POINT(0 0))')"],
    "UUID": ["'123e4567-e89b-12d3-a456-426655440000'"],
    "INET6": ["'::ffff:1.2.3.4'"],
    "INET4": ["'1.2.3.4'"],
    "VECTOR(2)": ["TO_VECTOR('[1.5,-1e-30]')"],
}
MARIADB_ONLY, MYSQL_ONLY = ("UUID", "INET6", "INET4"), ("VECTOR(2)",)
RAW = "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', time_zone = '+00:00'"


def _make_values(backend: Backend, link: Session, kind: str) -> int:
    if kind in (MYSQL_ONLY if backend.engine == "mariadb" else MARIADB_ONLY):
        pytest.skip(f"{backend.engine} has no {kind}")
    link.execute(RAW)
    for table in ("stood", "v"):
        link.execute(f"CREATE TABLE {table} (id INT PRIMARY KEY, v {kind}, other INT DEFAULT 0)")
    for number, value in enumerate([*VALUES[kind], "NULL"]):
        link.execute(f"INSERT INTO stood VALUES ({number}, {value}, 0)")
    link.execute("INSERT INTO v SELECT * FROM stood")
    # Neither the time zone nor the modes of the migration's session may bend a value; that day has two o'clock twice.
    link.execute("SET SESSION sql_mode = 'TRADITIONAL', time_zone = '-03:30', character_set_results = latin1")
    return len(VALUES[kind]) + 1


def _checksum(link: Session, table: str) -> Any:
    return link.rows(f"CHECKSUM TABLE {table}")[0][1]


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_of_every_type_comes_back_bit_by_bit(backend: Backend, link: Session, kind: str) -> None:
    """Deleted and set to NULL, each value is again what it was, by the server's own checksum of the stored bytes."""
    number = _make_values(backend, link, kind)
    stood = _checksum(link, "stood")
    nulled = link.run("UPDATE v SET v = NULL")
    deleted = link.run("DELETE FROM v")
    assert (len(nulled), len(deleted), _checksum(link, "v")) == (number - 1, number, 0)
    assert link.undo(deleted) == link.undo(nulled) == []
    assert _checksum(link, "v") == stood
    assert link.rows("SELECT id, v IS NULL FROM v ORDER BY id") == link.rows(
        "SELECT id, v IS NULL FROM stood ORDER BY id"
    )


def test_generated_and_unseen_columns_follow(backend: Backend, link: Session) -> None:
    """Generated columns are left to the server; an invisible one is kept like any other."""
    link.execute("""CREATE TABLE g (id INT PRIMARY KEY, a INT, twice INT AS (a * 2) STORED, plus INT AS (a + 1) VIRTUAL,
                    unseen INT DEFAULT 7 INVISIBLE)""")
    link.execute("INSERT INTO g (id, a, unseen) VALUES (1, 1, 1), (2, 2, 2)")
    stood = _checksum(link, "g")
    changes = link.run("DELETE FROM g WHERE id = 1"), link.run("UPDATE g SET a = 9, unseen = 9")
    assert [link.undo(each) for each in reversed(changes)] == [[], []]
    assert _checksum(link, "g") == stood


KEYS = {
    "text": ("VARCHAR(20)", "'a'", "'b '", "'😀'"),
    "bytes": ("VARBINARY(9)", "x'00'", "x'0000'", "x'27FF'"),
    "latin1": ("CHAR(9) CHARACTER SET latin1", "'a'", "'é'", "''"),
    "time": ("TIMESTAMP", "FROM_UNIXTIME(1729989000)", "FROM_UNIXTIME(1729992600)", "FROM_UNIXTIME(1)"),
    "date": ("DATETIME(6)", "'2024-01-01'", "'2024-01-01 00:00:00.000001'", "'1000-01-01'"),
    "real": ("DOUBLE", "0.1", "-0.25", "5e-324"),
    "single": ("FLOAT", "0.1", "-0.25", "16777216"),
    "decimal": ("DECIMAL(30,10)", "0.1", "-0.1", "12345678901234567890.0123456789"),
    "enum": ("ENUM('x','y','z')", "'z'", "'y'", "'x'"),
    "bit": ("BIT(64)", "0", "1", "18446744073709551615"),
    "set": ("SET('x','y','z')", "'x,z'", "''", "'y'"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_every_type_finds_its_row(link: Session, kind: str) -> None:
    """The row is found by the literal of its key, wherever the session's clock stands."""
    column, *values = KEYS[kind]
    link.execute(RAW)
    link.execute(f"CREATE TABLE k (id {column} PRIMARY KEY, v INT)")
    link.execute("INSERT INTO k VALUES " + ", ".join(f"({value}, {n})" for n, value in enumerate(values)))
    link.execute("SET SESSION time_zone = '-03:30'")
    before = link.dump("k")
    changes = link.run("UPDATE k SET v = v + 1"), link.run("DELETE FROM k WHERE v > 1"), link.run("DELETE FROM k")
    assert [len(each) for each in changes] == [3, 2, 1]
    assert [link.undo(each) for each in reversed(changes)] == [[], [], []]
    assert link.dump("k") == before


def test_a_change_of_case_alone_is_undone(link: Session) -> None:
    """Values and keys are compared byte by byte, whatever the collation takes for equal."""
    link.execute("CREATE TABLE word (id VARCHAR(9) PRIMARY KEY, v VARCHAR(9))")
    link.execute("INSERT INTO word VALUES ('a', 'x')")
    changes = link.run("UPDATE word SET v = 'X'"), link.run("UPDATE word SET id = 'A'")
    assert [link.undo(each) for each in reversed(changes)] == [[], []]
    assert link.dump("word") == [("a", "x")]


def test_the_session_is_left_as_it_was(link: Session) -> None:
    """What the journal needs of a session, it gives back: modes, time zone, limits, the last number given."""
    link.execute(
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES', time_zone = '+05:00', sql_select_limit = 1, unique_checks = 0"
    )
    link.execute("INSERT INTO item (name) VALUES ('five')")
    asked = (
        "SELECT @@sql_mode, @@time_zone, @@sql_select_limit, @@unique_checks, @@foreign_key_checks, LAST_INSERT_ID()"
    )
    before = link.rows(asked)
    changes = link.run("UPDATE item SET size = size + 1")
    assert len(changes) == 5
    assert (link.undo(changes), link.rows(asked)) == ([], before)


# Other sessions ------------------------------------------------------------------------------------------------


def test_another_column_that_changed_since_stays(link: Session, other: Session) -> None:
    """Only what the statement changed is put back; what another session wrote beside it is kept."""
    changes = link.run("UPDATE item SET size = 50 WHERE id <= 2")
    other.execute("UPDATE item SET label = 'theirs' WHERE id = 1")
    assert link.undo(changes) == []
    assert link.dump()[:2] == [(1, "one", 1, "theirs"), (2, "two", 2, "x")]


def test_a_row_that_changed_since_is_left_and_named(link: Session, other: Session) -> None:
    """Nothing that another session wrote is overwritten, deleted or doubled."""
    updated = link.run("UPDATE item SET size = 50 WHERE id <= 2")
    deleted = link.run("DELETE FROM item WHERE id = 3")
    inserted = link.run("INSERT INTO item (name) VALUES ('five'), ('six')")
    other.execute("UPDATE item SET size = 60 WHERE id = 1")
    other.execute("DELETE FROM item WHERE id = 2")
    other.execute("INSERT INTO item (id, name) VALUES (3, 'theirs')")
    other.execute("UPDATE item SET label = 'theirs' WHERE name = 'five'")
    assert link.undo(inserted) == ["item (id = 5): changed since"]
    assert link.undo(deleted) == ["item (id = 3): another row has its key"]
    assert link.undo(updated) == ["item (id = 1): changed since", "item (id = 2): deleted since"]
    assert [row[0] for row in link.dump()] == [1, 3, 4, 5]


def test_a_row_that_is_as_it_was_needs_nothing(link: Session, other: Session) -> None:
    """What somebody undid by hand, or a second undo meets, is not named as left alone."""
    before = link.dump()
    for sql in (
        "UPDATE item SET size = 50",
        "DELETE FROM item WHERE id = 1",
        "INSERT INTO item (name) VALUES ('five')",
    ):
        changes = link.run(sql)
        assert [link.undo(changes), link.undo(changes)] == [[], []]
    assert link.dump() == before


def test_a_row_that_came_back_under_another_case_is_not_doubled(link: Session, other: Session) -> None:
    """A key that the collation takes for the same stands: the deleted row is left out and named."""
    link.execute("CREATE TABLE word (id VARCHAR(9) PRIMARY KEY)")
    link.execute("INSERT INTO word VALUES ('a'), ('b')")
    changes = link.run("DELETE FROM word")
    other.execute("INSERT INTO word VALUES ('A')")
    assert link.undo(changes) == ["word (id = 'a'): another row has its key"]
    assert link.dump("word") == [("A",), ("b",)]


STAMPED = """CREATE TABLE post (id INT PRIMARY KEY, title VARCHAR(9), votes INT DEFAULT 0,
             edited TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6))"""


def test_a_stamp_comes_back_with_its_row(link: Session) -> None:
    """A column with ON UPDATE is what it was, also where the statement left it alone: the undo stamps nothing."""
    link.execute(STAMPED)
    link.execute("INSERT INTO post VALUES (1, 'a', 0, '2020-01-01 00:00:00.5'), (2, 'b', 0, '2020-01-01')")
    before = link.dump("post")
    changes = (
        link.run("UPDATE post SET title = 'x' WHERE id = 1"),
        link.run("UPDATE post SET title = 'y', edited = edited"),
    )
    assert [sorted(each[0].old or {}) for each in changes] == [["edited", "title"], ["title"]]
    assert [link.undo(each) for each in reversed(changes)] == [[], []]
    assert link.dump("post") == before


def test_a_stamp_that_another_session_set_stays(link: Session, other: Session) -> None:
    """A row whose other column was changed since is still put back, and keeps the later stamp."""
    link.execute(STAMPED)
    link.execute("INSERT INTO post VALUES (1, 'a', 0, '2020-01-01')")
    changes = link.run("UPDATE post SET title = 'x'")
    other.execute("UPDATE post SET votes = 1")
    stamp = other.rows("SELECT edited FROM post")
    assert link.undo(changes) == []
    assert link.rows("SELECT title, votes FROM post") == [("a", 1)]
    assert link.rows("SELECT edited FROM post") == stamp


@pytest.mark.parametrize(
    ("sql", "theirs"),
    [
        ("UPDATE item SET label = 'y' WHERE size >= 2", "INSERT INTO item (name, size) VALUES ('late', 3)"),
        ("UPDATE item SET label = 'y' WHERE size >= 2", "UPDATE item SET size = 9 WHERE id = 2"),
        ("DELETE FROM item WHERE id > 2", "INSERT INTO item (id, name) VALUES (7, 'late')"),
        ("INSERT INTO item (name) VALUES ('five')", "INSERT INTO item (name) VALUES ('late')"),
        ("REPLACE INTO item (id, name) VALUES (1, 'two')", "INSERT INTO item (name) VALUES ('late')"),
    ],
)
def test_no_row_slips_in_between_reading_and_changing(link: Session, other: Session, sql: str, theirs: str) -> None:
    """From the moment the rows are read, another session waits that would change what the statement touches."""
    link.execute("BEGIN")
    scope = link.scope(sql)
    with pytest.raises(pymysql.err.OperationalError, match="Lock wait timeout"):
        other.execute(theirs)
    changes = scope.changes(link, link.execute(sql))
    link.execute("COMMIT")
    other.execute(theirs)
    assert link.undo(changes) is not None
    assert other.rows("SELECT COUNT(*) FROM item WHERE name = 'late' OR size = 9") == [(1,)]


def test_an_insert_that_is_not_committed_is_waited_for(link: Session, other: Session, backend: Backend) -> None:
    """A row that another session is about to commit above the highest number is not taken for the statement's."""
    other.execute("BEGIN")
    other.execute("INSERT INTO item (name) VALUES ('theirs')")
    done: list[list[Change]] = []
    waiting = threading.Thread(target=lambda: done.append(link.run("INSERT INTO item (name) VALUES ('ours')")))
    waiting.start()
    other.execute("COMMIT")
    waiting.join()
    assert [change.new["name"] for change in done[0] if change.new] == ["_utf8mb4 x'6F757273'"]


# What stands in the way ----------------------------------------------------------------------------------------


def test_a_unique_value_that_others_took_stops_the_undo(link: Session, other: Session) -> None:
    """The undo says which value stands in the way, changes nothing, and works once that is gone."""
    before = link.dump()
    changes = link.run("DELETE FROM item WHERE id IN (2, 3)")
    other.execute("INSERT INTO item (name) VALUES ('two')")
    with pytest.raises(MigrationError, match=r"a row of 'item' cannot be put back: Duplicate entry 'two'"):
        link.undo(changes)
    assert [row[1] for row in link.dump()] == ["one", "four", "two"]
    other.execute("DELETE FROM item WHERE id > 4")
    assert link.undo(changes) == []
    assert link.dump() == before


def test_unique_values_that_moved_on_are_moved_back(link: Session) -> None:
    """Each row waits for the row that has its place, whatever the order."""
    link.execute("CREATE TABLE place (id INT PRIMARY KEY, seat INT UNIQUE)")
    link.execute("INSERT INTO place VALUES (1, 3), (2, 1), (3, 4), (4, 2), (5, 5)")
    before = link.dump("place")
    changes = link.run("UPDATE place SET seat = seat + 1 ORDER BY seat DESC")
    assert link.undo(changes) == []
    assert link.dump("place") == before


def test_a_tree_is_put_back_parents_first(link: Session) -> None:
    """Rows that refer to rows of their own table come back, and go, with the foreign key on."""
    link.execute("CREATE TABLE tree (id INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES tree (id))")
    inserted = link.run("INSERT INTO tree (id, up) VALUES (5, NULL), (2, 5), (9, 2), (1, 9), (3, NULL)")
    before = link.dump("tree")
    deleted = link.run("DELETE FROM tree WHERE id IN (1)") + link.run("DELETE FROM tree WHERE id = 9")
    deleted += link.run("DELETE FROM tree WHERE id = 2") + link.run("DELETE FROM tree WHERE id = 5")
    assert link.undo(deleted) == []
    assert link.dump("tree") == before
    assert link.undo(inserted) == []
    assert link.dump("tree") == []


def test_a_parent_that_is_gone_stops_the_undo(link: Session, other: Session) -> None:
    """No orphan is made: the foreign key stays on."""
    link.execute("CREATE TABLE part (id INT PRIMARY KEY, item_id INT, FOREIGN KEY (item_id) REFERENCES item (id))")
    link.execute("INSERT INTO part VALUES (1, 1)")
    changes = link.run("DELETE FROM part")
    other.execute("DELETE FROM item WHERE id = 1")
    with pytest.raises(MigrationError, match=r"a row of 'part' cannot be put back: .*foreign key constraint fails"):
        link.undo(changes)


@pytest.mark.parametrize("rule", ["CASCADE", "SET NULL", "RESTRICT"])
def test_rows_that_refer_to_an_inserted_row_stop_the_undo(link: Session, other: Session, rule: str) -> None:
    """Another session's row does not go, nor lose what it refers to, with the row that the undo deletes."""
    foreign = f"FOREIGN KEY (item_id) REFERENCES item (id) ON DELETE {rule}"
    link.execute(f"CREATE TABLE part (id INT PRIMARY KEY, item_id INT, {foreign})")
    changes = link.run("INSERT INTO item (name) VALUES ('five')")
    other.execute("INSERT INTO part VALUES (1, 5)")
    with pytest.raises(MigrationError, match=r"`part`|'part'"):
        link.undo(changes)
    assert link.dump("part") == [(1, 5)]
    other.execute("DELETE FROM part")
    assert link.undo(changes) == []


def test_a_table_that_was_altered_since_is_told(link: Session, other: Session) -> None:
    """A column that somebody dropped in between stops the undo, with the columns that it needs."""
    changes = link.run("UPDATE item SET label = 'new'")
    other.execute("ALTER TABLE item DROP COLUMN label")
    with pytest.raises(MigrationError, match="'item' is not what it was"):
        link.undo(changes)


# Refusals ------------------------------------------------------------------------------------------------------

REFUSED = {
    "no key": (["CREATE TABLE r (a INT)"], "UPDATE r SET a = 1", "no primary key"),
    "engine": (["CREATE TABLE r (a INT PRIMARY KEY) ENGINE=MyISAM"], "DELETE FROM r", "storage engine MyISAM"),
    "view": (["CREATE VIEW r AS SELECT * FROM item"], "UPDATE r SET size = 1", "is a view"),
    "generated key": (["CREATE TABLE r (a INT, k INT AS (a + 1) STORED PRIMARY KEY)"], "DELETE FROM r", "is generated"),
    "trigger": (
        ["CREATE TABLE r (a INT PRIMARY KEY)", "CREATE TRIGGER t BEFORE UPDATE ON r FOR EACH ROW SET NEW.a = 1"],
        "UPDATE r SET a = 2",
        "the trigger 't' runs at every UPDATE of 'r'",
    ),
    "trigger of the undo": (
        ["CREATE TABLE r (a INT PRIMARY KEY)", "CREATE TRIGGER t BEFORE DELETE ON r FOR EACH ROW SET @x = 1"],
        "INSERT INTO r VALUES (1)",
        "the trigger 't' runs at every DELETE",
    ),
    "cascade": (
        ["CREATE TABLE r (a INT PRIMARY KEY, i INT, FOREIGN KEY (i) REFERENCES item (id) ON DELETE CASCADE)"],
        "DELETE FROM item",
        "'r' refers to 'item' with ON DELETE CASCADE",
    ),
    "set null": (
        ["CREATE TABLE r (a INT PRIMARY KEY, i INT, FOREIGN KEY (i) REFERENCES item (id) ON DELETE SET NULL)"],
        "REPLACE INTO item (id) VALUES (1)",
        "ON DELETE SET NULL",
    ),
    "cascading update": (
        ["CREATE TABLE r (a INT PRIMARY KEY, n VARCHAR(20), FOREIGN KEY (n) REFERENCES item (name) ON UPDATE CASCADE)"],
        "UPDATE item SET name = 'x' WHERE id = 1",
        "ON UPDATE CASCADE",
    ),
    "joined": (["CREATE TABLE r (a INT)"], "UPDATE item, r SET item.size = 1, r.a = 1", "no primary key"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_undone_is_refused_with_the_reason(backend: Backend, link: Session, case: str) -> None:
    """The statement is not sent, the reason and a remedy are said."""
    statements, sql, reason = REFUSED[case]
    if case == "generated key" and backend.engine == "mariadb":
        pytest.skip("mariadb has no generated primary key")
    for statement in statements:
        link.execute(statement)
    before = link.dump()
    with pytest.raises(StatementRefusedError, match=reason) as caught:
        link.run(sql)
    assert "atomic = False" in caught.value.hint or "table behind" in caught.value.hint
    assert link.dump() == before


ALLOWED = {
    "other event": "UPDATE item SET size = 5",
    "other column": "UPDATE item SET label = 'z'",
    "insert into a parent": "INSERT INTO item (name) VALUES ('five')",
    "upsert": "INSERT INTO item (name) VALUES ('one') ON DUPLICATE KEY UPDATE label = 'z'",
}


@pytest.mark.parametrize("sql", ALLOWED.values(), ids=ALLOWED)
def test_what_a_trigger_or_foreign_key_does_not_meet_is_allowed(link: Session, sql: str) -> None:
    """A cascade of deletions stands in the way of deletions only, a trigger of its own event and its undo."""
    link.execute("CREATE TABLE r (a INT PRIMARY KEY, i INT, FOREIGN KEY (i) REFERENCES item (id) ON DELETE CASCADE)")
    before = link.dump()
    changes = link.run(sql)
    assert changes
    assert link.undo(changes) == []
    assert link.dump() == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE item SET size = 9",
        "UPDATE item SET size = 9 WHERE size > 0 LIMIT 4",
        "DELETE FROM item",
        "UPDATE item SET id = id + 10 ORDER BY id DESC",
        "REPLACE INTO item (id) VALUES (1)",
        "INSERT INTO item (name) SELECT CONCAT(name, name) FROM item",
        "INSERT INTO item (name) VALUES ('5'), ('6'), ('7'), ('8')",
    ],
)
def test_more_rows_than_the_limit_are_refused(link: Session, sql: str) -> None:
    """Nothing is copied without bound: the setting to raise is named."""
    before = link.dump()
    with pytest.raises(StatementRefusedError, match="more than 3 rows") as caught:
        link.run(sql, limit=3)
    assert "MIGRATION_UNDO_ROWS" in caught.value.hint
    assert link.dump() == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE item SET size = 9 WHERE id < 3",
        "UPDATE item SET size = 9 LIMIT 3",
        "INSERT INTO item (name) VALUES ('5'), ('6'), ('7')",
        "INSERT INTO item VALUES (NULL, '5', 5, NULL)",
        "INSERT INTO item (id, name) VALUES (7, '5'), (-1, '6')",
        "INSERT INTO item (name, id) VALUE (LOWER('A,)'), 7), ('b' /* b */, - 1)",
        "INSERT INTO item SET item.id = -7, name = 'it''s', size = GREATEST(2, 3)",
        "UPDATE item i JOIN item j ON j.id >= i.id SET i.size = 9 WHERE i.id < 3",
    ],
)
def test_a_few_rows_of_a_large_table_are_undone(link: Session, sql: str) -> None:
    """The limit is on the rows touched, not on the table's."""
    before = link.dump()
    changes = link.run(sql, limit=3)
    assert link.undo(changes) == []
    assert link.dump() == before


@pytest.mark.parametrize(
    "sql", ["INSERT INTO item VALUES (-1, '5', 5, NULL)", "INSERT INTO item (id, name) VALUES (1 - 2, '5')"]
)
def test_rows_that_were_not_foreseen_are_refused_after_all(link: Session, sql: str) -> None:
    """What the server counted must be what was found, or the transaction is to be rolled back."""
    before = link.dump()
    with pytest.raises(StatementRefusedError, match="touched 1 rows, of which 0 could be told"):
        link.run(sql, limit=3)
    assert link.dump() == before


def test_an_isolation_that_lets_rows_in_is_refused(link: Session) -> None:
    """Where no lock keeps other sessions' rows out, an undo could take them for its own."""
    link.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    with pytest.raises(StatementRefusedError, match="isolation level READ-COMMITTED") as caught:
        link.run("UPDATE item SET size = 9")
    link.execute(caught.value.hint.removesuffix(" before it"))
    assert len(link.run("UPDATE item SET size = 9")) == 4


def test_a_value_too_long_to_copy_is_refused(link: Session) -> None:
    """A value whose image the server cannot send is refused, and not taken for NULL."""
    (packet,) = link.rows("SELECT @@max_allowed_packet")[0]
    link.execute("CREATE TABLE long_text (id INT PRIMARY KEY, v LONGTEXT)")
    link.execute("INSERT INTO long_text VALUES (1, REPEAT('x', %s))", (packet // 2 + 1,))
    with pytest.raises(StatementRefusedError, match="max_allowed_packet"):
        link.run("DELETE FROM long_text")


def test_a_row_too_long_for_the_journal_is_refused(link: Session) -> None:
    """Values that fit one by one but not together are refused while the transaction can still be rolled back."""
    (packet,) = link.rows("SELECT @@max_allowed_packet")[0]
    link.execute("CREATE TABLE long_text (id INT PRIMARY KEY, v LONGTEXT, w LONGTEXT)")
    link.execute("INSERT INTO long_text VALUES (1, REPEAT('x', %s), '')", (packet // 3,))
    link.execute("UPDATE long_text SET w = v")
    with pytest.raises(StatementRefusedError, match="max_allowed_packet"):
        link.run("DELETE FROM long_text")
    assert link.rows("SELECT COUNT(*) FROM long_text") == [(1,)]


def test_a_table_that_is_not_there_is_the_servers_to_refuse(link: Session) -> None:
    """Its error is the one that is shown; a temporary table needs no undo."""
    assert link.scope("DELETE FROM nowhere").parts == ()
    link.execute("CREATE TEMPORARY TABLE passing (id INT PRIMARY KEY)")
    assert link.run("INSERT INTO passing VALUES (1)") == []
