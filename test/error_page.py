"""Writes ``docs/ERRORS.md`` from the code and the tests' table: ``PYTHONPATH=.:test python test/error_page.py``."""

from __future__ import annotations

import inspect
import sqlite3
from pathlib import Path

from error_cases import CANNOT_OCCUR, CASES, SCHEMA, Case

from api.db.dialects.categories import TRAITS, Category, Code
from api.db.dialects.engine import ENGINES, Engine
from api.db.dialects.errors import ERROR_CODES, Classified

PAGE = Path(__file__).parent.parent / "docs" / "ERRORS.md"
TITLES: dict[Engine, str] = {"postgres": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
SQLITE_NAMES = {
    value: name
    for name, value in vars(sqlite3).items()
    if name.startswith(("SQLITE_CONSTRAINT", "SQLITE_BUSY", "SQLITE_READONLY", "SQLITE_CANTOPEN"))
} | {
    getattr(sqlite3, f"SQLITE_{name}"): f"SQLITE_{name}"
    for name in ("ERROR", "PERM", "LOCKED", "INTERRUPT", "FULL", "TOOBIG", "MISMATCH", "AUTH", "NOTADB")
}

HEAD = """# Errors

<!-- Written by test/error_page.py from the code and the tests' table; a test compares. Do not edit. -->

What a driver's error is called here, what follows from it, and which statement provokes it on which engine.
Categories are told by code: SQLSTATE on PostgreSQL, error number on MySQL and MariaDB, extended result code on
SQLite. Words decide only where one code says several things, or where the driver gives none ("by its text").

## What follows

*Expected*: a healthy fleet meets it, in a race, in a half-done schema, on a busy server; it is a warning.
*Skipped*: the schema may already be as asked, so the operation reads the live one and decides by that; the error
alone never means "done". *Passes*: the same call may succeed later without anyone changing anything.

| category | severity | expected | skipped | passes | what to do now |
|---|---|---|---|---|---|
"""

MIDDLE = f"""
## What provokes it

Each statement is run by `test/test_errors.py` on the real servers, beginning from this schema; a code without a
statement is known from the manual alone.

```sql{SCHEMA}```

| category | engine | codes | provoked by |
|---|---|---|---|
"""


def page() -> str:
    """Return the page as it has to be."""
    follows = "".join(_follows(category) for category in Category)
    provoked = "".join(_provoked(category, engine) for category in Category for engine in ENGINES)
    return HEAD + follows + MIDDLE + provoked


def _follows(category: Category) -> str:
    kind = Classified(category, None, "")
    flags = ("yes" if flag else "" for flag in (kind.is_expected, kind.should_skip, kind.is_transient))
    return _row(category, kind.severity, *flags, TRAITS[category].remedy)


def _provoked(category: Category, engine: Engine) -> str:
    if reason := CANNOT_OCCUR.get(category, {}).get(engine):
        return _row(category, TITLES[engine], "", f"cannot occur: {reason}")
    cases = [case for case in CASES if case.category is category and engine in case.codes]
    provoked = "<br>".join(f"{_code(case.codes[engine])}: {_words(case)}" for case in cases)
    codes = ERROR_CODES.get(category, {}).get(engine, ())
    listed = ", ".join(map(_code, codes)) or ("whatever is not listed" if category is Category.UNKNOWN else "none")
    return _row(category, TITLES[engine], listed, provoked)


def _code(code: Code | None) -> str:
    if code is None:
        return "by its text"
    name = SQLITE_NAMES.get(code) if isinstance(code, int) else None
    return f"{name} ({code})" if name else str(code)


def _words(case: Case) -> str:
    if isinstance(case.provoke, str):
        return f"`{case.provoke}`"
    return inspect.getdoc(case.provoke) or ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
