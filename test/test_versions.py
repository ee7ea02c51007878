"""The app's own migrations: they make the schema that the models say, and each can be undone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from api.db.dialects.engine import engine_of
from api.db.files import Migration, list_files, load
from api.db.migrations import migrate_db
from api.db.migrators import migrator_for
from api.db.models import MODELS, CostRecord, PlatformConnection, Task
from api.db.schema import read_columns, read_indexes

VERSIONS = Path(__file__).parent.parent / "api" / "db" / "versions"
TASK = uuid.UUID(int=1).hex
NOW = "2024-01-01 00:00:00"
# What a worker writes that knows no column with a default.
OLD_INSERTS = (
    f"INSERT INTO task (id, title, created_at, updated_at) VALUES ('{TASK}', 't', '{NOW}', '{NOW}')",
    f"INSERT INTO task_log (id, task_id, level, message, created_at) VALUES ('{TASK}', '{TASK}', 'info', 'm', '{NOW}')",
    f"INSERT INTO cost_record (id, task_id, agent_type, created_at) VALUES ('{TASK}', '{TASK}', 'a', '{NOW}')",
    "INSERT INTO platform_connection (id, platform, name, config, created_at) "
    f"VALUES ('{TASK}', 'p', 'n', 'c', '{NOW}')",
)
FOREIGN_KEYS = {
    "postgres": "SELECT conname, confdeltype FROM pg_constraint WHERE contype = 'f' AND conrelid = '{0}'::regclass",
    "sqlite": "PRAGMA foreign_key_list({0})",
    "mysql": "SELECT constraint_name, referenced_table_name, delete_rule"
    " FROM information_schema.referential_constraints WHERE constraint_schema = DATABASE() AND table_name = '{0}'",
}


def migrations() -> list[Migration]:
    """Return the app's migrations in their order."""
    return load(list_files(VERSIONS))


def apply(database: peewee.Database, chosen: list[Migration]) -> None:
    """Run *chosen* upwards."""
    for migration in chosen:
        migration.up(migrator_for(database), database)


def revert(database: peewee.Database, migration: Migration) -> None:
    """Run *migration* downwards."""
    assert migration.down is not None, f"{migration.name} cannot be undone"
    migration.down(migrator_for(database), database)


def schema_of(database: peewee.Database) -> dict[str, Any]:
    """Return each of the app's tables as the server tells it: columns, indexes and foreign keys, in no order."""
    return {table: _table(database, table) for table in database.get_tables() if not table.startswith("migration_")}


def _table(database: peewee.Database, table: str) -> tuple[Any, ...]:
    engine = engine_of(database)
    sql = FOREIGN_KEYS["mysql" if engine == "mariadb" else engine].format(table)
    return (
        read_columns(database, engine, table),
        frozenset(read_indexes(database, engine, table)),
        frozenset(database.get_foreign_keys(table)),
        frozenset(database.execute_sql(sql).fetchall()),
    )


@pytest.fixture(params=["fresh", "migrated"])
def any_schema(request: pytest.FixtureRequest, db: peewee.Database) -> Iterator[peewee.Database]:
    """Give the test the app's tables, made from the models and made by the migrations."""
    with db.bind_ctx(MODELS):
        if request.param == "fresh":
            db.create_tables(MODELS)
        else:
            migrate_db(directory=VERSIONS, database=db)
        yield db


def test_a_fresh_schema_equals_a_migrated_one(db: peewee.Database) -> None:
    """Columns, types, NULL, defaults, named indexes, foreign keys and their ON DELETE are the same."""
    migrate_db(directory=VERSIONS, database=db)
    migrated = schema_of(db)
    for migration in reversed(migrations()):
        revert(db, migration)
    with db.bind_ctx(MODELS):
        db.create_tables(MODELS)
    assert schema_of(db) == migrated
    assert sorted(migrated) == sorted(model._meta.table_name for model in MODELS)


def test_each_migration_is_undone_by_its_down(db: peewee.Database) -> None:
    """After ``down`` the schema is what it was before ``up``, for every migration."""
    for migration in migrations():
        before = schema_of(db)
        apply(db, [migration])
        assert schema_of(db) != before
        revert(db, migration)
        assert schema_of(db) == before
        apply(db, [migration])


def test_an_old_workers_insert_works(any_schema: peewee.Database) -> None:
    """The server itself fills every constant default: code that does not know a column goes on working."""
    for statement in OLD_INSERTS:
        any_schema.execute_sql(statement)
    task, cost = Task.get(), CostRecord.get()
    assert (task.status, task.priority, task.risk_level, task.resources) == ("pending", 0, "low", None)
    assert (cost.tokens_in, cost.tokens_out, cost.cost_usd) == (0, 0, 0)
    assert PlatformConnection.get().is_active is True


def test_what_belongs_to_a_task_goes_with_it(any_schema: peewee.Database) -> None:
    """Deleting a task deletes its lines and costs, by the server's own foreign keys."""
    for statement in OLD_INSERTS:
        any_schema.execute_sql(statement)
    any_schema.execute_sql("DELETE FROM task")
    assert [model.select().count() for model in MODELS] == [0, 0, 0, 1]


def test_tasks_that_stand_get_the_lowest_risk(db: peewee.Database) -> None:
    """A task made before ``0002`` is of low risk afterwards, and its resources are unknown."""
    apply(db, migrations()[:1])
    db.execute_sql(OLD_INSERTS[0])
    apply(db, migrations()[1:2])
    assert db.execute_sql("SELECT risk_level, resources FROM task").fetchone() == ("low", None)


def test_undoing_the_risk_keeps_the_tasks(db: peewee.Database) -> None:
    """``down`` of ``0002`` drops two columns and nothing else: the task and its lines stay."""
    apply(db, migrations())
    for statement in OLD_INSERTS:
        db.execute_sql(statement)
    revert(db, migrations()[1])
    counts = [db.execute_sql(f"SELECT COUNT(*) FROM {model._meta.table_name}").fetchone()[0] for model in MODELS]
    assert counts == [1, 1, 1, 1]


def test_migrations_do_not_import_the_models() -> None:
    """Models change, migrations do not: each file declares what it needs."""
    assert not [file.name for file in list_files(VERSIONS) if "api.db.models" in file.path.read_text()]
