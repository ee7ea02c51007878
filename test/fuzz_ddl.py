"""Random tables and random ALTERs, sent to a real server, undone by what ``changes`` computes, and compared.

``python test/fuzz_ddl.py --count 3000 --seed 7 --engine mariadb`` runs until 3000 statements were undone; MySQL is the
one that ``TEST_MYSQL_URL`` leads to. A round of a table is repeated by its own seed, which a failure prints.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import pymysql
import servers

from api.db.journal.changes import changes
from api.db.journal.definition import Column, TableDefinition, differences, parse, same
from api.db.journal.link import name as quoted

Maker = Literal["mariadb", "mysql"]
TABLE, PARENT, CHILD = "t", "p", "child"
PASSES = 3
ROWS = 10
STATEMENTS_A_ROUND = 6
# What the session that undoes says first, as the journal does.
UNDO_SESSION = "SET foreign_key_checks = 0, sql_mode = 'STRICT_TRANS_TABLES,ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO'"
# MariaDB checks all rows against all checks when it copies, also such as were there before the check.
OWN_UNDO_SESSION: dict[Maker, str] = {"mariadb": ", check_constraint_checks = 0", "mysql": ""}
SESSION = "SET foreign_key_checks = 1, sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'"
OWN_SESSION: dict[Maker, str] = {"mariadb": ", check_constraint_checks = 1", "mysql": ""}
# What a dropped column's values would be needed for: duplicate rows, a NULL, no geometry, a CHECK, out of range, cut.
NEEDS_DATA = frozenset(
    {1062, 1138, 1364, 1416, 3819, 4025, 1048, 1264, 1265, 1406, 1292, 1366, 3756, 1526, 1690, 3140, 3144, 3156}
)
NAMES = (
    *(
        "a",
        "b",
        "c",
        "d",
        "e",
        "Mixed",
        "select",
        "b c",
        "we`ird",
        "x)y,(",
        "größe",
        "名前",
        "per%cent",
        "it's",
        'do"uble',
    ),
    *("back\\slash", "ä" * 64, "/* no */", "-- no", "new\nline"),
)
COMMENTS = (
    "plain",
    "it's",
    'two "words"',
    "back\\slash",
    "new\nline",
    "a `tick`",
    "-(5) /* no */",
    "50 % off",
    "größe 名",
    ",)(",
)
CHARSETS = (
    *(
        "CHARACTER SET latin1",
        "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "CHARACTER SET utf8mb4",
        "COLLATE utf8mb4_bin",
    ),
    *(
        "CHARACTER SET ascii",
        "CHARACTER SET latin1 COLLATE latin1_bin",
        "CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
    ),
)


@dataclass(frozen=True, slots=True)
class Type:
    """A column's type: how it is written, literals that fit it, and how a key takes it."""

    text: str
    values: tuple[str, ...]
    is_number: bool = False
    is_text: bool = False
    prefix: str = ""
    has_default: bool = True


def _number(text: str, *values: str) -> Type:
    return Type(text, values or ("0", "1", "2", "7", "42", "100"), is_number=True)


def _words(text: str, prefix: str = "", *, has_default: bool = True) -> Type:
    values = ("''", "'a'", "'B'", "'7'", "'it''s'", "'x\\\\y'", "'100 %'", "'line\\nline'")
    return Type(text, values, is_text=True, prefix=prefix, has_default=has_default)


