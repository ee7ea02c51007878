"""A migration with ``atomic = False`` that was interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db.migrations import migrate_db, revert
from api.db.steps import is_read
from api.exceptions import MigrationFailedError

Write = Callable[..., None]
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


@pytest.mark.engines("mariadb", "mysql")
def test_a_deadlock_that_was_swallowed_parts_no_step_from_its_record(
    backend: Any, db: peewee.Database, write: Write, tmp_path: Path
) -> None:
    """Done and recorded, or neither: here it cannot be recorded, as another session holds the table."""
    for sql in (
        "CREATE TABLE t (id INT PRIMARY KEY, a INT)",
        "CREATE TABLE o (id INT PRIMARY KEY)",
        "INSERT INTO t VALUES (1, 0), (2, 0), (3, 0)",
    ):
        db.execute_sql(sql)
    write(
        "import servers, sessions",
        "db.execute_sql('SET SESSION innodb_lock_wait_timeout = 1')",
        f"sessions.lose_to_a_deadlock({backend.url!r}, db)",
        f"holder = servers.connect({backend.url!r}).cursor()",
        "holder.execute('BEGIN')",
        "holder.execute('SELECT * FROM migration_step FOR UPDATE')",
        "db.execute_sql('UPDATE t SET a = 1 WHERE id = 3')",
    )

    with pytest.raises(MigrationFailedError, match="1205"):
        migrate_db(directory=tmp_path, database=db)

    assert rows(db, "t") == [(1, 0), (2, 0), (3, 0)]


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


# What a skipped step answers -----------------------------------------------------------------------------------


@pytest.fixture
def interrupted(db: Any, tmp_path: Path, write: Any) -> Callable[..., None]:
    """Return a function that runs a migration of *lines* until ``STOP`` fails, and then once more to its end."""

    def run(*lines: str, between: Callable[[], None] = lambda: None) -> None:
        flag = tmp_path / "flag"
        stop = f"if not os.path.exists({str(flag)!r}): raise RuntimeError('stop')"
        write("import os", "import peewee", *(line.replace("STOP", stop) for line in lines))
        with pytest.raises(MigrationFailedError, match="stop"):
            migrate_db(directory=tmp_path, database=db)
        flag.touch()
        between()
        migrate_db(directory=tmp_path, database=db)

    return run


def counted(db: peewee.Database, where: str) -> int:
    """Return how many rows of a the condition *where* holds for."""
    return int(db.execute_sql(f"SELECT COUNT(*) FROM a WHERE {where}").fetchone()[0])


def test_a_loop_until_no_row_is_touched_goes_on(db: Any, interrupted: Any) -> None:
    """A skipped UPDATE answers how many rows it touched then, so a backfill in batches does not end at once."""
    db.execute_sql("CREATE TABLE a (id INT, b INT)")
    db.execute_sql("INSERT INTO a (id) VALUES (1), (2), (3), (4), (5), (6), (7)")
    few = "SELECT id FROM (SELECT id FROM a WHERE b IS NULL ORDER BY id LIMIT 3) x"

    interrupted(f"while db.execute_sql('UPDATE a SET b = id WHERE id IN ({few})').rowcount:", "    STOP")

    assert counted(db, "b IS NULL") == 0


def test_a_row_created_before_is_known_by_its_id(backend: Any, db: Any, interrupted: Any) -> None:
    """Model.create() gives the id that the server gave then, be it by RETURNING or as the last id."""
    number = {"postgres": "SERIAL PRIMARY KEY", "sqlite": "INTEGER PRIMARY KEY"}.get(
        backend.engine, "INT AUTO_INCREMENT PRIMARY KEY"
    )
    db.execute_sql(f"CREATE TABLE a (id {number}, b INT)")
    db.execute_sql("INSERT INTO a (b) VALUES (1), (1)")
    model = [
        "class A(peewee.Model):",
        "    b = peewee.IntegerField()",
        "    class Meta: database = db; table_name = 'a'",
    ]

    interrupted(*model, "first = A.create(b=2)", "STOP", "A.create(b=first.id)")

    assert counted(db, "b = 2 AND id = 3") == 1
    assert counted(db, "b = 3 AND id > 3") == 1


@pytest.mark.engines("mariadb", "mysql")
def test_the_server_knows_the_last_id_again(db: Any, interrupted: Any) -> None:
    """LAST_INSERT_ID() in the statement after a skipped INSERT is what it was."""
    db.execute_sql("CREATE TABLE a (id INT AUTO_INCREMENT PRIMARY KEY, b INT)")
    insert = sent("INSERT INTO a (b) VALUES (7)")

    interrupted(insert, "STOP", sent("INSERT INTO a (b) VALUES (LAST_INSERT_ID() + 100)"))

    assert counted(db, "b = 101") == 1


@pytest.mark.engines("sqlite", "postgres", "mariadb")
def test_returned_rows_are_returned_again(db: Any, interrupted: Any) -> None:
    """INSERT … RETURNING gives the same values, of the same types, to the first run and to the one that goes on."""
    db.execute_sql("CREATE TABLE a (id INT, b DECIMAL(5, 2), c VARCHAR(9))")
    returned = "db.execute_sql(\"INSERT INTO a VALUES (1, 2.50, 'x'), (2, NULL, '') RETURNING b, c, id\")"
    check = "assert [d[0] for d in got.description] == ['b', 'c', 'id']"
    same = "assert [(b and float(b), c, i) for b, c, i in got.fetchall()] == [(2.5, 'x', 1), (None, '', 2)]"

    interrupted(f"got = {returned}", check, same, "STOP")

    assert counted(db, "1 = 1") == 2


@pytest.mark.engines("postgres")
def test_values_come_back_in_the_types_of_postgres(db: Any, interrupted: Any, tmp_path: Path) -> None:
    """Dates, times, arrays, JSON, bytes and UUIDs are equal to what the first run was given."""
    db.execute_sql("CREATE TABLE a (id INT)")
    values = (
        "now() AT TIME ZONE 'UTC', now(), current_date, ARRAY[1, 2], '{\"k\": [1, {}]}'::jsonb, '\\\\x00ff'::bytea, "
        "gen_random_uuid(), interval '1 day 2 seconds', 1.50::numeric, true"
    )
    got = [f'row = db.execute_sql("""INSERT INTO a VALUES (1) RETURNING {values}""").fetchone()']
    got.append("row = [bytes(value) if isinstance(value, memoryview) else value for value in row]")
    kept = f"kept = pathlib.Path({str(tmp_path / 'kept')!r})"
    same = "assert not kept.exists() or pickle.loads(kept.read_bytes()) == row, row"

    interrupted("import pathlib, pickle", *got, kept, same, "kept.write_bytes(pickle.dumps(row))", "STOP")

    assert counted(db, "1 = 1") == 1


@pytest.mark.engines("sqlite", "postgres", "mariadb")
def test_too_many_returned_rows_stop_the_resume(db: Any, interrupted: Any) -> None:
    """The first run gets all of them; the second says which statement it was, and how to go on."""
    db.execute_sql("CREATE TABLE a (id INT)")
    rows = "INSERT INTO a VALUES ' + ', '.join(f'({n})' for n in range(1500)) + ' RETURNING id"

    with pytest.raises(MigrationFailedError, match=r"'INSERT INTO a .*', and the rows .* were not kept") as raised:
        interrupted(f"assert len(db.execute_sql('{rows}').fetchall()) == 1500", "STOP")

    assert "DELETE FROM migration_step WHERE migration_name = '0001_a:up' AND position = 1" in raised.value.hint
    assert counted(db, "1 = 1") == 1500


def test_a_read_is_told_by_its_verb(db: Any, interrupted: Any) -> None:
    """WITH … SELECT and a SELECT in parentheses are sent again, and drive the same loop over what is left."""
    db.execute_sql("CREATE TABLE a (id INT, b INT)")
    db.execute_sql("INSERT INTO a (id) VALUES (1), (2), (3), (4)")
    read = "WITH x AS (SELECT id FROM a WHERE b IS NULL) SELECT id FROM x ORDER BY id"

    interrupted(
        f"for (i,) in list(db.execute_sql('/* why */ {read}').fetchall()):",
        "    db.execute_sql(f'UPDATE a SET b = {i} WHERE id = {i}')",
        "    if i == 2:",
        "        STOP",
    )

    assert counted(db, "b IS NULL") == 0


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("(SELECT 1) UNION (SELECT 2)", True),
        ("-- why\n( /* ; */ WITH x AS (SELECT 'DELETE FROM a') SELECT * FROM x FOR UPDATE)", True),
        ("# why\nSHOW TABLES", True),
        ("VALUES (1)", True),
        ("TABLE a", True),
        ("WITH x AS (SELECT REPLACE(b, 'a', 'b') FROM a) SELECT * FROM x", True),
        ("WITH x AS (SELECT 1) UPDATE a SET id = 2", False),
        ("WITH x AS (SELECT 1) DELETE FROM a", False),
        ("REPLACE INTO a VALUES (1)", False),
        ("CALL p()", False),
    ],
)
def test_what_is_a_read(text: str, reads: bool) -> None:
    """A statement is a read by its verb, whatever stands before it."""
    assert is_read(text, "mysql") is reads


@pytest.mark.engines("sqlite", "postgres")
def test_a_with_that_writes_is_a_step(db: Any, interrupted: Any) -> None:
    """WITH … INSERT is not sent again."""
    db.execute_sql("CREATE TABLE a (id INT)")

    interrupted(sent("WITH x AS (SELECT 1 AS id) INSERT INTO a SELECT id FROM x"), "STOP")

    assert rows(db) == [(1,)]


@pytest.mark.engines("postgres")
def test_a_with_whose_part_writes_is_a_step(db: Any, interrupted: Any) -> None:
    """So is WITH x AS (INSERT …) SELECT, and SELECT … INTO."""
    db.execute_sql("CREATE TABLE a (id INT)")
    part = "WITH x AS (INSERT INTO a VALUES (1) RETURNING id) SELECT id FROM x"
    write = f"assert db.execute_sql('{part}').fetchone() == (1,)"

    interrupted(write, sent("SELECT id INTO b FROM a"), "STOP")

    assert (rows(db), rows(db, "b")) == ([(1,)], [(1,)])


def test_many_rows_of_one_call_are_steps(backend: Any, db: Any, interrupted: Any) -> None:
    """executemany() of the driver's cursor is done once, and tells how many rows it touched."""
    db.execute_sql("CREATE TABLE a (id INT)")
    mark = "?" if backend.engine == "sqlite" else "%s"
    cursor = "cursor = db.connection().cursor()"
    many = f"cursor.executemany('INSERT INTO a VALUES ({mark})', [(1,), (2,), (2,)])"

    interrupted(cursor, many, "assert cursor.rowcount == 3, cursor.rowcount", "STOP")

    assert rows(db) == [(1,), (2,), (2,)]


