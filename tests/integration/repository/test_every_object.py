"""Every object of a repository, damaged in every way: verify finds it and names whom it harms; the rest comes back.

The repository is one that a history leaves: points of two VMs that share blocks, manifests of several levels, a second
keyring, a writer that was killed, a condemned pack. What is read back is compared whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.repository.samples import (
    BLOCK,
    image,
    opener,
    put_state,
    read_whole,
    record_of,
    sample_key,
    write_disk,
)
from tests.turns import DAY, EVERY
from vmkeep.errors import VmkeepError
from vmkeep.keys import KeyMaterial
from vmkeep.repository import PointRecord, Repository

_BLOCKS = 1100  # three levels of nodes
_SIZE = _BLOCKS * BLOCK - 1000
_OTHER_VM = "0e9fa704-8f0c-4474-a165-21d32ce01bbb"


@dataclass(frozen=True, slots=True)
class History:
    location: Path
    key: KeyMaterial
    points: Mapping[str, PointRecord]
    images: Mapping[str, tuple[bytes, ...]]
    states: Mapping[str, bytes]

    def open(self) -> Repository:
        return Repository.open(str(self.location), opener(self.key))

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.location)) for path in self.location.rglob("*") if path.is_file())

    def harmed(self) -> set[str]:
        """Return the points that cannot be read back; one that comes back as something else fails the test."""
        try:
            repository = self.open()
        except VmkeepError:
            return set(self.points)
        return {point_id for point_id in self.points if not self._comes_back(repository, point_id)}

    def _comes_back(self, repository: Repository, point_id: str) -> bool:
        try:
            record = repository.point(point_id)
            assert record == self.points[point_id]
            for disk, truth in zip(record.disks, self.images[point_id], strict=True):
                assert read_whole(repository, disk.stored) == truth
            for state in record.states:
                version, content = repository.state(state.version_id)
                assert (content, version.ref()) == (self.states[state.version_id], state)
        except VmkeepError:
            return False
        return True


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    directory = tmp_path_factory.mktemp("history")
    location, cache, chance = directory / "repository", directory / "cache", random.Random(7)
    key = sample_key()
    repository = Repository.create(str(location), key)
    points: dict[str, PointRecord] = {}
    images: dict[str, tuple[bytes, ...]] = {}
    states: dict[str, bytes] = {}
    blocks: dict[int, bytes | None] = {}
    parent: PointRecord | None = None
    for number in range(3):
        new: dict[int, bytes | None] = {place: chance.randbytes(BLOCK) for place in (number, 40 + number, 1070)}
        new |= {1071: None, 1072: bytes([number + 1]) * BLOCK}
        blocks |= new
        with repository.begin(purpose=f"point {number}", host="here", cache=cache) as writer:
            base = None if parent is None else parent.disks[0].stored
            disk = write_disk(writer, new, size_bytes=_SIZE, base=base)
            content = chance.randbytes(200)
            state = put_state(writer, content, "tpm", number + 1, "tpm2/tpm2-00.permall")
            parent = writer.commit(record_of([disk], parent=parent, states=[state]))
        points[parent.id], images[parent.id] = parent, (image(blocks, _SIZE),)
        states[state.version_id] = content
        if number == 0:
            repository.add_data_key()
    shared: dict[int, bytes | None] = {0: blocks[40], 1: chance.randbytes(BLOCK)}
    with repository.begin(purpose="another VM", host="here", cache=cache) as writer:
        disk = write_disk(writer, shared, size_bytes=3 * BLOCK)
        other = writer.commit(replace(record_of([disk]), vm_uuid=_OTHER_VM))
    points[other.id], images[other.id] = other, (image(shared, 3 * BLOCK),)
    killed = repository.begin(purpose="killed", host="here", cache=cache)
    intents = {path: path.read_bytes() for path in (location / "intents").iterdir()}
    killed.abort()
    for path, text in intents.items():
        path.write_bytes(text)
    repository.condemn([bytes.fromhex("cd" * 16)], reason="verify found damage")
    return History(location, key, points, images, states)


def _kind(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


def _flips(size: int) -> Iterator[int]:
    """Yield places of a header, of what lies before the end (an index, a tag), of the end, and between.

    Of a large object a twelfth of them, another one each day, and all with VMKEEP_CRASH_ALL; the last byte always.
    """
    every = EVERY or size <= 512
    places = {*range(0, min(size, 80), 5), *range(0, size, max(1, size // 12)), *range(max(0, size - 100), size, 7)}
    yield from (place for number, place in enumerate(sorted(places)) if every or (number + DAY) % 12 == 0)
    yield size - 1


def _damages(history: History, name: str, content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield every damage to an object: a word for it, and what is there instead (None: nothing)."""
    size = len(content)
    yield "deleted", None
    for length in sorted({0, 1, 63, 64, size // 2, size - 24, size - 1} & set(range(size))):
        yield f"cut to {length}", content[:length]
    yield "longer", content + b"\0"
    yield "zeros", bytes(size)
    yield "a zeroed sector", content[: size // 2] + bytes(min(512, size - size // 2)) + content[size // 2 + 512 :]
    for other in history.names():
        if other != name and _kind(other) == _kind(name):
            yield f"another one, {other}", (history.location / other).read_bytes()
    for place in _flips(size):
        bit = 1 << place % 8
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_history_has_every_kind_of_object_and_is_sound(history: History) -> None:
    names = history.names()
    assert {_kind(name) for name in names} == {
        "condemned", "format", "intents", "keyring", "packs", "points", "states",
    }  # fmt: skip
    assert sum(_kind(name) == "keyring" for name in names) == 2
    assert history.open().verify_all().sound
    assert history.harmed() == set()


@pytest.mark.parametrize("kind", ["condemned", "format", "intents", "keyring", "packs", "points", "states"])
def test_every_damage_is_found_and_names_just_the_points_that_do_not_come_back(history: History, kind: str) -> None:
    """Two exceptions: of a point that is deleted the catalogue knows, the repository cannot. And what writers tell each
    other is plain text that no point needs, in which a changed letter of a host's name cannot be found.
    """
    repository = history.open()
    walked = 0
    for name in (name for name in history.names() if _kind(name) == kind):
        path = history.location / name
        content = path.read_bytes()
        for what, instead in _damages(history, name, content):
            if instead == content:
                continue  # it was all zeros there
            walked += 1
            path.unlink()
            try:
                if instead is not None:
                    path.write_bytes(instead)
                harmed = history.harmed()
                report = _opened(history, repository).verify_all()
            finally:
                path.unlink(missing_ok=True)
                path.write_bytes(content)
            told = (name, what, report.findings, harmed)
            if instead is None and kind in ("points", "intents", "condemned"):
                assert report.sound, told
                assert harmed == ({name.removeprefix("points/")} & set(history.points)), told
            elif what.startswith("bit") and kind in ("intents", "condemned"):
                assert harmed == set(report.harmed) == set(), told
            else:
                assert {finding.object for finding in report.findings} >= _named(name, kind, instead), told
                assert not report.sound, told
                assert set(report.harmed) == harmed, told
    assert walked >= 25
    assert history.open().verify_all().sound


def _opened(history: History, before: Repository) -> Repository:
    """Return the repository as a new process finds it, or as one that had it open before the damage."""
    try:
        return history.open()
    except VmkeepError:
        return before


def _named(name: str, kind: str, instead: bytes | None) -> set[str]:
    # Without its newest keyring a repository looks as it did before that was made.
    return set() if kind == "keyring" and instead is None else {name}
