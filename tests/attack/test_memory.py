"""What a repository of others makes vmkeep allocate: never more than 512 MiB, whatever its objects say of themselves.

Seen before: a frame of 40 bytes that declares 1.5 GiB, a sparse object of that size, and a disk of 2^62 bytes each
took what they asked for.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attack.forging import forge, inside, put_point
from tests.integration.repository.samples import Sample, make_sample
from tests.rig import GiB, KiB, MiB
from vmkeep.repository import BlockRef
from vmkeep.repository.layout import (
    PACK_HEADER_BYTES,
    POINTS,
    Codec,
    FrameHeader,
    FrameKind,
    PackEntry,
    PackHeader,
    PackKind,
    canonical,
    pack_index,
    pack_name,
    pack_trailer,
)
from vmkeep.repository.manifest import encode_node

MOST = 512 * MiB


def appetite(sample: Sample, action: str, *words: str) -> tuple[str, int]:
    """Do something in a process of its own; return how it ended, and the most memory that it had."""
    command = [sys.executable, "-m", "tests.attack.appetite", str(sample.location), action, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told, peak_bytes = ended.stdout.split()
    return told, int(peak_bytes)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("memory"))


def sealed(sample: Sample, kind: FrameKind, id_: bytes, body: bytes, plain_bytes: int, codec: Codec) -> bytes:
    """Return a frame that says what its maker likes."""
    _, sealer = inside(sample.repository)
    return sealer.new_key().seal(kind, id_, codec, body, plain_bytes, 0)


def sparse(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)


def growing(size_bytes: int) -> bytes:
    """Return a zstd frame of that many zeros, which has 4 bytes for each 128 KiB (RFC 8878)."""
    blocks = size_bytes // (128 * KiB)
    repeated = [
        struct.pack("<I", (number == blocks) | 1 << 1 | 128 * KiB << 3)[:3] + b"\0" for number in range(1, blocks + 1)
    ]
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, size_bytes) + b"".join(repeated)


def frame_that_grows(sample: Sample) -> tuple[str, ...]:
    point_id = "1" * 32
    store, sealer = inside(sample.repository)
    id_ = sealer.id_of(FrameKind.POINT, point_id.encode())
    store.put(POINTS + point_id, sealed(sample, FrameKind.POINT, id_, growing(3 * GiB // 2), 1000, Codec.ZSTD))
    return "point", point_id


def sparse_point(sample: Sample) -> tuple[str, ...]:
    sparse(sample.location / POINTS / ("2" * 32), 3 * GiB // 2)
    return "point", "2" * 32


def sparse_state(sample: Sample) -> tuple[str, ...]:
    sparse(sample.location / "states" / ("2" * 32), 3 * GiB // 2)
    return "state", "2" * 32


def sparse_envelope(sample: Sample) -> tuple[str, ...]:
    secret = {"usage": "vtpm", "uuid": "0a2f2f0e-7f60-4f8a-9d0e-2f6b6a3a1f01"}
    point_id = forge(sample.repository, sample.points[0], secrets=[secret])
    sparse(sample.location / "envelopes" / point_id, 3 * GiB // 2)
    return "secrets", point_id


def many_values(sample: Sample) -> tuple[str, ...]:
    point_id = "3" * 32
    value = {**sample.points[0].as_json(), "id": point_id, "later": []}
    plain = canonical(value).replace(b'"later":[]', b'"later":[' + b"[]," * (15 * MiB // 3) + b"[]]")
    store, sealer = inside(sample.repository)
    store.put(POINTS + point_id, sealer.seal_alone(FrameKind.POINT, point_id, plain))
    return "point", point_id


def large_record(sample: Sample) -> tuple[str, ...]:
    point_id = "4" * 32
    value = {**sample.points[0].as_json(), "id": point_id, "later": "a" * (60 * MiB)}
    put_point(sample.repository, value, point_id=point_id)
    return "point", point_id


@pytest.mark.parametrize(
    "hostile", [frame_that_grows, sparse_point, sparse_state, sparse_envelope, many_values, large_record]
)
def test_object_that_asks_for_memory_is_damage(sample: Sample, hostile: Callable[[Sample], tuple[str, ...]]) -> None:
    told, peak = appetite(sample, *hostile(sample))
    assert (told, peak < MOST) == ("ObjectDamaged", True), f"{peak >> 20} MiB"


def test_sparse_objects_without_encryption_are_damage(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    sparse(sample.location / "intents" / ("5" * 32), 3 * GiB // 2)
    told, peak = appetite(sample, "writers")
    assert (told, peak < MOST) == ("done", True), f"{peak >> 20} MiB"
    for name in ("keyring/0000000002", "format"):
        sparse(sample.location / name, 3 * GiB // 2)
        told, peak = appetite(sample, "open")
        assert (told, peak < MOST) == ("ObjectDamaged", True), f"{name}: {peak >> 20} MiB"


def store_pack(
    sample: Sample, frames: list[tuple[bytes, bytes, int]], *, gap: int = 0, kind: FrameKind
) -> list[BlockRef]:
    """Store a pack of frames (id, sealed bytes, plain length); ``gap``: of the last one's bytes so many are a hole."""
    store, sealer = inside(sample.repository)
    name, key = os.urandom(16), sealer.new_key()
    header = PackHeader(
        PackKind.DATA if kind is FrameKind.BLOCK else PackKind.METADATA, key.key_id, sealer.domain.id, name
    )
    entries, refs, place = [], [], PACK_HEADER_BYTES
    for number, (id_, frame, plain_bytes) in enumerate(frames, start=1):
        length = len(frame) + (gap if number == len(frames) else 0)
        entries.append(PackEntry(kind, id_, place, length, plain_bytes))
        refs.append(BlockRef(id_, name, place, length))
        place += length
    index = pack_index(entries)
    id_ = sealer.id_of(FrameKind.PACK_INDEX, header.pack_bytes())
    ((codec, body),) = sealer.compress([index])
    tail = key.seal(FrameKind.PACK_INDEX, id_, codec, body, len(index), 7)
    path = sample.location / pack_name(name)
    store.put(pack_name(name), b"")
    with path.open("wb") as file:
        file.write(header.pack_bytes() + b"".join(frame for _, frame, _ in frames))
        file.seek(place)
        file.write(tail + pack_trailer(place, len(tail)))
    return refs


