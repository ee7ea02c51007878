"""The models: what the server keeps of them, and what it does when a task goes."""

from __future__ import annotations

import datetime
import enum
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import peewee
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from structlog.testing import capture_logs

from api.db.base import DataBaseModel, validate_all
from api.db.dialects.literals import default_literal
from api.db.fields import UTCDateTimeField, bind_encryption_keys
from api.db.models import MODELS, CostRecord, PlatformConnection, Task, TaskLog
from conftest import Backend


class Tricky(enum.StrEnum):
    """A default that is a string, but not exactly one."""

    QUOTED = 'it\'s 100% \\ "ü" \n`%s`'


class Sample(DataBaseModel):
    """One column for each kind of constant default, the awkward ones among them."""

    quoted = peewee.CharField(default=Tricky.QUOTED)
    backslash = peewee.CharField(default="\\")
    empty = peewee.CharField(default="")
    number = peewee.IntegerField(default=-7)
    big = peewee.BigIntegerField(default=2**62)
    real = peewee.DoubleField(default=1e-7)
    money = peewee.DecimalField(max_digits=12, decimal_places=6, default=Decimal("-0.000001"))
    yes = peewee.BooleanField(default=True)
    no = peewee.BooleanField(default=False)
    key = peewee.UUIDField(default=uuid.UUID(int=5))
    day = peewee.DateField(default=datetime.date(2024, 2, 29))
    hour = peewee.TimeField(default=datetime.time(1, 2, 3))
    at = UTCDateTimeField(default=datetime.datetime(2024, 1, 1, 0, 0, 0, 1, datetime.UTC))
    maybe = peewee.CharField(null=True, default="perhaps")
    fixed = peewee.CharField(default="python", constraints=[peewee.SQL("DEFAULT 'by hand'")])
    code = peewee.FixedCharField(max_length=3, default="abc")


class Document(DataBaseModel):
    """The kinds of column whose default MySQL alone refuses."""

    text = peewee.TextField(default="it's \\")
    blob = peewee.BlobField(default=b"\x00\xff'\\")
    facts = peewee.JSONField(default={"a": [1, "'"]})


class Wide(DataBaseModel):
    """A model with a column that no engine but SQLite keeps."""

    wide = peewee.CharField(max_length=20_000_000)


@pytest.fixture
def tables(db: peewee.Database) -> Iterator[peewee.Database]:
    """Give the test the app's tables on each engine."""
    bind_encryption_keys([SecretStr(Fernet.generate_key().decode())])
    with db.bind_ctx(MODELS):
        db.create_tables(MODELS)
        yield db
    bind_encryption_keys([])


def test_the_server_knows_every_constant_default(db: peewee.Database) -> None:
    """An INSERT that names no column gets what Python would have given, quoting and all; NULL where that may be."""
    with db.bind_ctx([Sample]):
        db.create_tables([Sample])
        in_the_schema: dict[str, Any] = {"fixed": "by hand", "maybe": None}
        expected = Sample._meta.get_default_dict() | in_the_schema
        empty_row = "() VALUES ()" if isinstance(db, peewee.MySQLDatabase) else "DEFAULT VALUES"
        db.execute_sql(f"INSERT INTO sample {empty_row}")
        row = Sample.get()
        assert {name: getattr(row, name) for name in expected} == expected


def test_text_blob_and_json_keep_their_default(db: peewee.Database) -> None:
    """A TEXT, BLOB or JSON default stands in the server's DDL; MySQL takes it in parentheses only."""
    with db.bind_ctx([Document]):
        db.create_tables([Document])
        empty_row = "() VALUES ()" if isinstance(db, peewee.MySQLDatabase) else "DEFAULT VALUES"
        db.execute_sql(f"INSERT INTO document {empty_row}")
        row = Document.get()
        assert (row.text, bytes(row.blob), row.facts) == ("it's \\", b"\x00\xff'\\", {"a": [1, "'"]})


@pytest.mark.parametrize("default", [None, dict, float("nan"), Decimal("inf"), object()])
def test_what_is_no_constant_has_no_literal(default: Any) -> None:
    """Callables, NaN, infinity and unknown objects are left to Python."""
    assert default_literal(peewee.BareField(default=default), "postgres") is None


