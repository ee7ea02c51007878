"""The parts of what SHOW CREATE TABLE prints: lines, names, options, partitions. Pure, and of text only.

The text must be printed with ``sql_quote_show_create`` on and without ANSI_QUOTES or NO_BACKSLASH_ESCAPES in
``sql_mode``, as is the servers' default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise

from api.db.dialects.column_text import Token, scan, unquote
from api.db.journal.link import name as quoted
from api.exceptions import MigrationError

STRING = r"'(?:[^'\\]|''|\\.)*'"
_NAME = r"`(?:[^`]|``)*`"
_NAMES = re.compile(rf"{STRING}|({_NAME})", re.DOTALL)
# MySQL prints ``-(5)`` and ``_utf8mb4'a'`` for a constraint as it was made, and once the table was copied ``-5`` and
# ``_latin1'a'``, as the column's character set is.
_AS_MADE = re.compile(
    rf"(?:(?<![\w`])_\w+)?({STRING})|({_NAME})|-\((\d+(?:\.\d+)?(?:e[+-]?\d+)?)\)", re.DOTALL | re.IGNORECASE
)
_PARTITIONS = re.compile(rf"{STRING}|{_NAME}|(\n(?:/\*!\d+)? ?PARTITION BY )", re.DOTALL)
_VERSIONED = re.compile(rf"({STRING}|{_NAME})|/\*M?!\d+ ?(.*?) ?\*/", re.DOTALL)
_OPTION = re.compile(
    rf"\s*(?:(TABLESPACE)\s+({_NAME})"
    rf"|((?:DEFAULT |DATA |INDEX )?(?:\w+|{_NAME}))\s*=\s*({STRING}|\([^)]*\)|[^\s,]+)),?",
    re.DOTALL,
)
_BARE_NAME = re.compile(rf"{_NAME}|\w+")
_HEAD = re.compile(rf"CREATE TABLE ({_NAME}) \(")
# What parts items, and what hides that: the same strings, names and comments as ``column_text`` knows.
_BREAK = re.compile(rf"""{STRING}|{_NAME}|/\*.*?\*/|"(?:[^"]|"")*"|\[[^\]]*\]|[(),]""", re.DOTALL)

# What a server means that prints a character set without its collation (SHOW COLLATION); any other: _general_ci.
DEFAULT_COLLATIONS = {
    "armscii8": "armscii8_general_ci",
    "big5": "big5_chinese_ci",
    "binary": "binary",
    "cp932": "cp932_japanese_ci",
    "dec8": "dec8_swedish_ci",
    "eucjpms": "eucjpms_japanese_ci",
    "euckr": "euckr_korean_ci",
    "gb18030": "gb18030_chinese_ci",
    "gb2312": "gb2312_chinese_ci",
    "gbk": "gbk_chinese_ci",
    "hp8": "hp8_english_ci",
    "latin1": "latin1_swedish_ci",
    "latin5": "latin5_turkish_ci",
    "sjis": "sjis_japanese_ci",
    "swe7": "swe7_swedish_ci",
    "tis620": "tis620_thai_ci",
    "ujis": "ujis_japanese_ci",
}


def unknown(what: str) -> MigrationError:
    """Return the error for *what*, which cannot be taken back because it cannot be read."""
    return MigrationError(
        f"the journal cannot take back a change to {what}",
        hint="change it in a migration of its own, with `atomic = False`",
    )


def split_create(create: str) -> tuple[str, list[str], str]:
    """Return the name, the items and the tail of the table that *create* makes; the tail stands behind its items."""
    head = _HEAD.match(create)
    if head is None:
        raise unknown(" ".join(create.split())[:60])
    items, end = _items_from(create, head.end())
    return unquote(head.group(1)), items, create[end + 1 :]


def split_items(body: str) -> list[str]:
    """Return the items of *body*, the text between two parentheses, trimmed."""
    return _items_from(body, 0)[0]


def _items_from(text: str, start: int) -> tuple[list[str], int]:
    """Return the items of *text* from *start* on, trimmed, and where the parenthesis that ends them stands, or it."""
    depth, end, commas = 0, len(text), [start - 1]
    for match in _BREAK.finditer(text, start):
        mark = match.group()
        if mark == "," and depth == 0:
            commas.append(match.start())
        elif mark == "(":
            depth += 1
        elif mark == ")":
            if depth == 0:
                end = match.start()
                break
            depth -= 1
    return [text[before + 1 : after].strip() for before, after in pairwise([*commas, end])], end


def words_of(text: str) -> list[str]:
    """Return the tokens of *text*; each outermost group in parentheses is one."""
    return [token.text for token in scan(text, backslashes=True)]


@lru_cache(maxsize=4096)
def key_name(line: str) -> str:
    """Return what the key of *line* is called; a primary key is ``PRIMARY``."""
    words = words_of(line)
    return "PRIMARY" if words[0] == "PRIMARY" else unquote(words[words.index("KEY") + 1])


def constraint_name(line: str) -> str:
    """Return what the foreign key or check of *line* is called."""
    return unquote(words_of(line)[1])


def columns_in(line: str) -> tuple[str, ...]:
    """Return the columns of a key or foreign key, given its *line*; a part that is an expression is left out."""
    firsts = [words_of(item)[0] for item in split_items(_first_group(line).text[1:-1])]
    return tuple(unquote(first) for first in firsts if first.startswith("`"))


def canonical(text: str) -> str:
    """Return *text* as it is compared: MySQL prints a constraint otherwise once the table was copied."""
    return _AS_MADE.sub(lambda match: match.group(1) or match.group(2) or f"-{match.group(3)}", text)


