"""Prune: what points need stays, and the rest goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.repository.samples import (
    BLOCK,
    VM,
    make_sample,
    read_whole,
    record_of,
    sample_key,
    seeded,
    write_disk,
)
from vmkeep.errors import FeatureUnknown, StoreError
from vmkeep.repository import PinRecord, PointRecord, Repository
from vmkeep.repository.compaction import Compaction, Source
from vmkeep.repository.forwards import parse_forward, put_forward
from vmkeep.repository.intents import condemn_list, stored_packs
from vmkeep.repository.layout import (
    Codec,
    FrameKind,
    PackEntry,
    PackHeader,
    PackKind,
    canonical,
    pack_index,
    pack_name,
    pack_trailer,
)
from vmkeep.repository.packs import read_index
from vmkeep.repository.prune import PruneOptions, PruneReport, Stage

SIZE = 400 * BLOCK


def prune(repository: Repository, tmp_path: Path, **options: Any) -> PruneReport:
    options.setdefault("young", timedelta(0))
    tell: Callable[[Stage], None] = options.pop("tell", lambda _stage: None)
    return repository.prune(PruneOptions(**options), host="host.example", directory=tmp_path, tell=tell)


def take(
    repository: Repository, tmp_path: Path, blocks: Mapping[int, bytes | None], parent: PointRecord | None = None
) -> PointRecord:
    with repository.begin(purpose="test", host="host.example", cache=tmp_path / "cache", workers=1) as writer:
        base = parent.disks[0].stored if parent else None
        return writer.commit(record_of([write_disk(writer, blocks, size_bytes=SIZE, base=base)], parent=parent))


def content(point: PointRecord, repository: Repository) -> bytes:
    return read_whole(repository, point.disks[0].stored)


def packs_of(location: Path) -> set[str]:
    return {path.name for path in (location / "packs").rglob("*") if path.is_file()}


def test_packs_of_a_deleted_point_go_and_those_of_the_others_stay(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(100)})
    kept = packs_of(tmp_path / "r")
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(50, 150)})
    truth = content(one, repository)
    repository.delete_point(two.id)
    report = prune(repository, tmp_path)
    assert packs_of(tmp_path / "r") == kept
    assert (report.unused_packs, report.thin_packs, report.problems) == (2, 0, {})
    assert report.freed_bytes == report.unused_bytes > 100 * BLOCK
    assert content(one, repository) == truth
    assert repository.verify_all().sound


def test_waste_in_a_pack_comes_back_and_the_point_is_read_through_the_forward(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    truth = content(two, repository)
    repository.delete_point(one.id)
    report = prune(repository, tmp_path)
    assert report.thin_packs >= 1
    assert report.problems == {}
    assert report.freed_bytes > 140 * BLOCK
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert content(two, again) == truth
    assert again.verify_all().sound
    assert again.verify_point(two.id).sound
    three = take(again, tmp_path, {3: data(BLOCK), 390: data(BLOCK)}, two)
    assert again.verify_all().sound
    after = prune(again, tmp_path)
    assert (after.unused_packs, after.thin_packs, after.problems) == (0, 0, {})
    again.delete_point(two.id)
    expected = content(three, again)
    prune(again, tmp_path, waste=0.0)
    assert content(three, again) == expected
    assert again.verify_all().sound


def thin(tmp_path: Path) -> tuple[Repository, PointRecord, bytes]:
    """A repository with a point of which most was moved, and what that point holds."""
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    truth = content(two, repository)
    repository.delete_point(one.id)
    assert prune(repository, tmp_path).thin_packs
    return repository, two, truth


def test_dry_run_changes_nothing_and_says_what_comes_back(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    repository.delete_point(one.id)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*") if path.is_file()}
    told = prune(repository, tmp_path, dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    done = prune(repository, tmp_path)
    assert (told.unused_packs, told.thin_packs, told.live_bytes) == (
        done.unused_packs,
        done.thin_packs,
        done.live_bytes,
    )
    assert abs(told.freed_bytes - done.freed_bytes) < 4096  # headers and indexes of the new packs


def test_young_packs_are_left_alone(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {0: data(BLOCK)})
    repository.delete_point(one.id)
    report = prune(repository, tmp_path, young=timedelta(days=2))
    assert (report.young_packs, report.unused_packs) == (2, 0)
    assert len(packs_of(tmp_path / "r")) == 2


def test_no_more_is_copied_than_was_allowed(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    repository.delete_point(one.id)
    report = prune(repository, tmp_path, max_copy_bytes=10 * BLOCK)
    assert report.copied_bytes <= 10 * BLOCK
    assert not prune(repository, tmp_path, max_copy_bytes=10 * BLOCK).problems
    assert prune(repository, tmp_path).copied_bytes >= 50 * BLOCK
    assert repository.verify_point(two.id).sound


def test_lost_node_keeps_what_it_may_reach_and_the_rest_is_done(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(60)})
    nodes = repository.verify_point(one.id)  # warm, and sound
    assert nodes.sound
    root = one.disks[0].stored.root
    assert root is not None
    lost = tmp_path / "r" / "packs" / root.pack.hex()[:2] / root.pack.hex()
    held = packs_of(tmp_path / "r")
    for path in [*(tmp_path / "r/packs").rglob("*"), *(tmp_path / "r/points").rglob("*")]:
        if path.is_file():
            os.utime(path, (time.time() - 10 * 86400,) * 2)
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(60)})
    repository.delete_point(two.id)
    lost.unlink()
    report = prune(repository, tmp_path)
    assert [name.split(" ")[0] for name in report.problems] == [f"packs/{root.pack.hex()[:2]}/{root.pack.hex()}"]
    assert report.kept_packs == 1
    assert packs_of(tmp_path / "r") == held - {root.pack.hex()}
    assert report.unused_packs == 2
    repository.delete_point(one.id)
    assert prune(repository, tmp_path).problems == {}
    assert packs_of(tmp_path / "r") == set()


@pytest.mark.parametrize("what", ["flipped", "gone"])
def test_forward_that_is_damaged_or_lost_keeps_everything(tmp_path: Path, what: str) -> None:
    _, two, truth = thin(tmp_path)
    (forward,) = (tmp_path / "r" / "forwards").iterdir()
    whole = forward.read_bytes()
    held = packs_of(tmp_path / "r")
    if what == "flipped":
        forward.write_bytes(whole.replace(b'"name"', b'"mane"'))
    else:
        forward.unlink()
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert not again.verify_point(two.id).sound
    report = prune(again, tmp_path)
    assert report.problems
    assert packs_of(tmp_path / "r") == held
    forward.write_bytes(whole)
    assert content(two, Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())) == truth


def test_bad_frame_is_never_copied_and_its_pack_stays(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    repository.delete_point(one.id)
    bad = next(ref for block, ref in repository.blocks(two.disks[0].stored) if block == 199)
    path = tmp_path / "r" / "packs" / bad.pack.hex()[:2] / bad.pack.hex()
    flipped = bytearray(path.read_bytes())
    flipped[bad.offset + 100] ^= 1
    path.write_bytes(flipped)
    report = prune(repository, tmp_path)
    assert list(report.problems) == [f"packs/{bad.pack.hex()[:2]}/{bad.pack.hex()}"]
    assert path.exists()


def test_block_in_a_bad_pack_is_read_from_the_pack_that_a_forward_names(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(20)})
    truth = content(one, repository)
    old = next(repository.blocks(one.disks[0].stored))[1].pack
    path = tmp_path / "r" / "packs" / old.hex()[:2] / old.hex()
    sizes = stored_packs(repository._store)
    compaction = Compaction(repository._store, repository._sealer, PackKind.DATA)
    offsets = tuple(ref.offset for _, ref in repository.blocks(one.disks[0].stored))
    assert compaction.copy([Source(old, sizes[old], offsets)], lambda _count: None)
    put_forward(repository._store, "ab" * 16, compaction.moved)
    flipped = bytearray(path.read_bytes())
    flipped[500] ^= 1
    path.write_bytes(flipped)
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert content(one, again) == truth
    report = again.verify_all()
    assert report.harmed == ()
    assert [finding.object for finding in report.findings] == [f"packs/{old.hex()[:2]}/{old.hex()}"]
    # A prune takes the copy for the one that counts, so the bad pack goes.
    prune(again, tmp_path)
    assert not path.exists()
    assert content(one, again) == truth
    assert again.verify_all().sound


def test_pack_that_only_claims_to_hold_a_block_takes_no_copy_of_it_away(tmp_path: Path) -> None:
    """Who may add objects, and has the keys, cannot have a prune delete what others have stored."""
    repository, two, truth = thin(tmp_path)
    (forward,) = (tmp_path / "r" / "forwards").iterdir()
    moved = parse_forward(forward.read_bytes(), forward.name)
    entries = [entry for targets in moved.values() for target in targets for entry in _entries(repository, target)]
    real = {entry.id for entry in entries if entry.kind is FrameKind.BLOCK}
    forged = bytes(16)  # before all others
    key, sealer = repository._sealer.new_key(), repository._sealer
    header = PackHeader(PackKind.DATA, key.key_id, sealer.domain.id, forged).pack_bytes()
    rows, offset = [], len(header)
    for id_ in real:
        rows.append(PackEntry(FrameKind.BLOCK, id_, offset, 4176, BLOCK))
        offset += 4176
    index = pack_index(rows)
    sealed = key.seal(
        FrameKind.PACK_INDEX, sealer.id_of(FrameKind.PACK_INDEX, header), Codec.STORED, index, len(index), 0
    )
    body = header + bytes(offset - len(header)) + sealed + pack_trailer(offset, len(sealed))
    repository._store.put(pack_name(forged), body)
    put_forward(repository._store, "cd" * 16, dict.fromkeys(moved, (forged,)))
    for _ in range(2):
        report = prune(Repository.open(str(tmp_path / "r"), lambda _ids: sample_key()), tmp_path)
        assert list(report.problems) == [pack_name(forged)]
        assert content(two, Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())) == truth


def _entries(repository: Repository, pack: bytes) -> tuple[PackEntry, ...]:
    return read_index(repository._store, repository._sealer, pack, stored_packs(repository._store)[pack])


def test_forwards_on_a_circle_lead_to_nothing(tmp_path: Path) -> None:
    repository, two, truth = thin(tmp_path)
    (forward,) = (tmp_path / "r" / "forwards").iterdir()
    moved = parse_forward(forward.read_bytes(), forward.name)
    old, (new, *_) = next(iter(moved.items()))
    put_forward(repository._store, "cd" * 16, {new: [old, new]})
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert content(two, again) == truth
    assert prune(again, tmp_path).problems == {}
    assert content(two, again) == truth


def test_forwards_with_countless_ways_and_one_that_is_very_long_are_read_all_the_same(tmp_path: Path) -> None:
    """Who may add objects may have readers and prunes follow them, and no more."""
    repository, two, truth = thin(tmp_path)
    (forward,) = (tmp_path / "r" / "forwards").iterdir()
    old = next(iter(parse_forward(forward.read_bytes(), forward.name)))
    made_up = [number.to_bytes(16, "big") for number in range(5000)]
    rungs = {made_up[at]: made_up[at + 2 - at % 2 :][:2] for at in range(200)}  # two packs, each moved to the next two
    chain = {before: [after] for before, after in pairwise(made_up[200:])}
    put_forward(repository._store, "cd" * 16, {old: made_up[:1], **rungs, **chain})
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert content(two, again) == truth
    assert prune(again, tmp_path).problems == {}
    assert content(two, again) == truth


def test_states_and_envelopes_that_nothing_names_go_and_pinned_ones_stay(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    repository = sample.repository
    free, pinned, fresh = (
        repository.put_state(
            bytes([number]) * 600, vm_uuid=VM, kind="tpm", generation=number, file="tpm2/tpm2-00.permall",
            owner="tss", group="tss", mode=0o600,
        )
        for number in (5, 6, 7)
    )  # fmt: skip
    repository.pins.put(PinRecord("", VM, "demo", "host.example", pinned.created, "capture", (pinned.ref(),)))
    left = sample.location / "envelopes" / ("ee" * 16)
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"sealed")
    aged = [sample.location / "states" / each.id for each in (free, pinned)]
    for path in [*aged, left, *(sample.location / "states" / name for name in sample.states)]:
        os.utime(path, (time.time() - 3 * 86400,) * 2)
    pin = next((sample.location / "pins").iterdir())
    whole = pin.read_bytes()
    pin.write_bytes(whole[:-1])
    report = prune(repository, tmp_path)
    assert (report.states, report.envelopes, list(report.problems)) == (0, 1, [f"pins/{pin.name}"])
    pin.write_bytes(whole)
    assert prune(repository, tmp_path).states == 1
    assert {path.name for path in (sample.location / "states").iterdir()} == {*sample.states, pinned.id, fresh.id}
    assert not left.exists()


def test_point_that_names_a_condemned_state_version_is_refused(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    state = sample.points[0].states[0]
    where = condemn_list(sample.repository._store, "ab" * 16, [], [state.version_id])
    data = seeded(9)

    def commit() -> None:
        with sample.repository.begin(purpose="test", host="a", cache=tmp_path / "cache", workers=1) as writer:
            writer.commit(record_of([write_disk(writer, {0: data(BLOCK)}, size_bytes=SIZE)], states=[state]))

    with pytest.raises(StoreError, match="state version"):
        commit()
    sample.repository._store.delete(where)
    commit()


def test_what_a_newer_vmkeep_needs_known_keeps_this_one_out(tmp_path: Path) -> None:
    repository, _, _ = thin(tmp_path)
    (tmp_path / "r" / "features" / "parity").write_bytes(canonical({"feature": "parity"}))
    with pytest.raises(FeatureUnknown, match="parity") as raised:
        Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert "newer" in raised.value.hint
    with pytest.raises(FeatureUnknown):
        take(repository, tmp_path, {})
    with pytest.raises(FeatureUnknown):
        prune(repository, tmp_path)


def test_list_of_condemned_packs_that_cannot_be_read_lets_nothing_be_used_again(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    blocks = {block: data(BLOCK) for block in range(10)}
    take(repository, tmp_path, blocks)
    before = packs_of(tmp_path / "r")
    path = tmp_path / "r" / "condemned" / f"run-{'ab' * 16}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}\n")
    two = take(repository, tmp_path, blocks)
    assert len(packs_of(tmp_path / "r")) == 2 * len(before)
    assert repository.verify_point(two.id).sound
    assert [finding.object for finding in repository.verify_all().findings] == [f"condemned/run-{'ab' * 16}"]


def test_pack_on_the_list_of_a_prune_that_died_is_moved_when_it_is_needed(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(10)})
    truth = content(one, repository)
    before = packs_of(tmp_path / "r")
    where = condemn_list(repository._store, "ab" * 16, [bytes.fromhex(name) for name in before])
    os.utime(tmp_path / "r" / where, (time.time() - 3 * 86400,) * 2)
    assert repository.unfinished_prunes() == [where]
    report = prune(repository, tmp_path, young=timedelta(days=2))
    assert report.thin_packs == 2
    assert not packs_of(tmp_path / "r") & before
    assert not (tmp_path / "r" / where).exists()
    assert content(one, repository) == truth


def test_small_packs_are_put_together_when_they_fill_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("writer", "compaction", "prune"):
        monkeypatch.setattr(f"vmkeep.repository.{module}.DATA_PACK_BYTES", 40 * BLOCK)
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    point = None
    for block in range(16):
        point = take(repository, tmp_path, {block * 5 + each: data(BLOCK) for each in range(5)}, point)
    assert point is not None
    truth = content(point, repository)
    report = prune(repository, tmp_path)
    assert report.thin_packs >= 16
    assert content(point, repository) == truth
    assert prune(repository, tmp_path).thin_packs == 0


def test_many_forwards_become_one_and_lead_where_they_led(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    point = take(repository, tmp_path, {block: data(BLOCK) for block in range(100)})
    for _ in range(18):
        newer = take(repository, tmp_path, {block: data(BLOCK) for block in range(0, 100, 3)}, point)
        repository.delete_point(point.id)
        point = newer
        prune(repository, tmp_path, waste=0.02)
        assert len(list((tmp_path / "r/forwards").iterdir())) <= 18
    assert Repository.open(str(tmp_path / "r"), lambda _ids: sample_key()).verify_all().sound
    repository.delete_point(point.id)
    prune(repository, tmp_path)
    prune(repository, tmp_path)
    assert not list((tmp_path / "r/forwards").iterdir())
    assert packs_of(tmp_path / "r") == set()
