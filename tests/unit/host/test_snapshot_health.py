"""What is told of a snapshot, from what was found of its images and files."""

from __future__ import annotations

from dataclasses import replace

from vmkeep.moments import Snapshot, SnapshotDisk, SnapshotMemory
from vmkeep.planning.bitmaps import Chain
from vmkeep.planning.checkpoint_health import Health
from vmkeep.planning.images import ImageLayer, ImageSnapshot
from vmkeep.planning.snapshot_health import SnapshotFacts, Unread, judge_snapshots, snapshot_texts


def image(*paths: str, snapshots: tuple[ImageSnapshot, ...] = ()) -> Chain:
    return tuple(
        ImageLayer(path, "qcow2", 1 << 20, (), False, None, None, snapshots=() if number else snapshots)
        for number, path in enumerate(paths)
    )


OUTER = Snapshot(
    name="outer",
    creation_time=1,
    disks=(SnapshotDisk("vda", "external", source="/over", format="qcow2"),),  # type: ignore[arg-type]
    memory=SnapshotMemory("external", "/memory"),  # type: ignore[arg-type]
)
GOOD = SnapshotFacts(
    snapshots=(OUTER,),
    sources={"outer": {"vda": "/base"}},
    present={"vda": image("/over", "/base")},
    images={"/base": image("/base"), "/over": image("/over", "/base")},
    memory={"/memory": 5},
)


def text(facts: SnapshotFacts) -> str:
    return snapshot_texts(judge_snapshots(facts))["outer"]


def test_external_snapshot_whose_images_and_memory_are_there_is_sound() -> None:
    assert text(GOOD) == "sound"
    reverted = replace(GOOD, present={"vda": image("/another", "/base")})
    assert text(reverted) == "sound"  # another branch stands on the same image


def test_external_snapshot_that_lost_something_is_broken_and_says_what() -> None:
    gone = Unread("it is not there", absent=True)
    assert text(replace(GOOD, images={**GOOD.images, "/base": gone})) == "broken: vda"
    assert text(replace(GOOD, images={**GOOD.images, "/over": gone})) == "broken: vda"
    assert text(replace(GOOD, memory={"/memory": gone})) == "broken: memory"
    assert text(replace(GOOD, present={"vda": image("/base")})) == "broken: vda"
    alone = {"/base": image("/base"), "/over": image("/over")}
    assert text(replace(GOOD, images=alone, present={"vda": image("/over")})) == "broken: vda"


def test_what_could_not_be_looked_at_is_unknown() -> None:
    assert text(replace(GOOD, images={**GOOD.images, "/base": Unread("no permission")})) == "unknown: vda"
    assert text(replace(GOOD, sources={})) == "unknown: vda"
    bare = replace(OUTER, disks=(SnapshotDisk("vda"),))
    assert text(replace(GOOD, snapshots=(bare,))) == "unknown: vda"
    assert text(replace(GOOD, memory={"/memory": Unread("no permission")})) == "unknown: memory"


def test_deletion_that_was_interrupted_is_told_of_the_snapshot_that_it_wrote_to() -> None:
    """libvirt marks the snapshot that made the image which was written to; that of the deleted one stands on it."""
    disk = replace(OUTER.disks[0], delete_in_progress=True)
    later = replace(OUTER, name="later", creation_time=2, disks=(SnapshotDisk("vda", "external", source="/top"),))  # type: ignore[arg-type]
    chain = image("/top", "/over", "/base")
    facts = replace(
        GOOD,
        snapshots=(replace(OUTER, disks=(disk,)), later),
        sources={**GOOD.sources, "later": {"vda": "/over"}},
        present={"vda": chain},
        images={**GOOD.images, "/top": chain},
    )
    outer, deleted = judge_snapshots(facts)
    assert (outer.health, outer.parts[0].deleting) == (Health.SOUND, False)
    assert (deleted.parts[0].health, deleted.parts[0].deleting) == (Health.BROKEN, True)
    assert "interrupted" in deleted.parts[0].why


def test_disk_that_our_own_deletion_has_written_to_is_broken() -> None:
    assert text(replace(GOOD, torn={"outer": {"vda"}})) == "broken: vda"
    assert text(replace(GOOD, torn={"outer": ()})) == "sound"


def test_disk_that_somebody_else_keeps_is_not_judged() -> None:
    disk = SnapshotDisk("vda", "manual")  # type: ignore[arg-type]
    bare = replace(OUTER, disks=(disk,), memory=SnapshotMemory())
    (judged,) = judge_snapshots(replace(GOOD, snapshots=(bare,)))
    assert (judged.health, judged.parts[0].health) == (Health.SOUND, Health.FOREIGN)


def test_internal_snapshot_must_be_in_every_image_and_its_memory_in_one() -> None:
    disks = tuple(SnapshotDisk(target, "internal") for target in ("vda", "vdb"))  # type: ignore[arg-type]
    inside = replace(OUTER, disks=disks, memory=SnapshotMemory("internal"))  # type: ignore[arg-type]
    with_memory, without = ImageSnapshot("outer", 1024), ImageSnapshot("outer", 0)
    facts = SnapshotFacts(
        snapshots=(inside,),
        sources={"outer": {"vda": "/a", "vdb": "/b"}},
        present={},
        images={"/a": image("/a", snapshots=(without,)), "/b": image("/b", snapshots=(with_memory,))},
        memory={},
    )
    assert text(facts) == "sound"
    assert text(replace(facts, images={**facts.images, "/b": image("/b")})) == "broken: vdb, memory"
    assert text(replace(facts, images={**facts.images, "/b": Unread("locked")})) == "unknown: vdb, memory"