# No binary default that is not UTF-8: MariaDB prints it as it is, and PyMySQL cannot read the definition.
TYPES: tuple[Type, ...] = (
    *(_number("int"), _number("bigint"), _number("bigint unsigned"), _number("smallint"), _number("tinyint(1)")),
    *(_number("int unsigned"), _number("decimal(10,2)", "1.50", "0", "99.25"), _number("double", "0.5", "1e10")),
    *(_number("mediumint"), _number("float", "0.25", "3"), _number("decimal(20,6)", "1.5", "12345.678901")),
    *(
        _words("varchar(40)"),
        _words("varchar(300)", "(20)"),
        _words("char(20)"),
        _words("text", "(10)", has_default=False),
    ),
    *(
        _words("varchar(1000)", "(30)"),
        _words("longtext", "(12)", has_default=False),
        _words("tinytext", "(5)", has_default=False),
    ),
    Type("blob", ("x'006127'", "'abc'"), prefix="(8)", has_default=False),
    *(Type("varbinary(30)", ("x'006127'", "'abc'")), Type("binary(4)", ("x'00612701'",))),
    *(
        Type("date", ("'2024-02-29'", "'1999-12-31'")),
        Type("datetime", ("'2024-02-29 10:11:12'", "'1999-12-31 00:00:00'")),
    ),
    *(Type("datetime(6)", ("'2024-02-29 10:11:12.123456'",)), Type("time(3)", ("'-10:11:12.5'", "'10:00:00'"))),
    *(Type("timestamp", ("'2024-02-29 10:11:12'",)), Type("timestamp(3)", ("'2024-02-29 10:11:12.123'",))),
    *(Type("year", ("2024", "1999")), Type("bit(5)", ("b'101'", "b'0'"))),
    *(Type("enum('a','b,c','it''s')", ("'a'", "'b,c'")), Type("set('x','y','z')", ("'x,y'", "''"))),
    Type("json", ("'{\"x\": [1, 2]}'", "'[]'"), has_default=False),
)
OWN_TYPES: dict[Maker, tuple[Type, ...]] = {
    "mariadb": (
        *(Type("uuid", ("'12345678-1234-1234-1234-123456789abc'",)), Type("inet6", ("'::1'",))),
        Type("varchar(50) COMPRESSED", ("'abc'",), has_default=False),
    ),
    "mysql": (Type("varchar(60) COLLATE utf8mb4_0900_as_cs", ("'a'", "'b'"), is_text=True),),
}
GEOMETRIES: dict[Maker, tuple[str, ...]] = {
    "mariadb": ("point NOT NULL", "geometry", "geometry NOT NULL"),
    "mysql": ("point NOT NULL SRID 4326", "geometry", "geometry NOT NULL SRID 0"),
}


@dataclass(frozen=True, slots=True)
class Alteration:
    """A statement; *renamed* says what a column is called behind it and was called before.

    *destroys* are columns, by their names before it, whose values it loses: dropped, or of a type that holds less.
    """

    statement: str
    renamed: dict[str, str] = field(default_factory=dict)
    destroys: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Clause:
    text: str
    renamed: dict[str, str] = field(default_factory=dict)
    destroys: frozenset[str] = frozenset()


