"""A statement's words, and the place in them that is being read; ``lexing`` splits a statement into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from api.exceptions import StatementRefusedError
from api.logs import one_line

# A word that stands for a token that is no keyword and no punctuation.
QUOTED_NAME, STRING, NUMBER, OTHER = "`", "'", "0", ""


class Token(NamedTuple):
    """What stands from *start* to before *end* of a statement: its *text* unquoted, and its *word* in ``Words``."""

    word: str
    text: str
    start: int
    end: int
    is_name: bool


@dataclass(frozen=True, slots=True)
class Name:
    """A name, unquoted, and the *schema* that is written before it."""

    schema: str | None
    text: str


class Words:
    """The *words* of a statement, of which those from *at* to *end* are still to be read.

    A word is a keyword in capitals or a punctuation mark; names in backticks, strings and numbers are stood for by
    one character each. What follows a dot or an ``@`` is never a keyword. A part of a statement shares its lists.
    """

    __slots__ = ("at", "closing", "end", "schemas", "sql", "tokens", "words")

    def __init__(self, sql: str, tokens: list[Token]) -> None:
        self.sql = sql
        self.tokens = tokens
        self.words = [token.word for token in tokens]
        self.at = 0
        self.end = len(tokens)
        while self.end and self.words[self.end - 1] == ";":
            self.end -= 1
        self.schemas: set[str] = set()
        self.closing = self._closing()

    def _closing(self) -> dict[int, int]:
        """Return the place of each parenthesis's partner, by the place of the opening one."""
        opened: list[int] = []
        closing: dict[int, int] = {}
        for at, word in enumerate(self.words):
            if word == "(":
                opened.append(at)
            elif word == ")":
                if not opened:
                    raise self.refused("a parenthesis is closed that was not opened")
                closing[opened.pop()] = at
        if opened:
            raise self.refused("a parenthesis is not closed")
        return closing

    def part(self, start: int, end: int) -> Words:
        """Return the words from *start* to before *end* as words of their own; schemas read there count here too."""
        part = Words.__new__(Words)
        part.sql, part.tokens, part.words = self.sql, self.tokens, self.words
        part.closing, part.schemas = self.closing, self.schemas
        part.at, part.end = start, end
        return part

    # Reading ------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether nothing is left to read."""
        return self.at >= self.end

    @property
    def next(self) -> str:
        """The next word, and nothing at the end."""
        return self.words[self.at] if self.at < self.end else ""

    @property
    def second(self) -> str:
        """The word after the next, and nothing at the end."""
        return self.words[self.at + 1] if self.at + 1 < self.end else ""

    def ahead(self, *words: str) -> bool:
        """Whether the next words are *words*."""
        if self.next != words[0]:
            return False
        end = self.at + len(words)
        return end <= self.end and self.words[self.at : end] == list(words)

    def take(self, *words: str) -> bool:
        """Read *words* if they are next, all of them or none, and say so."""
        if self.ahead(*words):
            self.at += len(words)
            return True
        return False

    def take_any(self, *words: str) -> str:
        """Read the next word if it is one of *words*; return it, or nothing."""
        word = self.next
        if word and word in words:
            self.at += 1
            return word
        return ""

    def expect(self, *words: str) -> None:
        """Read *words*, or refuse the statement."""
        if not self.take(*words):
            raise self.refused(f"{' '.join(words)} was expected {self._where()}")

    def name(self) -> str:
        """Read a name, quoted or not; refuse the statement where none stands."""
        if self.done or not self.tokens[self.at].is_name:
            raise self.refused(f"a name was expected {self._where()}")
        self.at += 1
        return self.tokens[self.at - 1].text

    def qualified(self) -> Name:
        """Read a name with or without a schema before it."""
        first = self.name()
        if self.take("."):
            return Name(first, self.name())
        return Name(None, first)

    def changed(self) -> str:
        """Read the name of something that the statement changes; remember its schema."""
        name = self.qualified()
        if name.schema is not None:
            self.schemas.add(name.schema)
        return name.text

    def skip(self) -> None:
        """Read one token, or a whole group in parentheses."""
        self.at = self.closing.get(self.at, self.at) + 1

    # Looking ------------------------------------------------------------------------------------------------------

    def top(self) -> Iterator[int]:
        """Yield the place of each word to be read that stands in no parentheses."""
        at = self.at
        while at < self.end:
            yield at
            at = self.closing.get(at, at) + 1

    def find(self, *words: str) -> int:
        """Return the place of the first of *words* outside parentheses; the end if there is none."""
        return next((at for at in self.top() if self.words[at] in words), self.end)

    def parts(self) -> Iterator[Words]:
        """Yield what stands between the commas outside parentheses; nothing where there is nothing to read."""
        start = self.at
        commas = [at for at in self.top() if self.words[at] == ","]
        if start < self.end:
            for comma in (*commas, self.end):
                yield self.part(start, comma)
                start = comma + 1

    def text(self, start: int | None = None, end: int | None = None) -> str:
        """Return the text from the word at *start* to that before *end*, as written; of what is left by default."""
        start = self.at if start is None else start
        end = self.end if end is None else end
        if start >= end:
            return ""
        return self.sql[self.tokens[start].start : self.tokens[end - 1].end]

    def names(self) -> frozenset[str]:
        """Return all words that could be a name, in lower case, whatever has been read."""
        return frozenset(token.text.lower() for token in self.tokens if token.is_name)

    # Refusing -----------------------------------------------------------------------------------------------------

    def refused(self, reason: str, hint: str | None = None) -> StatementRefusedError:
        """Return the error for a statement that is not understood, or not undoable, for *reason*."""
        return refusal(self.sql, reason, hint)

    def _where(self) -> str:
        return f"before {self.text()[:40]!r}" if not self.done else "at the end"


def refusal(sql: str, reason: str, hint: str | None = None) -> StatementRefusedError:
    """Return the error for *sql*, which is shown cut short and without its secrets."""
    shown = one_line(sql[:2000], 80)
    return StatementRefusedError(f"refused in an atomic batch: {reason}: {shown!r}", hint=hint)
