"""A writer that believes what it knew of packs: no point is ever committed on one that is gone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.repository.samples import BLOCK
from tests.integration.repository.test_prune_beside_others import World
from vmkeep.repository import Repository, intents, known
from vmkeep.repository.layout import pack_name

MEMORY = "/dev/shm"  # noqa: S108  private below it: syncs would take most of the time
ACTIONS = ("write", "write", "write", "lose", "mark", "delete", "prune")


@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=12), seed=st.integers(0, 1 << 32))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_point_is_committed_on_packs_that_are_gone(
    actions: Sequence[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmkeep.repository.writer.DATA_PACK_BYTES", 8 * BLOCK)
    monkeypatch.setattr("vmkeep.repository.writer.METADATA_PACK_BYTES", 2 * BLOCK)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as top:
        world = World(Path(top) / "w", seed)
        repository = world.open()
        for action in actions:
            act(world, repository, action)


def act(world: World, repository: Repository, action: str) -> None:
    packs = sorted(intents.stored_packs(repository._store))
    if action == "write":
        # Whoever was refused looks at all packs, and is not refused again.
        point = world.take(repository, None, "cache") or world.take(repository, None, "cache")
        assert point is not None
        world.check(repository, point)
    elif action == "lose" and packs:
        repository._store.delete(pack_name(world.random.choice(packs)))  # without a word to anybody
    elif action == "mark" and packs:
        repository.condemn([world.random.choice(packs)])
    elif action == "delete" and world.points:
        world.delete(repository, world.random.choice(sorted(world.points)))
    elif action == "prune":
        world.prune(repository)


def test_all_packs_are_looked_at_once_a_day_when_asked_and_after_a_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "w", 1)
    repository = world.open()
    looks: list[int] = []
    real = intents.stored_packs

    def counted(store: object) -> dict[bytes, int]:
        looks.append(1)
        return real(store)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(intents, "stored_packs", counted)

    def begin(*, relist: bool = False) -> int:
        looks.clear()
        repository.begin(purpose="test", host="a", cache=tmp_path / "cache", relist=relist).abort()
        return len(looks)

    assert (begin(), begin()) == (1, 0)
    assert begin(relist=True) == 1
    first = world.take(repository, None, "cache")
    assert first is not None
    world.delete(repository, first.id)
    assert begin() == 0
    assert world.prune(repository).unused_packs
    assert (begin(), begin()) == (1, 0)
    for late in (known.LISTED_SECONDS, -1.0):  # a day later; and a clock that was set back
        now = [time.time() + late]
        monkeypatch.setattr("vmkeep.repository.repository.time.time", lambda now=now: now[0])
        assert (begin(), begin()) == (1, 0)
