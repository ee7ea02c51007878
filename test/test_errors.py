"""Every category of error, provoked on every engine that can raise it; and what else the classification promises."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import peewee
import pytest
from error_cases import CANNOT_OCCUR, CASES, SCHEMA, Case
from error_page import PAGE, page

from api.db.dialects.categories import EXPECTED, SKIPPED, TRAITS, TRANSIENT, Category
from api.db.dialects.engine import ENGINES, Engine
from api.db.dialects.errors import ERROR_CODES, ERROR_MESSAGES, FACTS, Classified, classify, driver_error, may_skip

if TYPE_CHECKING:
    from conftest import Backend


def provoke(backend: Backend, case: Case) -> tuple[BaseException, str]:
    """Return the error that *case* meets on a fresh database, and the statement that met it, if it was one."""
    database = backend.database()
    for statement in SCHEMA.split(";\n")[:-1]:
        database.execute_sql(statement)
    if not isinstance(case.provoke, str):
        with pytest.raises(peewee.PeeweeException) as caught:
            case.provoke(backend)
        return caught.value, ""
    *before, last = case.provoke.split("; ")
    for statement in before:
        database.execute_sql(statement)
    with pytest.raises(peewee.PeeweeException) as caught:
        database.execute_sql(last).fetchall()
    return caught.value, last


def cells(engine: Engine) -> pytest.MarkDecorator:
    """Parametrise a test with the rows of the table that name *engine*."""
    rows = [case for case in CASES if engine in case.codes]
    words = [row.provoke if isinstance(row.provoke, str) else row.provoke.__name__ for row in rows]
    names = [f"{row.category}: {said[:90]}" for row, said in zip(rows, words, strict=True)]
    return pytest.mark.parametrize("case", rows, ids=names)


def assert_known(backend: Backend, case: Case) -> None:
    """Provoke *case*, and compare what it is called with what the table says."""
    error, statement = provoke(backend, case)
    kind = classify(error, backend.engine, statement=statement)
    assert (kind.category, kind.code) == (case.category, case.codes[backend.engine]), kind
    assert kind.server_message


@pytest.mark.engines("postgres")
@cells("postgres")
def test_postgres_error_is_known_by_its_sqlstate(backend: Backend, case: Case) -> None:
    """What provokes a category on PostgreSQL is classified as it, with the SQLSTATE that the table names."""
    assert_known(backend, case)


@pytest.mark.engines("mysql")
@cells("mysql")
def test_mysql_error_is_known_by_its_number(backend: Backend, case: Case) -> None:
    """What provokes a category on MySQL is classified as it, with the number that the table names."""
    assert_known(backend, case)


@pytest.mark.engines("mariadb")
@cells("mariadb")
def test_mariadb_error_is_known_by_its_number(backend: Backend, case: Case) -> None:
    """What provokes a category on MariaDB is classified as it, with the number that the table names."""
    assert_known(backend, case)


@pytest.mark.engines("sqlite")
@cells("sqlite")
def test_sqlite_error_is_known_by_its_result_code(backend: Backend, case: Case) -> None:
    """What provokes a category on SQLite is classified as it, with the result code that the table names."""
    assert_known(backend, case)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("category", Category)
def test_every_cell_is_provoked_or_says_why_not(category: Category, engine: Engine) -> None:
    """Each category is provoked on each engine, or the table gives the reason why it cannot occur there."""
    provoked = any(case.category is category and engine in case.codes for case in CASES)
    assert provoked != bool(CANNOT_OCCUR.get(category, {}).get(engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_code_with_several_meanings_is_always_decided(engine: Engine) -> None:
    """A code that stands in two categories has words for each, and an answer when none of them occurs."""
    facts = FACTS[engine]
    listed = Counter(code for codes in facts.codes.values() for code in codes)
    assert {code for code, times in listed.items() if times > 1} <= set(facts.shared)
    for code, meanings in facts.shared.items():
        named = {meaning.category for meaning in meanings} - {Category.UNKNOWN}
        assert {category for category, codes in facts.codes.items() if code in codes} == named
        assert [meaning for meaning in meanings if not meaning.words] == [meanings[-1]]


def test_every_category_has_a_severity_and_one_line_of_remedy() -> None:
    """No category leaves the reader without a severity and a line that says what to do."""
    assert set(TRAITS) == set(Category)
    assert all(trait.remedy and "\n" not in trait.remedy for trait in TRAITS.values())


def test_only_what_the_schema_may_already_have_is_skipped() -> None:
    """Duplicate and missing things of the schema are looked at again; rows, types and syntax never are."""
    assert {category for category in Category if category.startswith("duplicate_")} < SKIPPED
    assert not SKIPPED & {Category.UNIQUE_VIOLATION, Category.INCOMPATIBLE_TYPE, Category.SYNTAX_ERROR}
    assert SKIPPED < EXPECTED
    assert not SKIPPED & TRANSIENT


def test_code_and_text_tables_name_the_same_categories_as_the_facts() -> None:
    """``ERROR_CODES`` and ``ERROR_MESSAGES`` are the engines' own facts, put together."""
    assert ERROR_CODES[Category.DUPLICATE_COLUMN] == {
        "postgres": ("42701",),
        "mysql": (1060,),
        "mariadb": (1060,),
        "sqlite": (sqlite3.SQLITE_ERROR,),
    }
    assert set(ERROR_MESSAGES) == {category for facts in FACTS.values() for category in facts.messages}


