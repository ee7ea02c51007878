"""A table's definition as data: read from what SHOW CREATE TABLE prints on MySQL and MariaDB, and compared.

Pure: asks no server. What brings one definition to another is computed in ``changes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

from api.db.dialects.column_text import parse_definition, scan, unquote
from api.db.journal.link import name as quoted
from api.db.journal.printed import (
    behind_name,
    canonical,
    collation_of,
    columns_in,
    constraint_name,
    default_collation,
    identifiers,
    is_named_in,
    key_name,
    own_side,
    partition_names,
    partitions_meaning,
    read_options,
    renamed_foreign_key,
    renamed_groups,
    renamed_names,
    renamed_partitions,
    split_create,
    split_tail,
    unknown,
    words_of,
)

V = TypeVar("V")
Kind = Literal["column", "position", "key", "foreign key", "check", "option", "partitions"]

CHARACTER_TYPES = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set")
CHARSET_OPTIONS = ("DEFAULT CHARSET", "COLLATE")
KEY_WORDS = ("PRIMARY", "UNIQUE", "KEY", "FULLTEXT", "SPATIAL", "VECTOR")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, all that is printed behind it, and the collation that this comes to.

    *collation* is the one that holds, also where the text leaves it to the table; ``None`` for other than text.
    """

    name: str
    text: str
    collation: str | None = None

    @property
    def generation(self) -> str | None:
        """``VIRTUAL`` or ``STORED`` for a generated column, else ``None``."""
        words = words_of(self.text)
        if "GENERATED" not in words:
            return None
        return "VIRTUAL" if "VIRTUAL" in words else "STORED"

    @property
    def generated(self) -> bool:
        """Whether the server computes the values."""
        return self.generation is not None

    @property
    def meaning(self) -> tuple[str, str | None]:
        """What two columns are compared by: the text without its collation, and the collation that holds."""
        words = words_of(self.text)
        for word, length in (("CHARACTER", 3), ("COLLATE", 2)):
            if self.collation and word in words:
                at = words.index(word)
                del words[at : at + length]
        return canonical(" ".join(words)), self.collation

    def without_default(self) -> Column:
        """Return the column with no default at all, not even NULL."""
        text = parse_definition(self.text, named=False, backslashes=True).without_default()
        return replace(self, text=str(text))


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A table as SHOW CREATE TABLE prints it, taken apart.

    *keys*, *foreign_keys* and *checks* are whole lines by name, the primary key's name being ``PRIMARY``. *options* is
    without ``AUTO_INCREMENT=n``, and *partitions* begins with ``PARTITION BY`` or is empty.
    """

    name: str
    columns: tuple[Column, ...]
    keys: dict[str, str]
    foreign_keys: dict[str, str]
    checks: dict[str, str]
    options: str
    partitions: str

    def column(self, name: str) -> Column | None:
        """Return the column *name*, in whatever case; ``None`` when there is none."""
        exact = next((column for column in self.columns if column.name == name), None)
        return exact or next((column for column in self.columns if column.name.lower() == name.lower()), None)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The primary key's columns; empty without one."""
        return self.columns_of_key("PRIMARY") if "PRIMARY" in self.keys else ()

    def columns_of_key(self, name: str) -> tuple[str, ...]:
        """Return the columns of the key *name* in order, those under a prefix too; an expression is left out."""
        return columns_in(self.keys[name])

    def mentions(self, column: str) -> list[tuple[Kind, str]]:
        """Return what else names *column*: keys, foreign keys, checks, columns computed from it, the partitions."""
        found: list[tuple[Kind, str]] = [
            ("column", other.name) for other in self.columns if is_named_in(other.text, column) and other.name != column
        ]
        groups: tuple[tuple[Kind, dict[str, str]], ...] = (
            ("key", self.keys),
            ("foreign key", {name: own_side(line, self.name) for name, line in self.foreign_keys.items()}),
            ("check", self.checks),
        )
        for kind, lines in groups:
            found += [(kind, name) for name, line in lines.items() if is_named_in(behind_name(line), column)]
        if column.lower() in (name.lower() for name in partition_names(self.partitions)):
            found.append(("partitions", ""))
        return found

    @property
    def engine(self) -> str:
        """The storage engine as the server spells it: ``InnoDB``."""
        return self.option_values.get("ENGINE", "")

    @property
    def option_values(self) -> dict[str, str]:
        """The table's options by name, each value as printed: ``{"ENGINE": "InnoDB", "COMMENT": "'it''s'"}``."""
        return read_options(self.options)

    @property
    def options_but_charset(self) -> dict[str, str]:
        """The table's options without those that ``charset`` puts together."""
        return {name: value for name, value in self.option_values.items() if name not in CHARSET_OPTIONS}

    @property
    def charset(self) -> str | None:
        """The character set and the collation of a column that says none, as a statement says them."""
        charset = self.option_values.get("DEFAULT CHARSET")
        return f"{charset} COLLATE={self.collation}" if charset else None

    @property
    def collation(self) -> str:
        """The collation of a column that says none."""
        return collation_of(self.option_values)

    def with_renamed(self, names: Mapping[str, str]) -> TableDefinition:
        """Return the definition as the server prints it once the columns are called by *names*."""
        if not names:
            return self
        return replace(
            self,
            columns=tuple(
                replace(column, name=names.get(column.name, column.name), text=renamed_names(column.text, names))
                for column in self.columns
            ),
            keys={name: renamed_groups(line, names) for name, line in self.keys.items()},
            foreign_keys={
                name: renamed_foreign_key(line, self.name, names) for name, line in self.foreign_keys.items()
            },
            checks={name: renamed_groups(line, names) for name, line in self.checks.items()},
            partitions=renamed_partitions(self.partitions, names),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as wanted; *current* is ``None`` where it is missing, *wanted* where it is too much."""

    kind: Kind
    name: str
    current: str | None
    wanted: str | None

    @property
    def is_extra(self) -> bool:
        """Whether it is there and should not be."""
        return self.wanted is None

    @property
    def identifiers(self) -> frozenset[str]:
        """Its name, and the columns, tables and constraints that either text names."""
        read = partition_names if self.kind == "partitions" else identifiers
        return frozenset({self.name, *read(self.current or ""), *read(self.wanted or "")} - {""})


# Reading -------------------------------------------------------------------------------------------------------


def parse(create: str) -> TableDefinition:
    """Return the definition that *create* is, the text that SHOW CREATE TABLE printed.

    Raises ``MigrationError`` for what it does not know: a view, a sequence, a temporary table, periods, versioning.
    """
    name, items, tail = split_create(create)
    options, partitions = split_tail(tail)
    values = read_options(options)
    if "SEQUENCE" in values:
        raise unknown(f"the sequence {name!r}")
    kinds = _sorted_items(items)
    collation = collation_of(values)
    return TableDefinition(
        name=name,
        columns=tuple(_read_column(item, collation) for item in kinds["column"]),
        keys={key_name(item): item for item in kinds["key"]},
        foreign_keys={constraint_name(item): item for item in kinds["foreign key"]},
        checks={constraint_name(item): item for item in kinds["check"]},
        options=options,
        partitions=partitions,
    )


def _sorted_items(items: list[str]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {"column": [], "key": [], "foreign key": [], "check": []}
    for item in items:
        kinds[_kind_of(item)].append(item)
    return kinds


# Most lines of a table are as they were before its last ALTER.
@lru_cache(maxsize=4096)
def _kind_of(item: str) -> Kind:
    words = words_of(item)
    if words[0].startswith("`"):
        return "column"
    if words[0] in KEY_WORDS:
        return "key"
    if words[0] == "CONSTRAINT" and words[2] in ("FOREIGN", "CHECK"):
        return "check" if words[2] == "CHECK" else "foreign key"
    raise unknown(item)


@lru_cache(maxsize=4096)
def _read_column(item: str, default: str) -> Column:
    first = next(scan(item, backslashes=True))
    text = item[first.end :].strip()
    words = words_of(text)
    if words[0].lower() not in CHARACTER_TYPES:
        return Column(unquote(first.text), text)
    if "COLLATE" in words:
        default = words[words.index("COLLATE") + 1]
    elif "CHARACTER" in words:
        default = default_collation(words[words.index("CHARACTER") + 2])
    return Column(unquote(first.text), text, default)


# Comparing -----------------------------------------------------------------------------------------------------


def same(one: str, other: str) -> bool:
    """Say whether two texts of SHOW CREATE TABLE are one definition.

    The AUTO_INCREMENT counter and the order of keys and constraints do not count: no statement sets them back.
    """
    return one == other or not differing_names(one, other)


def differing_names(current: str, wanted: str, renamed: Mapping[str, str] | None = None) -> list[Difference]:
    """Return each thing that is not as *wanted* in *current*, once its columns are called as *renamed* says.

    Raises ``MigrationError`` for a text that is no table's that can be read.
    """
    now, then = parse(current), parse(wanted)
    names = renames(now, then, renamed or {})
    called = [Difference("column", new, quoted(old), quoted(new)) for old, new in names.items()]
    return called + compare(now.with_renamed(names), then)


def renames(now: TableDefinition, then: TableDefinition, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return which column of *now* is which of *then* under another name, by *renamed* and by a change of case."""
    pairs = [(now.column(old), then.column(new)) for old, new in renamed.items()]
    found = {old.name: new.name for old, new in pairs if old and new}
    for column in now.columns:
        other = then.column(column.name)
        if other and other.name not in found.values() and column.name not in found:
            found[column.name] = other.name
    return {old: new for old, new in found.items() if old != new}


def compare(now: TableDefinition, then: TableDefinition) -> list[Difference]:
    """Return each thing that is not in *now* as it is in *then*."""
    found = [
        Difference("column", name, one.text if one else None, other.text if other else None)
        for name, one, other in _pairs(_by_name(now.columns), _by_name(then.columns))
        if one is None or other is None or one.meaning != other.meaning
    ]
    found += _moves(now, then)
    for kind in ("key", "foreign key", "check"):
        found += [
            Difference(kind, name, one, other)
            for name, one, other in _pairs(lines_of(now, kind), lines_of(then, kind))
            if canonical(one or "") != canonical(other or "")
        ]
    found += [
        Difference("option", name, one, other)
        for name, one, other in _pairs(now.options_but_charset, then.options_but_charset)
        if one != other
    ]
    if now.charset != then.charset:
        found.append(Difference("option", "DEFAULT CHARSET", now.charset, then.charset))
    if partitions_meaning(now.partitions) != partitions_meaning(then.partitions):
        found.append(Difference("partitions", "", now.partitions or None, then.partitions or None))
    return found


def lines_of(table: TableDefinition, kind: Kind) -> dict[str, str]:
    """Return the lines of one *kind*: the table's keys, foreign keys or checks."""
    return {"key": table.keys, "foreign key": table.foreign_keys}.get(kind, table.checks)


def _by_name(columns: tuple[Column, ...]) -> dict[str, Column]:
    return {column.name: column for column in columns}


def _pairs(one: Mapping[str, V], other: Mapping[str, V]) -> Iterator[tuple[str, V | None, V | None]]:
    for name in {**one, **other}:
        yield name, one.get(name), other.get(name)


def moved(now: Sequence[str], then: Sequence[str]) -> list[str]:
    """Return the fewest of the names in both that have to move for *now* to be in *then*'s order."""
    kept = [name for name in then if name in now]
    staying = _longest_rising([now.index(name) for name in kept])
    return [name for name in kept if now.index(name) not in staying]


def _longest_rising(numbers: Sequence[int]) -> set[int]:
    """Return the longest run of *numbers* that rises, those that do not left out."""
    longest: list[int] = []
    runs = [longest]
    for number in numbers:
        before = max((run for run in runs if not run or run[-1] < number), key=len)
        run = [*before, number]
        runs.append(run)
        longest = max(longest, run, key=len)
    return set(longest)


def _moves(now: TableDefinition, then: TableDefinition) -> Iterator[Difference]:
    for name in moved(now.column_names, then.column_names):
        one, other = place(now, name), place(then, name)
        yield Difference("position", name, one, other)


def place(table: TableDefinition, column: str) -> str:
    """Return where *column* stands, as a statement says it: ``FIRST``, or after which other."""
    at = table.column_names.index(column)
    return f"AFTER {quoted(table.column_names[at - 1])}" if at else "FIRST"
