"""A few rounds of the race on each engine; ``python test/race.py`` plays as many as one likes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import race

from conftest import Backend

PROCESSES = 8


@pytest.mark.parametrize("scene", race.SCENES)
@pytest.mark.parametrize("_round", range(2))
def test_processes_that_boot_together_apply_each_migration_once(
    backend: Backend, tmp_path: Path, seed: int, scene: str, _round: int
) -> None:
    """Also when the one that migrates is killed: the others go on, and every one of them serves."""
    folder = tmp_path / "race"
    folder.mkdir()

    played = race.play(backend.url, folder, scene, PROCESSES, random.Random(seed))

    assert played.wrong == []
