"""The fields of our own: sealed JSON that nothing shows, and timestamps that are always UTC."""

from __future__ import annotations

import datetime
import io
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator

import peewee
import pytest
from cryptography.fernet import Fernet
from playhouse.shortcuts import model_to_dict
from pydantic import SecretStr

from api.db.base import DataBaseModel
from api.db.fields import (
    EncryptedJSONField,
    Sealed,
    UTCDateTimeField,
    bind_encryption_keys,
)
from api.exceptions import ConfigurationError
from api.settings import KEY_COMMAND
from conftest import Backend

SECRET = "hunter2-and-ü"
CONFIG = {"host": "h", "password": SECRET}
OLD, NEW = (SecretStr(Fernet.generate_key().decode()) for _ in range(2))


class Vault(DataBaseModel):
    """A row with a secret."""

    config = EncryptedJSONField(null=True)


class Moment(DataBaseModel):
    """A row with a time."""

    at = UTCDateTimeField(null=True)


WAYS_TO_SHOW: dict[str, Callable[[Vault], str]] = {
    "repr": repr,
    "str": str,
    "format": lambda row: f"{row} {row.config} {row.config!r}",
    "vars": lambda row: repr(vars(row)),
    "model_to_dict": lambda row: repr(model_to_dict(row)),
    "json": lambda row: json.dumps(model_to_dict(row), default=str),
    "pickle": lambda row: pickle.dumps(row.config).decode("latin-1"),
    "sql": lambda row: repr(row.insert(config=CONFIG).sql()),
}


@pytest.fixture(autouse=True)
def _keys() -> Iterator[None]:
    bind_encryption_keys([OLD])
    yield
    bind_encryption_keys([])


@pytest.fixture
def tables(db: peewee.Database) -> Iterator[peewee.Database]:
    """Give the test both tables on each engine."""
    with db.bind_ctx([Vault, Moment]):
        db.create_tables([Vault, Moment])
        yield db


def opened(row: Vault) -> object:
    """Return the plain config of *row*."""
    return Vault.config.open(row)


def test_a_config_comes_back_as_it_was(tables: peewee.Database) -> None:
    """What is sealed and stored opens again, for a row that was made and for one that was read."""
    row = Vault.create(config=CONFIG)
    assert opened(row) == opened(Vault.get()) == CONFIG


def test_null_stays_null(tables: peewee.Database) -> None:
    """No config is NULL in the table, not a sealed null."""
    Vault.create(config=None)
    assert Vault.select().where(Vault.config.is_null()).count() == 1
    assert opened(Vault.get()) is None


def test_the_table_holds_no_plain_text(tables: peewee.Database) -> None:
    """The stored text is a token, whether it came by save, insert, bulk insert or update."""
    Vault.create(config=CONFIG)
    Vault.insert(config=CONFIG).execute()
    Vault.insert_many([{"config": CONFIG}]).execute()
    Vault.update(config=CONFIG).where(Vault.id == 1).execute()
    stored = [token for (token,) in tables.execute_sql("SELECT config FROM vault").fetchall()]
    assert len(stored) == 3
    assert not [token for token in stored if SECRET in token or not token.startswith("gAAAA")]
    assert [opened(row) for row in Vault.select()] == [CONFIG] * 3


@pytest.mark.parametrize("show", WAYS_TO_SHOW.values(), ids=WAYS_TO_SHOW.keys())
def test_nothing_shows_the_config(show: Callable[[Vault], str]) -> None:
    """No way of printing or serialising a row shows its secret."""
    with peewee.SqliteDatabase(":memory:").bind_ctx([Vault]):
        assert "hunter2" not in show(Vault(config=CONFIG))


def test_a_row_is_no_json() -> None:
    """``json.dumps`` refuses a sealed value without naming it."""
    with pytest.raises(TypeError, match="Sealed") as caught:
        json.dumps({"config": Vault(config=CONFIG).config})
    assert "hunter2" not in str(caught.value)


def test_queries_log_no_plain_text(tables: peewee.Database) -> None:
    """peewee's own debug log of the statements and their parameters holds the token only."""
    stream = io.StringIO()
    logger, handler = logging.getLogger("peewee"), logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        Vault.create(config=CONFIG)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert "INSERT" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_without_keys_a_row_reads_and_opening_it_says_how_to_make_one(tables: peewee.Database) -> None:
    """The app works without keys; touching the config is the error, and its hint is the command."""
    Vault.create(config=CONFIG)
    bind_encryption_keys([])
    row = Vault.get()
    with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS is not set") as caught:
        opened(row)
    assert KEY_COMMAND in caught.value.hint


def test_without_keys_nothing_is_stored(tables: peewee.Database) -> None:
    """Assigning a config without a key is refused: neither plain text nor a silent key reaches the table."""
    bind_encryption_keys([])
    with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS is not set"):
        Vault.create(config=CONFIG)
    assert Vault.select().count() == 0


