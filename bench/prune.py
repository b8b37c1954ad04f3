"""What a prune's walk costs in a large repository: seconds, those of a processor, and memory in MiB.

The repository is made up: a disk whose nodes are real and whose packs of blocks are files without content. With a
number the walk is measured in this process (`python -m bench.prune 1000000`), so that its memory is its own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from bench.measuring import Figures
from tests.integration.repository.samples import opener, record_of, sample_key
from tests.rig import Host
from vmkeep.repository import BlockRef, PointWriter, Repository, StoredDisk
from vmkeep.repository.layout import pack_name
from vmkeep.repository.prune import PruneOptions

SIZES = (100_000, 1_000_000)
"""Of references to blocks; 10,000,000 take some minutes to make."""
_BLOCK = 65536
_FRAMES = 256
"""In a pack of 16 MiB."""
_MiB = 1 << 20


def measure(_host: Host, _runs: int) -> Figures:
    figures: Figures = {}
    for size in SIZES:
        done = subprocess.run(
            [sys.executable, "-m", "bench.prune", str(size)], check=True, capture_output=True, text=True
        )
        seconds, worked, memory = map(float, done.stdout.split())
        figures[f"walk_of_{size}_blocks_s"] = seconds
        figures[f"walk_of_{size}_blocks_processor_s"] = worked
        figures[f"walk_of_{size}_blocks_MiB"] = memory
    return figures


def make_repository(top: Path, blocks: int, *, changed: int = 0) -> Repository:
    """Make a repository with a point of so many blocks, and one after it in which some of them are others."""
    repository = Repository.create(str(top / "r"), sample_key())
    refs = _references(top / "r")
    parent = None
    for number, count in enumerate(filter(None, (blocks, changed))):
        with repository.begin(purpose="bench", host="bench", cache=top / "cache") as writer:
            disk = _disk(writer, refs, blocks, count, parent.disks[0].stored if parent else None)
            parent = writer.commit(record_of([disk], parent=parent, number=number))
    return repository


def _disk(
    writer: PointWriter, refs: Iterator[BlockRef], blocks: int, count: int, base: StoredDisk | None
) -> StoredDisk:
    disk = writer.disk(size_bytes=blocks * _BLOCK, block_bytes=_BLOCK, base=base)
    step = blocks // count
    for block in range(0, step * count, step):
        disk.record(block, next(refs))
    return disk.finish()


def _references(location: Path) -> Iterator[BlockRef]:
    """Yield places of blocks, pack after pack; each pack is a file of the right size."""
    length = 16 * _MiB // _FRAMES - 64
    while True:
        pack = os.urandom(16)
        path = location / pack_name(pack)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(_FRAMES * length + 64)
        ids = os.urandom(32 * _FRAMES)
        for number in range(_FRAMES):
            yield BlockRef(ids[32 * number : 32 * number + 32], pack, 64 + number * length, length)


def main(blocks: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        if os.fork() == 0:  # what making it takes is not what walking it takes
            make_repository(top, blocks, changed=blocks // 100)
            os._exit(0)
        os.wait()
        repository = Repository.open(str(top / "r"), opener(sample_key()))
        began, worked = time.monotonic(), time.process_time()
        options = PruneOptions(young=timedelta(0), dry_run=True)
        report = repository.prune(options, host="bench", directory=top, tell=lambda _stage: None)
        seconds, worked = time.monotonic() - began, time.process_time() - worked
        assert not report.problems, report.problems
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{seconds:.2f} {worked:.2f} {memory:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
