"""Settings: what is wrong is named, what is secret is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr, ValidationError

from api.exceptions import ConfigurationError
from api.settings import ROOT, Settings, load_settings

NO_FILE = Path("/nonexistent/.env")
SECRET = "hunter2"


def url_of(**overrides: object) -> str:
    """Return the database URL that the settings hold."""
    return load_settings(env_file=NO_FILE, **overrides).database_url.get_secret_value()


def refusal(**overrides: object) -> ConfigurationError:
    """Return the error that *overrides* meet."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(env_file=NO_FILE, **overrides)
    return caught.value


def test_without_an_environment_the_defaults_are_complete() -> None:
    """Nothing has to be set to start: the database is a file under instance/."""
    assert url_of() == f"sqlite:///{ROOT}/instance/plinth.db"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file sets what the environment leaves open, and nothing else."""
    env_file = tmp_path / ".env"
    env_file.write_text("LOG_FORMAT=json\nDB_POOL_MAX=7\nFLASK_RUN_PORT=5001\n")
    monkeypatch.setenv("DB_POOL_MAX", "9")

    settings = load_settings(env_file=env_file)

    assert (settings.log_format, settings.db_pool_max) == ("json", 9)


def test_an_override_wins_unless_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line's option wins over the environment, and one that was not given does not."""
    monkeypatch.setenv("DB_POOL_MAX", "9")

    assert load_settings(env_file=NO_FILE, db_pool_max=3).db_pool_max == 3
    assert load_settings(env_file=NO_FILE, db_pool_max=None).db_pool_max == 9


def test_an_unknown_override_is_a_programming_error() -> None:
    """A misspelt keyword is not dropped in silence."""
    with pytest.raises(TypeError, match="databse_url"):
        load_settings(databse_url="sqlite:///x.db")


