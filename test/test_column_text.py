"""A column's definition is edited in its own words, as SQLite keeps them and as MySQL and MariaDB print them."""

from __future__ import annotations

import peewee
import pytest

from api.db.dialects.column_text import edited_item, names_in, parse_definition, split_body, tokens_of, unquote
from api.db.dialects.engine import Engine
from api.db.migrators import migrator_for
from api.db.schema import mysql_definitions

NOT_NULL_EDITS = {
    "int(11) DEFAULT NULL": "int(11) NOT NULL",
    "varchar(9) COLLATE utf8mb4_bin DEFAULT 'NOT NULL'": "varchar(9) COLLATE utf8mb4_bin NOT NULL DEFAULT 'NOT NULL'",
    "timestamp NULL DEFAULT NULL ON UPDATE now()": "timestamp NOT NULL ON UPDATE now()",
    "int GENERATED ALWAYS AS (`a` + 1) VIRTUAL": "int GENERATED ALWAYS AS(`a` + 1) VIRTUAL NOT NULL",
    "enum('a','NULL',')') DEFAULT 'a' COMMENT 'it\\'s'": "enum('a','NULL',')') NOT NULL DEFAULT 'a' COMMENT 'it\\'s'",
    "bit(1) DEFAULT b'0'": "bit(1) NOT NULL DEFAULT b'0'",
    "text DEFAULT (_utf8mb4'a,(')": "text NOT NULL DEFAULT(_utf8mb4'a,(')",
    "char(1) DEFAULT _latin1'x'": "char(1) NOT NULL DEFAULT _latin1'x'",
    "int DEFAULT '3' /*!80023 INVISIBLE */": "int NOT NULL DEFAULT '3' /*!80023 INVISIBLE */",
    "point /*!80003 SRID 4326 */ DEFAULT NULL": "point /*!80003 SRID 4326 */ NOT NULL",
    "text /*M!100301 COMPRESSED*/ DEFAULT NULL": "text /*M!100301 COMPRESSED*/ NOT NULL",
    "int DEFAULT (1--1) COMMENT ')'": "int NOT NULL DEFAULT(1--1) COMMENT ')'",
    "int WITHOUT SYSTEM VERSIONING": "int NOT NULL WITHOUT SYSTEM VERSIONING",
}
NULL_EDITS = {
    "a TEXT UNIQUE NOT NULL ON CONFLICT REPLACE": "a TEXT NULL UNIQUE",
    "a INT CONSTRAINT nn NOT NULL CONSTRAINT ck CHECK (a > 0)": "a INT NULL CONSTRAINT ck CHECK(a > 0)",
    "a INT NOT NULL REFERENCES p ON DELETE SET NULL": "a INT NULL REFERENCES p ON DELETE SET NULL",
    "a INT REFERENCES p ON DELETE SET DEFAULT NOT NULL": "a INT NULL REFERENCES p ON DELETE SET DEFAULT",
    "a TIMESTAMP WITH TIME ZONE NOT NULL": "a TIMESTAMP WITH TIME ZONE NULL",
    "a INT--note, NOT NULL\nNOT NULL": "a INT NULL",
}
TYPE_EDITS = {
    ("varchar(9) CHARACTER SET latin1 COLLATE latin1_bin", "TEXT"): "TEXT CHARACTER SET latin1 COLLATE latin1_bin",
    ("varchar(9) CHARACTER SET latin1 COLLATE latin1_bin NOT NULL", "INTEGER"): "INTEGER NOT NULL",
    ("int(10) unsigned NOT NULL DEFAULT -5 COMMENT 'x'", "BIGINT"): "BIGINT NOT NULL DEFAULT -5 COMMENT 'x'",
    ("int /*!80023 INVISIBLE */", "enum('a  b')"): "enum('a  b') /*!80023 INVISIBLE */",
}
# Engine -> a column as it is made -> as the server prints it with NOT NULL.
PRINTED: dict[Engine, dict[str, str]] = {
    "mysql": {
        "BIT(1) DEFAULT b'0'": "bit(1) NOT NULL DEFAULT b'0'",
        "VARBINARY(4) DEFAULT x'00ff'": "varbinary(4) NOT NULL DEFAULT 0x00FF",
        "INT DEFAULT 3 INVISIBLE": "int NOT NULL DEFAULT '3' /*!80023 INVISIBLE */",
        "POINT SRID 4326": "point NOT NULL /*!80003 SRID 4326 */",
        "INT COLUMN_FORMAT DYNAMIC": "int NOT NULL /*!50606 COLUMN_FORMAT DYNAMIC */",
    },
    "mariadb": {
        "BIT(1) DEFAULT b'0'": "bit(1) NOT NULL DEFAULT b'0'",
        "INT INVISIBLE DEFAULT 3": "int(11) NOT NULL INVISIBLE DEFAULT 3",
        "VARCHAR(99) COMPRESSED DEFAULT 'x'": "varchar(99) /*M!100301 COMPRESSED*/ NOT NULL DEFAULT 'x'",
    },
}


