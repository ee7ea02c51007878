"""Every cell of the capability matrix, asked of a real server; and the page that shows the matrix."""

from __future__ import annotations

from pathlib import Path

import peewee
import pytest
from capability_probes import LIMIT_PROBES, PROBES

from api.db.dialects.capabilities import CAPABILITIES, OLDEST_SUPPORTED, QUESTIONS, capability_table, is_capable
from api.db.dialects.engine import ENGINES, Engine, server_version
from api.db.dialects.equivalence import equivalence_table
from api.db.dialects.fact import Since
from conftest import Backend

PAGE = Path(__file__).parent.parent / "docs" / "DATABASE_COMPATIBILITY.md"
MUCH = 2_000_000


def passes(db: peewee.Database, statements: tuple[str, ...] | list[str]) -> bool:
    """Say whether every statement does as its probe says (see ``capability_probes``)."""
    for statement in statements:
        refusal_wanted = statement.startswith("! ")
        try:
            rows = db.execute_sql(statement.removeprefix("! "))
        except peewee.PeeweeException:
            if not refusal_wanted:
                return False
            continue
        answered = not statement.startswith(("SELECT", "WITH")) or bool(rows.fetchone()[0])
        if refusal_wanted or not answered:
            return False
    return True


@pytest.mark.parametrize("capability", PROBES)
def test_server_can_what_the_matrix_says_and_nothing_else(
    backend: Backend, db: peewee.Database, capability: str
) -> None:
    """The probe passes where the matrix says yes for this server's version, and fails where it says no."""
    statements = PROBES[capability].get(backend.engine) or PROBES[capability]["*"]
    assert passes(db, statements) is is_capable(backend.engine, capability, server_version(db))


def limit_of(engine: Engine, capability: str) -> int | None:
    """Return the limit that the matrix names, or None where there is none."""
    limit = CAPABILITIES[engine][capability]
    assert limit is None or isinstance(limit, int)
    return limit


@pytest.mark.parametrize("capability", LIMIT_PROBES)
def test_limit_can_be_reached(backend: Backend, db: peewee.Database, capability: str) -> None:
    """The server takes what is as large as the matrix says; where that is no limit, something very large."""
    size = limit_of(backend.engine, capability) or MUCH
    assert passes(db, LIMIT_PROBES[capability](backend.engine, size))


@pytest.mark.parametrize("capability", LIMIT_PROBES)
def test_limit_cannot_be_passed(backend: Backend, db: peewee.Database, capability: str) -> None:
    """The server refuses, or visibly shortens, what is larger by one than the matrix says."""
    limit = limit_of(backend.engine, capability)
    beyond = MUCH if limit is None else limit + 1
    assert passes(db, LIMIT_PROBES[capability](backend.engine, beyond)) is (limit is None)


def test_every_capability_has_a_probe_and_a_value_on_every_engine() -> None:
    """No cell of the matrix is empty or unproven."""
    assert set(PROBES) | set(LIMIT_PROBES) == set(QUESTIONS)
    assert all(set(CAPABILITIES[engine]) == set(QUESTIONS) for engine in ENGINES)


def test_capability_since_a_version_depends_on_the_version() -> None:
    """MariaDB has a UUID type since 10.7: not in 10.6, and not when no version is given."""
    assert CAPABILITIES["mariadb"]["native_uuid"] == Since((10, 7))
    assert not is_capable("mariadb", "native_uuid", (10, 6, 16))
    assert is_capable("mariadb", "native_uuid", (10, 7))
    assert is_capable("mariadb", "native_uuid", (10, 11, 2))
    assert OLDEST_SUPPORTED["mariadb"] < (10, 7)
    assert not is_capable("mariadb", "native_uuid")


def test_misspelt_capability_is_an_error_that_names_the_right_one() -> None:
    """A typing mistake never reads as "cannot"."""
    with pytest.raises(ValueError, match="did you mean 'partial_indexes'"):
        is_capable("postgres", "partial_index")


def test_misspelt_engine_is_an_error_that_names_the_right_one() -> None:
    """So is an engine that is spelt otherwise here."""
    with pytest.raises(ValueError, match="did you mean 'postgres'"):
        is_capable("postgresql", "savepoints")


@pytest.mark.parametrize(("name", "table"), [("capabilities", capability_table), ("types", equivalence_table)])
def test_page_shows_what_the_code_says(name: str, table: object) -> None:
    """The tables of the documentation are those of the code; on failure, paste what is shown here."""
    assert callable(table)
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    shown = PAGE.read_text().partition(begin)[2].partition(end)[0].strip()
    assert shown == table(), f"paste into {PAGE.name} between the markers of {name!r}:\n\n{table()}\n"
