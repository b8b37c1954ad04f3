"""Prunes, writers, readers and deletions at once, in any order of their calls: no kept point ever lacks anything."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.repository.samples import BLOCK, opener, read_whole, record_of, sample_key, write_disk
from tests.integration.repository.turns import Turns
from vmkeep.errors import ObjectMissing, StoreError
from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.prune import Prune, PruneOptions, PruneReport

BLOCKS = 40
LAPSE = 0.5


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, and packs so small that a few blocks fill one."""
    for module in ("writer", "compaction", "prune"):
        monkeypatch.setattr(f"vmkeep.repository.{module}.DATA_PACK_BYTES", 8 * BLOCK)
        monkeypatch.setattr(f"vmkeep.repository.{module}.METADATA_PACK_BYTES", 2 * BLOCK)
    monkeypatch.setattr("vmkeep.repository.prune.LEFT", timedelta(0))
    memory = "/dev/shm"  # noqa: S108  private below it: syncs would take most of the time
    top = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield top
    shutil.rmtree(top)


class World:
    """A repository, and what each of its points holds."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)
        self.key = sample_key()
        self.truth: dict[str, dict[int, bytes]] = {}
        self.points: dict[str, PointRecord] = {}
        self.caches = 0
        # Few contents, so that writers find many of their blocks in packs of others.
        self.contents = [self.random.randbytes(BLOCK) for _ in range(60)]
        Repository.create(str(top / "r"), self.key)

    def open(self) -> Repository:
        return Repository.open(str(self.top / "r"), opener(self.key))

    def take(self, repository: Repository, parent: PointRecord | None, cache: str) -> PointRecord | None:
        """Take a point; None when it was refused because of a prune, or of its base that was deleted."""
        changes = {
            block: self.random.choice(self.contents)
            for block in self.random.sample(range(BLOCKS), self.random.randint(3, 20))
        }
        held = {**(self.truth[parent.id] if parent else {}), **changes}
        with (
            suppress(StoreError, ObjectMissing),
            repository.begin(
                purpose="test", host="a", cache=self.top / cache, workers=1, lapse_seconds=LAPSE
            ) as writer,
        ):
            base = parent.disks[0].stored if parent else None
            disk = write_disk(writer, changes, size_bytes=BLOCKS * BLOCK, base=base)
            self.truth[writer.point_id] = held
            record = writer.commit(record_of([disk], parent=parent))
            self.points[record.id] = record
            return record
        return None

    def prune(
        self, repository: Repository, sleep: Callable[[float], object] = time.sleep, **options: Any
    ) -> PruneReport:
        def rest(seconds: float) -> None:
            time.sleep(0.01)
            sleep(seconds)

        return Prune(
            repository._store,
            repository._sealer,
            repository.point,
            repository.pins,
            PruneOptions(**{"waste": 0.1, "young": timedelta(0), **options}),
            host="b",
            directory=self.top,
            sleep=rest,
            lapse_seconds=LAPSE,
        ).run()

    def delete(self, repository: Repository, point_id: str) -> None:
        self.points.pop(point_id, None)
        repository.delete_point(point_id)

    def check(self, repository: Repository, point: PointRecord) -> None:
        image = bytearray(BLOCKS * BLOCK)
        for block, content in self.truth[point.id].items():
            image[block * BLOCK : (block + 1) * BLOCK] = content
        assert read_whole(repository, point.disks[0].stored) == bytes(image), point.id

    def check_all(self) -> None:
        repository = self.open()
        assert set(repository.point_ids()) >= self.points.keys()
        for point in self.points.values():
            self.check(repository, point)
        report = repository.verify_all()
        assert not report.harmed, report.findings
        assert not report.unreadable

    def settle(self) -> None:
        """Prune until it is quiet, and look whether everything is as it should be."""
        time.sleep(LAPSE + 0.1)
        for _ in range(2):
            report = self.prune(self.open())
            assert report.problems == {}
            self.check_all()
        left = self.prune(self.open(), dry_run=True, waste=0.1)
        assert left.unused_packs == 0, left
        assert left.thin_packs == 0, left
        assert not list((self.top / "r/condemned").glob("*"))


def filled(place: Path, seed: int) -> World:
    """A repository with some points, of which some are gone: waste of every kind."""
    world = World(place, seed)
    repository = world.open()
    parent = None
    for _ in range(6):
        parent = world.take(repository, world.random.choice([parent, None]), "cache") or parent
    for point_id in world.random.sample(sorted(world.points), 3):
        world.delete(repository, point_id)
    return world


@pytest.mark.parametrize("seed", range(int(os.environ.get("VMKEEP_PRUNE_SEEDS", "12"))))
def test_whatever_happens_between_two_calls_all_kept_points_are_whole(place: Path, seed: int) -> None:
    world = filled(place, seed)
    turns = Turns(seed, world.open, kills=seed % 3)
    turns.add("prune a", lambda repository, sleep: world.prune(repository, sleep))
    turns.add("prune b", lambda repository, sleep: world.prune(repository, sleep, waste=0.0))

    def write(repository: Repository, cache: str) -> None:
        parent = world.random.choice([*world.points.values(), None])
        for _ in range(3):
            parent = world.take(repository, parent, cache) or parent

    def read(repository: Repository, _sleep: object) -> None:
        for point in list(world.points.values()):
            try:
                world.check(repository, point)
            except ObjectMissing:
                assert point.id not in world.points, "a point that is kept could not be read"

    def delete(repository: Repository, _sleep: object) -> None:
        for point_id in world.random.sample(sorted(world.points), 1):
            world.delete(repository, point_id)

    turns.add("writer a", lambda repository, _sleep: write(repository, "cache"))
    turns.add("writer b", lambda repository, _sleep: write(repository, "cache-b"))
    turns.add("reader", read)
    turns.add("deletion", delete)
    turns.run()
    world.check_all()
    world.settle()