def test_making_tables_leaves_the_model_as_it_is(backend: Backend) -> None:
    """The DEFAULT is in the DDL only: the model's fields are the same for the next engine."""
    database = backend.database()
    before = [(field, field.constraints) for field in Sample._meta.sorted_fields]
    with database.bind_ctx([Sample]):
        database.create_tables([Sample])
    assert [(field, field.constraints) for field in Sample._meta.sorted_fields] == before


def test_a_task_is_stored_and_read(tables: peewee.Database) -> None:
    """A task has its defaults, its JSON and its times in UTC."""
    made = Task.create(title="index the wiki", resources={"repos": ["wiki"]})
    task = Task.get_by_id(made.id)
    assert (task.status, task.priority, task.risk_level) == ("pending", 0, "low")
    assert task.resources == {"repos": ["wiki"]}
    assert task.created_at == made.created_at
    assert task.created_at.tzinfo is datetime.UTC


def test_saving_moves_updated_at(tables: peewee.Database) -> None:
    """Every save moves ``updated_at``, also one of other fields only."""
    task = Task.create(title="t")
    before = Task.get_by_id(task.id).updated_at
    task.status = "running"
    task.save(only=[Task.status])
    assert Task.get_by_id(task.id).updated_at > before


def test_money_keeps_its_six_digits(tables: peewee.Database) -> None:
    """Costs are exact to the millionth of a dollar."""
    CostRecord.create(task=Task.create(title="t"), agent_type="coder", cost_usd=Decimal("123456.000001"))
    assert CostRecord.get().cost_usd == Decimal("123456.000001")


@pytest.mark.parametrize("statement", ["DELETE FROM task WHERE title = 'gone'", None])
def test_what_belongs_to_a_task_goes_with_it(tables: peewee.Database, statement: str | None) -> None:
    """Deleting a task by SQL or by peewee deletes its lines and costs, and nobody else's."""
    for title in ("gone", "stays"):
        task = Task.create(title=title)
        TaskLog.create(task=task, level="info", message=title)
        CostRecord.create(task=task, agent_type=title)
    if statement:
        tables.execute_sql(statement)
    else:
        Task.get(Task.title == "gone").delete_instance()
    assert [line.message for line in TaskLog.select()] == ["stays"]
    assert [cost.agent_type for cost in CostRecord.select()] == ["stays"]


def test_a_line_needs_a_task_that_stands(tables: peewee.Database) -> None:
    """The server itself refuses a line of a task that does not exist."""
    with pytest.raises(peewee.IntegrityError):
        TaskLog.create(task=uuid.uuid4(), level="info", message="m")


def test_a_platform_has_one_connection_of_a_name(tables: peewee.Database) -> None:
    """The same name serves on another platform, not twice on one."""
    PlatformConnection.create(platform="jira", name="main", config={"token": "t"})
    PlatformConnection.create(platform="github", name="main", config={})
    with pytest.raises(peewee.IntegrityError):
        PlatformConnection.create(platform="jira", name="main", config={})
    assert PlatformConnection.get(platform="jira").get_config() == {"token": "t"}


def test_every_foreign_key_and_created_at_is_indexed() -> None:
    """Lists by task and by time never read the whole table."""
    for model in MODELS:
        wanted = {*model._meta.refs, model.created_at}
        assert wanted <= {field for field in model._meta.sorted_fields if field.index}


@pytest.mark.engines("postgres", "mariadb", "mysql")
def test_a_field_that_does_not_fit_is_a_warning_with_its_reason(backend: Backend) -> None:
    """``validate_fields`` returns why the engine cannot keep a field, and logs table and field."""
    with backend.database().bind_ctx([Wide]), capture_logs() as lines:
        reasons = Wide.validate_fields()
    assert reasons
    assert [line["reason"] for line in lines] == reasons
    assert {(line["log_level"], line["table"], line["field"]) for line in lines} == {("warning", "wide", "wide")}


def test_the_apps_own_models_fit_every_engine(backend: Backend) -> None:
    """The app's models give no reason to warn, on any engine."""
    with backend.database().bind_ctx(MODELS), capture_logs() as lines:
        assert validate_all(MODELS) == []
    assert lines == []


def test_every_column_is_documented() -> None:
    """``docs/MODELS.md`` has a section for each table, and in it a line for each column, in the model's order."""
    text = (Path(__file__).parent.parent / "docs" / "MODELS.md").read_text()
    sections = re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    documented = {name: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE) for name, body in sections}
    assert documented == {model._meta.table_name: [*model._meta.columns] for model in MODELS}
