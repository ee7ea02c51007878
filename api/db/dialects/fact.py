"""The form of a fact about an engine: its value, and the page of the manual that states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True)
class Since:
    """True from *version* on, False before: ``Since((10, 7))``."""

    version: tuple[int, ...]

    def __str__(self) -> str:
        return "since " + ".".join(str(part) for part in self.version)


Value: TypeAlias = bool | int | Since | None
"""What a capability may be: yes or no, a limit, yes since a version, or None where no limit exists."""


class Fact(NamedTuple):
    """A capability's *value* and the *page* of the engine's manual that it was read on."""

    value: Value
    page: str