def test_a_foreign_key_is_one_clear_error(tables: peewee.Database) -> None:
    """A token that no key opens names table, field and row, and neither the token nor the key."""
    row = Vault.create(config=CONFIG)
    bind_encryption_keys([NEW])
    with pytest.raises(ConfigurationError, match=r"no key in ENCRYPTION_KEYS opens vault\.config of row '1'") as caught:
        opened(row)
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.hint
    assert "put the key it was sealed with back" in shown
    for secret in ("hunter2", row.config.token, NEW.get_secret_value(), "InvalidToken"):
        assert secret not in shown


def test_a_malformed_key_is_refused_without_being_shown() -> None:
    """The error names the key's position, and how to make a good one."""
    with pytest.raises(ConfigurationError, match="key 2 of ENCRYPTION_KEYS is not a Fernet key") as caught:
        bind_encryption_keys([NEW, SecretStr(SECRET)])
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.hint
    assert KEY_COMMAND in shown
    assert "hunter2" not in shown


def test_an_older_key_still_opens(tables: peewee.Database) -> None:
    """With a new key in front, old rows open and new rows are sealed under the new key."""
    Vault.create(config={"n": 1})
    bind_encryption_keys([NEW, OLD])
    Vault.create(config={"n": 2})
    assert [opened(row) for row in Vault.select().order_by(Vault.id)] == [{"n": 1}, {"n": 2}]
    bind_encryption_keys([NEW])
    assert opened(Vault.get_by_id(2)) == {"n": 2}


def test_rotation_lets_the_old_key_go(tables: peewee.Database) -> None:
    """After ``rotate`` every row opens with the newest key alone; rows under it already are not touched."""
    Vault.create(config={"n": 1})
    bind_encryption_keys([NEW, OLD])
    Vault.create(config={"n": 2})
    Vault.create(config=None)
    assert Vault.config.rotate() == 1
    assert Vault.config.rotate() == 0
    bind_encryption_keys([NEW])
    assert [opened(row) for row in Vault.select().order_by(Vault.id)] == [{"n": 1}, {"n": 2}, None]


def test_rotation_stops_at_a_row_that_no_key_opens(tables: peewee.Database) -> None:
    """The row that cannot be rotated is named; what stood before it is rotated and stays readable."""
    Vault.create(config={"n": 1})
    tables.execute_sql("INSERT INTO vault (config) VALUES ('no token')")
    bind_encryption_keys([NEW, OLD])
    with pytest.raises(ConfigurationError, match="row '2'"):
        Vault.config.rotate()
    assert opened(Vault.get_by_id(1)) == {"n": 1}


def test_an_encrypted_default_is_refused() -> None:
    """A default would write one token into the schema for ever."""
    with pytest.raises(ValueError, match="takes no default"):
        EncryptedJSONField(default={})


def test_a_sealed_value_can_be_moved_to_another_row(tables: peewee.Database) -> None:
    """Assigning what is sealed already does not seal it twice."""
    Vault.create(config=Vault(config=CONFIG).config)
    assert isinstance(Vault.get().config, Sealed)
    assert opened(Vault.get()) == CONFIG


def test_a_time_comes_back_in_utc_to_the_microsecond(tables: peewee.Database) -> None:
    """Whatever zone a time was in, the same instant returns, aware and in UTC, no microsecond lost."""
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    at = datetime.datetime(2024, 1, 1, 3, 4, 5, 678901, tokyo)
    Moment.create(at=at)
    found = Moment.get().at
    assert found == at
    assert found.tzinfo is datetime.UTC
    assert Moment.select().where(Moment.at == at).count() == 1


def test_times_are_stored_as_utc(tables: peewee.Database) -> None:
    """The column holds UTC without a zone, for whoever reads it with SQL."""
    Moment.create(at=datetime.datetime(2024, 1, 1, 3, 4, 5, 6, datetime.timezone(datetime.timedelta(hours=9))))
    ((stored,),) = tables.execute_sql("SELECT at FROM moment").fetchall()
    assert str(stored) == "2023-12-31 18:04:05.000006"


def test_times_sort_and_compare(tables: peewee.Database) -> None:
    """Order and comparison are those of the instants, also between whole seconds and fractions."""
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    times = [start + datetime.timedelta(microseconds=n) for n in (0, 1, 999_999, 1_000_000)]
    Moment.insert_many([{"at": at} for at in reversed(times)]).execute()
    assert [row.at for row in Moment.select().order_by(Moment.at)] == times
    assert Moment.select(peewee.fn.MAX(Moment.at)).scalar() == times[-1]
    assert Moment.select().where(Moment.at > start).count() == 3


def test_a_time_without_a_zone_is_refused(backend: Backend) -> None:
    """A naive time is somebody's local time or UTC: the field does not guess."""
    database = backend.database()
    with database.bind_ctx([Moment]), pytest.raises(ValueError, match="needs a time with its zone"):
        Moment.insert(at=datetime.datetime(2024, 1, 1)).sql()