@pytest.mark.parametrize("definition", NOT_NULL_EDITS)
def test_not_null_is_edited_and_nothing_else(definition: str) -> None:
    """As MySQL and MariaDB print a column: quotes, comments and defaults that look like keywords pass through."""
    edited = parse_definition(definition, named=False, backslashes=True).with_null(False)

    assert str(edited) == NOT_NULL_EDITS[definition]


@pytest.mark.parametrize("definition", NULL_EDITS)
def test_null_takes_out_what_belongs_to_not_null_and_nothing_else(definition: str) -> None:
    """As SQLite keeps a column: its name and its ON CONFLICT go; ON DELETE SET NULL stays."""
    edited = parse_definition(definition, named=True, backslashes=False).with_null(True)

    assert str(edited) == NULL_EDITS[definition]


def test_a_not_null_that_stands_keeps_its_name_and_its_conflict_clause() -> None:
    """To ask for it once more changes nothing."""
    text = "a INT CONSTRAINT nn NOT NULL ON CONFLICT IGNORE"

    assert str(parse_definition(text, named=True, backslashes=False).with_null(False)) == text


@pytest.mark.parametrize(("definition", "kind"), TYPE_EDITS)
def test_a_type_is_edited_and_the_rest_stays(definition: str, kind: str) -> None:
    """The character set goes where the new type has none."""
    edited = parse_definition(definition, named=False, backslashes=True).with_type(kind)

    assert str(edited) == TYPE_EDITS[definition, kind]


@pytest.mark.parametrize("text", ["TIMESTAMP WITH TIME ZONE", "UNSIGNED BIG INT", "character varying(30)", "COMMENT"])
def test_a_type_of_several_words_is_replaced_whole(text: str) -> None:
    """SQLite takes any words for a type, also those that end one in MySQL."""
    edited = parse_definition(f"a {text} NOT NULL", named=True, backslashes=False).with_type("TEXT")

    assert str(edited) == "a TEXT NOT NULL"


@pytest.mark.parametrize(
    "default",
    [" 5", " -5", "-5", " - 5", "+1.5e-3", " (1 + 2)", " now()", "'glued'", " x'00ff'", " TRUE", " 5 -- five\n"],
)
def test_a_default_is_taken_out_whole(default: str) -> None:
    """A sign, an expression, a function's parentheses go with it, also without a space before them."""
    text = f"a INT NOT NULL DEFAULT{default} UNIQUE"

    assert str(parse_definition(text, named=True, backslashes=False).without_default()) == "a INT NOT NULL UNIQUE"


def test_the_default_of_a_foreign_key_is_not_the_columns() -> None:
    """ON DELETE SET DEFAULT stays where the column's own DEFAULT goes."""
    parsed = parse_definition("a INT REFERENCES p ON DELETE SET DEFAULT DEFAULT NULL", named=True, backslashes=False)

    assert parsed.default == "NULL"
    assert str(parsed.without_default()) == "a INT REFERENCES p ON DELETE SET DEFAULT"
    assert parsed.without_default().default is None
    assert str(parsed.with_null(False)) == "a INT NOT NULL REFERENCES p ON DELETE SET DEFAULT"


def test_text_is_split_where_sqlite_would() -> None:
    """Quotes of four kinds, comments and nested parentheses hide commas; the items are the text."""
    body = "a INT--x, y\n, [b,c] TEXT DEFAULT ',', CHECK (a IN (1, 2)) /* ), */"

    assert split_body(body) == ["a INT--x, y\n", " [b,c] TEXT DEFAULT ','", " CHECK (a IN (1, 2)) /* ), */"]
    assert tokens_of("x /* , */ 'it''s' (a (b)) -- )", backslashes=False) == ["x", "'it''s'", "(a (b))"]
    assert [unquote(name) for name in ('"a""b"', "`c`", "[d]", "e")] == ['a"b', "c", "d", "e"]
    assert names_in('("a b" DESC, /* b */ c)') == ["a b", "c"]


def test_an_item_keeps_the_comments_around_it() -> None:
    """Only what is between its first and its last word is replaced."""
    assert edited_item(" -- before\n a INT /* inside */ NULL -- after\n", "a TEXT") == " -- before\n a TEXT -- after\n"


@pytest.mark.engines("mysql", "mariadb")
def test_a_server_keeps_what_it_prints_as_a_comment(db: peewee.Database) -> None:
    """NOT NULL set: INVISIBLE, SRID, COMPRESSED and the defaults of bits and bytes stay."""
    migrator = migrator_for(db)
    columns = PRINTED[migrator.engine]
    made = ", ".join(f"c{number} {column}" for number, column in enumerate(columns))
    db.execute_sql(f"CREATE TABLE t (id INT PRIMARY KEY, {made})")

    for number in range(len(columns)):
        migrator.add_not_null("t", f"c{number}").run()

    printed = mysql_definitions(db, "t")
    assert [printed[f"c{number}"] for number in range(len(columns))] == list(columns.values())
