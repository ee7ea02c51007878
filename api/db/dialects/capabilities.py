"""What each engine can do, assembled from the files of facts, and the table of it for the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from api.db.dialects import mysql, postgres, sqlite
from api.db.dialects.engine import ENGINES, Engine
from api.db.dialects.fact import Fact, Since, Value

FACTS: dict[Engine, dict[str, Fact]] = {
    "postgres": postgres.CAPABILITIES,
    "mysql": mysql.CAPABILITIES,
    "mariadb": mysql.MARIADB_CAPABILITIES,
    "sqlite": sqlite.CAPABILITIES,
}

CAPABILITIES: dict[Engine, dict[str, Value]] = {
    engine: {name: fact.value for name, fact in facts.items()} for engine, facts in FACTS.items()
}
"""Engine -> capability -> what it is there: yes, no, a limit, None (no limit), or ``Since`` a version."""

OLDEST_SUPPORTED: dict[Engine, tuple[int, ...]] = {
    "postgres": (13,),
    "mysql": (8, 0, 16),
    "mariadb": (10, 6),
    "sqlite": (3, 38),
}
"""The version that a ``Since`` is held against when none is given; MariaDB's DDL is atomic from 10.6 on."""

MANUALS: dict[Engine, str] = {
    "postgres": "https://www.postgresql.org/docs/15/{}.html",
    "mysql": "https://dev.mysql.com/doc/refman/8.4/en/{}.html",
    "mariadb": "https://mariadb.com/kb/en/{}/",
    "sqlite": "https://www.sqlite.org/{}.html",
}

QUESTIONS: dict[str, str] = {
    "full_text_search": "a full-text index and a search over it",
    "json_functions": "functions that read inside a JSON value",
    "json_validated": "a JSON column refuses what is not JSON",
    "native_json": "a JSON column is parsed once and kept in the server's own form",
    "auto_increment": "a key that counts itself",
    "sequence_support": "`CREATE SEQUENCE`",
    "type_casting": "`CAST(x AS type)`",
    "cast_on_type_change": "`ALTER COLUMN … TYPE … USING expression`",
    "alter_column_type": "a column's type changed without a new table",
    "add_constraint": "`ADD CONSTRAINT` on an existing table",
    "not_valid_constraints": "a constraint for new rows first, checked for old ones later",
    "rename_column": "`RENAME COLUMN`",
    "drop_column": "`DROP COLUMN`",
    "add_column_if_not_exists": "`ADD COLUMN IF NOT EXISTS`",
    "instant_add_column": "a column with a constant default added without rewriting the rows",
    "transactional_ddl": "DDL undone by `ROLLBACK`",
    "savepoints": "`SAVEPOINT` and `ROLLBACK TO`",
    "check_constraints": "`CHECK` enforced",
    "foreign_keys": "foreign keys enforced (SQLite: with `PRAGMA foreign_keys = ON`, which the app sets)",
    "deferrable_constraints": "a foreign key checked at `COMMIT`",
    "partial_indexes": "`CREATE INDEX … WHERE`",
    "expression_indexes": "an index on an expression",
    "concurrent_index": "an index built while rows are written",
    "returning_clause": "`INSERT … RETURNING`",
    "update_returning": "`UPDATE … RETURNING`",
    "upsert": "insert or update in one statement",
    "window_functions": "`OVER (…)`",
    "common_table_expressions": "`WITH RECURSIVE`",
    "generated_columns": "`GENERATED ALWAYS AS … STORED`",
    "virtual_generated_columns": "`GENERATED ALWAYS AS … VIRTUAL`",
    "text_default": "a literal `DEFAULT` on `TEXT`",
    "text_expression_default": "a `DEFAULT` in parentheses on `TEXT`",
    "comments": "a comment kept with a column",
    "arrays": "array values",
    "native_uuid": "a UUID type that refuses what is no UUID",
    "native_boolean": "a boolean type that refuses 2",
    "unsigned_integers": "integers that refuse -1",
    "skip_locked": "`FOR UPDATE SKIP LOCKED`",
    "advisory_locks": "locks by name or number, apart from tables",
    "max_char": "longest `CHAR`, in characters",
    "max_varchar": "longest `VARCHAR`, in characters",
    "max_decimal_digits": "most digits of a `DECIMAL`",
    "max_decimal_scale": "most digits after its point",
    "max_fraction_digits": "most digits of a second's fraction",
    "max_identifier_length": "longest name (PostgreSQL: bytes, and it shortens a longer one without an error)",
    "max_index_bytes": "longest key of an index (PostgreSQL: with its headers, checked for each row)",
    "max_row_bytes": "longest row, without what lies outside of it (SQLite: one value)",
    "max_columns": "most columns of a table",
}
"""Capability -> what is asked, for the documentation; its keys are the capabilities that exist."""


def is_capable(engine: str, capability: str, version: tuple[int, ...] | None = None) -> bool:
    """Say whether *engine* has *capability* at *version*, or else at the oldest version this layer supports.

    A limit counts as there whatever its size: read ``CAPABILITIES`` for the number. An unknown engine or
    capability raises ``ValueError`` that names the nearest: a slip of the pen must not read as False.
    """
    known = known_engine(engine)
    if capability not in QUESTIONS:
        raise _unknown("capability", capability, QUESTIONS)
    value = CAPABILITIES[known][capability]
    if isinstance(value, Since):
        return (version or OLDEST_SUPPORTED[known]) >= value.version
    return value is not False


def known_engine(name: str) -> Engine:
    """Return *name* as one of the four engines; raises ``ValueError`` naming the nearest."""
    for engine in ENGINES:
        if engine == name:
            return engine
    raise _unknown("engine", name, ENGINES)


def _unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    also = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return ValueError(f"{name!r} is no {what} known here: {also}")


def capability_table() -> str:
    """Return the matrix as Markdown, each cell a link to the page of the manual that says so."""
    head = [
        "| capability | what is asked | " + " | ".join(ENGINES) + " |",
        "|---|---" + "|---" * len(ENGINES) + "|",
    ]
    rows = [
        f"| `{name}` | {question} | " + " | ".join(_cell(engine, name) for engine in ENGINES) + " |"
        for name, question in QUESTIONS.items()
    ]
    return "\n".join(head + rows)


def _cell(engine: Engine, capability: str) -> str:
    value, page = FACTS[engine][capability]
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None:
        text = "no limit"
    else:
        text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"[{text}]({MANUALS[engine].format(page)})"