@pytest.mark.engines("postgres")
def test_a_copy_is_a_step(db: Any, interrupted: Any) -> None:
    """COPY … FROM STDIN is done once; COPY … TO STDOUT gives its rows each time."""
    db.execute_sql("CREATE TABLE a (id INT)")
    expert = "cursor.copy_expert('COPY a FROM STDIN', io.StringIO('1\\n2\\n'))"
    out = [
        "out = io.StringIO()",
        "cursor.copy_expert('COPY a TO STDOUT', out)",
        "assert out.getvalue() == '1\\n2\\n3\\n'",
    ]

    interrupted(
        "import io",
        "cursor = db.connection().cursor()",
        expert,
        "cursor.copy_from(io.StringIO('3\\n'), 'a')",
        *out,
        "STOP",
    )

    assert rows(db) == [(1,), (2,), (3,)]


@pytest.mark.engines("sqlite")
def test_what_passes_peewee_by_is_a_step_on_sqlite(db: Any, interrupted: Any) -> None:
    """The connection's own execute() is seen; executescript() is refused."""
    db.execute_sql("CREATE TABLE a (id INT)")
    script = ["try: db.connection().executescript('INSERT INTO a VALUES (9)')", "except Exception as e: said = str(e)"]

    interrupted("db.connection().execute('INSERT INTO a VALUES (1)')", *script, "assert 'several' in said", "STOP")

    assert rows(db) == [(1,)]


