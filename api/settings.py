"""What the operator decides: one frozen ``Settings``, read from the environment and from ``.env``; a leaf.

The environment wins over ``.env``. Nothing is read at import: ``load_settings()`` reads, and answers a bad
value with the variable's name, what is wrong and an example, never with a secret. docs/SETTINGS.md is the table
for people.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.exceptions import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
INSTANCE = ROOT / "instance"
ENV_FILE = ROOT / ".env"

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
SCHEMES = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
}
URL_EXAMPLE = "postgresql://user:***@host:5432/name"
ESCAPE_HINT = "write a special character of the user, password or name as %XX, such as %40 for '@'"
FERNET_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")
KEY_COMMAND = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'


class Settings(BaseSettings):
    """Every setting the service reads; frozen, and each secret behind a ``SecretStr``.

    A setting's variable is the field's name in capitals. Build it with ``load_settings()``, which turns what is
    wrong into a ``ConfigurationError``.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_file_encoding="utf-8", hide_input_in_errors=True, validate_default=True
    )

    database_url: SecretStr = Field(default=SecretStr("sqlite:///plinth.db"), examples=[URL_EXAMPLE])
    migrate_on_boot: Literal["auto", "check", "off"] = Field(default="auto", examples=["check"])
    migration_directory: Path = Field(default=ROOT / "api/db/versions", examples=["api/db/versions"])
    migration_lock_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False, examples=["600"])
    migration_statement_lock_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False, examples=["30"])
    migration_undo_rows: int = Field(default=10_000, ge=0, examples=["10000"])
    db_pool_max: int = Field(default=20, ge=1, examples=["20"])
    db_pool_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False, examples=["10"])
    db_connect_timeout_s: int = Field(default=5, ge=1, examples=["5"])
    pool_check_interval_s: float = Field(default=5.0, gt=0, allow_inf_nan=False, examples=["5"])
    pool_warning_threshold: float = Field(default=0.8, gt=0, le=1, examples=["0.8"])
    pool_critical_threshold: float = Field(default=0.95, gt=0, le=1, examples=["0.95"])
    pool_validate_after_s: float = Field(default=0.5, ge=0, allow_inf_nan=False, examples=["0.5"])
    pool_max_lifetime_s: float = Field(default=1800.0, gt=0, allow_inf_nan=False, examples=["1800"])
    pool_leak_after_s: float = Field(default=60.0, gt=0, allow_inf_nan=False, examples=["60"])
    encryption_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), examples=["<newest key>,<older key>"]
    )
    log_level: LogLevel = Field(default="INFO", examples=["DEBUG"])
    log_format: Literal["console", "json"] = Field(default="console", examples=["json"])
    app_env: Literal["development", "production"] = Field(default="production", examples=["development"])

    @field_validator("database_url")
    @classmethod
    def _normalise_url(cls, value: SecretStr) -> SecretStr:
        return SecretStr(normalise_database_url(value.get_secret_value()))

    @field_validator("migration_directory")
    @classmethod
    def _from_the_root(cls, value: Path) -> Path:
        return ROOT / value

    @field_validator("encryption_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        keys = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        for position, key in enumerate(keys, start=1):
            text = key.get_secret_value() if isinstance(key, SecretStr) else key
            if not FERNET_KEY.fullmatch(text):
                raise ValueError(
                    f"key {position} of {len(keys)} is not a Fernet key (44 characters of URL-safe base64); "
                    f"make one with: {KEY_COMMAND}"
                )
        return keys

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.pool_warning_threshold >= self.pool_critical_threshold:
            raise ValueError("POOL_WARNING_THRESHOLD must be below POOL_CRITICAL_THRESHOLD")
        return self


def load_settings(*, env_file: Path = ENV_FILE, **overrides: Any) -> Settings:
    """Read the settings from the environment and *env_file*; *overrides* win over both, None meaning not given.

    Raises ``ConfigurationError`` with a line for every wrong variable: its name, what is wrong, an example. A
    name in *env_file* that is nearly a setting's is refused too: ``DATABASE_ULR`` would mean the default URL.
    """
    unknown = sorted(overrides.keys() - Settings.model_fields.keys())
    if unknown:
        raise TypeError(f"no such setting: {', '.join(unknown)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        _refuse_misspelt(env_file)
        return Settings(**({"_env_file": env_file} | given))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{str(env_file)!r} cannot be read: {type(exc).__name__}") from exc
    except ValidationError as exc:
        problems = "\n".join(_describe(error) for error in exc.errors())
    # Raised outside the handler, so that it does not carry the validation error, which holds the raw values.
    raise ConfigurationError(problems)


def _refuse_misspelt(env_file: Path) -> None:
    known = [name.upper() for name in Settings.model_fields]
    for name in dotenv_values(env_file, interpolate=False) if env_file.exists() else ():
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
        if near and name.upper() not in known:
            raise ConfigurationError(f"{name} in {str(env_file)!r} is not a setting; did you mean {near[0]}?")


def _describe(error: ErrorDetails) -> str:
    if not error["loc"]:
        return _reason(error)
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    is_secret = "SecretStr" in str(field.annotation)
    found = "" if is_secret else f"={error['input']!r}"
    return f"{name.upper()}{found}: {_reason(error)} (for example {name.upper()}={(field.examples or [''])[0]})"


def _reason(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ")
    return text.replace("Input should be", "should be", 1)


def normalise_database_url(url: str) -> str:
    """Return *url* with the plain scheme of its engine, and for SQLite with an absolute path.

    SQLAlchemy's ``+driver`` is dropped; a relative SQLite path starts under ``instance/``, whatever the working
    directory. Raises ``ValueError`` whose text holds no part of *url* but its scheme.
    """
    url = url.strip()
    match = re.match(r"([A-Za-z][\w+.-]*)://", url)
    if match is None:
        raise ValueError("is not a URL: it does not begin with 'scheme://'")
    scheme = match[1].lower().partition("+")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"the scheme {scheme!r} is none of {', '.join(SCHEMES)}")
    engine = SCHEMES[scheme]
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"the {engine} URL cannot be parsed; {ESCAPE_HINT}") from None
    if parts.fragment or re.search(r"[\r\n\t]", url):
        raise ValueError(f"the {engine} URL holds an unescaped character; {ESCAPE_HINT}")
    tail = _sqlite_tail(parts) if engine == "sqlite" else _server_tail(parts, engine)
    return f"{engine}://{tail}{'?' if parts.query else ''}{parts.query}"


def _sqlite_tail(parts: SplitResult) -> str:
    if parts.netloc:
        raise ValueError("an sqlite URL has three slashes before a relative path, four before an absolute one")
    if parts.query:
        raise ValueError("an sqlite URL takes no options")
    name = parts.path.removeprefix("/")
    if name in ("", ":memory:"):
        raise ValueError("the sqlite URL names no file (in memory every connection has a database of its own)")
    return f"/{INSTANCE / name}"


def _server_tail(parts: SplitResult, engine: str) -> str:
    spills = "@" in parts.path or ("@" in parts.query and "@" not in parts.netloc)
    if spills or re.search(r"\s|%(?![0-9A-Fa-f]{2})", parts.geturl()):
        raise ValueError(f"the {engine} URL holds an unescaped character; {ESCAPE_HINT}")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"the {engine} URL's port is not a number from 0 to 65535; {ESCAPE_HINT}") from None
    if not parts.path.strip("/"):
        raise ValueError(f"the {engine} URL names no database: add '/name' after the host")
    return f"{parts.netloc}{parts.path}"
