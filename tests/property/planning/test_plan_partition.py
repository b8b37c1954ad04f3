"""No disk is ever left out silently, whatever the VM looks like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning import (
    Base,
    BaseDisk,
    BitmapHealth,
    ExclusionReason,
    Mode,
    PlannableDisk,
    PointPlan,
    PointRequest,
    Reason,
    plan_point,
)

TARGETS = ("vda", "vdb", "sda", "fda", "xvdc")
sizes = st.sampled_from([1 << 20, 1 << 30])
# Mostly what can be planned, so that both outcomes are drawn often.
disks = st.builds(
    PlannableDisk,
    target=st.sampled_from(TARGETS),
    device=st.sampled_from(["disk", "disk", "disk", "disk", "cdrom", "floppy", "lun"]),
    bus=st.sampled_from(["virtio", "virtio", "scsi", "sata", "sd", None]),
    source_kind=st.sampled_from(["file"] * 9 + ["block", "network", "volume", "none", "other"]),
    source=st.sampled_from(["/a", "/a", "/b"]),
    format=st.sampled_from(["qcow2"] * 6 + ["raw", None]),
    readonly=st.sampled_from([False] * 9 + [True]),
    shareable=st.booleans(),
    transient=st.sampled_from([False] * 9 + [True]),
    encrypted=st.sampled_from([False] * 9 + [True]),
    size_bytes=st.one_of(sizes, sizes, sizes, st.none()),
    error_policy=st.sampled_from([None, None, "stop", "enospace", "report"]),
    free_scratch_bytes=st.one_of(st.none(), sizes),
)
bases = st.builds(
    Base,
    point_id=st.just("p"),
    checkpoint=st.just("c"),
    disks=st.dictionaries(
        st.sampled_from(TARGETS), st.builds(BaseDisk, source=st.sampled_from(["/a", "/b"]), size_bytes=sizes)
    ),
)
requests = st.builds(
    PointRequest,
    vm=st.text(min_size=1, max_size=5),
    running=st.sampled_from([True] * 9 + [False]),
    disks=st.lists(disks, max_size=4, unique_by=lambda disk: disk.target).map(tuple),
    base=st.one_of(st.none(), bases, bases),
    checkpoint_listed=st.sampled_from([True, True, False]),
    bitmaps=st.dictionaries(st.sampled_from(TARGETS), st.sampled_from([BitmapHealth.SOUND] * 3 + list(BitmapHealth))),
    force_full=st.sampled_from([False] * 4 + [True]),
    exclude=st.frozensets(st.sampled_from([*TARGETS, "nope"]), max_size=1),
)


@given(requests)
def test_every_disk_is_read_or_excluded_or_refused(request: PointRequest) -> None:
    plan = plan_point(request)
    targets = {disk.target for disk in request.disks}
    if isinstance(plan, PointPlan):
        named = [*(d.target for d in plan.disks), *(e.target for e in plan.excluded)]
        assert sorted(named) == sorted(targets)
        assert request.running
        assert plan.disks
        asked = {e.target for e in plan.excluded if e.reason is ExclusionReason.REQUESTED}
        assert asked == request.exclude
    else:
        assert plan.refusals
        refused = [refusal.target for refusal in plan.refusals if refusal.target in targets]
        assert len(refused) == len(set(refused))
        assert not request.exclude & set(refused)


@given(requests)
def test_incremental_only_on_the_same_disk_with_a_sound_bitmap(request: PointRequest) -> None:
    plan = plan_point(request)
    if not isinstance(plan, PointPlan):
        return
    by_target = {disk.target: disk for disk in request.disks}
    for planned in plan.disks:
        assert (planned.mode is Mode.INCREMENTAL) == (planned.reason is Reason.INCREMENTAL)
        assert (planned.mode is Mode.INCREMENTAL) == (planned.base_checkpoint is not None)
        if planned.mode is Mode.INCREMENTAL:
            disk = by_target[planned.target]
            assert request.base is not None
            assert request.base.disks[planned.target] == BaseDisk(
                source=disk.source or "", size_bytes=disk.size_bytes or 0, format=disk.format or ""
            )
            assert request.checkpoint_listed
            assert request.bitmaps[planned.target] is BitmapHealth.SOUND
            assert not request.force_full
            assert not disk.shareable