class Generator:
    """Random tables, rows and alterations; the same *seed* and definitions give the same ones."""

    def __init__(self, seed: int, engine: Maker) -> None:
        self.random = random.Random(seed)
        self.engine = engine
        self.types = TYPES + OWN_TYPES[engine]
        self._number = 0

    # Tables and rows ----------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """Return the statements that make the parent and the table, some of which the server may refuse."""
        parent = f"CREATE TABLE {PARENT} (id int NOT NULL PRIMARY KEY, code varchar(40) UNIQUE, n bigint, KEY n (n))"
        names = self.random.sample(NAMES, self.random.randint(2, 6))
        items = [f"{quoted(name)} {self._column_text(name, ())}" for name in names]
        key = self.random.choice(("AUTO_INCREMENT PRIMARY KEY", "PRIMARY KEY", "", "AUTO_INCREMENT UNIQUE"))
        items.insert(self.random.randint(0, len(items)), f"id int NOT NULL {key}")
        return [
            parent,
            f"INSERT INTO {PARENT} VALUES (1, 'a', 1), (2, 'b', 2), (7, '7', 7), (42, 'it''s', 42)",
            f"CREATE TABLE {TABLE} ({', '.join(items)}) {self._some_option()}",
        ]

    def child(self) -> str:
        """Return the statement that makes a table that refers to the table; refused where that has no such key."""
        actions = self.random.choice(("", " ON DELETE CASCADE", " ON UPDATE CASCADE"))
        return f"CREATE TABLE {CHILD} (up int, FOREIGN KEY (up) REFERENCES {TABLE} (id){actions})"

    def row(self, definition: TableDefinition, number: int) -> str:
        """Return an INSERT of a row; *number* is its ``id``."""
        columns = [column for column in definition.columns if not column.generated]
        values = [str(number) if column.name == "id" else self._value(column) for column in columns]
        names = ", ".join(quoted(column.name) for column in columns)
        return f"INSERT IGNORE INTO {TABLE} ({names}) VALUES ({', '.join(values)})"

    def _value(self, column: Column) -> str:
        text = column.text.lower()
        if "not null" not in text and self.random.random() < 0.2:
            return "NULL"
        if text.startswith(("point", "geometry")):
            return f"ST_GeomFromText('POINT(1 2)', {4326 if '4326' in text else 0})"
        fitting = [each for each in self.types if text.split()[0].split("(")[0] == each.text.lower().split("(")[0]]
        return self.random.choice(fitting[0].values) if fitting else "NULL"

    # Columns ------------------------------------------------------------------------------------------------------

    def _new_name(self, taken: tuple[str, ...]) -> str:
        self._number += 1
        free = [name for name in NAMES if name.lower() not in {each.lower() for each in taken}]
        return self.random.choice([*free, f"n{self._number}"])

    def _column_text(self, name: str, others: tuple[Column, ...]) -> str:
        if others and self._chance(0.15):
            return self._generated_text(others)
        if self._chance(0.05):
            return self.random.choice(GEOMETRIES[self.engine])
        kind = self.random.choice(self.types)
        words = [kind.text]
        if kind.is_text and "COLLATE" not in kind.text and self._chance(0.3):
            words.append(self.random.choice(CHARSETS))
        words.append(self.random.choice(("", "NULL", "NOT NULL")))
        words.append(self._default(kind, nullable=words[-1] != "NOT NULL"))
        if self._chance(0.1):
            words.append("INVISIBLE" if words[-1] or words[-2] != "NOT NULL" else "")
        if self._chance(0.2):
            words.append(f"COMMENT {_string(self.random.choice(COMMENTS))}")
        if self._chance(0.08):
            words.append(self._column_check(name, kind))
        return " ".join(word for word in words if word)

    def _default(self, kind: Type, *, nullable: bool) -> str:
        choice = self.random.random()
        if kind.text.startswith(("timestamp", "datetime")) and choice < 0.4:
            digits = kind.text.partition("(")[2].rstrip(")")
            now = f"CURRENT_TIMESTAMP({digits})" if digits else "CURRENT_TIMESTAMP"
            return f"DEFAULT {now}" + (f" ON UPDATE {now}" if choice < 0.2 else "")
        if choice < 0.6:
            return ""
        if choice < 0.7 and kind.is_number:
            return "DEFAULT (1 + 2)"
        if choice < 0.75 and kind.is_text and "COMPRESSED" not in kind.text:
            return "DEFAULT (concat('a', 'it''s'))"
        if not kind.has_default:
            return ""
        if choice < 0.8 and nullable:
            return "DEFAULT NULL"
        return f"DEFAULT {self.random.choice(kind.values)}"

    def _column_check(self, name: str, kind: Type) -> str:
        if kind.is_number:
            return f"CHECK ({quoted(name)} > -(5))"
        return f"CHECK ({quoted(name)} <> 'it''s not -(5)')" if kind.is_text else ""

    def _generated_text(self, others: tuple[Column, ...]) -> str:
        kind, expression = self._expression(others)
        keeping = self.random.choice(("VIRTUAL", "STORED"))
        return f"{kind} GENERATED ALWAYS AS ({expression}) {keeping}"

    def _expression(self, others: tuple[Column, ...]) -> tuple[str, str]:
        column = self.random.choice(others)
        name, text = quoted(column.name), column.text.lower()
        if _is_number(column):
            return self.random.choice(("bigint", "double", "decimal(30,4)")), f"{name} + {self.random.randint(1, 9)}"
        if text.startswith(("varchar", "char", "text")):
            return "varchar(600)", f"concat({name}, '-it''s')"
        return "int", f"length({name})"

    # Alterations --------------------------------------------------------------------------------------------------

    def alteration(self, definition: TableDefinition) -> Alteration:
        """Return a random statement that alters *definition*; the server may refuse it."""
        if self._chance(0.06):
            return self._partitioning(definition)
        count = self.random.choice((1, 1, 1, 1, 2, 2, 3))
        clauses = [self._clause(definition) for _ in range(count)]
        renamed = {new: old for clause in clauses for new, old in clause.renamed.items()}
        destroys = frozenset[str]().union(*(clause.destroys for clause in clauses))
        return Alteration(f"ALTER TABLE {TABLE} {', '.join(clause.text for clause in clauses)}", renamed, destroys)

    def _clause(self, definition: TableDefinition) -> _Clause:
        makers: list[tuple[int, Callable[[TableDefinition], _Clause]]] = [
            *((10, self._add_column), (6, self._drop_column), (6, self._rename_column), (8, self._modify_column)),
            *((4, self._change_column), (3, self._set_default), (10, self._add_key), (5, self._drop_key)),
            *((2, self._rename_key), (2, self._hide_key), (3, self._primary_key), (5, self._add_foreign_key)),
            *((2, self._drop_foreign_key), (4, self._add_check), (2, self._drop_check), (1, self._enforce_check)),
            *((5, self._option), (2, self._move_column), (2, self._change_generated), (1, self._recase)),
        ]
        maker = self.random.choices([each for _, each in makers], [weight for weight, _ in makers])[0]
        return maker(definition)

    def _add_column(self, definition: TableDefinition) -> _Clause:
        name = self._new_name(definition.column_names)
        return _Clause(
            f"ADD COLUMN {quoted(name)} {self._column_text(name, definition.columns)}{self._position(definition)}"
        )

    def _position(self, definition: TableDefinition, but: str = "") -> str:
        if self._chance(0.6):
            return ""
        others = [name for name in definition.column_names if name != but]
        return self.random.choice([" FIRST", *(f" AFTER {quoted(name)}" for name in others)])

    def _drop_column(self, definition: TableDefinition) -> _Clause:
        column = self._column(definition)
        return _Clause(f"DROP COLUMN {quoted(column.name)}", destroys=frozenset({column.name}))

    def _rename_column(self, definition: TableDefinition) -> _Clause:
        old = self._column(definition).name
        new = self._new_name(definition.column_names)
        return _Clause(f"RENAME COLUMN {quoted(old)} TO {quoted(new)}", renamed={new: old})

    def _recase(self, definition: TableDefinition) -> _Clause:
        old = self._column(definition)
        new = old.name.swapcase()
        return _Clause(f"CHANGE COLUMN {quoted(old.name)} {quoted(new)} {old.text}", renamed={new: old.name})

    def _modify_column(self, definition: TableDefinition) -> _Clause:
        column = self._column(definition)
        text = self._column_text(column.name, ())
        return _Clause(
            f"MODIFY COLUMN {quoted(column.name)} {text}{self._position(definition, column.name)}",
            destroys=frozenset({column.name}),
        )

    def _change_column(self, definition: TableDefinition) -> _Clause:
        column, new = self._column(definition), self._new_name(definition.column_names)
        is_kept = self._chance(0.5)
        text = _renamed(column, new) if is_kept else self._column_text(new, ())
        return _Clause(
            f"CHANGE COLUMN {quoted(column.name)} {quoted(new)} {text}{self._position(definition, column.name)}",
            renamed={new: column.name},
            destroys=frozenset() if is_kept else frozenset({column.name}),
        )

    def _move_column(self, definition: TableDefinition) -> _Clause:
        column = self._column(definition)
        return _Clause(f"MODIFY COLUMN {quoted(column.name)} {column.text}{self._position(definition, column.name)}")

    def _change_generated(self, definition: TableDefinition) -> _Clause:
        column = self._column(definition)
        others = tuple(other for other in definition.columns if other is not column) or definition.columns
        text = self._generated_text(others)
        if column.generated and self._chance(0.5):
            text = f"{text.split()[0]} GENERATED ALWAYS AS ({self._expression(others)[1]}) {column.generation}"
        return _Clause(f"MODIFY COLUMN {quoted(column.name)} {text}", destroys=frozenset({column.name}))

    def _set_default(self, definition: TableDefinition) -> _Clause:
        column = self._column(definition)
        if self._chance(0.3):
            return _Clause(f"ALTER COLUMN {quoted(column.name)} DROP DEFAULT")
        return _Clause(f"ALTER COLUMN {quoted(column.name)} SET DEFAULT {self._value(column)}")

    def _add_key(self, definition: TableDefinition) -> _Clause:
        kind = self.random.choice(("KEY", "KEY", "KEY", "UNIQUE KEY", "FULLTEXT KEY", "SPATIAL KEY"))
        columns = self.random.sample(definition.columns, self.random.randint(1, min(3, len(definition.columns))))
        if kind == "SPATIAL KEY":
            columns = [each for each in definition.columns if each.text.startswith(("point", "geometry"))][
                :1
            ] or columns
        parts = ", ".join(self._key_part(column, plain=kind[0] in "FS") for column in columns)
        if kind == "KEY" and self.engine == "mysql" and self._chance(0.2):
            parts = f"({self._expression(definition.columns)[1]})"
        comment = f" COMMENT {_string(self.random.choice(COMMENTS))}" if self._chance(0.15) else ""
        hidden = {"mariadb": " IGNORED", "mysql": " INVISIBLE"}[self.engine] if self._chance(0.1) else ""
        return _Clause(f"ADD {kind} {quoted(self._new_key(definition))} ({parts}){comment}{hidden}")

    def _key_part(self, column: Column, *, plain: bool) -> str:
        if plain:
            return quoted(column.name)
        kind = next((each for each in self.types if column.text.lower().startswith(each.text.lower())), None)
        prefix = kind.prefix if kind else ""
        if not prefix and column.text.startswith("varchar") and self._chance(0.3):
            prefix = "(5)"
        return f"{quoted(column.name)}{prefix}{self.random.choice(('', '', ' DESC'))}"

    def _new_key(self, definition: TableDefinition) -> str:
        self._number += 1
        taken = {name.lower() for name in definition.keys}
        free = [name for name in NAMES if name.lower() not in taken]
        return self.random.choice([*free[:4], f"k{self._number}"])

    def _drop_key(self, definition: TableDefinition) -> _Clause:
        return _Clause(f"DROP KEY {quoted(self._any(definition.keys))}")

    def _rename_key(self, definition: TableDefinition) -> _Clause:
        return _Clause(f"RENAME KEY {quoted(self._any(definition.keys))} TO {quoted(self._new_key(definition))}")

    def _hide_key(self, definition: TableDefinition) -> _Clause:
        words = {"mariadb": ("IGNORED", "NOT IGNORED"), "mysql": ("INVISIBLE", "VISIBLE")}[self.engine]
        return _Clause(f"ALTER INDEX {quoted(self._any(definition.keys))} {self.random.choice(words)}")

    def _primary_key(self, definition: TableDefinition) -> _Clause:
        columns = self.random.sample(definition.columns, self.random.randint(1, min(2, len(definition.columns))))
        if self._chance(0.5):
            columns = [column for column in definition.columns if column.name == "id"] or columns
        parts = ", ".join(self._key_part(column, plain=False) for column in columns)
        add = f"ADD PRIMARY KEY ({parts})"
        # A NULL that the key does not admit is turned into something else: a time of MariaDB's into now.
        destroys = frozenset(column.name for column in columns if "NOT NULL" not in column.text)
        if not definition.primary_key:
            return _Clause(add, destroys=destroys)
        if self._chance(0.5):
            return _Clause("DROP PRIMARY KEY")
        return _Clause(f"DROP PRIMARY KEY, {add}", destroys=destroys)

    def _add_foreign_key(self, definition: TableDefinition) -> _Clause:
        self._number += 1
        column, (target, other) = (
            self._column(definition),
            self.random.choice(((PARENT, "id"), (PARENT, "id"), (PARENT, "code"), (PARENT, "n"), (TABLE, "id"))),
        )
        wanted = "varchar" if other == "code" else "int"
        column = next((each for each in definition.columns if each.text.startswith(wanted)), column)
        if other == "n":
            column = next((each for each in definition.columns if each.text.startswith("bigint")), column)
        constraint = f"CONSTRAINT {quoted(f'f{self._number}')} " if self._chance(0.7) else ""
        actions = self.random.choice(
            ("", " ON DELETE CASCADE", " ON DELETE SET NULL ON UPDATE CASCADE", " ON DELETE RESTRICT")
        )
        return _Clause(f"ADD {constraint}FOREIGN KEY ({quoted(column.name)}) REFERENCES {target} ({other}){actions}")

    def _drop_foreign_key(self, definition: TableDefinition) -> _Clause:
        return _Clause(f"DROP FOREIGN KEY {quoted(self._any(definition.foreign_keys))}")

    def _add_check(self, definition: TableDefinition) -> _Clause:
        self._number += 1
        column = self._column(definition)
        name = quoted(column.name)
        if _is_number(column):
            condition = self.random.choice(
                (f"{name} > -(5)", f"{name} < 1e300 and {name} > - 12.5", f"{name} is not null or 1")
            )
        else:
            condition = self.random.choice((f"length({name}) < 5000", f"{name} <> 'it''s' or -(3) < 1"))
        constraint = f"CONSTRAINT {quoted(f'c{self._number} `x')} " if self._chance(0.7) else ""
        unenforced = " NOT ENFORCED" if self.engine == "mysql" and self._chance(0.2) else ""
        return _Clause(f"ADD {constraint}CHECK ({condition}){unenforced}")

    def _drop_check(self, definition: TableDefinition) -> _Clause:
        return _Clause(f"DROP CONSTRAINT {quoted(self._any(definition.checks))}")

    def _enforce_check(self, definition: TableDefinition) -> _Clause:
        word = self.random.choice(("NOT ENFORCED", "ENFORCED"))
        return _Clause(f"ALTER CHECK {quoted(self._any(definition.checks))} {word}")

    def _option(self, definition: TableDefinition) -> _Clause:
        if self._chance(0.25):
            texts = {column.name for column in definition.columns if column.collation}
            charset = self.random.choice(("latin1", "utf8mb4", "utf8mb4 COLLATE utf8mb4_bin", "ascii"))
            return _Clause(f"CONVERT TO CHARACTER SET {charset}", destroys=frozenset(texts))
        return _Clause(self._some_option())

    def _some_option(self) -> str:
        return self.random.choice(
            (
                f"COMMENT={_string(self.random.choice(COMMENTS))}",
                *(
                    "COMMENT=''",
                    "ROW_FORMAT=COMPACT",
                    "ROW_FORMAT=DYNAMIC",
                    "ROW_FORMAT=DEFAULT",
                    "ROW_FORMAT=REDUNDANT",
                ),
                *(
                    "STATS_PERSISTENT=1",
                    "STATS_AUTO_RECALC=0",
                    "STATS_SAMPLE_PAGES=20",
                    "MAX_ROWS=1000",
                    "AVG_ROW_LENGTH=50",
                ),
                *("DEFAULT CHARSET=latin1", "DEFAULT CHARSET=utf8mb4", "DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"),
                *(
                    "COLLATE=utf8mb4_unicode_ci",
                    "AUTO_INCREMENT=1000",
                    "KEY_BLOCK_SIZE=8",
                    "ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4",
                ),
                *("ENGINE=InnoDB", "CHECKSUM=1", "PACK_KEYS=1", "DELAY_KEY_WRITE=1", "MIN_ROWS=2"),
            )
        )

    def _partitioning(self, definition: TableDefinition) -> Alteration:
        column = next((each for each in definition.columns if each.name == "id"), None) or self._column(definition)
        name = quoted(column.name)
        part, whole = "(PARTITION p VALUES LESS THAN", "VALUES LESS THAN MAXVALUE"
        ways = [
            f"PARTITION BY HASH ({name}) PARTITIONS {self.random.randint(1, 4)}",
            f"PARTITION BY KEY ({name}) PARTITIONS 2",
            f"PARTITION BY RANGE ({name}) {part} (5) COMMENT = 'it''s', PARTITION `p 1` {whole})",
            f"PARTITION BY RANGE COLUMNS ({name}) {part} (7), PARTITION q VALUES LESS THAN (99))",
            f"PARTITION BY LIST ({name} % 3) (PARTITION a VALUES IN (0, 1), PARTITION b VALUES IN (2))",
            f"PARTITION BY LINEAR HASH ({name} + 1) PARTITIONS 3",
            f"PARTITION BY RANGE ({name}) SUBPARTITION BY HASH ({name}) SUBPARTITIONS 2 (PARTITION p {whole})",
        ]
        if definition.partitions:
            ways += ["REMOVE PARTITIONING"] * 3 + ["COALESCE PARTITION 1", "ADD PARTITION PARTITIONS 2"] * 2
        return Alteration(f"ALTER TABLE {TABLE} {self.random.choice(ways)}")

    # Small things -------------------------------------------------------------------------------------------------

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _column(self, definition: TableDefinition) -> Column:
        return self.random.choice(definition.columns)

    def _any(self, names: Mapping[str, str]) -> str:
        return self.random.choice([*names] or ["none"])


