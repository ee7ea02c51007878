"""Migration files: which there are, whether each can be used, and what it holds.

``list_files`` reads names only, so that a boot with nothing pending opens no file. ``load`` opens, parses and
executes the given files, all before any migration runs.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from api.exceptions import MigrationFileError
from api.logs import redact

Function = Callable[..., Any]

NAME = re.compile(r"(\d+)(_[\w-]+)?")
NAME_LENGTH = 255
SKELETON = '''"""{title}."""

import peewee

from api.db.migrations import alter_db_add_column


def up(migrator, db):
    """Say in a line what changes, and why."""
    alter_db_add_column(migrator, "table_name", "column_name", peewee.CharField(default=""))


# def down(migrator, db):
#     """Undo `up`, where that can be done without losing data."""
'''


class MigrationFile(NamedTuple):
    """A migration's file in *directory*, known by its name only; files sort by *number*, then by *name*."""

    number: int
    name: str
    directory: Path

    @property
    def path(self) -> Path:
        """Where the file is; made when asked for, since a boot with nothing pending asks for none."""
        return self.directory / f"{self.name}.py"


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration that can run. *path* is ``None`` when it was given as a function, not as a file."""

    name: str
    up: Function
    down: Function | None = None
    atomic: bool = True
    checksum: str | None = None
    path: Path | None = None


Source = Sequence[MigrationFile] | Sequence[Migration]
"""What there is to run: files, or functions with names."""


def list_files(directory: Path) -> list[MigrationFile]:
    """Return the migration files of *directory* in the order they run, without opening any.

    Raises ``MigrationFileError`` when the directory is missing or a name cannot be ordered.
    """
    return sorted(_file(directory, stem) for stem in _stems(directory))


def hold_exactly(directory: Path, names: Collection[str]) -> bool:
    """Say whether the migration files of *directory* are *names*, each of them and no other: the cheapest look."""
    stems = _stems(directory)
    return len(stems) == len(names) and all(stem in names for stem in stems)


def _stems(directory: Path) -> list[str]:
    try:
        return [name[:-3] for name in os.listdir(directory) if name.endswith(".py") and name[0].isdigit()]
    except OSError as exc:
        raise MigrationFileError(
            f"the migration directory {str(directory)!r} cannot be read: {exc.strerror}",
            hint="set MIGRATION_DIRECTORY or --directory to the folder that holds NNNN_words.py files",
        ) from exc


def _file(directory: Path, stem: str) -> MigrationFile:
    match = NAME.fullmatch(stem)
    if match is None or len(stem) > NAME_LENGTH:
        raise MigrationFileError(
            f"{stem + '.py'!r} in {str(directory)!r} is not a migration's name",
            hint="name it NNNN_words.py: a number, then letters, digits, _ or -, 255 characters at most",
        )
    return MigrationFile(int(match[1]), stem, directory)


def order_of(name: str) -> tuple[int, str]:
    """Return what sorts *name* among others: its number, then the name; names without a number come first."""
    match = NAME.fullmatch(name)
    return (int(match[1]) if match else -1, name)


def refuse_repeated_numbers(files: Sequence[MigrationFile], pending: set[str]) -> None:
    """Raise ``MigrationFileError`` when a pending file shares its number with another file."""
    by_number: dict[int, list[MigrationFile]] = {}
    for file in files:
        by_number.setdefault(file.number, []).append(file)
    for number, group in by_number.items():
        if len(group) > 1 and any(file.name in pending for file in group):
            both = " and ".join(repr(file.path.name) for file in group)
            raise MigrationFileError(
                f"migration number {number} is used twice: {both}",
                hint="give the one that has not run yet the next free number",
            )


def from_functions(migrations: Sequence[tuple[str, Function]]) -> list[Migration]:
    """Return ``(name, function)`` pairs as migrations. Raises ``MigrationFileError`` when a name is there twice."""
    names = [name for name, _ in migrations]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise MigrationFileError(f"migration {min(repeated)!r} is listed twice", hint="give each its own name")
    long = [name for name in names if len(name) > NAME_LENGTH]
    if long:
        raise MigrationFileError(f"the name {long[0][:40]!r}… is too long", hint=f"{NAME_LENGTH} characters at most")
    return [Migration(name, _taking_two(_plain(function, name))) for name, function in migrations]


def _taking_two(function: Function) -> Function:
    """Return *function* as ``up(migrator, db)``; one that takes no arguments is called with none."""
    if inspect.signature(function).parameters:
        return function
    return functools.wraps(function)(lambda migrator, db: function())


def _plain(function: Any, where: object) -> Function:
    """Return *function*. Raises ``MigrationFileError`` for one that only makes a coroutine or a generator."""
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise MigrationFileError(
            f"{where}: {function.__name__}() is async or has a yield: a call of it would run nothing",
            hint="make it a plain function",
        )
    kept: Function = function
    return kept


def load_named(source: Source, names: Sequence[str]) -> list[Migration]:
    """Return the migrations *names* of *source*, loaded, in that order.

    Raises ``MigrationFileError`` when one is missing, cannot be used, or shares its number with another.
    """
    by_name = {each.name: each for each in source}
    gone = [name for name in names if name not in by_name]
    if gone:
        raise MigrationFileError(f"{gone[0]} has no file", hint="restore the file that was applied")
    chosen = [by_name[name] for name in names]
    ready = [each for each in chosen if isinstance(each, Migration)]
    in_files = [each for each in chosen if isinstance(each, MigrationFile)]
    refuse_repeated_numbers([each for each in source if isinstance(each, MigrationFile)], set(names))
    return ready or load(in_files)


def load(files: Sequence[MigrationFile]) -> list[Migration]:
    """Open and parse all *files*, then execute them; nothing is executed when one does not parse.

    Raises ``MigrationFileError`` with file and line.
    """
    sources = [_source(file.path) for file in files]
    compiled = [_compile(file.path, text) for file, text in zip(files, sources, strict=True)]
    loaded = zip(files, compiled, sources, strict=True)
    return [_execute(file, code, checksum_of(text)) for file, code, text in loaded]


def checksum_of(text: str) -> str:
    """Return the SHA-256 of *text* with its line ends made alike, as 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()


