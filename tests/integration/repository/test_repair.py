"""What points have lost is found in other packs, proved, and read by every point from then on; nothing else is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.repository.samples import BLOCK, record_of, sample_key
from vmkeep.errors import IntegrityError, Interrupted
from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.compaction import Compaction, Source
from vmkeep.repository.forwards import Forwards
from vmkeep.repository.layout import FORWARDS, FrameKind, PackKind, canonical
from vmkeep.repository.packs import read_index
from vmkeep.repository.prune import PruneOptions
from vmkeep.repository.repair import LostRange, RepairReport

_BLOCKS = 100
"""More than one leaf has, so that there are nodes above leaves."""


@dataclass(slots=True)
class Place:
    top: Path
    repository: Repository
    truth: dict[str, bytes]

    @classmethod
    def made(cls, top: Path) -> Place:
        return cls(top, Repository.create(str(top / "r"), sample_key()), {})

    def point(self, content: bytes, *, base: PointRecord | None = None, fresh: bool = False) -> PointRecord:
        """Take a point; ``fresh`` with no block known, as after all packs were condemned."""
        cache = self.top / (f"cache-{len(self.truth)}" if fresh else "cache")
        packs = self.packs()
        aside = {path: path.read_bytes() for path in packs} if fresh else {}
        for path in aside:
            path.unlink()
        stored = base.disks[0].stored if base is not None else None
        with self.repository.begin(purpose="test", host="alpha", cache=cache) as writer:
            disk = writer.disk(size_bytes=len(content), block_bytes=BLOCK, base=stored)
            for block, ref in enumerate(disk.seal_run(content)):
                disk.record(block, ref)
            record = writer.commit(record_of([disk.finish()], parent=base))
        for path, data in aside.items():
            path.write_bytes(data)
        self.truth[record.id] = content
        return record

    def packs(self) -> list[Path]:
        return sorted(path for path in (self.top / "r" / "packs").rglob("*") if path.is_file())

    def pack(self, name: bytes) -> Path:
        return next(path for path in self.packs() if path.name == name.hex())

    def repair(self, *, dry_run: bool = False) -> RepairReport:
        return self.repository.repair(dry_run=dry_run, host="alpha", purpose="repair x", tell=lambda *_: None)

    def content(self, record: PointRecord) -> bytes | None:
        """Return what a reader gets of a point's disk; None for one that cannot be read."""
        stored = record.disks[0].stored
        image = bytearray(stored.size_bytes)
        try:
            for start, data in self.repository.read_disk(stored):
                image[start : start + len(data)] = data
        except IntegrityError:
            return None
        return bytes(image)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.made(tmp_path)


def _bytes(seed: int, blocks: int = _BLOCKS) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


