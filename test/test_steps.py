"""A migration with ``atomic = False`` that was interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db.migrations import migrate_db, revert
from api.exceptions import MigrationFailedError

Write = Callable[[str], None]
BEGIN = "atomic = False\n\n\ndef up(migrator, db):\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the one migration's statements."""

    def write(*lines: str) -> None:
        body = "".join(f"    {line}\n" for line in lines)
        (tmp_path / "0001_a.py").write_text(BEGIN + body + "\n\ndef down(migrator, db):\n    pass\n")

    return write


def sent(sql: str) -> str:
    """Return a line that sends *sql*."""
    return f"db.execute_sql({sql!r})"


def rows(db: peewee.Database, table: str = "a") -> list[Any]:
    """Return the rows of *table*, in order."""
    return sorted(db.execute_sql(f"SELECT * FROM {table}").fetchall())


def steps_left(db: peewee.Database) -> int:
    """Return how many steps are recorded."""
    return int(db.execute_sql("SELECT COUNT(*) FROM migration_step").fetchone()[0])


def test_a_failed_migration_goes_on_at_the_statement_that_failed(db: Any, write: Any, tmp_path: Path) -> None:
    """What ran before the failure is not sent again, DDL nor rows; afterwards no step is left."""
    first = [
        sent("CREATE TABLE a (id INT PRIMARY KEY)"),
        sent("INSERT INTO a VALUES (1)"),
        sent("INSERT INTO a VALUES (2)"),
    ]
    write(*first, "raise RuntimeError('stop')")
    with pytest.raises(MigrationFailedError, match="stop"):
        migrate_db(directory=tmp_path, database=db)
    assert rows(db) == [(1,), (2,)]

    write(*first, sent("INSERT INTO a VALUES (3)"))
    migrate_db(directory=tmp_path, database=db)

    assert rows(db) == [(1,), (2,), (3,)]
    assert steps_left(db) == 0


def test_a_statement_sent_twice_is_two_steps(db: Any, write: Any, tmp_path: Path) -> None:
    """Only as many are skipped as were done: the same text a second time is another step."""
    db.execute_sql("CREATE TABLE a (id INT)")
    again = sent("INSERT INTO a VALUES (1)")
    write(again, again, "raise RuntimeError('stop')")
    with pytest.raises(MigrationFailedError):
        migrate_db(directory=tmp_path, database=db)

    write(again, again, again)
    migrate_db(directory=tmp_path, database=db)

    assert rows(db) == [(1,), (1,), (1,)]


def test_rows_and_their_step_are_rolled_back_together(db: Any, write: Any, tmp_path: Path) -> None:
    """A transaction of the migration's own that fails leaves neither its rows nor its steps."""
    db.execute_sql("CREATE TABLE a (id INT)")
    inside = ["with db.atomic():", "    " + sent("INSERT INTO a VALUES (1)")]
    write(*inside, "    raise RuntimeError('stop')")
    with pytest.raises(MigrationFailedError):
        migrate_db(directory=tmp_path, database=db)
    assert (rows(db), steps_left(db)) == ([], 0)

    write(*inside)
    migrate_db(directory=tmp_path, database=db)
    assert rows(db) == [(1,)]


def test_a_resumed_migration_counts_as_done_not_as_skipped(db: Any, write: Any, tmp_path: Path) -> None:
    """The second run finds its column standing, and still it is the migration's own: `down` runs."""
    db.execute_sql("CREATE TABLE a (id INT)")
    add = "from api.db.migrations import alter_db_add_column; import peewee"
    column = "alter_db_add_column(migrator, 'a', 'b', peewee.IntegerField(null=True))"
    write(add, column, "raise RuntimeError('stop')")
    with pytest.raises(MigrationFailedError):
        migrate_db(directory=tmp_path, database=db)

    write(add, column)
    result = migrate_db(directory=tmp_path, database=db)

    assert [ran.status for ran in result.applied] == ["success"]
    assert [ran.name for ran in revert(directory=tmp_path, database=db).applied] == ["0001_a"]


@pytest.mark.engines("postgres")
def test_an_index_left_half_built_is_dropped_and_built_again(db: Any, write: Any, tmp_path: Path) -> None:
    """CREATE UNIQUE INDEX CONCURRENTLY that failed leaves an INVALID index, which IF NOT EXISTS would take for done."""
    db.execute_sql("CREATE TABLE a (id INT)")
    db.execute_sql("INSERT INTO a VALUES (1), (1)")
    write(sent("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS only_once ON a (id)"))
    with pytest.raises(MigrationFailedError, match="23505"):
        migrate_db(directory=tmp_path, database=db)
    db.execute_sql("DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a)")

    migrate_db(directory=tmp_path, database=db)

    valid = db.execute_sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'only_once'::regclass").fetchall()
    assert valid == [(True,)]


@pytest.mark.engines("sqlite", "postgres")
def test_a_statement_that_refuses_a_transaction_runs(db: Any, write: Any, tmp_path: Path) -> None:
    """VACUUM is sent outside of one."""
    db.execute_sql("CREATE TABLE a (id INT)")
    write(sent("VACUUM"), sent("INSERT INTO a VALUES (1)"))

    migrate_db(directory=tmp_path, database=db)

    assert rows(db) == [(1,)]


def test_the_answer_to_a_statement_is_its_own(db: Any, write: Any, tmp_path: Path) -> None:
    """Recording the step changes neither the number of rows nor the last id that the cursor tells."""
    db.execute_sql("CREATE TABLE a (id INT)")
    db.execute_sql("INSERT INTO a VALUES (1), (2), (3)")
    write("cursor = db.execute_sql('UPDATE a SET id = id + 10')", "assert cursor.rowcount == 3, cursor.rowcount")

    migrate_db(directory=tmp_path, database=db)

    assert rows(db) == [(11,), (12,), (13,)]
