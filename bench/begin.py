"""What a point that changes nothing costs, by the number of packs in the repository: seconds of begin and commit.

The packs are files without content, and the index of known blocks is made with a block for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measuring import Figures
from tests.integration.repository.samples import record_of, sample_key, write_disk
from tests.rig import Host
from vmkeep.repository import Repository
from vmkeep.repository.known import KnownBlocks
from vmkeep.repository.layout import FrameKind, PackEntry, pack_name

SIZES = (10_000, 1_000_000)


def measure(_host: Host, _runs: int) -> Figures:
    figures: Figures = {}
    for size in SIZES:
        done = subprocess.run(
            [sys.executable, "-m", "bench.begin", str(size)], check=True, capture_output=True, text=True
        )
        listed, began, committed = map(float, done.stdout.split())
        figures[f"begin_with_a_look_at_{size}_packs_s"] = listed
        figures[f"begin_among_{size}_packs_s"] = began
        figures[f"commit_among_{size}_packs_s"] = committed
    return figures


def main(packs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        repository = Repository.create(str(top / "r"), sample_key())
        names = [os.urandom(16) for _ in range(packs)]
        for name in names:
            path = top / "r" / pack_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        domain = repository.keyring.default.id.hex()
        known = KnownBlocks(top / "cache" / repository.id / f"{domain}.sqlite")
        known.refresh(set(names), lambda _pack: [PackEntry(FrameKind.BLOCK, os.urandom(32), 64, 100, 65536)])
        known.close()
        listed, _ = _point(repository, top)
        began, committed = _point(repository, top)
        print(f"{listed:.2f} {began:.3f} {committed:.3f}")


def _point(repository: Repository, top: Path) -> tuple[float, float]:
    """Return the seconds of begin, and of commit, of a point of one block that is known."""
    started = time.monotonic()
    writer = repository.begin(purpose="bench", host="bench", cache=top / "cache")
    began = time.monotonic()
    with writer:
        disk = write_disk(writer, {0: b"the same"}, size_bytes=8, block_bytes=512)
        begin_commit = time.monotonic()
        writer.commit(record_of([disk]))
    return began - started, time.monotonic() - begin_commit


if __name__ == "__main__":
    main(int(sys.argv[1]))
