"""The file that is locked while the SQLite database beside it is migrated; it names the holder in a line of JSON."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from api.db.lease import Holder
from api.exceptions import MigrationError


def take(path: str) -> int | None:
    """Return the descriptor of the locked file at *path*, made where it is missing; ``None`` if another holds it."""
    try:
        file = _open(path)
    except FileNotFoundError:
        return None  # removed a moment ago
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not os.path.exists(path) and not os.access(Path(path).parent, os.W_OK):
            raise
        # Another user's, who migrates or was killed: to lock it, to read it is enough.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def refusal(path: str, exc: OSError) -> MigrationError:
    """Return the error to raise where *exc* says that the file at *path* cannot be locked."""
    hint = "let this user write in its folder"
    if os.path.exists(path):
        hint = "it is another user's: when no other process migrates, delete it"
    return MigrationError(f"cannot lock {path!r} beside the database: {exc.strerror}", hint=hint)


def write_holder(file: int, holder: Holder) -> None:
    """Write into the locked *file* who holds it."""
    # A file that may only be read goes on naming who left it.
    with suppress(OSError):
        os.pwrite(file, json.dumps(facts(holder)).encode() + b"\n", 0)


def read_holder(path: str) -> Holder | None:
    """Return whom the file at *path* names; ``None`` where it is not written yet, or being written."""
    # What an earlier, longer line left stands after the end of the first one.
    try:
        told = json.loads(Path(path).read_bytes().partition(b"\n")[0])
        return Holder(**told | {"since": datetime.fromisoformat(told["since"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def facts(holder: Holder) -> dict[str, Any]:
    """Return *holder* as plain data."""
    return asdict(holder) | {"since": holder.since.isoformat(timespec="seconds")}
