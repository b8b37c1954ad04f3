"""What is read together is bounded, and that changes nothing of what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

import pytest

from tests.property.repository.test_manifest_against_a_dictionary import Nodes, ref_of
from vmkeep.errors import ObjectDamaged
from vmkeep.repository import fetch, manifest
from vmkeep.repository.layout import NODE_BYTES_LIMIT, sealed_bytes_limit
from vmkeep.repository.manifest import (
    Geometry,
    ManifestBuilder,
    node_frame_bytes_limit,
    walk_blocks,
    walk_difference,
    walk_runs,
)
from vmkeep.repository.record import BlockRef, StoredDisk
from vmkeep.repository.store import ObjectStore

BLOCKS, FAN_OUT = 500, 8


def build(nodes: Nodes, content: dict[int, int]) -> StoredDisk:
    builder = ManifestBuilder(Geometry(BLOCKS, FAN_OUT), None, read=nodes.read, store=nodes.store)
    for block in sorted(content):
        builder.set(block, ref_of(content[block]))
    return StoredDisk(BLOCKS * 512, 512, FAN_OUT, "ab" * 16, builder.finish())


def test_tree_read_in_portions_is_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, random = Nodes(), Random(1)
    have = {block: random.randrange(9) for block in random.sample(range(BLOCKS), 200)}
    want = {**have, **dict.fromkeys(random.sample(range(BLOCKS), 50), 10)}
    old, new, runs = build(nodes, have), build(nodes, want), [(3, 50), (100, 300)]
    whole = (
        list(walk_blocks(new, nodes.read)),
        list(walk_difference(old, new, nodes.read)),
        list(walk_runs(new, runs, nodes.read)),
    )
    most: list[int] = []

    def read(wanted: Sequence[tuple[BlockRef, int, int]]) -> list[manifest.Children]:
        most.append(len(wanted))
        return nodes.read(wanted)

    monkeypatch.setattr(manifest, "_REFS_AT_ONCE", 2 * FAN_OUT)
    assert (list(walk_blocks(new, read)), list(walk_difference(old, new, read)), list(walk_runs(new, runs, read))) == (
        whole
    )
    assert max(most) == 2 * 2  # two nodes, of both trees where they are compared


@dataclass(slots=True)
class Packs:
    """A store of one pack, in which each byte is told by its place; it notes what was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def ranges(self, _name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.asked += ranges
        return [memoryview(bytes(place % 251 for place in range(start, start + length))) for start, length in ranges]


@pytest.mark.parametrize(("gaps", "requests"), [(10_000, 1), (2500, 3), (0, 5)])
def test_what_lies_between_frames_is_read_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, gaps: int, requests: int
) -> None:
    monkeypatch.setattr(fetch, "GAPS_BYTES", gaps)
    packs = Packs()
    refs = [BlockRef(bytes(32), bytes(16), 100 + number * 1200, 200) for number in (3, 0, 4, 1, 2)]
    frames = fetch.fetch_frames(cast("ObjectStore", packs), refs)
    assert [bytes(frame) for frame in frames] == [
        bytes(place % 251 for place in range(ref.offset, ref.offset + 200)) for ref in refs
    ]
    assert len(packs.asked) == requests
    assert sum(length for _, length in packs.asked) <= 5 * 200 + gaps


def test_frames_that_overlap_are_read_once_and_right() -> None:
    packs = Packs()
    refs = [BlockRef(bytes(32), bytes(16), 100, 500), BlockRef(bytes(32), bytes(16), 200, 100)]
    frames = fetch.fetch_frames(cast("ObjectStore", packs), refs)
    assert packs.asked == [(100, 500)]
    assert bytes(frames[1]) == bytes(place % 251 for place in range(200, 300))


def test_greatest_node_fits_its_bound_and_a_longer_frame_is_damage() -> None:
    assert node_frame_bytes_limit(4096) <= sealed_bytes_limit(NODE_BYTES_LIMIT)
    fetch.refuse_oversize(BlockRef(bytes(32), bytes(16), 64, 100), 100)
    with pytest.raises(ObjectDamaged, match="would have 101 bytes"):
        fetch.refuse_oversize(BlockRef(bytes(32), bytes(16), 64, 101), 100)
