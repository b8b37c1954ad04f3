"""What two manifests differ in, and what chosen runs of one hold, is what dictionaries of blocks say."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.property.repository.test_manifest_against_a_dictionary import Nodes, ref_of
from vmkeep.errors import InvalidRequest
from vmkeep.repository.manifest import Geometry, ManifestBuilder, sample_blocks, walk_difference, walk_runs
from vmkeep.repository.record import BlockRef, StoredDisk

_DOMAIN = "ab" * 16


def _build(
    nodes: Nodes, content: dict[int, int], blocks: int, fan_out: int, base: BlockRef | None = None
) -> StoredDisk:
    builder = ManifestBuilder(Geometry(blocks, fan_out), base, read=nodes.read, store=nodes.store)
    for block in range(blocks):
        if base is not None or block in content:
            builder.set(block, ref_of(content[block]) if block in content else None)
    return StoredDisk(blocks * 512 - 100, 512, fan_out, _DOMAIN, builder.finish())


contents = st.dictionaries(st.integers(0, 299), st.integers(1, 5), max_size=60)


@settings(max_examples=examples(150))
@given(contents, contents, st.sampled_from([2, 3, 32]), st.integers(1, 300))
def test_difference_is_every_block_that_differs_and_no_other(
    have: dict[int, int], want: dict[int, int], fan_out: int, blocks: int
) -> None:
    nodes = Nodes()
    before, after = ({block: held for block, held in each.items() if block < blocks} for each in (have, want))
    old = _build(nodes, before, blocks, fan_out)
    new = _build(nodes, after, blocks, fan_out, base=old.root)
    expected = [
        (block, ref_of(after[block]) if block in after else None)
        for block in range(blocks)
        if before.get(block) != after.get(block)
    ]
    assert list(walk_difference(old, new, nodes.read)) == expected


@given(contents, st.sampled_from([2, 3, 32]), st.integers(1, 300), st.integers(1, 8), st.randoms(use_true_random=False))
def test_sample_is_of_blocks_that_are_there(
    content: dict[int, int], fan_out: int, blocks: int, count: int, random: Random
) -> None:
    nodes = Nodes()
    present = {block: held for block, held in content.items() if block < blocks}
    drawn = sample_blocks(_build(nodes, present, blocks, fan_out), nodes.read, count, random.choice)
    assert drawn == {block: ref_of(present[block]) for block in drawn}
    assert len(drawn) <= count
    assert bool(drawn) == bool(present)


def test_same_content_stored_elsewhere_is_no_difference() -> None:
    def moved(ref: BlockRef) -> BlockRef:
        return BlockRef(ref.id, bytes(15) + b"\x07", ref.offset + 1, ref.length)

    nodes = Nodes()
    disks = []
    for change in (lambda ref: ref, moved):
        builder = ManifestBuilder(Geometry(100, 4), None, read=nodes.read, store=nodes.store)
        for block in range(100):
            builder.set(block, change(ref_of(block + 1)))
        disks.append(StoredDisk(100 * 512, 512, 4, _DOMAIN, builder.finish()))
    assert disks[0].root != disks[1].root
    assert list(walk_difference(disks[0], disks[1], nodes.read)) == []


def test_one_changed_block_of_many_costs_two_paths() -> None:
    nodes = Nodes()
    blocks = 32**3
    old = _build(nodes, dict.fromkeys(range(blocks), 1), blocks, 32)
    builder = ManifestBuilder(Geometry(blocks, 32), old.root, read=nodes.read, store=nodes.store)
    builder.set(12345, ref_of(9))
    new = StoredDisk(old.size_bytes, 512, 32, _DOMAIN, builder.finish())
    nodes.reads = 0
    assert list(walk_difference(old, new, nodes.read)) == [(12345, ref_of(9))]
    assert nodes.reads == 2 * 3


@pytest.mark.parametrize("field", ["size_bytes", "block_bytes", "fan_out", "domain"])
def test_disks_of_another_shape_are_not_compared(field: str) -> None:
    one = StoredDisk(4096, 512, 32, _DOMAIN, None)
    changed = {"size_bytes": 8192, "block_bytes": 1024, "fan_out": 4, "domain": "cd" * 16}
    values = {name: getattr(one, name) for name in one.__slots__} | {field: changed[field]}
    with pytest.raises(InvalidRequest):
        list(walk_difference(one, StoredDisk(**values), Nodes().read))


@settings(max_examples=examples(150))
@given(contents, st.sets(st.integers(0, 299)), st.sampled_from([2, 3, 32]))
def test_runs_hold_exactly_their_blocks_in_order(content: dict[int, int], chosen: set[int], fan_out: int) -> None:
    nodes = Nodes()
    disk = _build(nodes, content, 300, fan_out)
    runs: list[tuple[int, int]] = []
    for block in sorted(chosen):
        if runs and sum(runs[-1]) == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    held: dict[int, int | None] = {}
    for first, count, ref in walk_runs(disk, runs, nodes.read):
        assert ref is None or count == 1
        for block in range(first, first + count):
            assert not held or block > max(held)
            held[block] = None if ref is None else int.from_bytes(ref.id, "big")
    assert held == {block: content.get(block) for block in chosen}


def test_runs_read_only_what_is_above_them() -> None:
    nodes = Nodes()
    blocks = 32**3
    disk = _build(nodes, dict.fromkeys(range(blocks), 1), blocks, 32)
    nodes.reads = 0
    assert [block for block, _count, _ref in walk_runs(disk, [(70, 2), (20_000, 1)], nodes.read)] == [70, 71, 20_000]
    assert nodes.reads == 1 + 2 + 2


@pytest.mark.parametrize("runs", [[(2, 0)], [(3, 1), (1, 1)], [(1, 3), (2, 1)], [(7, 2)], [(-1, 1)]])
def test_runs_that_are_no_ascending_list_within_the_disk_are_refused(runs: list[tuple[int, int]]) -> None:
    disk = StoredDisk(8 * 512, 512, 32, _DOMAIN, None)
    with pytest.raises(InvalidRequest):
        list(walk_runs(disk, runs, Nodes().read))