def stored(sample: Sample, root: BlockRef | None, **geometry: int) -> dict[str, Any]:
    domain = sample.points[0].disks[0].stored.domain
    disk = {"target": "vda", "mode": "full", "reason": "r", "source": "/x", "format": "raw"}
    plain = {"domain": domain, "root": None if root is None else root.as_json(), **geometry}
    return {**disk, "bytes_read": 0, "bytes_stored": 0, "stored": plain}


def wide_tree(sample: Sample) -> str:
    """A tree of nodes with 4096 children each, all of which are the same few nodes; its disk has 2^51 bytes."""
    _, sealer = inside(sample.repository)
    block = b"\1" * 512
    id_ = sealer.id_of(FrameKind.BLOCK, block)
    ref = store_pack(
        sample, [(id_, sealed(sample, FrameKind.BLOCK, id_, block, 512, Codec.STORED), 512)], kind=FrameKind.BLOCK
    )[0]
    for level in range(4):
        slots = 4096 if level < 3 else 64  # 2^51 bytes in blocks of 512 are 64 * 4096^3
        node = encode_node(level, [ref] * slots)
        id_ = sealer.id_of(FrameKind.NODE, node)
        frame = sealed(sample, FrameKind.NODE, id_, node, len(node), Codec.STORED)
        ref = store_pack(sample, [(id_, frame, len(node))], kind=FrameKind.NODE)[0]
    disk = stored(sample, ref, size_bytes=2**51, block_bytes=512, fan_out=4096)
    return forge(sample.repository, sample.points[0], disks=[disk], excluded=[], states=[])


