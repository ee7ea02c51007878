"""A table's definition is read as MySQL and MariaDB print it, and brought back to what it was by ALTER TABLE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import servers

from api.db.journal.changes import changes
from api.db.journal.definition import Difference, differing_names, parse, same
from api.db.journal.link import Link
from api.db.journal.link import name as quoted
from api.exceptions import MigrationError
from conftest import Backend

PASSES = 3

MYSQL = """CREATE TABLE `odd ``name, (` (
  `id` bigint unsigned NOT NULL AUTO_INCREMENT,
  `a` int DEFAULT '3' COMMENT 'it''s `id` \\\\ \\n (new), "q" AUTO_INCREMENT=5',
  `b ``x),` varchar(20) CHARACTER SET latin1 COLLATE latin1_bin NOT NULL DEFAULT 'a''\\\\',
  `c` decimal(10,2) GENERATED ALWAYS AS ((`a` * 2)) VIRTUAL,
  `d` int GENERATED ALWAYS AS ((`c` + 1)) STORED /*!80023 INVISIBLE */,
  `e` enum('x,y','z''a') DEFAULT 'z''a',
  `up` bigint unsigned DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `a` (`a`,`b ``x),`(5) DESC) COMMENT 'hel''lo',
  KEY `of a function` (((`a` + 1)),(lower(`e`))) /*!80000 INVISIBLE */,
  FULLTEXT KEY `ft` (`b ``x),`) /*!50100 WITH PARSER `ngram` */ ,
  CONSTRAINT `to itself` FOREIGN KEY (`up`) REFERENCES `odd ``name, (` (`id`) ON DELETE CASCADE,
  CONSTRAINT `to other` FOREIGN KEY (`a`) REFERENCES `other` (`up`),
  CONSTRAINT `chk (x` CHECK (((`a` > -(5)) or (`e` = _utf8mb4'-(5)'))) /*!80016 NOT ENFORCED */
) ENGINE=InnoDB AUTO_INCREMENT=50 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_0900_ai_ci COMMENT='ta''ble AUTO_INCREMENT=7'
/*!50500 PARTITION BY RANGE  COLUMNS(id)
SUBPARTITION BY HASH (`a`)
(PARTITION id VALUES LESS THAN (3) COMMENT = 'x\\'y' ENGINE = InnoDB) */"""
MARIADB = """CREATE TABLE `t` (
  `id` int(11) NOT NULL DEFAULT 3 CHECK (`id` > -5),
  `j` longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin DEFAULT NULL CHECK (json_valid(`j`)),
  `c` varchar(9) /*M!100301 COMPRESSED*/ DEFAULT concat('a','b'),
  KEY `ignored` (`id`) IGNORED
) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci `PAGE_COMPRESSED`=1
 PARTITION BY HASH (`id`)
