"""What a point reads of each disk, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmkeep import errors
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
    RefusalCode,
    Refused,
    WarningCode,
    plan_point,
)

GIB = 1 << 30


def disk(target: str = "vda", **changes: object) -> PlannableDisk:
    plain = PlannableDisk(target=target, bus="virtio", source=f"/images/{target}.qcow2", format="qcow2", size_bytes=GIB)
    return replace(plain, **changes)  # type: ignore[arg-type]  # the fields are named by the tests


CDROM = PlannableDisk(target="sda", device="cdrom", bus="sata", source_kind="none", readonly=True)
BASE = Base(
    point_id="p1",
    checkpoint="vmkeep-1",
    disks={
        "vda": BaseDisk(source="/images/vda.qcow2", size_bytes=GIB),
        "vdb": BaseDisk(source="/images/vdb.qcow2", size_bytes=GIB),
    },
)
SOUND = PointRequest(
    vm="win 11",
    running=True,
    disks=(disk("vda"), disk("vdb"), CDROM),
    base=BASE,
    checkpoint_listed=True,
    bitmaps={"vda": BitmapHealth.SOUND, "vdb": BitmapHealth.SOUND},
)


def planned(request: PointRequest) -> PointPlan:
    plan = plan_point(request)
    assert isinstance(plan, PointPlan)
    return plan


def refused(request: PointRequest) -> list[tuple[str, str | None]]:
    plan = plan_point(request)
    assert isinstance(plan, Refused)
    assert all(refusal.message and refusal.hint for refusal in plan.refusals)
    return [(refusal.code, refusal.target) for refusal in plan.refusals]


def test_disks_with_a_sound_base_are_read_incrementally_from_it() -> None:
    plan = planned(SOUND)
    assert [(d.target, d.mode, d.reason, d.base_checkpoint) for d in plan.disks] == [
        ("vda", Mode.INCREMENTAL, Reason.INCREMENTAL, "vmkeep-1"),
        ("vdb", Mode.INCREMENTAL, Reason.INCREMENTAL, "vmkeep-1"),
    ]
    assert [(e.target, e.reason) for e in plan.excluded] == [("sda", ExclusionReason.REMOVABLE_MEDIA)]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (replace(SOUND, base=None), "no-base"),
        (replace(SOUND, force_full=True), "forced"),
        (replace(SOUND, base=replace(BASE, disks={"vdb": BASE.disks["vdb"]})), "new-disk"),
        (replace(SOUND, disks=(disk("vda", source="/images/other.qcow2"), disk("vdb"))), "source-changed"),
        (replace(SOUND, disks=(disk("vda", size_bytes=2 * GIB), disk("vdb"))), "size-changed"),
        (replace(SOUND, disks=(disk("vda", shareable=True), disk("vdb"))), "shareable-disk"),
        (
            replace(SOUND, base=replace(BASE, disks={**BASE.disks, "vda": replace(BASE.disks["vda"], format="raw")})),
            "format-changed",
        ),
        (replace(SOUND, checkpoint_listed=False), "checkpoint-lost"),
        (replace(SOUND, bitmaps={**SOUND.bitmaps, "vda": BitmapHealth.MISSING}), "bitmap-missing"),
        (replace(SOUND, bitmaps={**SOUND.bitmaps, "vda": BitmapHealth.BROKEN}), "bitmap-broken"),
        (replace(SOUND, bitmaps={**SOUND.bitmaps, "vda": BitmapHealth.UNKNOWN}), "bitmap-unknown"),
        (replace(SOUND, bitmaps={"vdb": BitmapHealth.SOUND}), "bitmap-unknown"),
    ],
)
def test_disk_whose_base_is_unusable_is_read_whole_with_the_reason(request_: PointRequest, reason: str) -> None:
    first, second = planned(request_).disks
    assert (first.target, first.mode, first.reason, first.base_checkpoint) == ("vda", Mode.FULL, reason, None)
    assert first.detail
    concerns_all = reason in {"no-base", "forced", "checkpoint-lost"}
    assert second.mode is (Mode.FULL if concerns_all else Mode.INCREMENTAL)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "raw"},
        {"format": None},
        {"source_kind": "block"},
        {"source_kind": "network"},
        {"source_kind": "volume"},
        {"source_kind": "vhostuser"},
        {"source_kind": "none", "source": None},
        {"source": None},
        {"device": "lun"},
        {"bus": "sd"},
        {"transient": True},
        {"encrypted": True},
        {"readonly": True},
        {"size_bytes": None},
    ],
)
def test_disk_that_cannot_be_read_right_is_refused_by_name_until_it_is_excluded(changes: dict[str, object]) -> None:
    request = replace(SOUND, disks=(disk("vda", **changes), disk("vdb")))
    assert refused(request) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    plan = planned(replace(request, exclude=frozenset({"vda"})))
    assert [d.target for d in plan.disks] == ["vdb"]
    assert [(e.target, e.reason) for e in plan.excluded] == [("vda", ExclusionReason.REQUESTED)]


def test_every_reason_for_refusal_is_told_at_once() -> None:
    request = replace(
        SOUND, running=False, disks=(disk("vda", format="raw"), disk("vdb", transient=True)), exclude=frozenset({"xyz"})
    )
    assert refused(request) == [
        ("vm-not-running", None),
        ("invalid-request", "xyz"),
        ("disk-unsupported", "vda"),
        ("disk-unsupported", "vdb"),
    ]


def test_point_without_any_disk_is_refused() -> None:
    assert refused(replace(SOUND, exclude=frozenset({"vda", "vdb"}))) == [("invalid-request", None)]
    assert refused(replace(SOUND, disks=(CDROM,))) == [("invalid-request", None)]
    assert refused(replace(SOUND, disks=())) == [("invalid-request", None)]


@pytest.mark.parametrize(("free", "accepted"), [(None, False), (GIB - 1, False), (GIB, True)])
def test_disk_that_reports_errors_to_the_guest_needs_scratch_for_all_of_it(free: int | None, accepted: bool) -> None:
    request = replace(SOUND, disks=(disk("vda", error_policy="report", free_scratch_bytes=free), disk("vdb")))
    if accepted:
        assert planned(request).disks[0].mode is Mode.INCREMENTAL
    else:
        assert refused(request) == [(RefusalCode.NO_SPACE, "vda")]


def test_shareable_disk_is_warned_of() -> None:
    warnings = planned(replace(SOUND, disks=(disk("vda", shareable=True), disk("vdb")))).warnings
    assert [(w.code, w.target) for w in warnings] == [(WarningCode.SHAREABLE_DISK, "vda")]
    assert planned(SOUND).warnings == ()


def test_refusals_carry_codes_of_errors() -> None:
    assert {code.value for code in RefusalCode} <= set(errors.error_classes())