def read_checksum(path: Path) -> str:
    """Return the checksum of the file at *path*. Raises ``MigrationFileError`` when it is not UTF-8."""
    return checksum_of(_source(path))


def _source(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise MigrationFileError(f"{path}, line {line}: not UTF-8", hint="save the file as UTF-8") from exc
    except OSError as exc:
        raise MigrationFileError(f"{path}: cannot be read: {exc.strerror}") from exc


def _compile(path: Path, text: str) -> types.CodeType:
    try:
        return compile(text, str(path), "exec")
    except SyntaxError as exc:
        line = f", line {exc.lineno}" if exc.lineno else ""
        raise MigrationFileError(f"{path}{line}: {exc.msg}", hint="correct the syntax") from exc
    except ValueError as exc:
        raise MigrationFileError(f"{path}: {exc}", hint="the file is not Python source") from exc


def _execute(file: MigrationFile, code: types.CodeType, checksum: str) -> Migration:
    module = types.ModuleType(file.name)
    module.__file__ = str(file.path)
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as exc:
        line = line_in(file.path, exc)
        raise MigrationFileError(
            redact(f"{file.path}, line {line}: {type(exc).__name__}: {exc}"),
            hint="the file fails as it is loaded, before any migration ran; correct that line",
        ) from exc
    up, down = (getattr(module, name, None) for name in ("up", "down"))
    if not callable(up):
        raise MigrationFileError(f"{file.path}: has no function up(migrator, db)", hint="define up(migrator, db) in it")
    atomic = bool(getattr(module, "atomic", True))
    down = _plain(down, file.path) if callable(down) else None
    return Migration(file.name, _plain(up, file.path), down, atomic, checksum, file.path)


def line_in(path: Path | None, exc: BaseException) -> int | None:
    """Return the last line of the file at *path* that the traceback of *exc* passed, if any."""
    line, step = None, exc.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return line


def create(directory: Path, words: str) -> Path:
    """Write a skeleton with the next free number into *directory*, made if missing; return its path.

    Raises ``MigrationFileError`` when *words* hold nothing that a name can be made of.
    """
    slug = re.sub(r"\W+", "_", words).strip("_").lower()
    if not slug or len(slug) > NAME_LENGTH - 20:
        raise MigrationFileError(f"{words!r} makes no name", hint="give a few plain words, such as add_user_email")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        number = max((file.number for file in list_files(directory)), default=0) + 1
        path = directory / f"{number:04d}_{slug}.py"
        # "x": two people who create at the same time get an error, not one file.
        with path.open("x", encoding="utf-8") as out:
            out.write(SKELETON.format(title=slug.replace("_", " ").capitalize()))
    except OSError as exc:
        raise MigrationFileError(f"{str(directory)!r} cannot be written to: {exc.strerror}") from exc
    return path