def test_the_page_says_what_the_code_does() -> None:
    """``docs/ERRORS.md`` is what ``PYTHONPATH=.:test python test/error_page.py`` writes."""
    assert PAGE.read_text(encoding="utf-8") == page()


def duplicate_column() -> sqlite3.Error:
    """Return a real duplicate column, as the driver raises it."""
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as caught:
        connection.execute("CREATE TABLE item (id INT, id INT)")
    return caught.value


def test_bare_error_of_the_driver_is_known_too() -> None:
    """The driver's error is classified without peewee around it."""
    assert classify(duplicate_column(), "sqlite").category is Category.DUPLICATE_COLUMN


def test_error_raised_from_the_drivers_is_known_by_it() -> None:
    """``raise ... from`` keeps the category of what it was raised from."""
    error = ValueError("adding the column failed")
    error.__cause__ = duplicate_column()
    assert classify(error, "sqlite").category is Category.DUPLICATE_COLUMN


def test_error_met_while_handling_the_drivers_is_not_the_drivers() -> None:
    """A programming error inside a handler does not pass for what was being handled."""

    def mishandle() -> None:
        try:
            raise duplicate_column()
        except sqlite3.Error:
            raise ValueError("typo")  # noqa: B904 (without `from` is what is tested)

    with pytest.raises(ValueError, match="typo") as caught:
        mishandle()
    assert classify(caught.value, "sqlite").category is Category.UNKNOWN


def test_error_of_another_engines_driver_is_unknown() -> None:
    """A code is read only as the engine's own."""
    assert classify(duplicate_column(), "postgres").category is Category.UNKNOWN


def test_circle_of_causes_ends() -> None:
    """An error that was raised from itself is unknown, and the search ends."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert driver_error(first, "sqlite") is None


def test_extension_of_a_listed_sqlite_code_means_the_same(tmp_path: Path) -> None:
    """SQLITE_READONLY_DBMOVED, the file having gone, is not listed; its primary code SQLITE_READONLY is."""
    file = tmp_path / "moved.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE item (id INT)")
        file.rename(tmp_path / "elsewhere.db")
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute("INSERT INTO item VALUES (1)")
    kind = classify(caught.value, "sqlite")
    assert (kind.category, kind.code) == (Category.READ_ONLY_SERVER, sqlite3.SQLITE_READONLY_DBMOVED)


@pytest.mark.parametrize("statement", ["CREATE USER one IDENTIFID BY 'hunter\\'2'", "SELECT 'hunter2' 'hunter2"])
def test_literal_in_a_misspelt_statement_is_masked(db: peewee.Database, backend: Backend, statement: str) -> None:
    """A server quotes the statement it could not read; a password in it does not come along."""
    with pytest.raises(peewee.PeeweeException) as caught:
        db.execute_sql(statement)
    kind = classify(caught.value, backend.engine)
    assert kind.category is Category.SYNTAX_ERROR
    assert "hunter" not in kind.server_message


@pytest.mark.engines("postgres")
def test_row_that_breaks_a_constraint_is_not_quoted(db: peewee.Database) -> None:
    """PostgreSQL's DETAIL quotes the whole row, whatever it holds; the message leaves it out."""
    db.execute_sql("CREATE TABLE account (secret TEXT, n INT CHECK (n > 0))")
    with pytest.raises(peewee.IntegrityError) as caught:
        db.execute_sql("INSERT INTO account VALUES ('hunter2', -1)")
    assert "hunter2" in str(caught.value)
    assert "hunter2" not in classify(caught.value, "postgres").server_message


@pytest.mark.parametrize(
    ("category", "operation", "answer"),
    [
        (Category.DUPLICATE_COLUMN, "add_column", True),
        (Category.DUPLICATE_COLUMN, "rename_column", True),
        (Category.DUPLICATE_INDEX, "drop_index", False),
        (Category.MISSING_COLUMN, "drop_column", True),
        (Category.MISSING_COLUMN, "rename_column", True),
        (Category.MISSING_TABLE, "add_column", False),
        (Category.UNIQUE_VIOLATION, "add_index", False),
    ],
)
def test_operation_skips_only_what_may_be_its_own_work(category: Category, operation: str, answer: bool) -> None:
    """What is there answers an operation that adds, what is gone one that drops, and a rename meets both."""
    assert may_skip(Classified(category, None, ""), operation) is answer
