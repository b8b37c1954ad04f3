"""No disk is left out silently, built on a base in doubt, or harmed by another disk, whatever the VM looks like."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from vmkeep.planning import (
    Base,
    BaseDisk,
    BitmapHealth,
    DiskPlan,
    ExclusionReason,
    KeyState,
    Mode,
    PlannableDisk,
    PointPlan,
    PointRequest,
    Reason,
    Refusal,
    Refused,
    plan_point,
)

TARGETS = ("vda", "vdb", "sda", "fda", "xvdc")
sizes = st.sampled_from([1 << 20, 1 << 30])
paths = st.sampled_from(["/a", "/a", "/a", "/b"])


def mostly(usual: object, *others: object) -> st.SearchStrategy[object]:
    """Draw what can be planned more often, so that both outcomes are drawn often."""
    return st.sampled_from([*[usual] * 9, *others])


disks = st.builds(
    PlannableDisk,
    target=st.sampled_from(TARGETS),
    device=mostly("disk", "cdrom", "floppy", "lun", "tape"),
    bus=mostly("virtio", "scsi", "sata", "sd", None),
    source_kind=mostly("file", "block", "network", "volume", "none", "other"),
    source=paths,
    format=mostly("qcow2", "raw", None),
    backing_chain=st.lists(paths, max_size=2).map(tuple),
    holds_bitmaps=mostly(True, False),
    readonly=mostly(False, True),
    shareable=mostly(False, True),
    transient=mostly(False, True),
    encrypted=mostly(False, True),
    key=mostly(KeyState.KNOWN, *KeyState),
    encrypted_below=mostly(False, True),
    size_bytes=st.one_of(sizes, sizes, sizes, st.none()),
    error_policy=mostly(None, "stop", "enospace", "report", "ignore"),
    free_scratch_bytes=st.one_of(st.none(), sizes, st.just(1 << 33)),
    scratch_device=st.sampled_from([None, 1, 1, 2]),
)
base_disks = st.builds(
    BaseDisk, source=paths, size_bytes=sizes, format=mostly("qcow2", "raw"), bitmap=mostly(True, False)
)
bases = st.builds(
    Base,
    point_id=st.uuids().map(str),
    checkpoint=st.uuids().map(str),
    listed=st.sampled_from([True, True, False]),
    disks=st.dictionaries(st.sampled_from(TARGETS), base_disks),
    bitmaps=st.dictionaries(st.sampled_from(TARGETS), st.sampled_from([BitmapHealth.SOUND] * 5 + list(BitmapHealth))),
)
requests = st.builds(
    PointRequest,
    vm=st.text(min_size=1, max_size=5),
    running=st.booleans(),
    disks=st.lists(disks, max_size=4, unique_by=lambda disk: disk.target).map(tuple),
    bases=st.lists(bases, max_size=3, unique_by=lambda base: base.point_id).map(tuple),
    force_full=mostly(False, True),
    exclude=st.frozensets(st.sampled_from([*TARGETS, "nope"]), max_size=1),
    killed=st.booleans(),
)


def plans(outcome: PointPlan | Refused) -> dict[str, DiskPlan]:
    assert isinstance(outcome, PointPlan)
    return {planned.target: planned for planned in outcome.disks}


def refusals(outcome: PointPlan | Refused) -> dict[str, Refusal]:
    return {refusal.target: refusal for refusal in outcome.refusals} if isinstance(outcome, Refused) else {}


def plannable(request: PointRequest) -> PointRequest:
    """Return the request without the disks that are refused, and without an exclusion that is."""
    gone = refusals(plan_point(request))
    kept = tuple(disk for disk in request.disks if disk.target not in gone)
    return replace(request, disks=kept, exclude=request.exclude - set(gone))


@given(requests)
def test_every_disk_is_read_or_excluded_or_refused(request: PointRequest) -> None:
    plan = plan_point(request)
    targets = [disk.target for disk in request.disks]
    if isinstance(plan, PointPlan):
        named = [*(d.target for d in plan.disks), *(e.target for e in plan.excluded)]
        assert sorted(named) == sorted(targets)
        asked = {e.target for e in plan.excluded if e.reason is ExclusionReason.REQUESTED}
        assert asked == request.exclude
    else:
        assert plan.refusals
        refused = [refusal.target for refusal in plan.refusals]
        assert len(refused) == len(set(refused))
        assert set(refused) <= set(targets) | request.exclude
        assert request.exclude & set(refused) == request.exclude - set(targets)


@given(requests)
def test_disks_that_are_left_out_unasked_are_drives_or_empty(request: PointRequest) -> None:
    plan = plan_point(plannable(request))
    assert isinstance(plan, PointPlan)
    by_target = {disk.target: disk for disk in request.disks}
    for exclusion in plan.excluded:
        disk = by_target[exclusion.target]
        if exclusion.reason is not ExclusionReason.REQUESTED:
            assert disk.source_kind == "none" or disk.device in {"cdrom", "floppy"}


@given(requests)
def test_incremental_only_on_the_same_disk_with_a_sound_bitmap(request: PointRequest) -> None:
    request = plannable(request)
    by_target = {disk.target: disk for disk in request.disks}
    by_point = {base.point_id: base for base in request.bases}
    for planned in plans(plan_point(request)).values():
        incremental = planned.mode is Mode.INCREMENTAL
        assert incremental == (planned.reason is Reason.INCREMENTAL)
        assert incremental == (planned.base_point is not None) == (planned.base_checkpoint is not None)
        if not incremental:
            continue
        disk, base = by_target[planned.target], by_point[planned.base_point or ""]
        assert base.checkpoint == planned.base_checkpoint
        then = base.disks[planned.target]
        assert then.source in (disk.source, *disk.backing_chain)  # an overlay goes on with the bitmap of what is below
        assert then == BaseDisk(source=then.source, size_bytes=disk.size_bytes or 0, format="qcow2", bitmap=True)
        assert disk.format == "qcow2"
        assert base.listed
        assert base.bitmaps[planned.target] is BitmapHealth.SOUND
        assert not request.force_full


@given(requests)
def test_a_bitmap_is_made_where_libvirt_can_make_one_and_nowhere_else(request: PointRequest) -> None:
    request = plannable(request)
    by_target = {disk.target: disk for disk in request.disks}
    for planned in plans(plan_point(request)).values():
        disk = by_target[planned.target]
        can = disk.format == "qcow2" and disk.holds_bitmaps and disk.device == "disk" and disk.bus != "sd"
        used_alone = not (disk.shareable or disk.readonly or disk.transient)
        assert planned.bitmap == (can and used_alone)
        assert planned.bitmap == (planned.mode is not Mode.SCAN)


@given(requests)
def test_a_job_is_begun_only_on_what_libvirt_and_the_guest_bear_it(request: PointRequest) -> None:
    request = plannable(request)
    by_target = {disk.target: disk for disk in request.disks}
    for planned in plans(plan_point(request)).values():
        disk = by_target[planned.target]
        if request.running and not planned.from_image:
            assert not disk.transient
            assert disk.bus != "sd"
            assert disk.device == "disk"
        if planned.from_image:
            assert disk.source_kind in {"file", "block"}
            assert not request.running or disk.transient


@given(requests, disks)
def test_one_disk_never_changes_the_plan_of_the_others(request: PointRequest, bad: PlannableDisk) -> None:
    """But for scratch, which all disks of one file system must be able to fill (``vmkeep.planning.scratch``)."""
    bad = replace(bad, scratch_device=None)
    request = plannable(replace(request, disks=tuple(d for d in request.disks if d.target != bad.target)))
    alone = plans(plan_point(request))
    together = plan_point(replace(request, disks=(bad, *request.disks)))
    if isinstance(together, Refused):
        assert list(refusals(together)) == [bad.target]
        together = plan_point(replace(request, disks=(bad, *request.disks), exclude=request.exclude | {bad.target}))
    others = plans(together)
    others.pop(bad.target, None)
    assert others == alone


@given(requests, st.sampled_from(TARGETS), st.sampled_from(list(BitmapHealth)))
def test_one_bitmap_never_changes_the_plan_of_the_other_disks(
    request: PointRequest, target: str, health: BitmapHealth
) -> None:
    request = plannable(request)
    changed = replace(
        request, bases=tuple(replace(base, bitmaps={**base.bitmaps, target: health}) for base in request.bases)
    )
    before, after = plans(plan_point(request)), plans(plan_point(changed))
    before.pop(target, None)
    after.pop(target, None)
    assert before == after


@given(requests, st.data())
def test_a_base_that_is_gone_costs_no_more_than_reading_whole_what_was_built_on_it(
    request: PointRequest, data: st.DataObject
) -> None:
    request = plannable(request)
    assume(request.bases)
    gone = data.draw(st.sampled_from(request.bases))
    before = plans(plan_point(request))
    after = plans(plan_point(replace(request, bases=tuple(base for base in request.bases if base != gone))))
    assert before.keys() == after.keys()
    for target, planned in before.items():
        if planned.mode is Mode.SCAN:
            assert after[target] == planned
        elif planned.mode is Mode.FULL:
            assert after[target].mode is Mode.FULL
        elif planned.base_point != gone.point_id:
            assert after[target] == planned
        else:
            assert after[target].bitmap
            assert after[target].base_point != gone.point_id
