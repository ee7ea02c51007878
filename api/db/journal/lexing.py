"""A statement split into its words, by sqlglot's MySQL tokenizer; nothing else of the service knows sqlglot.

The stock tokenizer is made for a parser: it swallows RENAME and the like as one string and joins ``ORDER BY`` into one
token, unless a comment stands between. Without its keywords every word is a word, quoted names and strings are told
apart, and each token keeps its place in the text. How a server lexes also depends on sql_mode: this is right while
neither ANSI_QUOTES nor NO_BACKSLASH_ESCAPES is on.
"""

from __future__ import annotations

import re
from typing import ClassVar

from sqlglot import TokenType
from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import TokenError

from api.db.journal.words import NUMBER, OTHER, QUOTED_NAME, STRING, Token, Words, refusal

# MySQL's comments, without those that it executes; one without an end reaches to the end.
_COMMENT = re.compile(r"#[^\n]*|--(?=[\x00-\x20\x7f]|\Z)[^\n]*|/\*(?!M?!).*?(?:\*/|\Z)", re.DOTALL | re.IGNORECASE)
# Where the tokenizer and a server may see different gaps: executed comments, Jinja's, spaces beyond ASCII.
_ODD = re.compile(r"/\*M?!|\{#|[^\x00-\x7f]", re.IGNORECASE)
_SPACE = " \t\n\v\f\r"

_NAMES = frozenset({TokenType.VAR, TokenType.IDENTIFIER})
_STANDS_FOR = {
    TokenType.IDENTIFIER: QUOTED_NAME,
    TokenType.STRING: STRING,
    TokenType.NATIONAL_STRING: STRING,
    TokenType.NUMBER: NUMBER,
    TokenType.HEX_STRING: NUMBER,
    TokenType.BIT_STRING: NUMBER,
}


class _Tokenizer(MySQL.Tokenizer):
    KEYWORDS: ClassVar[dict[str, TokenType]] = {}
    COMMANDS: ClassVar[set[TokenType]] = set()


def split(sql: str) -> Words:
    """Return the words of *sql*; refuse what a server may split differently, or would execute from a comment."""
    tokens = _tokens(sql)
    if _ODD.search(sql):
        _refuse_odd_gaps(sql, tokens)
    return Words(sql, tokens)


def _tokens(sql: str) -> list[Token]:
    try:
        # A tokenizer keeps what it is at in itself: one for each statement serves all threads, and costs 7 us.
        found = _Tokenizer(dialect="mysql").tokenize(sql)
    except TokenError as error:
        raise refusal(sql, "a quote or comment is not closed, or a number is none") from error
    tokens, word = [], ""
    for each in found:
        kind, before = each.token_type, word
        word = _STANDS_FOR.get(kind, each.text)
        if kind is TokenType.VAR:
            word = OTHER if before in (".", "@") else word.upper()
        tokens.append(Token(word, each.text, each.start, each.end + 1, kind in _NAMES))
    return tokens


def _refuse_odd_gaps(sql: str, tokens: list[Token]) -> None:
    """Refuse *sql* if between its tokens stands what MySQL takes neither for a space nor for a mere comment."""
    ends = [0, *(token.end for token in tokens)]
    starts = [*(token.start for token in tokens), len(sql)]
    left = "".join(_COMMENT.sub("", sql[end:start]) for end, start in zip(ends, starts, strict=True))
    if "/*" in left:
        raise refusal(
            sql,
            "it has an executable comment, which the server may run or not",
            "write what the server shall run without the comment's marks",
        )
    if left.strip(_SPACE):
        raise refusal(sql, f"between its words stands {left.strip(_SPACE)[:1]!r}, which is no space to the server")
