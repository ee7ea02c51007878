"""Edit a column's definition in its own words, so that what is not edited stays as it was.

Knows the text that SQLite keeps in ``sqlite_schema`` and that MySQL and MariaDB print in SHOW CREATE TABLE:
words, quoted names and strings, groups in parentheses. It never builds a definition from parts: whatever it does
not know (COMMENT, COLLATE, ON UPDATE, CHECK, generated columns) passes through untouched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

# A string or name in any of the four quotes (a backslash escapes only in MySQL's strings), a comment, a
# parenthesis or comma, or a run of anything else.
TOKEN = re.compile(
    r"""'(?:[^'\\]|''|\\.)*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]"""
    r"""|--[^\n]*|/\*.*?\*/|[(),]|[^\s'"`\[(),]+""",
    re.DOTALL,
)
SQLITE_TOKEN = re.compile(TOKEN.pattern.replace(r"'(?:[^'\\]|''|\\.)*'", r"'(?:[^']|'')*'"), re.DOTALL)
AFTER_TYPE = re.compile(
    r"CONSTRAINT|PRIMARY|NOT|NULL|UNIQUE|CHECK|DEFAULT|COLLATE|REFERENCES|GENERATED|AS|AUTO_INCREMENT|COMMENT|ON"
    r"|CHARACTER|CHARSET|INVISIBLE|VISIBLE|STORAGE|COLUMN_FORMAT|WITH|WITHOUT",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ColumnText:
    """A column's definition as a row of tokens; *kind* of them are its type, from *start* on."""

    tokens: tuple[str, ...]
    start: int
    kind: int

    def __str__(self) -> str:
        # No space before a parenthesis: "varchar (40)" is another type text to SQLite than "varchar(40)".
        return "".join(token if token.startswith("(") else f" {token}" for token in self.tokens).strip()

    def with_type(self, text: str, *, keep_default: bool = True) -> ColumnText:
        """Return the definition with the type *text*; a character set goes where the new type has none."""
        head, tail = self.tokens[: self.start], self.tokens[self.start + self.kind :]
        edited = ColumnText((*head, *text.split(), *tail), self.start, len(text.split()))
        if not re.match(r"(?i)\w*(char|text|enum|set)\b", text):
            edited = edited._without("CHARACTER", 3)._without("COLLATE", 2)
        return edited if keep_default else edited.without_default()

    def with_null(self, null: bool) -> ColumnText:
        """Return the definition with NULL or NOT NULL, and with no ``DEFAULT NULL`` beside the latter."""
        edited = self._without_null()
        if not null and edited.default == "NULL":
            edited = edited.without_default()
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
        return replace(self, tokens=self.tokens[:at] + self.tokens[end:])

    def with_tail(self, text: str) -> ColumnText:
        """Return the definition with the constraint *text* at its end."""
        return replace(self, tokens=(*self.tokens, text))

    def _find(self, word: str) -> int | None:
        upper = [token.upper() for token in self.tokens]
        return upper.index(word, self.start) if word in upper[self.start :] else None

    def _without(self, word: str, length: int) -> ColumnText:
        at = self._find(word)
        return self if at is None else replace(self, tokens=self.tokens[:at] + self.tokens[at + length :])

    def _without_null(self) -> ColumnText:
        kept: list[str] = []
        for token in self.tokens:
            bare = token.upper() == "NULL" and (not kept or kept[-1].upper() not in ("DEFAULT", "SET"))
            if not bare:
                kept.append(token)
            elif kept and kept[-1].upper() == "NOT":
                kept.pop()
        return replace(self, tokens=tuple(kept))

    def _after_collation(self) -> int:
        at = self.start + self.kind
        while at < len(self.tokens) and self.tokens[at].upper() in ("CHARACTER", "COLLATE", "SET"):
            at += 2 if self.tokens[at].upper() != "CHARACTER" else 3
        generated = at < len(self.tokens) and self.tokens[at].upper() in ("GENERATED", "AS")
        return len(self.tokens) if generated else at


def tokens_of(text: str, *, backslashes: bool) -> list[str]:
    """Return the tokens of *text*, each outermost group in parentheses as one; comments are left out."""
    found: list[str] = []
    depth, opened = 0, 0
    for match in (TOKEN if backslashes else SQLITE_TOKEN).finditer(text):
        token = match.group()
        if token == "(":
            opened = match.start() if depth == 0 else opened
            depth += 1
        elif token == ")":
            depth -= 1
            if depth == 0:
                found.append(text[opened : match.end()])
        elif depth == 0 and not token.startswith(("--", "/*")):
            found.append(token)
    return found


def parse_definition(text: str, *, named: bool, backslashes: bool) -> ColumnText:
    """Return *text*, a column's definition that begins with its name when *named*, ready to be edited."""
    tokens = tokens_of(text, backslashes=backslashes)
    start = int(named)
    kind = 0
    for at, token in enumerate(tokens[start:], start):
        varying = token.upper() == "CHARACTER" and tokens[at + 1 : at + 2] != ["SET"]
        if AFTER_TYPE.fullmatch(token) and not varying:
            break
        kind += 1
    return ColumnText(tuple(tokens), start, kind)


def split_body(body: str) -> list[str]:
    """Return the items of a CREATE TABLE's *body*, the text between its outermost parentheses, as they stand."""
    items, depth, begun = [], 0, 0
    for match in SQLITE_TOKEN.finditer(body):
        token = match.group()
        depth += (token == "(") - (token == ")")
        if token == "," and depth == 0:
            items.append(body[begun : match.start()].strip())
            begun = match.end()
    return [*items, body[begun:].strip()]


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
    return [unquote(item.split()[0]) for item in split_body(group.strip()[1:-1]) if item]
