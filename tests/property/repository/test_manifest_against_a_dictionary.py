"""A manifest written over any number of generations holds what a dictionary of blocks holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.errors import ObjectDamaged
from vmkeep.repository.manifest import Children, Geometry, ManifestBuilder, decode_node, encode_node, walk_blocks
from vmkeep.repository.record import BlockRef, StoredDisk


class Nodes:
    """Nodes by their id, and how many were read and stored."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        self.reads = 0

    def store(self, data: bytes) -> BlockRef:
        id_ = blake3(data).digest()
        self.content[id_] = data
        return BlockRef(id_, id_[:16], 64, len(data) + 80)

    def read(self, wanted: Sequence[tuple[BlockRef, int, int]]) -> list[Children]:
        self.reads += len(wanted)
        return [decode_node(self.content[ref.id], level, slots, "node") for ref, level, slots in wanted]


def ref_of(number: int) -> BlockRef:
    return BlockRef(number.to_bytes(32, "big"), (number % 3).to_bytes(16, "big"), number * 7, 80 + number)


@dataclass(frozen=True)
class Change:
    first: int
    count: int
    content: int | None


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[list[Change]]]:
    fan_out = draw(st.sampled_from([2, 3, 4, 32]))
    blocks = draw(st.integers(1, 300))
    generations = []
    for _ in range(draw(st.integers(1, 4))):
        changes, place = [], 0
        while place < blocks and draw(st.integers(0, 9)):
            first = draw(st.integers(place, min(blocks - 1, place + draw(st.sampled_from([0, 1, 5, 100])))))
            if draw(st.booleans()):
                changes.append(Change(first, 1, draw(st.integers(1, 50) | st.none())))
            else:
                changes.append(Change(first, draw(st.integers(1, blocks - first)), None))
            place = first + changes[-1].count
        generations.append(changes)
    return fan_out, blocks, generations


@settings(max_examples=examples(150), deadline=None)
@given(histories())
def test_every_generation_holds_what_the_dictionary_holds(history: tuple[int, int, list[list[Change]]]) -> None:
    fan_out, blocks, generations = history
    nodes, root = Nodes(), None
    truth: dict[int, BlockRef] = {}
    earlier: list[tuple[BlockRef | None, dict[int, BlockRef]]] = []
    for changes in generations:
        builder = ManifestBuilder(Geometry(blocks, fan_out), root, read=nodes.read, store=nodes.store)
        for change in changes:
            if change.content is not None:
                builder.set(change.first, ref_of(change.content))
                truth[change.first] = ref_of(change.content)
            elif change.count == 1 and change.first % 2:
                builder.set(change.first, None)
                truth.pop(change.first, None)
            else:
                builder.set_zero(change.first, change.count)
                for block in range(change.first, change.first + change.count):
                    truth.pop(block, None)
        root = builder.finish()
        earlier.append((root, dict(truth)))
        assert (root is None) == (not truth)
    for old_root, old_truth in earlier:
        disk = StoredDisk(blocks * 512 - 100, 512, fan_out, "ab" * 16, old_root)
        walked = list(walk_blocks(disk, nodes.read))
        assert walked == sorted(old_truth.items())
    # The same content gives the same tree, by whatever way it was reached.
    builder = ManifestBuilder(Geometry(blocks, fan_out), None, read=nodes.read, store=nodes.store)
    for block, ref in sorted(truth.items()):
        builder.set(block, ref)
    assert builder.finish() == root


@given(st.integers(1, 10**10), st.sampled_from([2, 3, 32]))
def test_levels_are_the_fewest_that_cover_the_disk(blocks: int, fan_out: int) -> None:
    geometry = Geometry(blocks, fan_out)
    top = geometry.levels - 1
    assert geometry.span(top) >= blocks
    assert top == 0 or geometry.span(top - 1) < blocks
    assert 1 <= geometry.slots(top, 0) <= fan_out


@given(st.lists(st.integers(1, 40) | st.none(), min_size=1, max_size=32), st.data())
def test_node_comes_back_and_a_changed_byte_never_passes_for_another_shape(
    numbers: list[int | None], data: st.DataObject
) -> None:
    children: Children = [None if number is None else ref_of(number) for number in numbers]
    if not any(children):
        return
    node = encode_node(3, children)
    assert decode_node(node, 3, len(children), "node") == children
    for level, slots in ((2, len(children)), (3, len(children) + 1)):
        with pytest.raises(ObjectDamaged):
            decode_node(node, level, slots, "node")
    with pytest.raises(ObjectDamaged):
        decode_node(node[: data.draw(st.integers(0, len(node) - 1))], 3, len(children), "node")


def test_incremental_of_one_block_reads_and_writes_one_path() -> None:
    nodes = Nodes()
    blocks = 32**3
    builder = ManifestBuilder(Geometry(blocks, 32), None, read=nodes.read, store=nodes.store)
    for block in range(blocks):
        builder.set(block, ref_of(block + 1))
    root = builder.finish()
    before = len(nodes.content)
    assert before == 1 + 32 + 32 * 32
    builder = ManifestBuilder(Geometry(blocks, 32), root, read=nodes.read, store=nodes.store)
    builder.set(12345, ref_of(99999))
    builder.finish()
    assert len(nodes.content) == before + 3
    assert nodes.reads == 3


def test_zero_run_over_a_full_tree_reads_only_its_two_edges() -> None:
    nodes = Nodes()
    blocks = 32**3
    builder = ManifestBuilder(Geometry(blocks, 32), None, read=nodes.read, store=nodes.store)
    for block in range(blocks):
        builder.set(block, ref_of(1))
    root = builder.finish()
    builder = ManifestBuilder(Geometry(blocks, 32), root, read=nodes.read, store=nodes.store)
    builder.set_zero(100, blocks - 200)
    after = builder.finish()
    assert nodes.reads <= 7
    disk = StoredDisk(blocks * 512, 512, 32, "ab" * 16, after)
    assert [block for block, _ in walk_blocks(disk, nodes.read)] == [*range(100), *range(blocks - 100, blocks)]
