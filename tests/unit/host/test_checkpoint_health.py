"""What is told of a checkpoint in few words, and what a repair plans for it."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.moments import Checkpoint, CheckpointDisk, CheckpointType
from vmkeep.planning.bitmaps import Bitmaps
from vmkeep.planning.checkpoint_health import CheckpointFacts, Health, Role, health_texts, judge_checkpoints
from vmkeep.planning.checkpoint_repair import Forget, ListAgain, Narrow, RemoveBitmap, plan_repair
from vmkeep.planning.images import ImageBitmap, ImageLayer
from vmkeep.planning.lineage import Lineage
from vmkeep.planning.model import KnownDisk, KnownPoint

OURS = "vmkeep-0123abcd-"
NEW, OLD, GONE = (OURS + name for name in ("new", "old", "gone"))


def point(name: str, parent: str | None, day: int) -> KnownPoint:
    disks = tuple(KnownDisk(target, f"/{target}", 1 << 20, "qcow2") for target in ("vda", "vdb"))
    return KnownPoint(name, disks, f"2026-01-0{day}T00:00:00Z", parent)


POINTS = Lineage.of(OURS, [point("new", "old", 3), point("old", None, 2)])


def layer(target: str, *names: str, in_use: bool = False) -> ImageLayer:
    bitmaps = tuple(ImageBitmap(name, 65536, in_use, recording=True) for name in names)
    return ImageLayer(f"/{target}", "qcow2", 1 << 20, bitmaps, encrypted=False, data_file=None, backing=None)


def facts(
    listed: Mapping[str, tuple[str, ...]],
    vda: ImageLayer,
    vdb: ImageLayer,
    *,
    bases: Mapping[str, str] | None = None,
    writers: Mapping[str, str] | None = None,
    shared: Mapping[str, str] | None = None,
    others: frozenset[str] = frozenset(),
    unsure: bool = False,
) -> CheckpointFacts:
    return CheckpointFacts(
        prefix=OURS,
        points=POINTS.points,
        listed={
            name: Checkpoint(
                name=name,
                creation_time=number,
                disks=tuple(CheckpointDisk(target, CheckpointType.BITMAP) for target in targets),
            )
            for number, (name, targets) in enumerate(listed.items(), 1)
        },
        bitmaps=Bitmaps(chains={"vda": (vda,), "vdb": (vdb,)}, valid_bytes=None, writers=writers or {}),
        bases=bases or {},
        shared=shared or {},
        others=others,
        unsure=unsure,
    )


BOTH = ("vda", "vdb")


def test_cells_of_a_table() -> None:
    seen = facts(
        {NEW: BOTH, GONE: ("vda",), "theirs": BOTH},
        layer("vda", NEW, GONE, "theirs"),
        layer("vdb", "theirs", OLD),
        bases={"vda": NEW},
    )
    assert health_texts(judge_checkpoints(seen)) == {
        NEW: "broken: missing in vdb",
        GONE: "sound, left over",
        "theirs": "foreign",
        OLD: "orphan",
    }


def test_cells_of_what_is_foreign_and_broken_or_could_not_be_looked_at() -> None:
    seen = facts(
        {NEW: BOTH, "theirs": BOTH},
        layer("vda", NEW, "theirs"),
        layer("vdb", NEW),
        writers={"vda": "qemu-nbd (process 7)"},
        unsure=True,
    )
    assert health_texts(judge_checkpoints(seen)) == {
        NEW: "unknown: qemu-nbd (process 7) has its image open",
        "theirs": "foreign, missing in vdb",
    }


def test_name_of_another_repository_is_foreign_and_without_a_repository_every_name_is() -> None:
    other = "vmkeep-ffffffff-new"
    seen = facts({other: ("vda",)}, layer("vda", other), layer("vdb"))
    (judged,) = judge_checkpoints(seen)
    assert (judged.health, judged.standing, judged.trouble) == (Health.FOREIGN, Role.FOREIGN, False)


def test_checkpoint_of_a_disk_that_the_vm_has_no_more_is_neither_broken_nor_removed() -> None:
    seen = facts({NEW: ("vda", "sdz")}, layer("vda", NEW), layer("vdb"), bases={"vda": NEW})
    (judged,) = judge_checkpoints(seen)
    assert judged.health is Health.SOUND
    assert [disk.absent for disk in judged.disks] == [True, False]
    assert plan_repair(seen, (judged,)).steps == ()
    replaced = facts({OLD: ("sdz",)}, layer("vda"), layer("vdb"))
    (judged,) = judge_checkpoints(replaced)
    assert (judged.health, judged.trouble) == (Health.UNKNOWN, False)
    assert plan_repair(replaced, (judged,)).steps == ()
    assert health_texts((judged,)) == {OLD: "unknown: the VM has no such disk now, or one that holds no bitmaps"}


def test_lost_checkpoints_are_listed_parents_first_and_what_hangs_free_is_hung_from_them() -> None:
    seen = facts({"theirs": ("vda",)}, layer("vda", NEW, "theirs"), layer("vdb", OLD), bases={"vda": NEW, "vdb": OLD})
    plan = plan_repair(seen, judge_checkpoints(seen))
    assert [(type(step), step.checkpoint) for step in plan.steps] == [(ListAgain, OLD), (ListAgain, NEW)]
    first, second = plan.steps
    assert isinstance(first, ListAgain)
    assert isinstance(second, ListAgain)
    assert first.parents == ("theirs",)  # the only one that is no younger
    assert second.parents[0] == OLD
    assert (first.creation_time, second.creation_time) == (1767312000, 1767398400)
    listed = facts({NEW: ("vda",)}, layer("vda", NEW), layer("vdb", OLD), bases={"vda": NEW, "vdb": OLD})
    told = [str(step) for step in plan_repair(listed, judge_checkpoints(listed)).steps]
    assert told == [
        f"define the checkpoint {OLD} again, with vdb",
        f"make {OLD} the parent of the checkpoint {NEW}",
    ]


def test_broken_and_left_over_ones_go_record_first_and_image_by_image() -> None:
    seen = facts(
        {OLD: BOTH, GONE: ("vda",), NEW: BOTH},
        layer("vda", GONE, NEW),
        layer("vdb", OLD, NEW, in_use=True),
        bases={"vda": NEW},
    )
    plan = plan_repair(seen, judge_checkpoints(seen))
    assert plan.steps == (
        Forget(OLD),
        RemoveBitmap(OLD, "vdb", "/vdb"),
        Forget(GONE),
        RemoveBitmap(GONE, "vda", "/vda"),
        Narrow(NEW, ("vda",), ("vdb",), ("vdb",)),
    )


def test_what_could_not_be_looked_at_and_what_may_have_a_point_is_left_and_told() -> None:
    seen = facts(
        {GONE: ("vda",), NEW: ("vdb",)}, layer("vda", GONE), layer("vdb"), writers={"vdb": "qemu-nbd"}, unsure=True
    )
    plan = plan_repair(seen, judge_checkpoints(seen))
    assert plan.steps == ()
    assert len(plan.left) == 2
