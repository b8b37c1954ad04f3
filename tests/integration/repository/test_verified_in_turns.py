"""Verification with a budget: what was longest not read comes first, and what is damaged is named with its points."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.repository.samples import BLOCK, record_of, sample_key
from vmkeep.errors import Interrupted
from vmkeep.planning.rota import Budget
from vmkeep.repository import PointRecord, Repository, RepositoryReport
from vmkeep.repository.packreading import PackRead, PackReader
from vmkeep.repository.proofs import Proofs

_LITTLE = Budget(size_bytes=1)
_ALL = Budget(seconds=3600)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Repository, list[PointRecord], Path]:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    return repository, [_point(repository, tmp_path, number) for number in range(3)], tmp_path


def _point(repository: Repository, top: Path, seed: int) -> PointRecord:
    content = random.Random(seed).randbytes(8 * BLOCK)
    with repository.begin(purpose="test", host="alpha", cache=top / "cache") as writer:
        disk = writer.disk(size_bytes=len(content), block_bytes=BLOCK)
        for block, ref in enumerate(disk.seal_run(content)):
            disk.record(block, ref)
        return writer.commit(record_of([disk.finish()]))


def _run(repository: Repository, top: Path, budget: Budget = _LITTLE) -> RepositoryReport:
    with repository.proofs(top / "cache") as proofs:
        return repository.verify_portion(budget, proofs)


def _packs(top: Path) -> list[Path]:
    return sorted(path for path in (top / "r" / "packs").rglob("*") if path.is_file())


def _coverage(repository: Repository, top: Path) -> tuple[int, int, int]:
    with repository.proofs(top / "cache") as proofs:
        found = proofs.coverage()
    assert found is not None
    return found.packs, found.proved, found.unread


def test_little_by_little_everything_is_read_once_before_anything_is_read_again(
    place: tuple[Repository, list[PointRecord], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, _, top = place
    read: list[bytes] = []
    real = PackReader._read_pack

    def read_pack(reader: PackReader, pack: bytes, size_bytes: int) -> PackRead:
        read.append(pack)
        return real(reader, pack, size_bytes)

    monkeypatch.setattr(PackReader, "_read_pack", read_pack)
    packs = len(_packs(top))
    for number in range(1, packs + 1):
        report = _run(repository, top)
        assert (report.sound, report.packs_read, report.packs) == (True, 1, packs)
        assert _coverage(repository, top) == (packs, number, packs - number)
    assert len(set(read[-packs:])) == packs
    fresh = _point(repository, top, 99)
    names = {path.name for path in _packs(top)}
    _run(repository, top)
    assert read[-1].hex() in names - {pack.hex() for pack in read[:-1]}, "what is new comes first"
    assert fresh.id in repository.point_ids()


def test_damage_anywhere_is_found_in_its_turn_and_named_with_its_points(
    place: tuple[Repository, list[PointRecord], Path],
) -> None:
    repository, points, top = place
    (harmed,) = points[1].disks
    assert harmed.stored.root is not None
    blocks = next(ref.pack for ref in repository.sample_blocks(harmed.stored, 1).values())
    damaged = next(path for path in _packs(top) if path.name == blocks.hex())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    reports = [_run(repository, top) for _ in range(2 * len(_packs(top)))]
    found = [report for report in reports if not report.sound]
    assert found
    assert {report.harmed for report in found} == {(points[1].id,)}
    assert found[0].damaged_packs == (blocks,)
    again = _run(repository, top)
    assert again.harmed == (points[1].id,), "what was bad is looked at each time until it is mended"
    assert _coverage(repository, top)[1] == len(_packs(top)) - 1


def test_pack_that_is_gone_harms_its_points(place: tuple[Repository, list[PointRecord], Path]) -> None:
    repository, points, top = place
    blocks = next(ref.pack for ref in repository.sample_blocks(points[0].disks[0].stored, 1).values())
    next(path for path in _packs(top) if path.name == blocks.hex()).unlink()
    assert _run(repository, top, _ALL).harmed == (points[0].id,)


def test_run_that_is_killed_has_proved_what_it_had_read(
    place: tuple[Repository, list[PointRecord], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, _, top = place
    real = Proofs.note_pack
    noted: list[bytes] = []

    def note(proofs: Proofs, pack: bytes, bad: str | None) -> None:
        real(proofs, pack, bad)
        noted.append(pack)
        if len(noted) == 2:
            raise Interrupted("killed")

    monkeypatch.setattr(Proofs, "note_pack", note)
    with pytest.raises(Interrupted):
        _run(repository, top, _ALL)
    monkeypatch.undo()
    packs = len(_packs(top))
    assert _run(repository, top).packs_read == 1
    assert _coverage(repository, top) == (packs, 3, packs - 3)


def test_pass_over_everything_counts_as_well(place: tuple[Repository, list[PointRecord], Path]) -> None:
    repository, _, top = place
    with repository.proofs(top / "cache") as proofs:
        assert repository.verify_all(sample=0.5, proofs=proofs).sound
        assert proofs.coverage() is None, "a sample proves no pack"
        assert repository.verify_all(proofs=proofs).sound
    packs = len(_packs(top))
    assert _coverage(repository, top) == (packs, packs, 0)


def test_record_that_is_damaged_is_begun_anew(place: tuple[Repository, list[PointRecord], Path]) -> None:
    repository, _, top = place
    _run(repository, top, _ALL)
    (record,) = (top / "cache").rglob("proofs.sqlite")
    record.write_bytes(b"no database" * 100)
    assert _run(repository, top, _ALL).sound
    packs = len(_packs(top))
    assert _coverage(repository, top) == (packs, packs, 0)


def test_old_proofs_count_no_longer(
    place: tuple[Repository, list[PointRecord], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, _, top = place
    _run(repository, top, _ALL)
    packs = len(_packs(top))
    import time

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 86400)
    assert _coverage(repository, top) == (packs, 0, 0)
