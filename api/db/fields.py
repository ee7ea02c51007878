"""Fields that peewee lacks: JSON encrypted at rest, and timestamps that are always UTC."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import peewee
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from api.exceptions import ConfigurationError
from api.settings import KEY_COMMAND


class Keyring:
    """The encryption keys of this process, newest first; empty until the app binds some."""

    def __init__(self) -> None:
        self._fernets: tuple[Fernet, ...] = ()

    def bind(self, keys: Sequence[SecretStr]) -> None:
        """Use *keys* from now on: the first one encrypts, all of them decrypt.

        Raises ``ConfigurationError`` with the position of a key that is not one, never with the key.
        """
        self._fernets = tuple(_fernet(key, position) for position, key in enumerate(keys, start=1))

    def seal(self, value: Any) -> Sealed:
        """Return *value*, which must be fit for JSON, encrypted under the newest key."""
        return Sealed(self._newest().encrypt(json.dumps(value).encode()).decode())

    def open(self, sealed: Sealed) -> Any:
        """Return what *sealed* holds; raises ``InvalidToken`` when none of the keys opens it."""
        self._newest()
        return json.loads(MultiFernet(self._fernets).decrypt(sealed.token))

    def reseal(self, sealed: Sealed) -> Sealed:
        """Return *sealed* under the newest key, itself when it is that already; raises ``InvalidToken``."""
        try:
            self._newest().decrypt(sealed.token)
        except InvalidToken:
            return Sealed(MultiFernet(self._fernets).rotate(sealed.token).decode())
        return sealed

    def _newest(self) -> Fernet:
        if not self._fernets:
            raise ConfigurationError(
                "an encrypted field was touched, but ENCRYPTION_KEYS is not set",
                hint=f"make a key with `{KEY_COMMAND}`, put it into ENCRYPTION_KEYS and start again",
            )
        return self._fernets[0]


KEYRING = Keyring()


def bind_encryption_keys(keys: Sequence[SecretStr]) -> None:
    """Let this process seal with the first of *keys* and open with any of them; empty forgets them.

    The app calls it once, as it binds the database; without keys the app runs, and only touching an encrypted
    field is an error. Raises ``ConfigurationError`` for a malformed key.
    """
    KEYRING.bind(keys)


class Sealed:
    """An encrypted value as a model carries it: nothing that prints, logs or serialises it shows what it holds.

    It keeps the Fernet token only, so the plain value is not in memory until somebody opens it.
    """

    __slots__ = ("token",)

    def __init__(self, token: str) -> None:
        self.token = token

    def __repr__(self) -> str:
        return "<sealed>"


class _SealingAccessor(peewee.FieldAccessor):
    """Seals whatever is assigned to the field, so that a model never carries the plain value."""

    def __set__(self, instance: peewee.Model, value: Any) -> None:
        super().__set__(instance, self.field.sealed(value))


class EncryptedJSONField(peewee.TextField):
    """Keeps any JSON value as a Fernet token in a TEXT column; models see it as ``Sealed`` until ``open``.

    Each token differs, so the column can be neither searched nor unique. It takes no default, which would put
    one token into the schema for ever.
    """

    accessor_class = _SealingAccessor

    def __init__(self, **options: Any) -> None:
        if options.get("default") is not None:
            raise ValueError("an encrypted field takes no default: assign a value to each row")
        super().__init__(**options)

    def sealed(self, value: Any) -> Sealed | None:
        """Return *value* sealed; None and what is sealed already stay as they are."""
        return value if value is None or isinstance(value, Sealed) else KEYRING.seal(value)

    def db_value(self, value: Any) -> str | None:
        """Return the token to store."""
        sealed = self.sealed(value)
        return None if sealed is None else sealed.token

    def python_value(self, value: str | None) -> Sealed | None:
        """Return what was stored, still sealed: reading a row needs no key."""
        return None if value is None else Sealed(value)

    def open(self, row: peewee.Model) -> Any:
        """Return the plain value that *row* holds in this field.

        Raises ``ConfigurationError`` when no key is bound, or when none of them opens the value.
        """
        sealed: Sealed | None = row.__data__.get(self.name)
        try:
            return None if sealed is None else KEYRING.open(sealed)
        except InvalidToken:
            raise self._no_key_opens(row.get_id()) from None

    def rotate(self) -> int:
        """Seal this field under the newest key in every row that has an older one, and return how many rows.

        Safe while the app runs: each row is its own statement, and a row that somebody else changes meanwhile
        is left to them. Raises ``ConfigurationError`` at the first row that no key opens; those before are done.
        """
        return sum(self._rotate_row(key, sealed) for key, sealed in self._rows())

    def _rows(self) -> list[tuple[Any, Sealed]]:
        key = self.model._meta.primary_key
        return list(self.model.select(key, self).where(self.is_null(False)).order_by(key).tuples())

    def _rotate_row(self, key: Any, sealed: Sealed) -> int:
        try:
            resealed = KEYRING.reseal(sealed)
        except InvalidToken:
            raise self._no_key_opens(key) from None
        if resealed is sealed:
            return 0
        is_unchanged = (self.model._meta.primary_key == key) & (self == sealed)
        return int(self.model.update({self: resealed}).where(is_unchanged).execute())

    def _no_key_opens(self, key: Any) -> ConfigurationError:
        place = f"{self.model._meta.table_name}.{self.column_name}"
        return ConfigurationError(
            f"no key in ENCRYPTION_KEYS opens {place} of row {str(key)!r}",
            hint="put the key it was sealed with back into ENCRYPTION_KEYS, after the newest one",
        )


class UTCDateTimeField(peewee.DateTimeField):
    """Takes aware datetimes, stores them as UTC without a zone, and returns aware UTC.

    Microseconds are kept on every engine: MySQL and MariaDB round to seconds unless told ``DATETIME(6)``.
    """

    def get_modifiers(self) -> list[int]:
        """Return the six digits behind the second."""
        return [6]

    def db_value(self, value: Any) -> Any:
        """Return *value* as naive UTC; raises ``ValueError`` for a datetime that does not name its zone."""
        value = super().db_value(value)
        if not isinstance(value, datetime.datetime):
            return value
        if value.tzinfo is None:
            raise ValueError(f"{self.name!r} needs a time with its zone, such as datetime.now(UTC), not {value!r}")
        return value.astimezone(datetime.UTC).replace(tzinfo=None)

    def python_value(self, value: Any) -> Any:
        """Return *value* as an aware datetime in UTC."""
        value = super().python_value(value)
        return value.replace(tzinfo=datetime.UTC) if isinstance(value, datetime.datetime) else value


def utc_now() -> datetime.datetime:
    """Return this moment, in UTC and aware of it."""
    return datetime.datetime.now(datetime.UTC)


def _fernet(key: SecretStr, position: int) -> Fernet:
    try:
        return Fernet(key.get_secret_value())
    except ValueError:
        raise ConfigurationError(
            f"key {position} of ENCRYPTION_KEYS is not a Fernet key",
            hint=f"make one with `{KEY_COMMAND}`; separate several keys with commas, newest first",
        ) from None