PARTITIONS 4"""
PLAIN = """CREATE TABLE `t` (
  `id` int NOT NULL,
  `name` varchar(10) DEFAULT NULL,
  `size` int NOT NULL,
  PRIMARY KEY (`id`),
  KEY `name` (`name`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_0900_ai_ci"""


# Reading -------------------------------------------------------------------------------------------------------


def test_every_column_of_a_definition_is_read() -> None:
    """Names and texts with quotes, commas and parentheses end where they end."""
    table = parse(MYSQL)
    assert table.name == "odd `name, ("
    assert table.column_names == ("id", "a", "b `x),", "c", "d", "e", "up")
    assert [column.generation for column in table.columns] == [None, None, None, "VIRTUAL", "STORED", None, None]
    assert table.columns[1].text.startswith("int DEFAULT '3' COMMENT 'it''s `id`")
    assert [column.collation for column in table.columns if column.collation] == ["latin1_bin", "utf8mb4_0900_ai_ci"]


def test_keys_and_constraints_are_read_by_name() -> None:
    """Each line is kept whole, an expression in a key included."""
    table = parse(MYSQL)
    assert list(table.keys) == ["PRIMARY", "a", "of a function", "ft"]
    assert list(table.foreign_keys) == ["to itself", "to other"]
    assert list(table.checks) == ["chk (x"]
    assert table.primary_key == ("id",)
    assert table.columns_of_key("a") == ("a", "b `x),")
    assert table.columns_of_key("of a function") == ()


def test_options_are_read_without_the_counter() -> None:
    """A counter is no part of the definition, though a comment may look like one."""
    table = parse(MYSQL)
    assert table.engine == "InnoDB"
    assert table.option_values["COMMENT"] == "'ta''ble AUTO_INCREMENT=7'"
    assert "AUTO_INCREMENT" not in table.option_values
    assert table.partitions.startswith("PARTITION BY RANGE  COLUMNS(id)\nSUBPARTITION")
    assert table.partitions.endswith("ENGINE = InnoDB)")


def test_what_mariadb_prints_is_read() -> None:
    """Its checks within columns, its options in backticks, its partitions without a comment around."""
    table = parse(MARIADB)
    assert table.columns[1].text.endswith("CHECK (json_valid(`j`))")
    assert table.option_values["`PAGE_COMPRESSED`"] == "1"
    assert table.columns[2].collation == "latin1_swedish_ci"
    assert table.partitions == "PARTITION BY HASH (`id`)\nPARTITIONS 4"


def test_who_mentions_a_column_is_known() -> None:
    """Keys, constraints, computed columns and partitions, and not what only is called like it."""
    table = parse(MYSQL)
    assert table.mentions("A") == [
        *(("column", "c"), ("key", "a"), ("key", "of a function")),
        *(("foreign key", "to other"), ("check", "chk (x"), ("partitions", "")),
    ]
    assert table.mentions("id") == [("key", "PRIMARY"), ("foreign key", "to itself"), ("partitions", "")]
    assert table.mentions("up") == [("foreign key", "to itself")]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE ALGORITHM=UNDEFINED DEFINER=`a`@`b` SQL SECURITY DEFINER VIEW `v` AS select 1 AS `a`",
        "CREATE TEMPORARY TABLE `t` (\n  `id` int\n) ENGINE=InnoDB",
        "CREATE TABLE `t` (\n  `id` int\n) ENGINE=InnoDB WITH SYSTEM VERSIONING",
        "CREATE TABLE `t` (\n  `s` date,\n  `e` date,\n  PERIOD FOR `p` (`s`, `e`)\n) ENGINE=InnoDB",
        "CREATE TABLE `s` (\n  `next_not_cached_value` bigint(21) NOT NULL\n) ENGINE=InnoDB SEQUENCE=1",
        "",
    ],
)
def test_what_is_not_known_is_refused(text: str) -> None:
    """A view, a temporary table, versioning, periods, a sequence: the error says how to go on."""
    with pytest.raises(MigrationError) as caught:
        parse(text)
    assert "atomic = False" in caught.value.hint


def test_renamed_columns_are_renamed_wherever_they_stand() -> None:
    """In keys, checks, computed columns, own foreign keys and partitions; in strings, key names and parents never."""
    table = parse(MYSQL).with_renamed({"id": "n", "a": "m", "up": "above"})
    assert table.column_names == ("n", "m", "b `x),", "c", "d", "e", "above")
    assert "COMMENT 'it''s `id`" in table.columns[1].text
    assert table.columns[3].text == "decimal(10,2) GENERATED ALWAYS AS ((`m` * 2)) VIRTUAL"
    assert table.keys["a"].startswith("UNIQUE KEY `a` (`m`,`b ``x),`(5) DESC)")
    assert "(`above`) REFERENCES `odd ``name, (` (`n`)" in table.foreign_keys["to itself"]
    assert "(`m`) REFERENCES `other` (`up`)" in table.foreign_keys["to other"]
    assert table.partitions.startswith("PARTITION BY RANGE  COLUMNS(`n`)\nSUBPARTITION BY HASH (`m`)\n(PARTITION id ")


# Comparing -----------------------------------------------------------------------------------------------------


def test_what_no_statement_sets_back_makes_no_difference() -> None:
    """The counter, the order of keys, and how MySQL prints a negative number after a copy."""
    lines = MYSQL.splitlines()
    lines[9], lines[10] = lines[10], lines[9]
    other = "\n".join(lines).replace("AUTO_INCREMENT=50", "AUTO_INCREMENT=90").replace("`a` > -(5)", "`a` > -5")
    assert other != MYSQL
    assert same(MYSQL, other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'-(5)'", "'-5'"),
        ("AUTO_INCREMENT=7'", "AUTO_INCREMENT=8'"),
        ("`up` bigint unsigned", "`UP` bigint unsigned"),
        ("COLUMNS(id)", "COLUMNS(a)"),
        (" /*!80016 NOT ENFORCED */", ""),
        ("latin1_bin", "latin1_swedish_ci"),
        (
            "  `e` enum('x,y','z''a') DEFAULT 'z''a',\n  `up` bigint unsigned DEFAULT NULL,\n",
            "  `up` bigint unsigned,\n",
        ),
    ],
)
def test_what_counts_makes_a_difference(old: str, new: str) -> None:
    """Strings, the case of a name, partitions, enforcement, collations, columns."""
    assert old in MYSQL
    assert not same(MYSQL, MYSQL.replace(old, new))


def test_a_collation_counts_as_it_holds_not_as_it_is_printed() -> None:
    """A column without a collation has the table's."""
    said = PLAIN.replace("varchar(10)", "varchar(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci")
    assert same(PLAIN, said)
    assert not same(PLAIN, PLAIN.replace("utf8mb4_0900_ai_ci", "utf8mb4_bin"))
    latin = said.replace("DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_0900_ai_ci", "DEFAULT CHARSET=latin1")
    assert [(each.kind, each.name) for each in differing_names(latin, PLAIN)] == [("option", "DEFAULT CHARSET")]


def test_differences_say_what_is_and_what_was() -> None:
    """Each names the thing, what it is and what it was; what it is about can be asked."""
    now = PLAIN.replace("`size` int NOT NULL", "`size` bigint NOT NULL,\n  `more` int").replace("KEY `name`", "KEY `x`")
    differences = differing_names(now, PLAIN)
    assert differences == [
        Difference("column", "size", "bigint NOT NULL", "int NOT NULL"),
        Difference("column", "more", "int", None),
        Difference("key", "x", "KEY `x` (`name`)", None),
        Difference("key", "name", None, "KEY `name` (`name`)"),
    ]
    found = {each.name: each for each in differences}
    assert found["more"].is_extra
    assert found["x"].identifiers == {"x", "name"}
    assert not found["size"].is_extra


def test_a_renamed_column_is_one_difference() -> None:
    """With the names given, the keys on it are as they were; without them the column is gone and another there."""
    now = PLAIN.replace("`name` varchar", "`title` varchar").replace("(`name`)", "(`title`)")
    assert [(each.kind, each.name) for each in differing_names(now, PLAIN, {"title": "name"})] == [("column", "name")]
    assert {each.name for each in differing_names(now, PLAIN)} == {"name", "title"}


# Bringing back -------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_no_statement() -> None:
    """A table that is as it was is left alone, whatever names are given."""
    assert changes(MYSQL, MYSQL.replace("=50", "=51"), {"a": "b"}) == []


def test_one_statement_does_all_of_one_column() -> None:
    """Type and place of a column go in one clause: the servers refuse two (1054)."""
    now = PLAIN.replace("  `size` int NOT NULL,\n", "").replace("(\n", "(\n  `bulk` bigint NOT NULL,\n", 1)
    assert changes(now, PLAIN, {"bulk": "size"}) == [
        "ALTER TABLE `t` RENAME COLUMN `bulk` TO `size`",
        "ALTER TABLE `t` MODIFY COLUMN `size` int NOT NULL AFTER `name`",
    ]


def test_names_that_fit_nothing_are_passed_over() -> None:
    """The statement that was to rename may never have run."""
    now = PLAIN.replace("varchar(10)", "varchar(20)")
    wanted = ["ALTER TABLE `t` MODIFY COLUMN `name` varchar(10) DEFAULT NULL"]
    assert changes(now, PLAIN, {"gone": "name", "name": "nothing"}) == wanted


def test_an_option_that_cannot_be_taken_away_is_refused() -> None:
    """Nothing is sent, and the error names it."""
    with pytest.raises(MigrationError, match="UNION"):
        changes(PLAIN + " UNION=(`a`,`b`)", PLAIN)


def test_the_fewest_columns_are_moved() -> None:
    """A column that was put first goes back; the others stay."""
    now = PLAIN.replace("  `size` int NOT NULL,\n", "").replace("(\n", "(\n  `size` int NOT NULL,\n", 1)
    assert changes(now, PLAIN) == ["ALTER TABLE `t` MODIFY COLUMN `size` int NOT NULL AFTER `name`"]


PARENT = "CREATE TABLE p (id INT PRIMARY KEY, code VARCHAR(20) UNIQUE)"
TABLE = """CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a INT NOT NULL DEFAULT 7, `b ``x),` VARCHAR(30), p_id INT,
           up INT, at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, n INT INVISIBLE,
           note TEXT COMMENT 'it''s 100 %\\\\ "new"\\nline', v BIGINT GENERATED ALWAYS AS (a + 1) VIRTUAL,
           s BIGINT GENERATED ALWAYS AS (a * 2) STORED, g POINT NOT NULL, latin VARCHAR(20) CHARACTER SET latin1,
           UNIQUE KEY ab (a, `b ``x),`(5) DESC), KEY n (n) COMMENT 'a `k`', FULLTEXT KEY words (note),
           SPATIAL KEY place (g), KEY v (v), CONSTRAINT f FOREIGN KEY (p_id) REFERENCES p (id) ON DELETE SET NULL,
           CONSTRAINT `to (itself` FOREIGN KEY (up) REFERENCES t (id), CONSTRAINT c CHECK (a > -(5)),
           CONSTRAINT c2 CHECK (a < 100 OR `b ``x),` <> 'a''-(5)')) COMMENT='ta''ble'"""
ROW = "INSERT INTO t (a, `b ``x),`, note, g, latin) VALUES (1, 'one', 'text', ST_GeomFromText('POINT(1 2)'), 'x')"
ROWS = "SELECT id, a, `b ``x),`, p_id, note, g, latin, n FROM t"
PARTITIONED = """CREATE TABLE t (id INT NOT NULL, a INT, d DATE NOT NULL, PRIMARY KEY (id, d))
                 PARTITION BY RANGE (YEAR(d)) (PARTITION old VALUES LESS THAN (2000) COMMENT = 'it''s',
                 PARTITION `p 1` VALUES LESS THAN MAXVALUE)"""
NAMES = ("a" * 64, "ä" * 64, "名" * 21, "new\nline", "per%cent", "back\\slash", "`), ('", "/*!")
NO_KEY = "DROP FOREIGN KEY `to (itself`, MODIFY id INT, DROP PRIMARY KEY"
# Each with what was called otherwise before.
ALTERATIONS: list[tuple[str, dict[str, str]]] = [
    ("ADD COLUMN x INT NOT NULL FIRST, ADD COLUMN y VARCHAR(5) AFTER a, ADD KEY xy (x, y)", {}),
    ("MODIFY a BIGINT, MODIFY p_id INT NULL AFTER note, MODIFY n INT FIRST", {}),
    ("RENAME COLUMN note TO words, RENAME COLUMN up TO above", {"words": "note", "above": "up"}),
    (
        "CHANGE COLUMN `b ``x),` B VARCHAR(60) CHARACTER SET latin1 NOT NULL DEFAULT '' FIRST, DROP CONSTRAINT c2",
        {"B": "b `x),"},
    ),
    ("CHANGE COLUMN latin LATIN VARCHAR(20) CHARACTER SET latin1", {}),
    ("RENAME COLUMN latin TO n, RENAME COLUMN n TO latin", {"n": "latin", "latin": "n"}),
    ("ALTER COLUMN n SET DEFAULT 5", {}),
    ("ALTER COLUMN a DROP DEFAULT, ALTER COLUMN at SET DEFAULT '2000-01-01', ALTER COLUMN p_id DROP DEFAULT", {}),
    ("MODIFY at DATETIME(3) NULL, MODIFY note MEDIUMTEXT COMMENT '50 %'", {}),
    (f"{NO_KEY}, ADD PRIMARY KEY (a)", {}),
    (f"{NO_KEY}, ADD COLUMN k INT AUTO_INCREMENT UNIQUE", {}),
    ("ADD KEY by_p (p_id), ADD UNIQUE KEY u (p_id, a)", {}),
    ("DROP KEY ab, DROP KEY words, DROP KEY place, DROP KEY n, ADD KEY n (n, a DESC)", {}),
    ("RENAME KEY n TO m, RENAME KEY ab TO `a ``b`", {}),
    ("DROP FOREIGN KEY f, DROP FOREIGN KEY `to (itself`, DROP KEY f", {}),
    ("DROP FOREIGN KEY f, ADD CONSTRAINT g FOREIGN KEY (p_id) REFERENCES p (id) ON DELETE CASCADE", {}),
    ("DROP CONSTRAINT c, DROP CONSTRAINT c2, ADD CONSTRAINT c3 CHECK (a IS NOT NULL), ADD CHECK (n > -(7))", {}),
    ("DROP COLUMN v, ADD COLUMN v BIGINT GENERATED ALWAYS AS (a + 1) STORED FIRST", {}),
    ("DROP COLUMN s, DROP KEY v, DROP COLUMN v", {}),
    ("COMMENT='', DEFAULT CHARSET latin1, STATS_PERSISTENT=1, ROW_FORMAT=COMPACT, AUTO_INCREMENT=1000", {}),
    ("CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", {}),
    ("ADD COLUMN new_p INT, ADD CONSTRAINT h FOREIGN KEY (new_p) REFERENCES p (id)", {}),
]
OWN_ALTERATIONS = {
    "mariadb": ["ALTER INDEX n IGNORED", "MODIFY a INT CHECK (a <> 5), ADD COLUMN j JSON, ADD COLUMN i INET6"],
    "mysql": [
        *("ALTER INDEX n INVISIBLE", "ALTER CHECK c NOT ENFORCED", "ADD KEY (a, (a + 1), (LOWER(latin)) DESC)"),
        "ADD COLUMN j JSON, ADD COLUMN srid POINT SRID 4326, MODIFY n INT VISIBLE",
    ],
}
REPARTITIONS = [
    "REMOVE PARTITIONING",
    "REORGANIZE PARTITION `p 1` INTO (PARTITION q VALUES LESS THAN (2010), PARTITION r VALUES LESS THAN MAXVALUE)",
    "ADD COLUMN x INT FIRST",
    "DROP PRIMARY KEY, ADD PRIMARY KEY (d)",
    "PARTITION BY KEY (id) PARTITIONS 3",
    "CHANGE COLUMN id ID INT NOT NULL",
]


class Table:
    """The table ``t`` on a real server, altered and brought back."""

    def __init__(self, connection: Any) -> None:
        self.link = Link(connection)

    @property
    def definition(self) -> str:
        """The table as SHOW CREATE TABLE prints it."""
        return str(self.link.rows("SHOW CREATE TABLE t")[0][1])

    def make(self, *statements: str) -> None:
        """Begin anew."""
        self.link.execute("SET foreign_key_checks = 0")
        self.link.execute("DROP TABLE IF EXISTS t, p")
        self.link.execute("SET foreign_key_checks = 1")
        for sql in statements:
            self.link.execute(sql)

    def bring_back(self, before: str, renamed: dict[str, str]) -> list[str]:
        """Send what ``changes`` says until the table is as *before*, and return all of it."""
        self.link.execute("SET foreign_key_checks = 0")
        sent = []
        for _ in range(PASSES):
            for sql in changes(self.definition, before, renamed):
                self.link.execute(sql)
                sent.append(sql)
        assert differing_names(self.definition, before) == []
        return sent


@pytest.fixture(name="table")
def _table(backend: Backend) -> Iterator[Table]:
    with closing(servers.connect(backend.url)) as connection:
        yield Table(connection)


@pytest.mark.engines("mariadb", "mysql")
def test_every_alteration_is_brought_back(table: Table, backend: Backend) -> None:
    """The definition is as it was, and so are the rows of the columns that stood."""
    table.make(PARENT, TABLE, ROW)
    before, rows = table.definition, table.link.rows(ROWS)
    for clauses, renamed in ALTERATIONS + [(own, {}) for own in OWN_ALTERATIONS[backend.engine]]:
        table.link.execute(f"ALTER TABLE t {clauses}")
        assert not same(table.definition, before), clauses
        table.bring_back(before, renamed)
        assert table.link.rows(ROWS) == rows, clauses


@pytest.mark.engines("mariadb", "mysql")
@pytest.mark.parametrize("clauses", REPARTITIONS)
def test_partitions_are_brought_back(table: Table, clauses: str) -> None:
    """The old ones are made again, with the primary key that they need."""
    table.make(PARTITIONED, "INSERT INTO t VALUES (1, 2, '1999-01-01'), (2, 3, '2024-02-29')")
    before = table.definition
    table.link.execute(f"ALTER TABLE t {clauses}")
    table.bring_back(before, {})
    assert table.link.rows("SELECT * FROM t PARTITION (old)") == table.link.rows("SELECT * FROM t WHERE id = 1")


@pytest.mark.engines("mariadb", "mysql")
def test_a_foreign_keys_own_index_is_its_own_again(table: Table) -> None:
    """The server drops it once more as soon as another key serves: the migration's next try ends as the first would."""
    table.make(
        PARENT, "CREATE TABLE t (id INT PRIMARY KEY, p_id INT, CONSTRAINT f FOREIGN KEY (p_id) REFERENCES p (id))"
    )
    before = table.definition
    for _ in range(2):
        table.link.execute("ALTER TABLE t ADD KEY by_p (p_id)")
        assert list(parse(table.definition).keys) == ["PRIMARY", "by_p"]
        table.bring_back(before, {})
        assert list(parse(table.definition).keys) == ["PRIMARY", "f"]


@pytest.mark.engines("mariadb", "mysql")
def test_a_column_without_any_default_has_none_again(table: Table) -> None:
    """Not even the NULL that MODIFY gives it."""
    table.make("CREATE TABLE t (id INT, a INT, b VARCHAR(9))")
    for put, name in (("a INT AFTER id", "a"), ("b VARCHAR(9) AFTER a", "b")):
        table.link.execute(f"ALTER TABLE t /*M! MODIFY {put}, */ ALTER COLUMN {name} DROP DEFAULT")
    before = table.definition
    assert before.count("NULL") == 1
    table.link.execute("ALTER TABLE t MODIFY a BIGINT, DROP COLUMN b")
    table.bring_back(before, {})


@pytest.mark.engines("mariadb", "mysql")
def test_several_fulltext_keys_come_back(table: Table) -> None:
    """MySQL makes one in a statement (1795)."""
    table.make("CREATE TABLE t (a TEXT, b TEXT, FULLTEXT KEY x (a), FULLTEXT KEY y (b), FULLTEXT KEY z (a, b))")
    before = table.definition
    table.link.execute("ALTER TABLE t DROP KEY x, DROP KEY y, DROP KEY z")
    assert len(table.bring_back(before, {})) == 3


@pytest.mark.engines("mariadb", "mysql")
def test_a_crash_between_two_statements_costs_nothing(table: Table) -> None:
    """What is left after any of them is brought back as well."""
    clauses = "DROP FOREIGN KEY f, ADD CONSTRAINT g FOREIGN KEY (n) REFERENCES p (id), ALTER COLUMN up DROP DEFAULT"
    table.make(PARENT, TABLE)
    before = table.definition
    table.link.execute(f"ALTER TABLE t {clauses}")
    count = len(changes(table.definition, before))
    assert count > 1
    for sent in range(1, count):
        table.make(PARENT, TABLE)
        table.link.execute(f"ALTER TABLE t {clauses}")
        table.link.execute("SET foreign_key_checks = 0")
        for sql in changes(table.definition, before)[:sent]:
            table.link.execute(sql)
        table.bring_back(before, {})


@pytest.mark.engines("mariadb", "mysql")
@pytest.mark.parametrize(
    "name", ["a" * 64, "ä" * 64, "名" * 21, "new\nline", "per%cent", "back\\slash", "`), ('", "/*!"]
)
def test_a_column_of_any_name_is_taken_away_and_put_back(table: Table, name: str) -> None:
    """With rows in the table; MySQL's INSTANT fails on long names beyond ASCII."""
    table.make(PARENT, TABLE, ROW)
    before = table.definition
    table.link.execute(f"ALTER TABLE t ADD COLUMN {quoted(name)} INT AFTER a, ADD KEY {quoted(name)} ({quoted(name)})")
    after = table.definition
    table.bring_back(before, {})
    table.bring_back(after, {})