def long_frames(sample: Sample) -> str:
    """A leaf whose 4096 blocks of 512 bytes say that they are 1 GiB long, one of which is."""
    _, sealer = inside(sample.repository)
    frame = sealed(sample, FrameKind.BLOCK, bytes(32), b"\1" * 512, 512, Codec.STORED)
    (ref,) = store_pack(sample, [(bytes(32), frame, 512)], gap=GiB, kind=FrameKind.BLOCK)
    node = encode_node(0, [ref] * 4096)
    id_ = sealer.id_of(FrameKind.NODE, node)
    sealed_node = sealed(sample, FrameKind.NODE, id_, node, len(node), Codec.STORED)
    (root,) = store_pack(sample, [(id_, sealed_node, len(node))], kind=FrameKind.NODE)
    disk = stored(sample, root, size_bytes=4096 * 512, block_bytes=512, fan_out=4096)
    return forge(sample.repository, sample.points[0], disks=[disk], excluded=[], states=[])


def test_frames_that_say_they_are_long_are_not_read(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    point_id = long_frames(sample)
    for action, ends, words in (
        ("read", "ObjectDamaged", [point_id]),
        ("verify", "done", [point_id]),
        ("verify-all", "done", []),
    ):
        told, peak = appetite(sample, action, *words)
        assert (told, peak < MOST) == (ends, True), f"{action}: {peak >> 20} MiB"
    assert not sample.repository.verify_point(point_id).sound


def test_widest_tree_takes_no_more_memory_than_a_narrow_one(tmp_path: Path) -> None:
    """It would take for ever to read it whole, so its first nodes are read, which is where the memory goes."""
    sample = make_sample(tmp_path)
    point_id = wide_tree(sample)
    told, peak = appetite(sample, "first-blocks", point_id)
    assert (told, peak < MOST) == ("done", True), f"{peak >> 20} MiB"


def test_empty_disk_of_the_greatest_size_is_restored(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    disk = stored(sample, None, size_bytes=2**51, block_bytes=65536, fan_out=32)
    point_id = forge(sample.repository, sample.points[0], disks=[disk], excluded=[], states=[])
    told, peak = appetite(sample, "deliver", point_id)
    assert (told, peak < MOST) == ("done", True), f"{peak >> 20} MiB"


def test_largest_blocks_are_proved_one_by_one(tmp_path: Path) -> None:
    """32 blocks of 16 MiB in a leaf are what any writer may store."""
    sample = make_sample(tmp_path)
    _, sealer = inside(sample.repository)
    block = b"\7" * (16 * MiB)
    id_ = sealer.id_of(FrameKind.BLOCK, block)
    ((codec, body),) = sealer.compress([block])
    frame = sealed(sample, FrameKind.BLOCK, id_, bytes(body), len(block), codec)
    (ref,) = store_pack(sample, [(id_, frame, len(block))], kind=FrameKind.BLOCK)
    node = encode_node(0, [ref] * 32)
    node_id = sealer.id_of(FrameKind.NODE, node)
    sealed_node = sealed(sample, FrameKind.NODE, node_id, node, len(node), Codec.STORED)
    (root,) = store_pack(sample, [(node_id, sealed_node, len(node))], kind=FrameKind.NODE)
    disk = stored(sample, root, size_bytes=512 * MiB, block_bytes=16 * MiB, fan_out=32)
    point_id = forge(sample.repository, sample.points[0], disks=[disk], excluded=[], states=[])
    for action in ("verify", "read"):
        told, peak = appetite(sample, action, point_id)
        assert (told, peak < MOST) == ("done", True), f"{action}: {peak >> 20} MiB"
    assert sample.repository.verify_point(point_id).sound


def test_header_cannot_claim_more_than_its_kind_holds(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    _, sealer = inside(sample.repository)
    frame = sealed(sample, FrameKind.NODE, bytes(32), growing(60 * MiB), 60 * MiB, Codec.ZSTD)
    assert FrameHeader.parse(frame, "x").plain_bytes == 60 * MiB
    with pytest.raises(Exception, match="larger than what can be there"):
        sealer.open(FrameKind.NODE, bytes(32), frame, "x")
