"""Damage: every object is cut, deleted, swapped and flipped; verify names what it harms, and reading never lies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.repository.samples import Sample, make_sample, opener, read_whole
from tests.turns import DAY, EVERY
from vmkeep.errors import VmkeepError
from vmkeep.repository import Repository


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


def harmed_points(sample: Sample) -> set[str]:
    """Return the points that cannot be restored; a point that restores as something else is a failed test."""
    try:
        repository = Repository.open(str(sample.location), opener(sample.key))
    except VmkeepError:
        return {point.id for point in sample.points}
    harmed = set()
    for point in sample.points:
        try:
            record = repository.point(point.id)
            assert record == point
            for disk, truth in zip(record.disks, sample.images[point.id], strict=True):
                assert read_whole(repository, disk.stored) == truth
            for state in record.states:
                version, content = repository.state(state.version_id)
                assert content == sample.states[state.version_id]
                assert version.ref() == state
        except VmkeepError:
            harmed.add(point.id)
    return harmed


def assert_found(sample: Sample, name: str, what: str) -> None:
    """Everything that was done to the object is found, and exactly the harmed points are named."""
    truth = harmed_points(sample)
    report = sample.repository.verify_all()
    assert any(name == finding.object for finding in report.findings), (name, what, report.findings)
    assert set(report.harmed) == truth, (name, what, report.findings)
    for point in truth:
        try:
            assert not sample.repository.verify_point(point).sound or name.startswith(("format", "keyring"))
        except VmkeepError:
            assert name == f"points/{point}"


def names(sample: Sample) -> list[tuple[str, Path]]:
    return [(str(path.relative_to(sample.location)), path) for path in sample.objects()]


def put_back(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_sample_is_sound_and_complete(sample: Sample) -> None:
    report = sample.repository.verify_all()
    assert report.sound
    assert report.points == tuple(sorted(point.id for point in sample.points))
    assert harmed_points(sample) == set()
    kinds = {name.split("/", maxsplit=1)[0] for name, _ in names(sample)}
    assert kinds == {"format", "keyring", "packs", "points", "states"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_object_cut_short_is_found(sample: Sample, share: float) -> None:
    for name, path in names(sample):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * (len(content) - 1))])
        assert_found(sample, name, "cut")
        put_back(path, content)


def test_object_with_bytes_appended_is_found(sample: Sample) -> None:
    for name, path in names(sample):
        content = path.read_bytes()
        path.write_bytes(content + b"\0")
        assert_found(sample, name, "appended")
        put_back(path, content)


def test_object_deleted_is_found(sample: Sample) -> None:
    for name, path in names(sample):
        if name.startswith("points/"):
            continue  # that is how a point is removed
        content = path.read_bytes()
        path.unlink()
        truth = harmed_points(sample)
        report = sample.repository.verify_all()
        assert set(report.harmed) == truth, name
        assert truth, f"{name} is needed by no point"
        put_back(path, content)


def pairs(sample: Sample) -> Iterator[tuple[Path, Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in names(sample):
        groups.setdefault(name.split("/", maxsplit=1)[0], []).append(path)
    for group in groups.values():
        for place, one in enumerate(group):
            for other in group[place + 1 :]:
                yield one, other


def test_objects_swapped_are_found(sample: Sample) -> None:
    swapped = list(pairs(sample))
    assert len(swapped) >= 8
    for one, other in swapped:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        assert_found(sample, str(one.relative_to(sample.location)), "swapped")
        put_back(one, first)
        put_back(other, second)


def test_object_copied_to_another_name_is_found(sample: Sample) -> None:
    for name, path in names(sample):
        if name.startswith(("points/", "states/")):
            other = path.with_name("ab" * 16)
            shutil.copy(path, other)
            report = sample.repository.verify_all()
            assert [finding.object for finding in report.findings] == [str(other.relative_to(sample.location))]
            other.unlink()


def flips(name: str, size: int) -> Iterator[int]:
    """Every byte of a small object; each of a pack's header, index and trailer, and a sample of those between."""
    if size <= 2048 and not name.startswith("packs/"):
        yield from range(size)
        return
    yield from range(min(160, size))
    yield from range(160, max(160, size - 400), 97)
    yield from range(max(160, size - 400), size)


def test_flipped_bit_is_found_and_never_read_as_data(sample: Sample) -> None:
    for number, (name, path) in enumerate(names(sample)):
        content = path.read_bytes()
        for place in flips(name, len(content)):
            # Each object has one byte in 24 flipped, another one than its neighbours, and another one each day.
            if not EVERY and place % 24 != (number + DAY) % 24:
                continue
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            report = sample.repository.verify_all()
            assert any(name == finding.object for finding in report.findings), (name, place)
            if place % 3 == 0:  # reading everything back at each byte takes a minute and shows no more
                assert set(report.harmed) == harmed_points(sample), (name, place, report.findings)
        put_back(path, content)
    assert sample.repository.verify_all().sound


def test_foreign_object_is_reported_and_harms_nothing(sample: Sample) -> None:
    for folder in ("points", "states", "packs/ab", "keyring"):
        stray = sample.location / folder / "stray.txt"
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("not ours")
        report = sample.repository.verify_all()
        assert [finding.object for finding in report.findings] == [f"{folder}/stray.txt"]
        assert report.harmed == ()
        stray.unlink()


def test_left_over_staging_file_of_a_put_is_not_an_object(sample: Sample) -> None:
    stray = sample.location / "points" / f"{'ab' * 16}#1"
    stray.write_bytes(b"half")
    assert sample.repository.verify_all().sound
    assert len(sample.repository.point_ids()) == 2
    stray.unlink()


def test_shared_damage_names_both_points_and_own_damage_one(sample: Sample) -> None:
    one, two = (list(sample.repository.blocks(point.disks[0].stored)) for point in sample.points)
    shared = next(ref for block, ref in one if block == 40)
    own = next(ref for block, ref in two if block == 0)
    for ref, harmed in ((shared, {point.id for point in sample.points}), (own, {sample.points[1].id})):
        path = sample.location / "packs" / ref.pack.hex()[:2] / ref.pack.hex()
        content = path.read_bytes()
        path.write_bytes(
            content[: ref.offset + 100] + bytes([content[ref.offset + 100] ^ 1]) + content[ref.offset + 101 :]
        )
        report = sample.repository.verify_all()
        assert set(report.harmed) == harmed
        assert report.damaged_packs == (ref.pack,)
        put_back(path, content)


def test_sampled_verify_still_finds_structural_damage(sample: Sample) -> None:
    path = next(path for name, path in names(sample) if name.startswith("packs/"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert not sample.repository.verify_all(sample=0.0).sound
    put_back(path, content)
    assert sample.repository.verify_point(sample.points[0].id, sample=0.0).blocks == 0
