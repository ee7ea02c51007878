"""Random columns: types, defaults, checks, generated ones, and values that fit them, for MySQL and MariaDB."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from api.db.journal.definition import Column, TableDefinition
from api.db.journal.link import name as quoted

Maker = Literal["mariadb", "mysql"]
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


class Columns:
    """Random columns' definitions and values; the same *seed* gives the same ones."""

    def __init__(self, seed: int, engine: Maker) -> None:
        self.random = random.Random(seed)
        self.engine = engine
        self.types = TYPES + OWN_TYPES[engine]
        self.number = 0

    def value(self, column: Column) -> str:
        """Return a literal that fits *column*, or nearly."""
        text = column.text.lower()
        if "not null" not in text and self.random.random() < 0.2:
            return "NULL"
        if text.startswith(("point", "geometry")):
            return f"ST_GeomFromText('POINT(1 2)', {4326 if '4326' in text else 0})"
        fitting = [each for each in self.types if text.split()[0].split("(")[0] == each.text.lower().split("(")[0]]
        return self.random.choice(fitting[0].values) if fitting else "NULL"

    # Columns ------------------------------------------------------------------------------------------------------

    def new_name(self, taken: tuple[str, ...]) -> str:
        """Return a name that is none of *taken*."""
        self.number += 1
        free = [name for name in NAMES if name.lower() not in {each.lower() for each in taken}]
        return self.random.choice([*free, f"n{self.number}"])

    def column_text(self, name: str, others: tuple[Column, ...]) -> str:
        """Return a definition for a column *name*; it may be computed from one of *others*."""
        if others and self.chance(0.15):
            return self.generated_text(others)
        if self.chance(0.05):
            return self.random.choice(GEOMETRIES[self.engine])
        kind = self.random.choice(self.types)
        words = [kind.text]
        if kind.is_text and "COLLATE" not in kind.text and self.chance(0.3):
            words.append(self.random.choice(CHARSETS))
        words.append(self.random.choice(("", "NULL", "NOT NULL")))
        words.append(self._default(kind, nullable=words[-1] != "NOT NULL"))
        if self.chance(0.1):
            words.append("INVISIBLE" if words[-1] or words[-2] != "NOT NULL" else "")
        if self.chance(0.2):
            words.append(f"COMMENT {string(self.random.choice(COMMENTS))}")
        if self.chance(0.08):
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

    def generated_text(self, others: tuple[Column, ...]) -> str:
        """Return the definition of a column that is computed from one of *others*."""
        kind, expression = self.expression(others)
        keeping = self.random.choice(("VIRTUAL", "STORED"))
        return f"{kind} GENERATED ALWAYS AS ({expression}) {keeping}"

    def expression(self, others: tuple[Column, ...]) -> tuple[str, str]:
        """Return an expression of one of *others*, behind the type that it comes to."""
        column = self.random.choice(others)
        name, text = quoted(column.name), column.text.lower()
        if is_number(column):
            return self.random.choice(("bigint", "double", "decimal(30,4)")), f"{name} + {self.random.randint(1, 9)}"
        if text.startswith(("varchar", "char", "text")):
            return "varchar(600)", f"concat({name}, '-it''s')"
        return "int", f"length({name})"

    # Small things -------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        """Say yes in a *share* of the cases."""
        return self.random.random() < share

    def column(self, definition: TableDefinition) -> Column:
        """Return one of the columns."""
        return self.random.choice(definition.columns)


def is_number(column: Column) -> bool:
    """Say whether *column* holds numbers."""
    return any(column.text.startswith(kind.text.split("(")[0].split()[0]) for kind in TYPES if kind.is_number)


def string(text: str) -> str:
    """Return *text* as a literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
