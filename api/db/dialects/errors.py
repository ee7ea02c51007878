"""What a driver's error means: its category by its code, and by its words only where the code leaves it open.

The facts are each engine's own (``postgres``, ``mysql``, ``sqlite``); what follows from a category stands in
``categories``. Whether an operation goes on is not decided here but by ``StandardErrorHandler``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from api.db.dialects import mysql, postgres, sqlite
from api.db.dialects.categories import EXPECTED, SKIPPED, TRAITS, TRANSIENT, Category, Code, Meaning
from api.db.dialects.engine import ENGINES, Engine
from api.exceptions import ErrorSeverity
from api.logs import one_line, redact

_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
# What a server quotes of a statement it cannot read: a word, or all that follows (MySQL, MariaDB).
_QUOTED_SQL = re.compile(r"""\b(near|token:) (["'])(.*)\2""", re.DOTALL)
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?""", re.DOTALL)
_DRIVERS: dict[Engine, str] = {
    "postgres": "psycopg2",
    "mysql": "pymysql",
    "mariadb": "pymysql",
    "sqlite": "sqlite3",
}


class _Facts(NamedTuple):
    codes: Mapping[Category, tuple[Code, ...]]
    shared: Mapping[Code, tuple[Meaning, ...]]
    messages: Mapping[Category, tuple[str, ...]]


FACTS: dict[Engine, _Facts] = {
    "postgres": _Facts(postgres.ERROR_CODES, postgres.SHARED_CODES, postgres.ERROR_MESSAGES),
    "mysql": _Facts(mysql.ERROR_CODES, mysql.SHARED_CODES, mysql.ERROR_MESSAGES),
    "mariadb": _Facts(mysql.MARIADB_ERROR_CODES, mysql.MARIADB_SHARED_CODES, mysql.ERROR_MESSAGES),
    "sqlite": _Facts(sqlite.ERROR_CODES, sqlite.SHARED_CODES, sqlite.ERROR_MESSAGES),
}

ERROR_CODES: dict[Category, dict[Engine, tuple[Code, ...]]] = {
    category: {engine: FACTS[engine].codes[category] for engine in ENGINES if category in FACTS[engine].codes}
    for category in Category
    if category is not Category.UNKNOWN
}
"""Category -> engine -> codes: SQLSTATEs, error numbers, extended result codes; an engine without is absent."""

ERROR_MESSAGES: dict[Category, tuple[str, ...]] = {
    category: tuple(dict.fromkeys(w for facts in FACTS.values() for w in facts.messages.get(category, ())))
    for category in Category
    if any(category in facts.messages for facts in FACTS.values())
}
"""Category -> patterns of the texts that a driver gives without any code."""


@dataclass(frozen=True, slots=True)
class Classified:
    """A driver's error in our words; *code* and *server_message* are the server's, secrets masked.

    *code* is ``None`` when the driver gave none, or when no driver's error was found.
    """

    category: Category
    code: Code | None
    server_message: str

    @property
    def is_expected(self) -> bool:
        """Whether a healthy fleet meets this: a race, a half-done schema, a busy server."""
        return self.category in EXPECTED

    @property
    def should_skip(self) -> bool:
        """Whether the schema may already be as asked: look at the live one. Never that it is."""
        return self.category in SKIPPED

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later without anyone changing anything."""
        return self.category in TRANSIENT

    @property
    def severity(self) -> ErrorSeverity:
        """How bad it is."""
        return TRAITS[self.category].severity

    @property
    def remedy(self) -> str:
        """What to do now, in one line."""
        return TRAITS[self.category].remedy


def classify(exc: BaseException, engine: Engine, *, statement: str = "") -> Classified:
    """Say what the driver's error behind *exc* means on *engine*; never raises.

    *statement* is the SQL that failed, where the caller knows it. It settles what some servers leave open:
    MySQL's 1091 ("check that column/key exists"), MariaDB's 1265 (a NULL, or a value that does not fit).
    """
    error = driver_error(exc, engine)
    if error is None:
        return Classified(Category.UNKNOWN, None, redact(str(exc) or type(exc).__name__))
    code, message = _code(error, engine), _message(error)
    category = _by_words(message, engine) if code is None else _by_code(code, error, engine, statement)
    if category is Category.SYNTAX_ERROR:
        message = _QUOTED_SQL.sub(_mask_literals, message)
    return Classified(category, code, one_line(message))


def driver_error(exc: BaseException, engine: Engine) -> BaseException | None:
    """Return *exc*, or what it was made from, as soon as that is an error of *engine*'s driver; else ``None``.

    Follows peewee's ``orig`` and ``raise ... from``. The implicit ``__context__`` proves nothing: a programming
    error inside the handler of a duplicate column is not a duplicate column.
    """
    error: BaseException | None = exc
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _is_drivers(error, engine):
            return error
        seen.add(id(error))
        error = getattr(error, "orig", None) or error.__cause__
    return None


def may_skip(classified: Classified, operation: str) -> bool:
    """Whether *operation* (``add_column``, ``drop_index``, ...) may find its work already done.

    What is there already answers an operation that adds, what is gone one that drops; a rename meets both. An
    ``add_column`` that finds no table is an error, whatever the category says of ``drop_table``.
    """
    if not classified.should_skip:
        return False
    drops = re.search(r"drop|remove|rename", operation, re.IGNORECASE) is not None
    adds = re.search(r"drop|remove", operation, re.IGNORECASE) is None
    return drops if classified.category.startswith("missing_") else adds


def _is_drivers(error: BaseException, engine: Engine) -> bool:
    """PEP 249: whatever a driver raises descends from a class of its own that is called ``Error``."""
    classes = (base for base in type(error).__mro__ if base.__name__ == "Error")
    return any(base.__module__.partition(".")[0] == _DRIVERS[engine] for base in classes)


def _code(error: BaseException, engine: Engine) -> Code | None:
    if engine == "postgres":
        return getattr(error, "pgcode", None)
    if engine == "sqlite":
        return getattr(error, "sqlite_errorcode", None)
    return error.args[0] if error.args and isinstance(error.args[0], int) else None


def _message(error: BaseException) -> str:
    """What the server said, without PostgreSQL's DETAIL, which quotes whole rows."""
    diagnostics = getattr(error, "diag", None)
    return getattr(diagnostics, "message_primary", None) or _words_of(error)


def _words_of(error: BaseException) -> str:
    words = str(error.args[-1]) if error.args else ""
    return words.strip() or type(error).__name__


def _mask_literals(quoted: re.Match[str]) -> str:
    """A password in a misspelt statement comes back cut off from the keyword that would give it away."""
    before, quote, sql = quoted.groups()
    masked = _LITERAL.sub("'***'", sql)
    return f"{before} {quote}{masked}{quote}"


def _by_words(message: str, engine: Engine) -> Category:
    for category, patterns in FACTS[engine].messages.items():
        if any(re.search(pattern, message, _FLAGS) for pattern in patterns):
            return category
    return Category.UNKNOWN


def _by_code(code: Code, error: BaseException, engine: Engine, statement: str) -> Category:
    facts = FACTS[engine]
    categories = [category for category, codes in facts.codes.items() if code in codes]
    if not categories and engine == "sqlite" and isinstance(code, int) and code > 0xFF:
        return _by_code(code & 0xFF, error, engine, statement)  # the primary code of an extended one
    if code not in facts.shared:
        return categories[0] if categories else Category.UNKNOWN
    raised_in = getattr(getattr(error, "diag", None), "source_function", None) or ""
    evidence = "\n".join((statement.strip(), raised_in, _message(error)))
    return next(kind for words, kind in facts.shared[code] if re.search(words, evidence, _FLAGS))