def partitions_meaning(partitions: str) -> str:
    """Return *partitions* as they are compared: without the quotes that MySQL sets only where a name needs them."""
    return " ".join(partitions.replace("`", "").split())


# The options and the partitions ---------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def split_tail(tail: str) -> tuple[str, str]:
    """Return the options and the partitions of what stands behind a table's body."""
    start = next((match.start() for match in _PARTITIONS.finditer(tail) if match.group(1)), len(tail))
    options = _VERSIONED.sub(lambda match: match.group(1) or match.group(2), tail[:start])
    partitions = re.sub(r"\A\s*/\*!\d+ (.*?) ?\*/\s*\Z", r"\1", tail[start:], flags=re.DOTALL).strip()
    kept = [f"{name}={value}" if name != "TABLESPACE" else f"{name} {value}" for name, value in _options_in(options)]
    return " ".join(option for option in kept if not option.startswith("AUTO_INCREMENT=")), partitions


@lru_cache(maxsize=256)
def _options_in(text: str) -> tuple[tuple[str, str], ...]:
    at, found = 0, []
    while match := _OPTION.match(text, at):
        at = match.end()
        found.append(((match.group(1) or match.group(3)), (match.group(2) or match.group(4))))
    if text[at:].strip():
        raise unknown(f"a table with {text[at:].strip()[:60]}")
    return tuple(found)


def read_options(text: str) -> dict[str, str]:
    """Return the table options in *text* by name, each value as printed."""
    return dict(_options_in(text))


def collation_of(options: Mapping[str, str]) -> str:
    """Return the collation that a table's *options* come to."""
    return options.get("COLLATE") or default_collation(options.get("DEFAULT CHARSET", ""))


def default_collation(charset: str) -> str:
    """Return the collation that *charset* means where none is printed."""
    return DEFAULT_COLLATIONS.get(charset, f"{charset}_general_ci")


# Names in a text -----------------------------------------------------------------------------------------------


def identifiers(text: str) -> set[str]:
    """Return the names in backticks that *text* holds, strings passed over."""
    return {unquote(match.group(1)) for match in _NAMES.finditer(text) if match.group(1)}


def is_named_in(text: str, column: str) -> bool:
    """Say whether *text* holds the name *column* in backticks, in whatever case."""
    return column.lower() in (name.lower() for name in identifiers(text))


def behind_name(line: str) -> str:
    """Return the *line* of a key or constraint from its first group in parentheses on."""
    return line[_first_group(line).start :]


def own_side(line: str, table: str) -> str:
    """Return the part of the foreign key *line* that names columns of *table*: all of it if that is both sides'."""
    place = line.index(" REFERENCES ", _first_group(line).end)
    target = next(scan(line[place + len(" REFERENCES ") :], backslashes=True)).text
    return line if unquote(target).lower() == table.lower() else line[:place]


def _first_group(line: str) -> Token:
    return next(token for token in scan(line, backslashes=True) if token.text.startswith("("))


def renamed_names(text: str, names: Mapping[str, str]) -> str:
    """Return *text* with the names in backticks as *names* has them."""

    def change(match: re.Match[str]) -> str:
        name = match.group(1)
        return quoted(names.get(unquote(name), unquote(name))) if name else match.group()

    return _NAMES.sub(change, text)


def _with_groups(text: str, edit: Callable[[str, str], str]) -> str:
    """Return *text* with each outermost group in parentheses as *edit* makes it of the word before and the group."""
    pieces, at, before = [], 0, ""
    for token in scan(text, backslashes=True):
        if token.text.startswith("("):
            pieces += [text[at : token.start], edit(before.upper(), token.text)]
            at = token.end
        before = token.text
    return "".join([*pieces, text[at:]])


def renamed_groups(line: str, names: Mapping[str, str]) -> str:
    """Return *line* with the columns that it names in parentheses as *names* has them."""
    # A key may be called as its column is: only what stands in parentheses is a column's name.
    return _with_groups(line, lambda _, group: renamed_names(group, names))


def renamed_foreign_key(line: str, table: str, names: Mapping[str, str]) -> str:
    """Return the foreign key *line* of *table* with that table's columns as *names* has them."""
    own = own_side(line, table)
    return renamed_groups(own, names) + line[len(own) :]


def partition_names(partitions: str) -> set[str]:
    """Return the columns that *partitions* is about; MySQL prints those of COLUMNS and KEY without backticks."""
    found: set[str] = set()

    def collect(before: str, group: str) -> str:
        if _is_list_of_columns(before):
            found.update(unquote(name) for name in _BARE_NAME.findall(group))
        elif not group.startswith("(PARTITION"):
            found.update(identifiers(group))
        return group

    _with_groups(partitions, collect)
    return found


def renamed_partitions(partitions: str, names: Mapping[str, str]) -> str:
    """Return *partitions* with the columns that they are about as *names* has them."""

    def edit(before: str, group: str) -> str:
        if group.startswith("(PARTITION"):
            return group
        if not _is_list_of_columns(before):
            return renamed_names(group, names)
        return _BARE_NAME.sub(lambda match: _renamed_bare(match.group(), names), group)

    return _with_groups(partitions, edit)


def _is_list_of_columns(before: str) -> bool:
    return before in ("COLUMNS", "KEY")


def _renamed_bare(name: str, names: Mapping[str, str]) -> str:
    renamed = names.get(unquote(name))
    return name if renamed is None else quoted(renamed)
