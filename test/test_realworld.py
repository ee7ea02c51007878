"""A well-known app's own history: 46 steps, run as 46 migrations on the schema and rows that they were made for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import peewee
import pymysql
import pytest
from pymysql.constants import CLIENT

from api.db.dialects.types import Fit, compare_types, parse_type
from api.db.history import HISTORY, read_attempts
from api.db.schema import read_columns, read_indexes
from conftest import Backend

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "realworld"
STEPS = json.loads((DATA / "ragflow_steps_v0.15_to_v0.24.json").read_text()) if DATA.exists() else []

pytestmark = [
    pytest.mark.skipif(not STEPS, reason="../shared/realworld is not here"),
    pytest.mark.engines("postgres", "mariadb", "mysql"),
]

MIGRATION = """import peewee

from api.db.migrations import {operation}

LONG = {{"LongTextField": peewee.TextField, "JSONField": peewee.TextField}}


def up(migrator, db):
    kind, options = {kind!r}, {options!r}
    field = LONG[kind](**options) if kind in LONG else getattr(peewee, kind)(**options)
    if kind in LONG and isinstance(db, peewee.MySQLDatabase):
        field.field_type = "LONGTEXT"
    {operation}(migrator, {table!r}, {column!r}, field)
"""
RENAME = """from api.db.migrations import alter_db_rename_column


def up(migrator, db):
    alter_db_rename_column(migrator, {table!r}, {column!r}, {new_name!r})
"""


def _write(directory: Path) -> None:
    for number, step in enumerate(STEPS, 1):
        name = f"{number:04d}_{step['name']}.py"
        if step["op"] == "rename_column":
            text = RENAME.format(**step)
        else:
            options = {key: value for key, value in step["field"].items() if key != "type"}
            operation = {"add_column": "alter_db_add_column", "alter_column_type": "alter_db_column_type"}
            text = MIGRATION.format(
                operation=operation[step["op"]], kind=step["field"]["type"], options=options, **step
            )
        (directory / name).write_text(text)


def _load(backend: Backend) -> None:
    family = "postgres" if backend.engine == "postgres" else "mysql"
    for part in ("v0.15", "new_tables"):
        sql = (DATA / f"ragflow_{part}_{family}.sql").read_text()
        database = backend.database()
        # A connection of its own for each file: the dumps change session settings and leave them so.
        if family == "postgres":
            # psql's own: the new tables hold no rows, so their COPY blocks are empty.
            database.execute_sql(re.sub(r"(?m)^COPY .*;\n\\\.\n", "", sql).replace("%", "%%"))
        else:
            _load_mysql(database, sql)
        database.close_all()


def _load_mysql(database: peewee.Database, sql: str) -> None:
    parameters = {**database.connect_params, "database": database.database}
    connection = pymysql.connect(**parameters, client_flag=CLIENT.MULTI_STATEMENTS)
    with connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(sql)
        while cursor.nextset():
            pass


def _rows(database: peewee.Database) -> dict[str, list[dict[str, Any]]]:
    """Return every table's rows, each without the columns that a step touches."""
    touched = {(step["table"], step[key]) for step in STEPS for key in ("column", "new_name") if key in step}
    rows: dict[str, list[dict[str, Any]]] = {}
    for table in database.get_tables():
        if table.startswith("migration_"):
            continue
        columns = [c.name for c in database.get_columns(table) if (table, c.name) not in touched]
        query = peewee.Table(table, columns).bind(database).select()
        rows[table] = sorted(query.dicts(), key=repr)
    return rows


def _up(backend: Backend, directory: Path) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "api.db.migrations", "--json", "--directory", str(directory)]
    done = subprocess.run(
        [*command, "--database-url", backend.url, "up"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document, done.stderr


@pytest.fixture(name="history")
def _history(backend: Backend, tmp_path: Path) -> Path:
    _load(backend)
    directory = tmp_path / "versions"
    directory.mkdir()
    _write(directory)
    return directory


def _is_as_asked(database: peewee.Database, backend: Backend, step: dict[str, Any]) -> bool:
    columns = read_columns(database, backend.engine, step["table"])
    assert columns is not None
    if step["op"] == "rename_column":
        return step["column"] not in columns and step["new_name"] in columns
    field, live = step["field"], columns[step["column"]]
    text = {"LongTextField": "LONGTEXT", "JSONField": "LONGTEXT", "TextField": "TEXT"}.get(field["type"])
    text = text or {"IntegerField": "INTEGER", "BooleanField": "BOOL", "DateTimeField": "TIMESTAMP"}.get(field["type"])
    if backend.engine != "postgres":
        text = "DATETIME" if text == "TIMESTAMP" else text
    elif text == "LONGTEXT":
        text = "TEXT"
    wanted = parse_type(text or f"VARCHAR({field['max_length']})", backend.engine)
    fits = compare_types(live.type, wanted, backend.engine) in (Fit.SAME, Fit.LONGER)
    later = [each for each in STEPS if (each["table"], each["column"]) == (step["table"], step["column"])]
    null_fits = later[-1] is not step or live.null == field["null"]
    indexes = read_indexes(database, backend.engine, step["table"])
    indexed = not field.get("index") or any(i.plain and i.columns == (step["column"],) for i in indexes)
    return fits and null_fits and indexed


def _added_with_a_default(document: dict[str, Any]) -> list[str]:
    """Return the steps that added a NOT NULL column with a default: the server has to know it from then on."""
    success = {ran["name"][5:] for ran in document["applied"] if ran["status"] == "success"}
    required = [step for step in STEPS if step["op"] == "add_column" and not step["field"]["null"]]
    return [step["name"] for step in required if "default" in step["field"] and step["name"] in success]


def _has_default(database: peewee.Database, backend: Backend, name: str) -> bool:
    step = next(step for step in STEPS if step["name"] == name)
    columns = read_columns(database, backend.engine, step["table"]) or {}
    return columns[step["column"]].default is not None


def test_a_real_history_applies_once_and_keeps_every_row(backend: Backend, history: Path) -> None:
    """46 steps are recorded at the first `up`, none at the second; each column and index is as its step asks."""
    database = backend.database()
    before = _rows(database)

    first, log = _up(backend, history)
    second, _ = _up(backend, history)

    skipped = {ran["name"]: ran["reason"] for ran in first["applied"] if ran["status"] == "skipped"}
    print(f"\n{backend.engine}: {len(first['applied'])} recorded, {len(skipped)} skipped in {first['duration_ms']} ms")
    print(*(f"  {name}: {reason}" for name, reason in skipped.items()), sep="\n")
    assert len(first["applied"]) == len(STEPS) == HISTORY.bind(database).select().count()
    assert second["applied"] == []
    assert len(read_attempts(database)) == len(STEPS)
    assert _rows(database) == before
    assert sum(len(rows) for rows in before.values()) >= 40 * 18
    assert "critical" not in log.lower()
    assert [step["name"] for step in STEPS if not _is_as_asked(database, backend, step)] == []
    assert [name for name in _added_with_a_default(first) if not _has_default(database, backend, name)] == []