def _is_number(column: Column) -> bool:
    return any(column.text.startswith(kind.text.split("(")[0].split()[0]) for kind in TYPES if kind.is_number)


def _renamed(column: Column, new: str) -> str:
    return column.text.replace(quoted(column.name), quoted(new))


def _string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


# Undoing -------------------------------------------------------------------------------------------------------


class NotUndoneError(AssertionError):
    """What ``changes`` computed did not bring the table back."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was before an alteration: the definition, and the rows with each column's values."""

    alteration: Alteration
    before: str
    rows: list[dict[str, Any]]


@dataclass
class Round:
    """One table on *connection*'s empty database: made, filled, altered, and undone step by step."""

    connection: pymysql.connections.Connection[Any]
    generator: Generator
    counts: Counter[str]
    log: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run it; raises ``NotUndoneError`` with the way there."""
        self._send(SESSION + OWN_SESSION[self.generator.engine])
        if not self._make():
            return
        child = self._child()
        self.counts["tables referred to"] += child is not None
        entries = list(self._alter())
        self._send(UNDO_SESSION + OWN_UNDO_SESSION[self.generator.engine])
        lost: frozenset[str] = frozenset()
        for entry in reversed(entries):
            old_names = entry.alteration.renamed
            lost = entry.alteration.destroys | {old_names.get(name, name) for name in lost}
            self._undo(entry, has_lost=bool(lost))
            self._compare_rows(entry, lost)
            self.counts["undone"] += 1
        if child and not same(child, self._child() or ""):
            raise self._failure(None, f"the child is now {self._child()} and was {child}")

    def _child(self) -> str | None:
        if not self._send(f"SHOW TABLES LIKE '{CHILD}'"):
            return None
        return str(self._send(f"SHOW CREATE TABLE {CHILD}")[0][1])

    def _make(self) -> bool:
        self._send("SET foreign_key_checks = 0")
        self._send(f"DROP TABLE IF EXISTS {CHILD}, {TABLE}, {PARENT}")
        self._send("SET foreign_key_checks = 1")
        try:
            for sql in self.generator.tables():
                self._send(sql)
        except pymysql.err.MySQLError:
            self.counts["tables refused"] += 1
            return False
        definition = parse(self.definition)
        for number in range(1, ROWS + 1):
            # A CHECK or a key may refuse it.
            with suppress(pymysql.err.MySQLError):
                self._send(self.generator.row(definition, number))
        if self.generator.random.random() < 0.3:
            with suppress(pymysql.err.MySQLError):
                self._send(self.generator.child())
                self._send(f"INSERT INTO {CHILD} VALUES (1), (2)")
        return True

    def _alter(self) -> Iterator[Entry]:
        tried = made = 0
        while made < STATEMENTS_A_ROUND and tried < 10 * STATEMENTS_A_ROUND:
            tried += 1
            before, rows = self.definition, self._rows()
            alteration = self.generator.alteration(parse(before))
            try:
                self._send(alteration.statement)
            except pymysql.err.MySQLError as exc:
                self.counts["refused"] += 1
                self.counts[f"refused with {exc.args[0]}"] += 1
                # MySQL 9.7 says 1146 of an ALTER of a table with children, and has done it.
                if self.definition == before:
                    continue
                self.counts["refused, yet done"] += 1
            made += 1
            yield Entry(alteration, before, rows)

    def _undo(self, entry: Entry, *, has_lost: bool) -> None:
        has_crashed = self.generator.random.random() < 0.7
        for _ in range(PASSES + 1):
            current = self.definition
            if same(current, entry.before):
                self._check_text(entry.before)
                return
            statements = changes(current, entry.before, entry.alteration.renamed)
            # Now and then it goes no further than the first statement, and starts anew from there.
            self._bring_back(statements if has_crashed else statements[:1], has_lost=has_lost)
            has_crashed = True
        if not same(self.definition, entry.before):
            raise self._failure(entry, "\n".join(differences(self.definition, entry.before)))

    def _bring_back(self, statements: list[str], *, has_lost: bool) -> None:
        if not statements:
            raise self._failure(None, "different, but nothing to do")
        for sql in statements:
            current = self.definition
            try:
                self._send(sql)
            except pymysql.err.MySQLError as exc:
                if self.definition != current:
                    self.counts["refused, yet done"] += 1
                    continue
                if not has_lost or exc.args[0] not in NEEDS_DATA:
                    raise self._failure(None, f"{exc}\nfor {sql}\nat {self.definition}") from exc
                self.counts["undone without rows"] += 1
                self._send(f"DELETE FROM {TABLE}")
                self._send(sql)

    def _check_text(self, before: str) -> None:
        """Be stricter than ``same``: but for the counter and the lines' order the texts must be one."""
        if _sorted_lines(self.definition) != _sorted_lines(before):
            self.counts["printed otherwise"] += 1

    def _compare_rows(self, entry: Entry, lost: frozenset[str]) -> None:
        rows = self._rows()
        if not rows or not entry.rows:
            return
        definition = parse(entry.before)
        standing = [
            column.name for column in definition.columns if column.name not in lost and not (lost and column.generated)
        ]
        if _projected(rows, standing) != _projected(entry.rows, standing):
            raise self._failure(entry, f"other rows:\n{rows}\nwere {entry.rows}")
        self.counts["rows compared"] += 1

    @property
    def definition(self) -> str:
        """The table as SHOW CREATE TABLE prints it."""
        return str(self._send(f"SHOW CREATE TABLE {TABLE}")[0][1])

    def _rows(self) -> list[dict[str, Any]]:
        names = parse(self.definition).column_names
        listed = ", ".join(f"HEX({quoted(name)})" for name in names)
        return [dict(zip(names, row, strict=True)) for row in self._send(f"SELECT {listed} FROM {TABLE}")]

    def _send(self, sql: str) -> list[tuple[Any, ...]]:
        if not sql.startswith(("SELECT", "SHOW")):
            self.log.append(sql)
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def _failure(self, entry: Entry | None, why: str) -> NotUndoneError:
        before = f"\nwas {entry.before}\nis {self.definition}" if entry else ""
        return NotUndoneError(why + before + "\nafter:\n" + ";\n".join(self.log))


