"""Prunes, writers, readers and deletions at once, in any order of their calls: no kept point ever lacks anything."""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.repository.samples import BLOCK, opener, read_whole, record_of, sample_key, write_disk
from tests.integration.repository.turns import Killed, Turns, hooked
from tests.turns import sampled
from vmkeep.errors import InvalidRequest, NoSpace, ObjectMissing, StoreError
from vmkeep.repository import PointRecord, PointWriter, Repository
from vmkeep.repository.prune import Prune, PruneOptions, PruneReport

# Who is killed here closes nothing, and from 3.13 on Python warns of a database that is left open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

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
    gc.collect()  # so that what was left open is met here, and in no other test
    shutil.rmtree(top)


class World:
    """A repository, and what each of its points holds."""

    def __init__(self, top: Path, seed: int) -> None:
        top.mkdir(exist_ok=True)
        self.top = top
        self.random = random.Random(seed)
        self.lapse = LAPSE
        self.key = sample_key()
        self.truth: dict[str, dict[int, bytes]] = {}
        self.points: dict[str, PointRecord] = {}
        # Few contents, so that writers find many of their blocks in packs of others.
        self.contents = [self.random.randbytes(BLOCK) for _ in range(60)]
        Repository.create(str(top / "r"), self.key)

    @classmethod
    def of(cls, other: World, top: Path) -> World:
        """Return a copy of another one as it is now."""
        shutil.copytree(other.top, top)
        copy = cls.__new__(cls)
        copy.__dict__.update(other.__dict__)
        copy.top, copy.random = top, random.Random(1)
        copy.truth, copy.points = dict(other.truth), dict(other.points)
        return copy

    def open(self) -> Repository:
        return Repository.open(str(self.top / "r"), opener(self.key))

    def take(self, repository: Repository, parent: PointRecord | None, cache: str) -> PointRecord | None:
        """Take a point; None when it was refused because of a prune, or of its base that was deleted."""
        begun = self.begin(repository, cache, parent)
        return None if begun is None else self.commit(*begun)

    def begin(
        self, repository: Repository, cache: str, parent: PointRecord | None = None
    ) -> tuple[PointWriter, PointRecord] | None:
        """Write the disk of a point, and do not commit it; None when the base was deleted."""
        blocks = self.random.sample(range(BLOCKS), self.random.randint(3, 20))
        changes = {block: self.random.choice(self.contents) for block in blocks}
        held = {**(self.truth[parent.id] if parent else {}), **changes}
        writer = repository.begin(purpose="test", host="a", cache=self.top / cache, workers=1, lapse_seconds=self.lapse)
        try:
            base = parent.disks[0].stored if parent else None
            disk = write_disk(writer, changes, size_bytes=BLOCKS * BLOCK, base=base)
        except (StoreError, ObjectMissing):
            writer.abort()
            return None
        except BaseException:
            writer.abort()
            raise
        self.truth[writer.point_id] = held
        return writer, record_of([disk], parent=parent)

    def commit(self, writer: PointWriter, record: PointRecord) -> PointRecord | None:
        """Commit a point; None when it was refused because of a prune, or was committed already."""
        with suppress(StoreError, ObjectMissing, InvalidRequest), writer:
            committed = writer.commit(record)
            self.points[committed.id] = committed
            return committed
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
            lapse_seconds=self.lapse,
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


@pytest.mark.parametrize("seed", sampled(range(200), 5))
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


BESIDE = ("nothing", "writer", "sleeper", "prune")


def calls_of_a_prune(world: World, top: Path) -> int:
    """Return how many calls to the storage a prune makes that nobody disturbs."""
    counted = 0

    def count(_call: str, _what: object) -> None:
        nonlocal counted
        counted += 1

    again = World.of(world, top / "counted")
    again.prune(hooked(again.open(), count))
    return counted


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("share", range(3))
@pytest.mark.parametrize("beside", BESIDE)
def test_prune_that_is_killed_anywhere_harms_nothing_and_the_next_one_ends(
    place: Path, beside: str, share: int
) -> None:
    begun = filled(place / "begun", 50 + share)
    places = range(1, calls_of_a_prune(begun, place) + 1)
    for number in sampled(places, 3):
        world = World.of(begun, place / f"{number}")
        _kill(world, number, beside)
        world.check_all()
        world.settle()
        shutil.rmtree(world.top)


def _kill(world: World, number: int, beside: str) -> None:
    """Kill a prune before one of its calls, beside somebody who acts right then, or goes on afterwards."""
    before = world.begin(world.open(), "cache") if beside in ("writer", "sleeper") else None
    if beside == "sleeper" and before is not None:
        before[0]._intent._ending.set()  # its host sleeps from here on

    def stop(_seconds: float) -> None:
        if before is not None and beside == "writer":
            world.commit(*before)  # a prune waits for it
        else:
            raise Killed

    left = number

    def hook(_call: str, _what: object) -> None:
        nonlocal left
        left -= 1
        if left == 0 and beside == "prune":
            with suppress(Killed):
                world.prune(world.open(), stop)
        if left <= 0 and beside != "prune":
            raise Killed

    with suppress(Killed):
        world.prune(hooked(world.open(), hook), stop if beside == "writer" else time.sleep)
    if before is not None:
        world.commit(*before)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("share", range(2))
def test_repository_that_is_full_from_some_moment_on_loses_nothing(place: Path, share: int) -> None:
    begun = filled(place / "begun", 70 + share)
    for number in sampled(range(1, 25), 4):
        world = World.of(begun, place / f"{number}")
        left = number

        def hook(call: str, what: object) -> None:
            nonlocal left
            if call in ("put", "put_pack"):
                left -= 1
                if left <= 0 and not str(what).startswith("condemned/"):
                    raise NoSpace("the repository's file system is full")

        with suppress(NoSpace):
            world.prune(hooked(world.open(), hook))
        world.check_all()
        world.settle()
        shutil.rmtree(world.top)


def test_prune_that_saw_new_packs_and_not_their_forward_lets_them_be(place: Path) -> None:
    """One prune copies; right before its commit another one begins, and deletes when the first has deleted."""
    world = filled(place, 3)
    world.lapse = 60.0  # one that lapses, as a busy machine lets it in half a second, publishes nothing
    go, reached = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def second() -> None:
        def wait(call: str, what: object) -> None:
            if call == "put" and str(what).startswith("condemned/"):
                reached.set()
                assert go.wait(30)

        try:
            world.prune(hooked(world.open(), wait))
        except BaseException as error:
            failures.append(error)
        finally:
            reached.set()

    thread = threading.Thread(target=second)

    def begin(call: str, what: object) -> None:
        if call == "put" and str(what).startswith("forwards/") and not thread.ident:
            thread.start()
            assert reached.wait(30)

    world.prune(hooked(world.open(), begin), waste=0.0)
    if not thread.ident:
        pytest.skip("this prune had nothing to publish, so there was nothing to try")
    world.check_all()
    go.set()
    thread.join(30)
    assert not failures
    world.check_all()
    world.settle()