def _damage(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def _data_pack(place: Place, record: PointRecord) -> bytes:
    return next(ref.pack for ref in place.repository.sample_blocks(record.disks[0].stored, 1).values())


def test_lost_pack_is_found_in_what_a_later_point_stored_anew(place: Place) -> None:
    old = place.point(_bytes(1))
    place.pack(_data_pack(place, old)).unlink()
    assert place.content(old) is None
    report = place.repair()
    assert (report.healed, report.harmed) == ((), (old.id,))
    assert report.lost == (LostRange(old.id, "demo", "vda", 0, _BLOCKS * BLOCK),)
    now = bytearray(_bytes(1))
    now[7 * BLOCK : 9 * BLOCK] = _bytes(2, 2)
    new = place.point(bytes(now), fresh=True)
    dry = place.repair(dry_run=True)
    assert (dry.blocks, dry.lost) == (_BLOCKS - 2, (LostRange(old.id, "demo", "vda", 7 * BLOCK, 2 * BLOCK),))
    assert not list((place.top / "r").glob("forwards/*"))
    report = place.repair()
    assert (report.blocks, report.lost) == (dry.blocks, dry.lost)
    assert place.content(new) == bytes(now)
    again = place.repair()
    assert (again.blocks, again.lost) == (0, report.lost)


def test_point_is_whole_again_and_stays_so_when_the_other_point_and_all_waste_go(place: Place) -> None:
    old = place.point(_bytes(1))
    place.pack(_data_pack(place, old)).unlink()
    new = place.point(_bytes(1), fresh=True)
    assert place.repair().healed == (old.id,)
    assert place.content(old) == _bytes(1)
    assert place.repository.verify_point(old.id).sound
    place.repository.delete_point(new.id)
    for _ in range(2):
        options = PruneOptions(waste=0.0, young=timedelta(0))
        report = place.repository.prune(options, host="alpha", directory=place.top, tell=lambda _stage: None)
        assert not report.problems
    assert place.content(old) == _bytes(1)
    assert place.repository.verify_point(old.id).sound


def test_damaged_block_is_found_once_its_pack_was_found_damaged(place: Place) -> None:
    old = place.point(_bytes(1))
    damaged = _data_pack(place, old)
    _damage(place.pack(damaged))
    new = place.point(_bytes(1), fresh=True)
    report = place.repository.verify_all()
    assert report.harmed == (old.id,)
    place.repository.condemn(report.damaged_packs)
    healed = place.repair()
    assert (healed.healed, healed.blocks, healed.lost) == ((old.id,), 1, ())
    assert place.content(old) == place.content(new) == _bytes(1)


def test_lost_manifest_is_named_whole_as_another_point_has_none_that_is_equal(place: Place) -> None:
    """A manifest names packs, so that of the same blocks in other packs is another one."""
    old = place.point(_bytes(1))
    new = place.point(_bytes(1), fresh=True)
    nodes = old.disks[0].stored.root
    assert nodes is not None
    place.pack(nodes.pack).unlink()
    report = place.repair()
    assert report.lost == (LostRange(old.id, "demo", "vda", 0, _BLOCKS * BLOCK),)
    assert place.content(new) == _bytes(1)


def test_manifest_that_lies_in_a_second_pack_is_found_and_what_it_names_as_well(place: Place) -> None:
    old = place.point(_bytes(1))
    place.point(_bytes(1), fresh=True)
    root = old.disks[0].stored.root
    assert root is not None
    store, sealer = place.repository.removals.store, place.repository.removals.sealer
    size_bytes = place.pack(root.pack).stat().st_size
    index = read_index(store, sealer, root.pack, size_bytes)
    source = Source(root.pack, size_bytes, tuple(entry.offset for entry in index))
    assert Compaction(store, sealer, PackKind.METADATA).copy([source], lambda _copied: None)
    for pack in (root.pack, _data_pack(place, old)):
        place.pack(pack).unlink()
    report = place.repair()
    assert (report.healed, report.lost, report.nodes > 0) == ((old.id,), (), True)
    assert place.content(old) == _bytes(1)


def test_pack_that_claims_a_block_which_it_has_not_heals_nothing(place: Place) -> None:
    old = place.point(_bytes(1))
    new = place.point(_bytes(1), fresh=True)
    place.pack(_data_pack(place, old)).unlink()
    _damage(place.pack(_data_pack(place, new)))
    report = place.repair()
    assert report.blocks == _BLOCKS - 1
    assert [each.length for each in report.lost if each.point == old.id] == [BLOCK]
    assert place.content(old) is None


def test_forward_that_somebody_made_up_is_no_copy(place: Place) -> None:
    old = place.point(_bytes(1))
    new = place.point(_bytes(3), fresh=True)
    lost = _data_pack(place, old)
    name = "ab" * 16
    made_up = {"moved": {lost.hex(): [_data_pack(place, new).hex()]}, "name": name}
    place.pack(lost).unlink()
    folder = place.top / "r" / FORWARDS
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(canonical(made_up))
    assert len(place.repair().lost) == 1
    place.point(_bytes(1), fresh=True)
    assert place.repair().healed == (old.id,)
    assert place.content(old) == _bytes(1)


def test_forward_that_another_thread_has_just_read_is_followed_as_well(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore reads in several threads: one may look at forwards that another one reads meanwhile."""
    old = place.point(_bytes(1))
    place.pack(_data_pack(place, old)).unlink()
    place.point(_bytes(1), fresh=True)
    assert place.repair().healed == (old.id,)
    real = Forwards.refresh

    def refresh(forwards: Forwards) -> bool:
        real(forwards)  # the other thread
        return real(forwards)

    monkeypatch.setattr(Forwards, "refresh", refresh)
    store, sealer = place.repository.removals.store, place.repository.removals.sealer
    lost = next(iter(place.repository.sample_blocks(old.disks[0].stored, 1).values()))
    assert list(Forwards(store).elsewhere(sealer, FrameKind.BLOCK, lost))


def test_repair_that_is_stopped_leaves_no_writer_and_the_next_one_ends_it(place: Place) -> None:
    old = place.point(_bytes(1))
    place.pack(_data_pack(place, old)).unlink()
    place.point(_bytes(1), fresh=True)

    def stop(stage: str, _done: int, _total: int) -> None:
        if stage == "search":
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        place.repository.repair(dry_run=False, host="alpha", purpose="repair x", tell=stop)
    assert place.repository.writers() == ()
    assert place.repair().healed == (old.id,)


_CHANGES = st.dictionaries(st.integers(0, 19), st.integers(0, 3), max_size=8)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), changes=st.lists(_CHANGES, min_size=1, max_size=4), fresh=st.lists(st.booleans(), min_size=4))
def test_whatever_is_lost_every_point_that_could_be_healed_is_and_none_is_wrong(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    changes: list[Mapping[int, int]],
    fresh: list[bool],
) -> None:
    place = Place.made(tmp_path_factory.mktemp("place"))
    pieces = [_bytes(seed, 1) for seed in range(24)]
    image = [pieces[4 + block] for block in range(20)]
    records: list[PointRecord] = []
    for number, change in enumerate(changes):
        for block, piece in change.items():
            image[block] = pieces[piece]
        records.append(place.point(b"".join(image), fresh=fresh[number % len(fresh)]))
    packs = place.packs()
    for path in data.draw(st.lists(st.sampled_from(packs), unique=True, max_size=len(packs) - 1)):
        path.unlink() if data.draw(st.booleans()) else _damage(path, data.draw(st.sampled_from([0.05, 0.4, 0.95])))
    place.repository.condemn(place.repository.verify_all().damaged_packs)
    before = {record.id: place.content(record) for record in records}
    report = place.repair()
    named = {each.point for each in report.lost}
    for record in records:
        content = place.content(record)
        assert content in (None, place.truth[record.id]), "what is read is what was written, or nothing"
        assert content is not None or before[record.id] is None, "nothing is worse than it was"
        assert (content is None) == (record.id in named), "what cannot be read is named, and nothing else"
    assert place.repair().blocks == 0, "all that could be found was found"