def _projected(rows: list[dict[str, Any]], names: list[str]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[name] for name in names) for row in rows)


def _sorted_lines(text: str) -> list[str]:
    return sorted(line.rstrip(",") for line in text.splitlines() if not line.startswith(") ENGINE"))


@contextmanager
def database(url: str, name: str) -> Iterator[pymysql.connections.Connection[Any]]:
    """Give a connection to a fresh database *name* on the server at *url*, dropped afterwards."""
    with closing(servers.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        cursor.execute(f"USE {name}")
        try:
            yield connection
        finally:
            cursor.execute(f"DROP DATABASE {name}")


def main() -> None:
    """Run it as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("mariadb", "mysql"), required=True)
    parser.add_argument("--count", type=int, default=1000, help="statements to undo")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"{options.engine}, seed {options.seed}, {options.count} statements", flush=True)
    with servers.Fleet() as fleet, database(fleet[options.engine].url, f"fuzz_{os.getpid()}") as connection:
        try:
            counts = fuzz(connection, options.engine, seed=options.seed, count=options.count)
        except NotUndoneError as exc:
            sys.exit(str(exc))
    for what, number in counts.most_common():
        print(f"{number:7} {what}")


def fuzz(connection: pymysql.connections.Connection[Any], engine: Maker, *, seed: int, count: int) -> Counter[str]:
    """Undo *count* random statements or some more, and return what was counted; each round has a seed of its own."""
    counts: Counter[str] = Counter()
    while counts["undone"] < count:
        try:
            Round(connection, Generator(seed, engine), counts).run()
        except NotUndoneError as exc:
            raise NotUndoneError(f"{engine}, seed {seed}: {exc}") from exc
        counts["rounds"] += 1
        seed += 1
    return counts


if __name__ == "__main__":
    main()
