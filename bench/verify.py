"""What verifying takes beside reading: MiB a second of all packs, and those of `cat` of the same files.

Blocks are random, as those of images that do not compress: each is opened. With a number of MiB it is measured in
this process (`python -m bench.verify 2048`), so that its memory is its own.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measuring import Figures
from tests.integration.repository.samples import opener, record_of, sample_key
from tests.rig import Host
from vmkeep.planning.rota import Budget
from vmkeep.repository import Repository

_SIZE_MiB = 1024
_BLOCK = 65536
_RUN = 32
"""Blocks that are sealed together: 2 MiB."""
_MiB = 1 << 20


def measure(_host: Host, runs: int) -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "bench.verify", str(_SIZE_MiB), str(runs)], check=True, capture_output=True, text=True
    )
    cold, warm, cat_cold, cat_warm, memory = map(float, done.stdout.split())
    return {
        "verify_MiB_s": cold,
        "verify_of_cached_MiB_s": warm,
        "cat_MiB_s": cat_cold,
        "cat_of_cached_MiB_s": cat_warm,
        "verify_to_cat": cat_cold / cold,
        "verify_MiB": memory,
    }


def make_repository(top: Path, size_mib: int) -> None:
    """Make a repository with a point of a disk of so many MiB."""
    repository = Repository.create(str(top / "r"), sample_key())
    generator = random.Random(1)
    with repository.begin(purpose="bench", host="bench", cache=top / "cache") as writer:
        disk = writer.disk(size_bytes=size_mib * _MiB, block_bytes=_BLOCK)
        for start in range(0, size_mib * _MiB // _BLOCK, _RUN):
            for number, ref in enumerate(disk.seal_run(generator.randbytes(_RUN * _BLOCK))):
                disk.record(start + number, ref)
        writer.commit(record_of([disk.finish()]))


def _drop(packs: list[Path]) -> None:
    for path in packs:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cat(packs: list[Path]) -> float:
    began = time.monotonic()
    with Path(os.devnull).open("wb") as nowhere:
        subprocess.run(["cat", *packs], check=True, stdout=nowhere)
    return time.monotonic() - began


def _verify(repository: Repository, record: Path) -> float:
    began = time.monotonic()
    with repository.proofs(record) as proofs:
        assert repository.verify_portion(Budget(seconds=86400), proofs).sound
    return time.monotonic() - began


def main(size_mib: int, runs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        if os.fork() == 0:  # what making it takes is not what reading it takes
            make_repository(top, size_mib)
            os._exit(0)
        os.wait()
        repository = Repository.open(str(top / "r"), opener(sample_key()))
        packs = [path for path in (top / "r" / "packs").rglob("*") if path.is_file()]
        seconds: list[list[float]] = [[], [], [], []]
        for _ in range(runs):
            _drop(packs)
            seconds[0].append(_verify(repository, top / "proofs"))
            _cat(packs)
            seconds[1].append(_verify(repository, top / "proofs"))
            _drop(packs)
            seconds[2].append(_cat(packs))
            seconds[3].append(_cat(packs))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(*(f"{size_mib / min(each):.0f}" for each in seconds), f"{memory:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
