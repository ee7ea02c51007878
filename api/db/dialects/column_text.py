"""Edit a column's definition in its own words, so that what is not edited stays as it was.

Knows the text that SQLite keeps in ``sqlite_schema`` and that MySQL and MariaDB print in SHOW CREATE TABLE:
words, quoted names and strings, groups in parentheses. It never builds a definition from parts: whatever it does
not know (COMMENT, COLLATE, ON UPDATE, CHECK, generated columns) passes through untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

# A comment; names in three quotes; a parenthesis or comma; a number with its sign (DEFAULT-1); a run of anything else.
_COMMON = r"""|/\*.*?\*/|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|[(),]"""
_COMMON += r"""|[+-]?\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?|(?:(?!/\*)[^\s'"`\[(),+-])+|[+-]"""
# MySQL's strings know the backslash, and say how to read them: b'0', _utf8mb4'x'. In SQLite DEFAULT'x' is two words.
MYSQL_TOKEN = re.compile(r"(?:[bnxBNX]|_\w+)?'(?:[^'\\]|''|\\.)*'" + _COMMON, re.DOTALL)
SQLITE_TOKEN = re.compile(r"--[^\n]*|[xX]?'(?:[^']|'')*'" + _COMMON, re.DOTALL)

_AFTER_ANY_TYPE = r"CONSTRAINT|PRIMARY|NOT|NULL|UNIQUE|CHECK|DEFAULT|COLLATE|REFERENCES|GENERATED|AS"
# Any other word is part of the type in SQLite: TIMESTAMP WITH TIME ZONE.
SQLITE_AFTER_TYPE = re.compile(_AFTER_ANY_TYPE, re.IGNORECASE)
MYSQL_AFTER_TYPE = re.compile(
    rf"(?:{_AFTER_ANY_TYPE}|AUTO_INCREMENT|COMMENT|ON|CHARACTER|CHARSET|INVISIBLE|VISIBLE|STORAGE|COLUMN_FORMAT"
    r"|WITH|WITHOUT)\Z|/\*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a name, a string, a comment, a comma or a whole group, and where it stands in its text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ColumnText:
    """A column's definition as a row of tokens; *kind* of them are its type, from *start* on."""

    tokens: tuple[str, ...]
    start: int
    kind: int

    def __str__(self) -> str:
        # No space before a parenthesis: "varchar (40)" is another type text to SQLite than "varchar(40)".
        return "".join(token if token.startswith("(") else f" {token}" for token in self.tokens).strip()

    def with_type(self, text: str) -> ColumnText:
        """Return the definition with the type *text*; a character set goes where the new type has none."""
        head, tail = self.tokens[: self.start], self.tokens[self.start + self.kind :]
        edited = ColumnText((*head, text, *tail), self.start, 1)
        if not re.match(r"(?i)\w*(char|text|enum|set)\b", text):
            edited = edited._without("CHARACTER", 3)._without("COLLATE", 2)
        return edited

    def with_null(self, null: bool) -> ColumnText:
        """Return the definition with NULL or NOT NULL, and with no ``DEFAULT NULL`` beside the latter.

        What belongs to a NOT NULL that goes, its name and its ON CONFLICT, goes with it; one that stands is kept.
        """
        edited = self
        if not null and edited.default == "NULL":
            edited = edited.without_default()
        if not null and edited._follows("NOT", "NULL"):
            return edited
        edited = edited._without_null()
        at = edited._after_collation()
        words = ("NULL",) if null else ("NOT", "NULL")
        return replace(edited, tokens=(*edited.tokens[:at], *words, *edited.tokens[at:]))

    @property
    def default(self) -> str | None:
        """The text after DEFAULT, in capitals where it is a word."""
        at = self._find("DEFAULT")
        return None if at is None else self.tokens[at + 1].upper()

    def without_default(self) -> ColumnText:
        """Return the definition without its DEFAULT."""
        at = self._find("DEFAULT")
        if at is None:
            return self
        # A sign, or a function's name, stands before the token that ends the value.
        end = at + 2
        while end < len(self.tokens) and (self.tokens[end - 1] in "+-" or self.tokens[end].startswith("(")):
            end += 1
        return self._cut(at, end)

    def with_tail(self, text: str) -> ColumnText:
        """Return the definition with the constraint *text* at its end."""
        return replace(self, tokens=(*self.tokens, text))

    def with_default_as_expression(self) -> ColumnText:
        """Return the definition with its DEFAULT in parentheses, as MySQL wants it of TEXT, BLOB and JSON."""
        at = self._find("DEFAULT")
        if at is None or self.tokens[at + 1].startswith("("):
            return self
        rest = self.without_default()
        value = "".join(self.tokens[at + 1 : at + 1 + len(self.tokens) - len(rest.tokens) - 1])
        return rest if value.upper() == "NULL" else rest.with_tail(f"DEFAULT ({value})")

    def without_clock(self) -> ColumnText:
        """Return the definition without ON UPDATE, and without a DEFAULT that is the time: no time's type has them."""
        edited = self.without_default() if (self.default or "").startswith("CURRENT_TIMESTAMP") else self
        at = edited._find("ON")
        if at is None:
            return edited
        digits = edited.tokens[at + 3 : at + 4]
        return edited._cut(at, at + 3 + int(bool(digits) and digits[0].startswith("(")))

    def without_json_check(self) -> ColumnText:
        """Return the definition without the CHECK that makes a LONGTEXT of MariaDB's JSON."""
        at = self._find("CHECK")
        return self if at is None or "json_valid(" not in self.tokens[at + 1] else self._cut(at, at + 2)

    @property
    def _words(self) -> list[str]:
        return [token.upper() for token in self.tokens]

    def _find(self, word: str) -> int | None:
        """Return where *word* stands behind the type by itself: not in ON DELETE SET NULL, nor as a DEFAULT's value."""
        words = self._words
        for at in range(self.start + self.kind, len(words)):
            is_value = words[at - 1] == "DEFAULT" and words[at - 2] != "SET"
            if words[at] == word and words[at - 1] != "SET" and not is_value:
                return at
        return None

    def _follows(self, first: str, second: str) -> bool:
        return (first, second) in pairwise(self._words)

    def _cut(self, start: int, end: int) -> ColumnText:
        return replace(self, tokens=self.tokens[:start] + self.tokens[end:])

    def _without(self, word: str, length: int) -> ColumnText:
        at = self._find(word)
        return self if at is None else self._cut(at, at + length)

    def _without_null(self) -> ColumnText:
        at = self._find("NULL")
        if at is None:
            return self
        words = self._words
        begin = at - 1 if words[at - 1] == "NOT" else at
        if words[max(begin - 2, 0)] == "CONSTRAINT":
            begin -= 2
        end = at + 4 if words[at + 1 : at + 3] == ["ON", "CONFLICT"] else at + 1
        return self._cut(begin, end)._without_null()

    def _after_collation(self) -> int:
        """Return where NULL goes: behind what is still about the type, or to the end of a generated column."""
        words = self._words
        at = self.start + self.kind
        while at < len(words) and (words[at] in ("CHARACTER", "COLLATE") or words[at].startswith("/*")):
            at += {"CHARACTER": 3, "COLLATE": 2}.get(words[at], 1)
        return len(words) if words[at : at + 1] in (["GENERATED"], ["AS"]) else at


def scan(text: str, *, backslashes: bool) -> Iterator[Token]:
    """Yield the tokens of *text* as they stand, comments too, and each outermost group in parentheses as one.

    *backslashes* are MySQL's and MariaDB's: without them the text is read as SQLite reads it.
    """
    depth, opened = 0, 0
    for match in (MYSQL_TOKEN if backslashes else SQLITE_TOKEN).finditer(text):
        token = match.group()
        if token == "(":
            opened = match.start() if depth == 0 else opened
            depth += 1
        elif token == ")":
            depth -= 1
            if depth == 0:
                yield Token(text[opened : match.end()], opened, match.end())
        elif depth == 0:
            yield Token(token, match.start(), match.end())


def tokens_of(text: str, *, backslashes: bool) -> list[str]:
    """Return the tokens of *text*, each outermost group in parentheses as one; SQLite's comments are left out.

    MySQL and MariaDB print none, but attributes in their form: ``/*!80023 INVISIBLE */``, ``/*M!100301 COMPRESSED*/``.
    """
    tokens = scan(text, backslashes=backslashes)
    return [token.text for token in tokens if backslashes or not _is_comment(token)]


def _is_comment(token: Token) -> bool:
    return token.text.startswith(("--", "/*"))


def parse_definition(text: str, *, named: bool, backslashes: bool) -> ColumnText:
    """Return *text*, a column's definition that begins with its name when *named*, ready to be edited."""
    tokens = tokens_of(text, backslashes=backslashes)
    start = int(named)
    after_type = MYSQL_AFTER_TYPE.match if backslashes else SQLITE_AFTER_TYPE.fullmatch
    end = next((at for at in range(start, len(tokens)) if after_type(tokens[at])), len(tokens))
    return ColumnText(tuple(tokens), start, end - start)


def split_body(body: str) -> list[str]:
    """Return the items of SQLite's CREATE TABLE's *body* as they stand, white space and comments included.

    *body* is the text between the outermost parentheses; the items joined by a comma are that text again.
    """
    commas = [token.start for token in scan(body, backslashes=False) if token.text == ","]
    return [body[before + 1 : after] for before, after in pairwise([-1, *commas, len(body)])]


def edited_item(item: str, definition: str) -> str:
    """Return *item* of a CREATE TABLE's body with *definition* in its place, between the comments it stood between."""
    tokens = [token for token in scan(item, backslashes=False) if not _is_comment(token)]
    return item[: tokens[0].start] + definition + item[tokens[-1].end :]


def unquote(name: str) -> str:
    """Return *name* without the quotes of any engine."""
    ends = {'"': '"', "`": "`", "[": "]", "'": "'"}
    if len(name) < 2 or ends.get(name[0]) != name[-1]:
        return name
    quote = name[-1]
    return name[1:-1].replace(quote * 2, quote) if quote != "]" else name[1:-1]


def same_name(left: str, right: str) -> bool:
    """Say whether two names mean the same column where case does not count."""
    return unquote(left).lower() == unquote(right).lower()


def names_in(group: str) -> Sequence[str]:
    """Return the names in a group such as ``("a", "b")``."""
    return [unquote(tokens_of(item, backslashes=False)[0]) for item in split_body(group[1:-1])]
