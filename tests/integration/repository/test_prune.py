"""Prune: what points need stays, and the rest goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.integration.repository.samples import (
    BLOCK,
    read_whole,
    record_of,
    sample_key,
    seeded,
    write_disk,
)
from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.prune import PruneOptions, PruneReport, Stage

SIZE = 400 * BLOCK


def prune(repository: Repository, tmp_path: Path, **options: Any) -> PruneReport:
    options.setdefault("young", timedelta(0))
    tell: Callable[[Stage], None] = options.pop("tell", lambda _stage: None)
    return repository.prune(PruneOptions(**options), host="host.example", directory=tmp_path, tell=tell)


def take(
    repository: Repository, tmp_path: Path, blocks: Mapping[int, bytes | None], parent: PointRecord | None = None
) -> PointRecord:
    with repository.begin(purpose="test", host="host.example", cache=tmp_path / "cache", workers=1) as writer:
        base = parent.disks[0].stored if parent else None
        return writer.commit(record_of([write_disk(writer, blocks, size_bytes=SIZE, base=base)], parent=parent))


def content(point: PointRecord, repository: Repository) -> bytes:
    return read_whole(repository, point.disks[0].stored)


def packs_of(location: Path) -> set[str]:
    return {path.name for path in (location / "packs").rglob("*") if path.is_file()}


def test_packs_of_a_deleted_point_go_and_those_of_the_others_stay(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(100)})
    kept = packs_of(tmp_path / "r")
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(50, 150)})
    truth = content(one, repository)
    repository.delete_point(two.id)
    report = prune(repository, tmp_path)
    assert packs_of(tmp_path / "r") == kept
    assert (report.unused_packs, report.thin_packs, report.problems) == (2, 0, {})
    assert report.freed_bytes == report.unused_bytes > 100 * BLOCK
    assert content(one, repository) == truth
    assert repository.verify_all().sound


def test_waste_in_a_pack_comes_back_and_the_point_is_read_through_the_forward(tmp_path: Path) -> None:
    data = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    one = take(repository, tmp_path, {block: data(BLOCK) for block in range(200)})
    two = take(repository, tmp_path, {block: data(BLOCK) for block in range(150)}, one)
    truth = content(two, repository)
    repository.delete_point(one.id)
    report = prune(repository, tmp_path)
    assert report.thin_packs >= 1
    assert report.problems == {}
    assert report.freed_bytes > 140 * BLOCK
    again = Repository.open(str(tmp_path / "r"), lambda _ids: sample_key())
    assert content(two, again) == truth
    assert again.verify_all().sound
    assert again.verify_point(two.id).sound
    three = take(again, tmp_path, {3: data(BLOCK), 390: data(BLOCK)}, two)
    assert again.verify_all().sound
    after = prune(again, tmp_path)
    assert (after.unused_packs, after.thin_packs, after.problems) == (0, 0, {})
    again.delete_point(two.id)
    expected = content(three, again)
    prune(again, tmp_path, waste=0.0)
    assert content(three, again) == expected
    assert again.verify_all().sound