def test_a_misspelt_name_in_the_file_is_refused_with_the_right_one(tmp_path: Path) -> None:
    """DATABASE_ULR would otherwise mean the default database; its value is not shown."""
    env_file = tmp_path / ".env"
    env_file.write_text(f"DATABASE_ULR=postgresql://u:{SECRET}@h/d\n")

    with pytest.raises(ConfigurationError, match=r"DATABASE_ULR .*did you mean DATABASE_URL") as caught:
        load_settings(env_file=env_file)

    assert SECRET not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A .env that is no text gives one message, not a decoder's traceback."""
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"LOG_LEVEL=\xff\xfe\n")

    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(env_file=env_file)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("postgres://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgresql+psycopg2://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("mysql+pymysql://u:p%40@h/d", "mysql://u:p%40@h/d"),
        ("mariadb://u:p@h/d", "mariadb://u:p@h/d"),
        ("postgresql:///d", "postgresql:///d"),
        ("sqlite:///x.db", f"sqlite:///{ROOT}/instance/x.db"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_a_url_is_normalised(url: str, normal: str) -> None:
    """Every accepted form becomes the plain scheme, and a relative file an absolute one."""
    assert url_of(database_url=url) == normal
    assert url_of(database_url=normal) == normal


def test_a_relative_file_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same setting means the same database wherever the program was started."""
    monkeypatch.chdir(tmp_path)

    assert url_of(database_url="sqlite:///x.db") == f"sqlite:///{ROOT}/instance/x.db"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not begin with 'scheme://'"),
        (f"{SECRET}", "does not begin with 'scheme://'"),
        (f"root:{SECRET}@h://d", "does not begin with 'scheme://'"),
        (f"postgress://u:{SECRET}@h/d", "the scheme 'postgress' is none of postgres, postgresql, mysql"),
        (f"postgres://u:{SECRET}/x@h/d", "unescaped character"),
        (f"postgres://u:1{SECRET}?x@h/d", "unescaped character"),
        (f"postgres://u:{SECRET}#x@h/d", "unescaped character"),
        (f"postgres://u:{SECRET}%zz@h/d", "unescaped character"),
        (f"postgres://u:{SECRET} x@h/d", "unescaped character"),
        (f"postgres://u:{SECRET}\nx@h/d", "unescaped character"),
        (f"mysql://u:{SECRET}[x@h/d", "cannot be parsed"),
        (f"mysql://root:{SECRET}", "port is not a number"),
        (f"mysql://u:{SECRET}@h:99999/d", "port is not a number"),
        (f"mysql://u:{SECRET}@h:3306/", "names no database"),
        (f"sqlite://{SECRET}.db", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///x.db?mode=ro", "takes no options"),
    ],
)
def test_a_wrong_url_is_explained_without_its_secret(url: str, reason: str) -> None:
    """The message names the variable, the fault and an example; neither it nor its chain holds the password."""
    error = refusal(database_url=url)

    assert error.message.startswith("DATABASE_URL: ")
    assert reason in error.message
    assert "for example DATABASE_URL=postgresql://user:***@host:5432/name" in error.message
    assert SECRET not in f"{error!r}{error.hint}"
    assert error.__cause__ is error.__context__ is None


def test_all_wrong_variables_are_named_at_once() -> None:
    """Nobody corrects one variable only to be told of the next: each has its line, with value and example."""
    lines = refusal(migrate_on_boot="atuo", db_pool_max=0, db_pool_timeout_s="ten", log_level="loud").message

    assert lines.splitlines() == [
        "MIGRATE_ON_BOOT='atuo': should be 'auto', 'check' or 'off' (for example MIGRATE_ON_BOOT=check)",
        "DB_POOL_MAX=0: should be greater than or equal to 1 (for example DB_POOL_MAX=20)",
        "DB_POOL_TIMEOUT_S='ten': should be a valid number, unable to parse string as a number "
        "(for example DB_POOL_TIMEOUT_S=10)",
        "LOG_LEVEL='LOUD': should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL' (for example LOG_LEVEL=DEBUG)",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_a_time_limit_is_a_positive_number(value: str) -> None:
    """Zero or infinity would mean "for ever" to one driver and "at once" to another."""
    assert "DB_POOL_TIMEOUT_S" in refusal(db_pool_timeout_s=value).message


def test_the_thresholds_must_be_in_order() -> None:
    """A warning that comes after the critical line warns nobody."""
    assert "must be below" in refusal(pool_warning_threshold="0.97").message


def test_keys_are_read_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several keys are separated by commas; blanks around them and an empty value are fine."""
    newest, older = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    monkeypatch.setenv("ENCRYPTION_KEYS", f" {newest} , {older},")

    keys = load_settings(env_file=NO_FILE).encryption_keys

    assert [key.get_secret_value() for key in keys] == [newest, older]
    assert load_settings(env_file=NO_FILE, encryption_keys="").encryption_keys == ()


def test_a_key_that_is_none_is_told_by_its_position() -> None:
    """The message says which key, and how to make one; it does not show it."""
    good = Fernet.generate_key().decode()

    error = refusal(encryption_keys=f"{good},{SECRET}")

    assert "ENCRYPTION_KEYS: key 2 of 2 is not a Fernet key" in error.message
    assert "Fernet.generate_key()" in error.message
    assert not {good, SECRET} & set(re.split(r"[\s,:=()]", error.message))


def test_keys_may_come_as_secrets() -> None:
    """Code that holds a key as a SecretStr hands it over as it is."""
    key = SecretStr(Fernet.generate_key().decode())

    assert load_settings(env_file=NO_FILE, encryption_keys=(key,)).encryption_keys == (key,)


def test_settings_are_frozen_and_print_no_secret() -> None:
    """Nobody changes a setting at run time, and no log of them shows a password."""
    settings = load_settings(env_file=NO_FILE, database_url=f"postgresql://u:{SECRET}@h/d")

    with pytest.raises(ValidationError):
        settings.db_pool_max = 1
    assert SECRET not in f"{settings!r}{settings}{settings.model_dump_json()}"


def test_the_page_lists_exactly_the_settings() -> None:
    """docs/SETTINGS.md has one row a setting, with the default and the example of the code."""
    page = (ROOT / "docs/SETTINGS.md").read_text()
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.*\|$", page, re.M)]

    written = {name: (default, example) for name, default, _, _, example in rows}

    assert written == {
        name.upper(): (_default(name), (field.examples or [""])[0]) for name, field in Settings.model_fields.items()
    }


def _default(name: str) -> str:
    value = Settings.model_fields[name].default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return f"{value:g}" if isinstance(value, float) else str(value or "")
