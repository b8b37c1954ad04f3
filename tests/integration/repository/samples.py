"""A small repository with two points, built the same way each time, and what its disks hold."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmkeep.keys import KeyFile, KeyMaterial
from vmkeep.keys.keyfile import key_id_of
from vmkeep.repository import (
    ExcludedDisk,
    PointDisk,
    PointRecord,
    PointWriter,
    Repository,
    StateRef,
    StoredDisk,
)
from vmkeep.repository.layout import Buffer
from vmkeep.repository.prune import PruneOptions

BLOCK = 4096
VM = "6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10"
CREATED = "2026-01-02T03:04:05.678901+00:00"


def seeded(seed: int) -> Callable[[int], bytes]:
    """Return a source of bytes that is the same in every run."""
    return random.Random(seed).randbytes


@dataclass(frozen=True, slots=True)
class SeededKey:
    """A key file whose salts come from a given source, so that what it wraps is the same in every run."""

    key: KeyFile
    random: Callable[[int], bytes]

    @property
    def kind(self) -> str:
        return self.key.kind

    @property
    def key_id(self) -> str:
        return self.key.key_id

    def wrap(self, secret: bytes, associated_data: bytes) -> bytes:
        return self.key.wrap(secret, associated_data, random=self.random)

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        return self.key.unwrap(wrapped, associated_data)


def sample_key() -> KeyFile:
    secret = bytes(range(32))
    return KeyFile(key_id_of(secret), secret)


def run_lengths(pieces: Sequence[Buffer]) -> list[Buffer]:
    return [run_length(piece) for piece in pieces]


def run_length(data: Buffer) -> bytes:
    """Return a zstd frame of one RLE block for repeated bytes, and other data as it is.

    Written by hand after RFC 8878, so that golden files do not depend on how a release of zstd compresses.
    """
    if len(set(data)) != 1:
        return bytes(data)
    frame = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data))
    starts = range(0, len(data), 128 * 1024)
    for start in starts:
        size = min(128 * 1024, len(data) - start)
        frame += struct.pack("<I", (start == starts[-1]) | 1 << 1 | size << 3)[:3] + bytes(data[:1])
    return frame


def opener(key: KeyMaterial) -> Callable[[Sequence[str]], KeyMaterial]:
    return lambda _recipients: key


def record_of(
    disks: Iterable[StoredDisk],
    *,
    parent: PointRecord | None = None,
    states: Iterable[StateRef] = (),
    **extra: object,
) -> PointRecord:
    mode = "full" if parent is None else "incremental"
    return PointRecord(
        id="",
        vm_uuid=VM,
        vm_name="demo",
        kind=mode,
        parent=None if parent is None else parent.id,
        created=CREATED,
        host="host.example",
        checkpoint="vmkeep-1",
        pause_ms=92.5,
        labels={"why": "test"},
        disks=tuple(
            PointDisk(f"vd{letter}", mode, "why", f"/images/{letter}.qcow2", "qcow2", 100, 50, disk)
            for letter, disk in zip("abc", disks, strict=False)
        ),
        excluded=(ExcludedDisk("vdz", "asked for"),),
        states=tuple(states),
        definition="<domain type='kvm'><name>demo</name></domain>",
        warnings=("a warning",),
        extra=extra,
    )


def write_disk(
    writer: PointWriter,
    changes: Mapping[int, bytes | None],
    *,
    size_bytes: int,
    block_bytes: int = BLOCK,
    base: StoredDisk | None = None,
) -> StoredDisk:
    """Write a disk with these blocks (None for one that became zero)."""
    disk = writer.disk(size_bytes=size_bytes, block_bytes=block_bytes, base=base)
    for block, content in sorted(changes.items()):
        disk.record(block, None if content is None else disk.seal(content))
    return disk.finish()


def read_whole(repository: Repository, disk: StoredDisk) -> bytes:
    image = bytearray(disk.size_bytes)
    last = -1
    for start, data in repository.read_disk(disk):
        assert start > last
        assert any(data)
        last = start
        image[start : start + len(data)] = data
    assert len(image) == disk.size_bytes
    return bytes(image)


@dataclass(frozen=True, slots=True)
class Sample:
    repository: Repository
    location: Path
    key: KeyMaterial
    points: tuple[PointRecord, PointRecord]
    images: Mapping[str, tuple[bytes, ...]]
    states: Mapping[str, bytes]

    def reopen(self) -> Repository:
        return Repository.open(str(self.location), opener(self.key))

    def objects(self) -> list[Path]:
        return sorted(path for path in self.location.rglob("*") if path.is_file())


SIZE = 70 * BLOCK + 1000


def make_sample(directory: Path, *, seed: int = 1) -> Sample:
    """Two points of a VM: a full one with two disks, a TPM and NVRAM, and an incremental one that shares blocks."""
    source, content = seeded(seed), seeded(seed + 1)
    key = SeededKey(sample_key(), source)
    location = directory / "repository"
    repository = Repository.create(str(location), key, random=source, compress=run_lengths)
    first = {0: content(BLOCK), 1: b"\x55" * BLOCK, 5: content(BLOCK), 40: content(BLOCK), 70: content(1000)}
    data = {1: content(BLOCK)}
    tpm, nvram = content(300), b"\xff" * 2000
    cache = directory / "cache"

    def begin(purpose: str) -> PointWriter:
        return repository.begin(purpose=purpose, host="host.example", cache=cache, workers=1)

    with begin("first") as writer:
        disks = [write_disk(writer, first, size_bytes=SIZE), write_disk(writer, data, size_bytes=3 * BLOCK)]
        states = [
            put_state(writer, tpm, "tpm", 1, "tpm2/tpm2-00.permall"),
            put_state(writer, nvram, "nvram", 1, "nvram.fd"),
        ]
        one = writer.commit(record_of(disks, states=states))
    second: dict[int, bytes | None] = {0: content(BLOCK), 1: None, 41: first[5]}
    with begin("second") as writer:
        changed = write_disk(writer, second, size_bytes=SIZE, base=disks[0])
        two = writer.commit(record_of([changed], parent=one, states=states[:1], note={"kept": True}))
    images = {one.id: (image(first, SIZE), image(data, 3 * BLOCK)), two.id: (image({**first, **second}, SIZE),)}
    contents = {states[0].version_id: tpm, states[1].version_id: nvram}
    return Sample(repository, location, key, (one, two), images, contents)


def make_pruned(directory: Path) -> Sample:
    """The same without its first point, after a prune that left no waste."""
    sample = make_sample(directory)
    sample.repository.delete_point(sample.points[0].id)
    options = PruneOptions(waste=0.0, young=timedelta(0))
    sample.repository.prune(options, host="host.example", directory=directory, tell=lambda _stage: None)
    return sample


def put_state(writer: PointWriter, content: bytes, kind: str, generation: int, file: str) -> StateRef:
    version = writer.put_state(
        content, vm_uuid=VM, kind=kind, generation=generation, file=file, owner="tss", group="tss", mode=0o600,
        created=CREATED,
    )  # fmt: skip
    return version.ref()


def image(blocks: Mapping[int, bytes | None], size_bytes: int) -> bytes:
    whole = bytearray(size_bytes)
    for block, data in blocks.items():
        if data is not None:
            whole[block * BLOCK : block * BLOCK + len(data)] = data
    return bytes(whole)