@pytest.mark.engines("mariadb", "mysql")
def test_a_procedure_is_a_step(db: Any, interrupted: Any) -> None:
    """CALL, whose results are several, is done once; the session goes on."""
    db.execute_sql("CREATE TABLE a (id INT)")
    db.execute_sql("CREATE PROCEDURE p() BEGIN INSERT INTO a VALUES (1); SELECT 5; SELECT 6; END")

    interrupted("assert db.execute_sql('CALL p()').fetchall() == ((5,),)", sent("INSERT INTO a VALUES (2)"), "STOP")

    assert rows(db) == [(1,), (2,)]


# Whose turn it is ----------------------------------------------------------------------------------------------


@pytest.mark.engines("postgres")
def test_who_lost_the_lock_records_no_step(backend: Any, db: Any, write: Any, tmp_path: Path) -> None:
    """The fence's session was ended, and another process took the lease: the next step is taken back."""
    db.execute_sql("CREATE TABLE a (id INT)")
    end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    taken = "UPDATE migration_lease SET token = token + 1"
    write(
        sent("INSERT INTO a VALUES (1)"),
        f"db.execute_sql({end!r})",
        "from api.db.lease import dial",
        "other = dial(db)",
        "other.autocommit = True",
        f"other.cursor().execute({taken!r})",
        "other.close()",
        sent("INSERT INTO a VALUES (2)"),
    )

    with pytest.raises(MigrationFailedError, match="lock was lost"):
        migrate_db(directory=tmp_path, database=db)

    assert rows(db) == [(1,)]


