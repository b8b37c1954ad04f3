"""What a point reads of each disk, what it leaves out, and what is refused."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace

import pytest

from vmkeep import errors
from vmkeep.planning import (
    MOST_CLIENTS,
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
    RefusalCode,
    Refused,
    WarningCode,
    codes,
    hint_of,
    plan_point,
)

GIB = 1 << 30


def disk(target: str = "vda", **changes: object) -> PlannableDisk:
    plain = PlannableDisk(target=target, bus="virtio", source=f"/images/{target}.qcow2", format="qcow2", size_bytes=GIB)
    return replace(plain, **changes)  # type: ignore[arg-type]  # the fields are named by the tests


CDROM = PlannableDisk(target="sda", device="cdrom", bus="sata", source="/iso/win.iso", format="raw", readonly=True)
EMPTY = PlannableDisk(target="sdb", device="cdrom", bus="sata", source_kind="none", readonly=True)
BASE = Base(
    point_id="p1",
    checkpoint="vmkeep-1",
    listed=True,
    disks={
        "vda": BaseDisk(source="/images/vda.qcow2", size_bytes=GIB),
        "vdb": BaseDisk(source="/images/vdb.qcow2", size_bytes=GIB),
    },
    bitmaps={"vda": BitmapHealth.SOUND, "vdb": BitmapHealth.SOUND},
)
OLDER = replace(BASE, point_id="p0", checkpoint="vmkeep-0")
SOUND = PointRequest(vm="win 11", running=True, disks=(disk("vda"), disk("vdb"), CDROM, EMPTY), bases=(BASE,))


def with_vda(request: PointRequest = SOUND, **changes: object) -> PointRequest:
    return replace(request, disks=(disk("vda", **changes), disk("vdb")))


def with_base_disk(base: Base = BASE, **changes: object) -> Base:
    changed = replace(base.disks["vda"], **changes)  # type: ignore[arg-type]  # the fields are named by the tests
    return replace(base, disks={**base.disks, "vda": changed})


def with_health(health: BitmapHealth, base: Base = BASE) -> Base:
    return replace(base, bitmaps={**base.bitmaps, "vda": health})


def planned(request: PointRequest) -> PointPlan:
    plan = plan_point(request)
    assert isinstance(plan, PointPlan)
    return plan


def refused(request: PointRequest) -> list[tuple[str, str]]:
    plan = plan_point(request)
    assert isinstance(plan, Refused)
    assert all(refusal.message and hint_of([refusal]) for refusal in plan.refusals)
    return [(refusal.code, refusal.target) for refusal in plan.refusals]


def the_refusal(request: PointRequest) -> tuple[str, str]:
    plan = plan_point(request)
    assert isinstance(plan, Refused)
    (refusal,) = plan.refusals
    return refusal.message, hint_of([refusal])


def test_what_to_do_about_many_disks_is_said_once() -> None:
    disks = tuple(disk(f"vd{letter}", size_bytes=None, image_fault=f"/{letter} is not there") for letter in "abcdef")
    plan = plan_point(replace(SOUND, disks=disks, bases=()))
    assert isinstance(plan, Refused)
    hint = hint_of(plan.refusals)
    assert hint.count("Put the image in its place") == 1
    assert "Or leave them out by name with --exclude vda --exclude vdb --exclude vdc" in hint
    assert hint.count("the point then says") == 1


# -- incremental, or the reason why not ------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_disks_with_a_sound_base_are_read_incrementally_from_it(running: bool) -> None:
    plan = planned(replace(SOUND, running=running))
    assert plan.disks == tuple(
        DiskPlan(
            target=target,
            mode=Mode.INCREMENTAL,
            reason=Reason.INCREMENTAL,
            detail="what was written since checkpoint vmkeep-1 of point p1",
            bitmap=True,
            from_image=not running,
            base_point="p1",
            base_checkpoint="vmkeep-1",
        )
        for target in ("vda", "vdb")
    )
    assert plan.warnings == ()


@pytest.mark.parametrize("running", [True, False])
def test_overlay_that_goes_on_with_the_bitmap_of_its_base_is_read_incrementally(running: bool) -> None:
    overlaid = with_vda(source="/images/vda.snap1", backing_chain=("/images/vda.qcow2",))
    assert planned(replace(overlaid, running=running)).disks == planned(replace(SOUND, running=running)).disks


@pytest.mark.parametrize(
    ("request_", "reason", "detail"),
    [
        (replace(SOUND, bases=()), "no-base", "no earlier point"),
        (replace(SOUND, force_full=True), "forced", "asked for"),
        (replace(SOUND, bases=(), force_full=True), "forced", "asked for"),
        (replace(SOUND, bases=(replace(BASE, disks={"vdb": BASE.disks["vdb"]}),)), "new-disk", "p1 has no disk vda"),
        (with_vda(source="/images/other.qcow2"), "source-changed", "was /images/vda.qcow2 and is /images/other.qcow2"),
        (
            with_vda(
                replace(SOUND, bases=(with_health(BitmapHealth.GAP),)),
                source="/images/vda.snap1",
                backing_chain=("/images/vda.qcow2", "/images/golden.qcow2"),
            ),
            "external-snapshot",
            "was /images/vda.qcow2 and is an overlay of that, /images/vda.snap1",
        ),
        (
            with_vda(source="/images/vda.snap1", backing_chain=("/images/vda.qcow2",), size_bytes=2 * GIB),
            "size-changed",
            f"had {GIB} bytes",
        ),
        (
            with_vda(source="/images/clone.qcow2", backing_chain=("/images/golden.qcow2",)),
            "source-changed",
            "is /images/clone.qcow2",
        ),
        (replace(SOUND, bases=(with_base_disk(format="raw"),)), "format-changed", "was raw and is qcow2"),
        (with_vda(size_bytes=2 * GIB), "size-changed", f"had {GIB} bytes and has {2 * GIB}"),
        (replace(SOUND, bases=(replace(BASE, listed=False),)), "checkpoint-lost", "does not list checkpoint vmkeep-1"),
        (replace(SOUND, bases=(with_base_disk(bitmap=False),)), "bitmap-missing", "p1 made no bitmap"),
        (replace(SOUND, bases=(with_health(BitmapHealth.MISSING),)), "bitmap-missing", "vmkeep-1"),
        (replace(SOUND, bases=(with_health(BitmapHealth.INCONSISTENT),)), "bitmap-inconsistent", "not closed"),
        (replace(SOUND, bases=(with_health(BitmapHealth.NOT_RECORDING),)), "bitmap-not-recording", "disabled"),
        (replace(SOUND, bases=(with_health(BitmapHealth.UNFITTING),)), "bitmap-unfitting", "does not fit"),
        (replace(SOUND, bases=(with_health(BitmapHealth.GAP),)), "bitmap-gap", "not in every image"),
        (replace(SOUND, bases=(with_health(BitmapHealth.UNKNOWN),)), "bitmap-unknown", "vmkeep-1"),
        (
            replace(SOUND, bases=(replace(BASE, bitmaps={"vdb": BitmapHealth.SOUND}),)),
            "bitmap-unknown",
            "nothing is known",
        ),
    ],
)
def test_disk_whose_base_is_unusable_is_read_whole_with_the_reason(
    request_: PointRequest, reason: str, detail: str
) -> None:
    first, second = planned(request_).disks
    assert (first.target, first.mode, first.reason) == ("vda", Mode.FULL, reason)
    assert (first.base_point, first.base_checkpoint, first.bitmap) == (None, None, True)
    assert detail in first.detail
    concerns_all = reason in {"no-base", "forced", "checkpoint-lost"}
    assert second.mode is (Mode.FULL if concerns_all else Mode.INCREMENTAL)


@pytest.mark.parametrize("health", [BitmapHealth.MISSING, BitmapHealth.INCONSISTENT])
@pytest.mark.parametrize("listed", [True, False])
def test_bitmap_lost_with_a_killed_qemu_is_told_as_that(health: BitmapHealth, listed: bool) -> None:
    base = replace(with_health(health), listed=listed)
    killed = replace(SOUND, running=False, killed=True, bases=(base,))
    first, second = planned(killed).disks
    assert (first.mode, first.reason) == (Mode.FULL, Reason.QEMU_KILLED)
    assert "QEMU died" in first.detail
    assert second.mode is (Mode.INCREMENTAL if listed else Mode.FULL)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (BASE, "incremental"),
        (with_health(BitmapHealth.GAP), "bitmap-gap"),
        (with_health(BitmapHealth.NOT_RECORDING), "bitmap-not-recording"),
        (replace(with_health(BitmapHealth.MISSING), disks=with_base_disk(bitmap=False).disks), "bitmap-missing"),
        (replace(with_health(BitmapHealth.MISSING), disks={}), "new-disk"),
    ],
)
def test_killed_qemu_is_not_blamed_for_what_it_did_not_do(base: Base, reason: str) -> None:
    assert planned(replace(SOUND, running=False, killed=True, bases=(base,))).disks[0].reason == reason


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (BitmapHealth.SOUND, "checkpoint-lost"),
        (BitmapHealth.MISSING, "checkpoint-lost"),
        (BitmapHealth.UNKNOWN, "checkpoint-lost"),
        (BitmapHealth.INCONSISTENT, "bitmap-inconsistent"),
        (BitmapHealth.NOT_RECORDING, "bitmap-not-recording"),
        (BitmapHealth.UNFITTING, "bitmap-unfitting"),
        (BitmapHealth.GAP, "bitmap-gap"),
    ],
)
def test_fault_of_the_bitmap_tells_why_its_checkpoint_could_not_be_defined_again(
    health: BitmapHealth, reason: str
) -> None:
    base = replace(with_health(health), listed=False)
    assert planned(replace(SOUND, bases=(base,))).disks[0].reason == reason


def test_what_was_done_to_the_disk_tells_more_than_its_bitmap() -> None:
    base = replace(with_health(BitmapHealth.INCONSISTENT), listed=False)
    request = with_vda(replace(SOUND, bases=(base,), running=False, killed=True), size_bytes=2 * GIB)
    assert planned(request).disks[0].reason is Reason.SIZE_CHANGED


# -- several bases ---------------------------------------------------------------------------------------------


def test_each_disk_takes_the_newest_base_that_fits_it() -> None:
    newest = with_health(BitmapHealth.INCONSISTENT)
    plan = planned(replace(SOUND, bases=(newest, OLDER)))
    assert [(d.target, d.mode, d.base_point, d.base_checkpoint) for d in plan.disks] == [
        ("vda", Mode.INCREMENTAL, "p0", "vmkeep-0"),
        ("vdb", Mode.INCREMENTAL, "p1", "vmkeep-1"),
    ]


def test_disk_that_was_left_out_of_the_newest_point_goes_on_from_the_older_one() -> None:
    newest = replace(BASE, disks={"vdb": BASE.disks["vdb"]})
    first, second = planned(replace(SOUND, bases=(newest, OLDER))).disks
    assert (first.base_point, second.base_point) == ("p0", "p1")


def test_reason_is_that_of_the_newest_base_when_none_fits() -> None:
    newest, older = with_health(BitmapHealth.INCONSISTENT), replace(OLDER, listed=False)
    first, second = planned(replace(SOUND, bases=(newest, older))).disks
    assert (first.mode, first.reason) == (Mode.FULL, Reason.BITMAP_INCONSISTENT)
    assert (second.mode, second.base_point) == (Mode.INCREMENTAL, "p1")


def test_forced_point_is_built_on_no_base_at_all() -> None:
    plan = planned(replace(SOUND, bases=(BASE, OLDER), force_full=True))
    assert {(d.mode, d.reason, d.base_point) for d in plan.disks} == {(Mode.FULL, Reason.FORCED, None)}


# -- disks without bitmaps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("force_full", [False, True])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"format": "raw"}, "no-bitmaps", "format raw"),
        ({"format": "vmdk"}, "no-bitmaps", "format vmdk"),
        ({"format": None}, "no-bitmaps", "format raw"),
        ({"source_kind": "block", "source": "/dev/vg/vda", "format": "raw"}, "no-bitmaps", "format raw"),
        ({"holds_bitmaps": False}, "no-bitmaps", "version 2"),
        ({"readonly": True}, "read-only-disk", "cannot write"),
        ({"readonly": True, "format": "raw"}, "read-only-disk", "cannot write"),
        ({"shareable": True}, "shareable-disk", "other VMs"),
        ({"shareable": True, "format": "raw"}, "shareable-disk", "other VMs"),
        ({"transient": True, "backing_chain": ("/images/vda.qcow2",)}, "transient-disk", "dropped"),
    ],
)
def test_disk_that_gets_no_bitmap_is_scanned(
    changes: dict[str, object], reason: str, detail: str, running: bool, force_full: bool
) -> None:
    request = with_vda(replace(SOUND, running=running, force_full=force_full), **changes)
    first, second = planned(request).disks
    assert (first.mode, first.reason, first.bitmap) == (Mode.SCAN, reason, False)
    assert (first.base_point, first.base_checkpoint) == (None, None)
    assert detail in first.detail
    assert second.mode is (Mode.FULL if force_full else Mode.INCREMENTAL)


def test_qcow2_on_a_block_device_is_incremental_as_in_a_file() -> None:
    base = with_base_disk(source="/dev/vg/vda")
    request = with_vda(replace(SOUND, bases=(base,)), source_kind="block", source="/dev/vg/vda")
    assert planned(request).disks[0].mode is Mode.INCREMENTAL


def test_disk_on_the_network_is_read_while_the_vm_runs_and_refused_by_name_while_it_is_off() -> None:
    request = with_vda(source_kind="network", source="rbd:pool/vda", format="raw")
    assert planned(request).disks[0].mode is Mode.SCAN
    message, hint = the_refusal(replace(request, running=False))
    assert "vda" in message
    assert "rbd:pool/vda" in message
    assert "Start the VM" in hint
    assert "--exclude vda" in hint


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "lun", "source_kind": "block", "source": "/dev/sdq", "format": "raw"},
        {"bus": "sd"},
    ],
)
def test_disk_on_which_no_job_can_begin_is_scanned_while_the_vm_is_off(changes: dict[str, object]) -> None:
    request = with_vda(replace(SOUND, running=False), **changes)
    (first, _) = planned(request).disks
    assert (first.mode, first.reason, first.from_image) == (Mode.SCAN, Reason.NO_BITMAPS, True)
    message, hint = the_refusal(replace(request, running=True))
    assert "disk vda" in message
    assert "while the VM is off" in hint


def test_transient_disk_of_a_running_vm_is_read_from_the_image_below_and_warned_of() -> None:
    request = with_vda(transient=True, source="/images/vda.TRANSIENT", backing_chain=("/images/vda.qcow2",))
    plan = planned(request)
    assert [(d.target, d.from_image) for d in plan.disks] == [("vda", True), ("vdb", False)]
    assert [(w.code, w.target) for w in plan.warnings] == [(WarningCode.TRANSIENT_DISK, "vda")]
    assert planned(replace(request, running=False)).warnings == ()


def test_transient_disk_of_a_running_vm_whose_image_is_not_known_is_refused() -> None:
    request = with_vda(transient=True)
    assert refused(request) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert planned(replace(request, running=False)).disks[0].mode is Mode.SCAN
    elsewhere = with_vda(transient=True, source_kind="network", source="nbd:vda", backing_chain=("nbd:below",))
    assert refused(elsewhere) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]


@pytest.mark.parametrize("running", [True, False])
def test_shareable_disk_is_warned_of(running: bool) -> None:
    warnings = planned(with_vda(replace(SOUND, running=running), shareable=True)).warnings
    assert [(w.code, w.target) for w in warnings] == [(WarningCode.SHAREABLE_DISK, "vda")]


# -- what is left out ------------------------------------------------------------------------------------------


def test_drives_are_named_as_left_out_with_and_without_a_medium() -> None:
    assert [(e.target, e.reason) for e in planned(SOUND).excluded] == [
        ("sda", ExclusionReason.REMOVABLE_MEDIA),
        ("sdb", ExclusionReason.NO_MEDIUM),
    ]


@pytest.mark.parametrize("device", ["disk", "lun", "cdrom", "floppy"])
def test_drive_without_a_medium_is_left_out_whatever_it_is(device: str) -> None:
    plan = planned(with_vda(device=device, source_kind="none", source=None, size_bytes=None))
    assert [(e.target, e.reason) for e in plan.excluded] == [("vda", ExclusionReason.NO_MEDIUM)]
    assert [d.target for d in plan.disks] == ["vdb"]


def test_disk_excluded_by_name_says_so_even_if_it_would_be_left_out_anyway() -> None:
    plan = planned(replace(SOUND, exclude=frozenset({"sda", "sdb"})))
    assert {e.reason for e in plan.excluded} == {ExclusionReason.REQUESTED}
    assert plan.warnings == ()


def test_point_without_any_disk_is_made_and_warned_of_when_the_vm_has_disks() -> None:
    plan = planned(replace(SOUND, exclude=frozenset({"vda", "vdb"})))
    assert plan.disks == ()
    assert [(w.code, w.target) for w in plan.warnings] == [(WarningCode.NO_DISKS, None)]
    assert "win 11" in plan.warnings[0].message


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("disks", [(), (CDROM,), (CDROM, EMPTY)])
def test_vm_that_has_no_disks_gets_a_point_without_a_warning(disks: tuple[PlannableDisk, ...], running: bool) -> None:
    plan = planned(replace(SOUND, disks=disks, running=running))
    assert (plan.disks, plan.warnings) == ((), ())
    assert len(plan.excluded) == len(disks)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"source_kind": "volume", "source": "tank/vda"}, "virsh pool-start tank"),
        ({"source_kind": "volume", "source": None}, "Start the pool"),
        ({"source_kind": "vhostuser"}, "vhostuser"),
        ({"source_kind": "nvme"}, "nvme"),
        ({"source_kind": "dir"}, "dir"),
        ({"source": None}, "no path"),
        ({"device": "tape"}, "tape"),
        ({"encrypted": True, "key": KeyState.UNUSABLE}, "encrypted"),
        ({"encrypted": True, "key": KeyState.UNUSABLE, "format": "raw"}, "encrypted"),
        ({"size_bytes": None}, "size that is not known"),
        ({"size_bytes": None, "image_fault": "the disk image, /x, is not there"}, "/x, is not there"),
    ],
)
def test_disk_that_cannot_be_read_right_is_refused_by_name_until_it_is_excluded(
    changes: dict[str, object], told: str, running: bool
) -> None:
    request = with_vda(replace(SOUND, running=running), **changes)
    message, hint = the_refusal(request)
    assert refused(request) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert message.startswith("disk vda ")
    assert told in message + hint
    assert "--exclude vda" in hint
    plan = planned(replace(request, exclude=frozenset({"vda"})))
    assert [(d.target, d.mode) for d in plan.disks] == [("vdb", Mode.INCREMENTAL)]
    assert [(e.target, e.reason) for e in plan.excluded] == [("vda", ExclusionReason.REQUESTED)]


def test_every_reason_for_refusal_is_told_at_once() -> None:
    request = replace(
        SOUND, disks=(disk("vda", device="tape"), disk("vdb", source_kind="nvme")), exclude=frozenset({"xyz"})
    )
    assert refused(request) == [
        ("invalid-request", "xyz"),
        ("disk-unsupported", "vda"),
        ("disk-unsupported", "vdb"),
    ]


SECRET = "5d6f1a8e-0d0a-4c8b-9b46-0a7b1d2c3e4f"  # noqa: S105  its name
LOCKED: dict[str, object] = {"encrypted": True, "secret": SECRET}


@pytest.mark.parametrize("running", [True, False])
def test_encrypted_disk_is_read_like_another_and_the_secret_is_told(running: bool) -> None:
    plan = planned(with_vda(replace(SOUND, running=running), **LOCKED))
    assert [(d.target, d.mode, d.bitmap) for d in plan.disks] == [
        ("vda", Mode.INCREMENTAL, True),
        ("vdb", Mode.INCREMENTAL, True),
    ]
    assert [(w.code, w.target) for w in plan.warnings] == [(WarningCode.ENCRYPTED_DISK, "vda")]
    assert SECRET in plan.warnings[0].message


@pytest.mark.parametrize(
    ("key", "code", "hint"),
    [
        (KeyState.PRIVATE, RefusalCode.SECRET_PRIVATE, "Start the VM"),
        (KeyState.MISSING, RefusalCode.SECRET_MISSING, "virsh secret-define"),
    ],
)
def test_encrypted_disk_whose_secret_is_not_told_is_refused_by_name_while_the_vm_is_off(
    key: KeyState, code: RefusalCode, hint: str
) -> None:
    request = with_vda(replace(SOUND, running=False), key=key, **LOCKED)
    message, remedy = the_refusal(request)
    assert refused(request) == [(code, "vda")]
    assert SECRET in message
    assert hint in remedy
    assert "--exclude vda" in remedy
    assert planned(replace(request, exclude=frozenset({"vda"}))).warnings == ()


@pytest.mark.parametrize("running", [True, False])
def test_plain_overlay_of_an_encrypted_image_is_refused_because_its_restore_would_be_plain(running: bool) -> None:
    request = with_vda(replace(SOUND, running=running), encrypted_below=True)
    assert refused(request) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert "blockcommit" in the_refusal(request)[1]


def test_disk_on_an_encrypted_image_is_read_while_the_vm_runs_and_refused_while_it_is_off() -> None:
    assert len(planned(with_vda(SOUND, encrypted_below=True, **LOCKED)).disks) == 2
    request = with_vda(replace(SOUND, running=False), encrypted_below=True, **LOCKED)
    assert refused(request) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert "Start the VM" in the_refusal(request)[1]


def test_transient_encrypted_disk_is_read_only_while_the_vm_is_off() -> None:
    changes = {"transient": True, "backing_chain": ("/images/below.qcow2",), **LOCKED}
    assert refused(with_vda(SOUND, **changes)) == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert planned(with_vda(replace(SOUND, running=False), **changes)).disks[0].mode is Mode.SCAN


SCRATCH = GIB + GIB // 4096 + (1 << 20)  # the disk, and the tables of its scratch


@pytest.mark.parametrize("policy", ["report", "ignore"])
@pytest.mark.parametrize(("free", "accepted"), [(None, False), (SCRATCH - 1, False), (SCRATCH, True)])
def test_disk_whose_guest_is_not_stopped_by_full_scratch_needs_scratch_for_all_of_it(
    free: int | None, accepted: bool, policy: str
) -> None:
    request = with_vda(error_policy=policy, free_scratch_bytes=free)
    if accepted:
        assert planned(request).disks[0].mode is Mode.INCREMENTAL
        assert [plan.scratch_bytes for plan in planned(request).disks] == [SCRATCH, None]
    else:
        assert refused(request) == [(RefusalCode.NO_SPACE, "vda")]


@pytest.mark.parametrize("policy", [None, "stop", "enospace"])
def test_disk_whose_guest_is_stopped_by_full_scratch_needs_none_to_be_proven(policy: str | None) -> None:
    plan = planned(with_vda(error_policy=policy, free_scratch_bytes=0))
    assert [disk.scratch_bytes for disk in plan.disks] == [None, None]


@pytest.mark.parametrize(("free", "accepted"), [(2 * SCRATCH - 1, False), (2 * SCRATCH, True)])
def test_scratch_of_all_disks_on_one_file_system_is_counted_together(free: int, accepted: bool) -> None:
    one = disk("vda", error_policy="report", free_scratch_bytes=free, scratch_device=7)
    other = disk("vdb", free_scratch_bytes=free, scratch_device=7)
    elsewhere = disk("vdc", free_scratch_bytes=0, scratch_device=8)
    request = replace(SOUND, disks=(one, other, elsewhere))
    if accepted:
        assert [plan.scratch_bytes for plan in planned(request).disks] == [SCRATCH, SCRATCH, None]
    else:
        assert refused(request) == [(RefusalCode.NO_SPACE, "vda")]


@pytest.mark.parametrize(
    "request_",
    [
        with_vda(replace(SOUND, running=False), error_policy="report"),
        with_vda(error_policy="report", readonly=True),
        with_vda(error_policy="report", transient=True, backing_chain=("/images/vda.qcow2",)),
    ],
    ids=["stopped", "read-only", "transient"],
)
def test_disk_that_no_job_copies_before_writes_needs_no_scratch(request_: PointRequest) -> None:
    assert planned(request_).disks[0].target == "vda"


# -- the words -------------------------------------------------------------------------------------------------


def test_refusals_carry_codes_of_errors() -> None:
    assert {code.value for code in RefusalCode} <= set(errors.error_classes())


def test_every_code_has_its_meaning_beside_it() -> None:
    for kind in ast.parse(inspect.getsource(codes)).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        members = [index for index, node in enumerate(kind.body) if isinstance(node, ast.Assign)]
        assert members
        for index in members:
            meaning = kind.body[index + 1]
            assert isinstance(meaning, ast.Expr), ast.unparse(kind.body[index])
            assert isinstance(ast.literal_eval(meaning.value), str)


def test_disk_that_qemu_would_die_of_is_refused_only_where_a_job_has_it_and_the_vm_is_resumed() -> None:
    deadly = with_vda(in_io_thread=True, deadly_to_resume=True)
    outcome = plan_point(deadly)
    assert isinstance(outcome, Refused)
    assert [(refused.code, refused.target) for refused in outcome.refusals] == [(RefusalCode.DISK_UNSUPPORTED, "vda")]
    assert "iotune" in outcome.refusals[0].message
    assert "--exclude vda" in hint_of(outcome.refusals)
    assert isinstance(plan_point(replace(deadly, running=False)), PointPlan)
    assert isinstance(plan_point(replace(deadly, exclude=frozenset({"vda"}))), PointPlan)
    transient = with_vda(deadly_to_resume=True, transient=True, backing_chain=("/images/base.qcow2",))
    assert isinstance(plan_point(transient), PointPlan)  # which is read from its image


def test_no_more_disks_in_io_threads_are_planned_than_a_job_has_clients_for() -> None:
    disks = tuple(disk(f"sd{number}", in_io_thread=True) for number in range(MOST_CLIENTS + 1))
    request = replace(SOUND, disks=disks)
    outcome = plan_point(request)
    assert isinstance(outcome, Refused)
    assert str(MOST_CLIENTS) in outcome.refusals[0].message
    assert isinstance(plan_point(replace(request, disks=disks[1:])), PointPlan)
    assert isinstance(plan_point(replace(request, exclude=frozenset({"sd7"}))), PointPlan)
    assert isinstance(plan_point(replace(request, running=False)), PointPlan)
    others = tuple(replace(each, in_io_thread=False) for each in disks)
    assert isinstance(plan_point(replace(request, disks=others)), PointPlan)
