"""Does one thing with a repository in a process of its own, so that what it takes at most can be measured.

    python -m tests.attack.appetite REPOSITORY ACTION [ARGUMENT]

It prints the class of the error of ours that ended it, or "done", and the most memory that it had, in bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tests.integration.repository.samples import opener, sample_key
from vmkeep.errors import VmkeepError
from vmkeep.keys.keyfile import KeyFile
from vmkeep.repository import Repository
from vmkeep.transfer.delivery import deliver_disk


def opened(location: str) -> Repository:
    key: KeyFile = sample_key()
    return Repository.open(location, opener(key))


def read_whole(location: str, point_id: str) -> None:
    """Read every block of a point's disks, as a restore and an incremental backup do."""
    repository = opened(location)
    for disk in repository.point(point_id).disks:
        for _start, _content in repository.read_disk(disk.stored):
            pass
        repository.sample_blocks(disk.stored, 4)


def first_blocks(location: str, point_id: str) -> None:
    """Read the first blocks of a point's disks, by every way down a tree."""
    repository = opened(location)
    for disk in (disk.stored for disk in repository.point(point_id).disks):
        ways: Sequence[Iterator[object]] = (
            repository.blocks(disk),
            repository.difference(replace(disk, root=None), disk),
            repository.read_runs(disk, [(0, disk.blocks)]),
        )
        for way in ways:
            for _ in islice(way, 10_000):
                pass
        repository.sample_blocks(disk, 4)


def deliver(location: str, point_id: str) -> None:
    """Make an image of each disk of a point."""
    repository = opened(location)
    for disk in repository.point(point_id).disks:
        path = Path(location).parent / f"{point_id}-{disk.target}.qcow2"
        deliver_disk(repository, disk.stored, path, "qcow2", workers=2, stop=lambda: None, progress=lambda _place: None)
        path.unlink()


def verify(location: str, point_id: str) -> None:
    """Prove a point; damage that is found is no error."""
    opened(location).verify_point(point_id)


ACTIONS: Mapping[str, Callable[..., object]] = {
    "open": opened,
    "point": lambda location, point_id: opened(location).point(point_id),
    "state": lambda location, version_id: opened(location).state(version_id),
    "secrets": lambda location, point_id: (repository := opened(location)).secrets(repository.point(point_id)),
    "writers": lambda location: opened(location).writers(),
    "read": read_whole,
    "first-blocks": first_blocks,
    "deliver": deliver,
    "verify": verify,
    "verify-all": lambda location: opened(location).verify_all(),
}


def peak_bytes() -> int:
    """Return the most memory that this program had. ru_maxrss would count what its parent had when it was started."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    location, action, *rest = sys.argv[1:]
    try:
        ACTIONS[action](location, *rest)
    except VmkeepError as error:
        print(type(error).__name__ if error.hint else "an error without a hint", peak_bytes())
    else:
        print("done", peak_bytes())


if __name__ == "__main__":
    main()
