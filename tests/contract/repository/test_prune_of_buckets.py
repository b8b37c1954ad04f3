"""A prune of a repository in a bucket, as of one in a directory."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from tests.integration.repository.samples import BLOCK, opener, read_whole, record_of, sample_key, seeded, write_disk
from tests.rig.s3servers import S3Server
from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.prune import PruneOptions


def test_space_comes_back_and_the_point_is_read_through_the_forward(
    server: S3Server, place: str, tmp_path: Path
) -> None:
    repository = Repository.create(place, sample_key(), access=server.access())
    data = seeded(7)
    points: list[PointRecord] = []
    for changed in (80, 60):
        with repository.begin(purpose="test", host="a", cache=tmp_path / "cache", workers=1) as writer:
            base = points[-1].disks[0].stored if points else None
            blocks: dict[int, bytes | None] = {block: data(BLOCK) for block in range(changed)}
            disk = write_disk(writer, blocks, size_bytes=100 * BLOCK, base=base)
            points.append(writer.commit(record_of([disk], parent=points[-1] if points else None)))
    truth = read_whole(repository, points[1].disks[0].stored)
    repository.delete_point(points[0].id)
    # Servers tell the time of one object in seconds, and in lists in less: what was put just now may be newer than now.
    options = PruneOptions(young=timedelta(seconds=-1))
    report = repository.prune(options, host="a", directory=tmp_path, tell=lambda _stage: None)
    assert report.problems == {}
    assert report.freed_bytes > 55 * BLOCK
    assert report.thin_packs
    shutil.rmtree(tmp_path / "cache")
    again = Repository.open(place, opener(sample_key()), access=server.access())
    assert read_whole(again, points[1].disks[0].stored) == truth
    assert again.verify_all().sound
    left = again.prune(options, host="a", directory=tmp_path, tell=lambda _stage: None)
    assert (left.unused_packs, left.thin_packs, left.problems) == (0, 0, {})