@pytest.mark.engines("mariadb", "mysql")
def test_who_lost_the_named_lock_records_no_step(db: Any, write: Any, tmp_path: Path) -> None:
    """GET_LOCK was given back: the next rows are taken back, and DDL is not sent."""
    db.execute_sql("CREATE TABLE a (id INT)")
    write(
        "db.execute_sql('SELECT RELEASE_ALL_LOCKS()')",
        "try: db.execute_sql('INSERT INTO a VALUES (1)')",
        "except Exception as exc: assert 'lock was lost' in str(exc)",
        sent("CREATE TABLE b (id INT)"),
    )

    with pytest.raises(MigrationFailedError, match="lock was lost"):
        migrate_db(directory=tmp_path, database=db)

    assert rows(db) == []
    assert "b" not in db.get_tables()


# What stands between ------------------------------------------------------------------------------------------


@pytest.mark.engines("postgres")
def test_an_index_of_somebody_else_is_left(db: Any, write: Any, tmp_path: Path) -> None:
    """Only the index that the statement names is dropped, though others turned invalid since."""
    for sql in ("CREATE TABLE a (id INT)", "CREATE TABLE b (id INT)", "INSERT INTO a VALUES (1), (1)"):
        db.execute_sql(sql)
    write(sent("CREATE UNIQUE INDEX CONCURRENTLY only_once ON a (id)"))
    with pytest.raises(MigrationFailedError, match="23505"):
        migrate_db(directory=tmp_path, database=db)
    db.execute_sql("DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a)")
    for table in ("a", "b"):
        db.execute_sql(f"CREATE INDEX other_{table} ON {table} (id)")
        db.execute_sql(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'other_{table}'::regclass")

    migrate_db(directory=tmp_path, database=db)

    of_both = "indrelid IN ('a'::regclass, 'b'::regclass)"
    found = db.execute_sql(f"SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE {of_both}")
    assert sorted(found.fetchall()) == [("only_once", True), ("other_a", False), ("other_b", False)]


@pytest.mark.engines("postgres")
def test_an_unnamed_index_left_half_built_is_dropped(db: Any, write: Any, tmp_path: Path) -> None:
    """The server chose its name: it is the table's one that is invalid and was not before."""
    db.execute_sql("CREATE TABLE a (id INT)")
    db.execute_sql("INSERT INTO a VALUES (1), (1)")
    write(sent("CREATE UNIQUE INDEX CONCURRENTLY ON a (id)"))
    with pytest.raises(MigrationFailedError, match="23505"):
        migrate_db(directory=tmp_path, database=db)
    db.execute_sql("DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a)")

    migrate_db(directory=tmp_path, database=db)

    found = db.execute_sql("SELECT indisvalid FROM pg_index WHERE indrelid = 'a'::regclass").fetchall()
    assert found == [(True,)]


def test_what_was_taken_back_by_hand_is_told(db: Any, write: Any, tmp_path: Path) -> None:
    """A table is missing because its CREATE was skipped: the failure says so, and how to forget the steps."""
    first = sent("CREATE TABLE a (id INT)")
    write(first, "raise RuntimeError('stop')")
    with pytest.raises(MigrationFailedError):
        migrate_db(directory=tmp_path, database=db)
    db.execute_sql("DROP TABLE a")
    write(first, sent("INSERT INTO a VALUES (1)"))

    with pytest.raises(MigrationFailedError, match="not sent again: 1") as raised:
        migrate_db(directory=tmp_path, database=db)
    assert "CREATE TABLE a" in raised.value.hint
    db.execute_sql(raised.value.hint[raised.value.hint.index("DELETE FROM") :])

    migrate_db(directory=tmp_path, database=db)
    assert rows(db) == [(1,)]


@pytest.mark.engines("mysql")
def test_the_steps_have_a_primary_key(db: Any, write: Any, tmp_path: Path) -> None:
    """A server that wants one in each table (sql_require_primary_key) takes them."""
    db.execute_sql("SET SESSION sql_require_primary_key = 1")
    write(sent("CREATE TABLE a (id INT PRIMARY KEY)"))

    migrate_db(directory=tmp_path, database=db)

    assert rows(db) == []
