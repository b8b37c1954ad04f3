"""vmkeep is killed at every place of a restore: the next start finishes it, whole, and leaves nothing beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.bed import (
    KILLED,
    Bed,
    Trap,
    assert_files_hold,
    assert_no_leavings,
    remove_tree,
)
from tests.crash.walk import SHARES, deaths, need_effects
from tests.rig import assert_images_equal, read_offline_image
from tests.system.truth import checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_RESTORE = "vmkeep.host.restores.items:"
_STEP = "vmkeep.flows.plan:Plan.step"


def _name(place: tuple[str, str]) -> str:
    return f"{place[0]}-{place[1].rpartition(':')[2]}"


# Before the flow is recorded nothing was begun, so nothing is finished: the command is given again.
_NOT_BEGUN = [
    ("before", "vmkeep.catalog.sql:SqlCatalog.begin_operation"),
    ("after", "vmkeep.catalog.sql:SqlCatalog.begin_operation"),
]
_DELIVERY = [
    ("before", _STEP),
    ("after", _STEP),
    ("before", _RESTORE + "deliver_disk"),
    ("after", "vmkeep.repository.fetch:open_blocks"),
    ("after", _RESTORE + "deliver_disk"),
    ("before", _RESTORE + "stage_tpm"),
    ("before", "vmkeep.statefiles.installation:_write"),
    ("after", _RESTORE + "deliver_items"),
    ("after", f"{_STEP}#2"),
    ("before", _RESTORE + "publish"),
    ("before", "vmkeep.statefiles.installation:_sync#4"),
    ("after", _RESTORE + "publish#2"),
    ("after", _RESTORE + "publish_items"),
    ("after", f"{_STEP}#3"),
]
_END = [
    ("before", _RESTORE + "remove#2"),
    ("after", _RESTORE + "discard_replaced"),
    ("after", f"{_STEP}#4"),
]
_RECORDED = [("before", "vmkeep.catalog.sql:SqlCatalog.move_operation")]


@pytest.mark.parametrize("place", [*sampled(_DELIVERY, 2), *sampled(_END, 1)], ids=_name)
def test_killed_restore_to_files_is_finished_by_the_next_start(bed: Bed, place: tuple[str, str]) -> None:
    point, truth = next(iter(bed.truths.items()))
    output = _output_with_older_files(bed)
    outcome = bed.zygote.run(["restore", point, str(output), "force"], traps=[Trap(*place)])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"

    _assert_settled(bed, finished=True)
    assert_files_hold(output, truth)
    remove_tree(output)
    bed.sound = True


@pytest.mark.parametrize("place", [*_NOT_BEGUN, *_RECORDED], ids=_name)
def test_restore_killed_before_or_after_its_flow_needs_nothing(bed: Bed, place: tuple[str, str]) -> None:
    point, truth = next(iter(bed.truths.items()))
    output = _output_with_older_files(bed)
    before = sorted(path.name for path in output.rglob("*"))
    outcome = bed.zygote.run(["restore", point, str(output), "force"], traps=[Trap(*place)])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"

    _assert_settled(bed, finished=False)
    if place in _NOT_BEGUN:
        assert sorted(path.name for path in output.rglob("*")) == before
        bed.zygote.run(["restore", point, str(output), "force"]).acts  # noqa: B018  raises when it failed
    assert_files_hold(output, truth)
    remove_tree(output)
    bed.sound = True


@pytest.mark.parametrize(
    "place",
    [
        *sampled(_DELIVERY, 2),
        *sampled(
            [
                ("before", "vmkeep.hypervisor.connection:Hypervisor.define"),
                ("after", "vmkeep.hypervisor.connection:Hypervisor.define"),
                ("after", f"{_STEP}#4"),
                ("after", f"{_STEP}#5"),
                *_END[:2],
            ],
            2,
        ),
    ],
    ids=_name,
)
def test_killed_restore_as_vm_is_finished_by_the_next_start(bed: Bed, place: tuple[str, str]) -> None:
    point, truth = next(iter(bed.truths.items()))
    outcome = bed.zygote.run(["restore_vm", point, "copy", "same"], traps=[Trap(*place)])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"

    _assert_settled(bed, finished=True)
    copy = bed.host.vm("copy")
    for target, image in truth.disks.items():
        assert_images_equal(read_offline_image(copy.disk_path(target)), bytes(image), target)
    assert copy.tpm_state() == truth.tpm
    assert copy.nvram() == truth.nvram
    for directory in (bed.host.dir / "disks", copy.tpm_directory.parent, copy.nvram_path.parent):
        assert_no_leavings(directory)
    copy.delete()
    bed.sound = True


@pytest.mark.parametrize("share", range(SHARES))
def test_restore_to_files_killed_at_any_effect_is_finished_or_never_began(bed: Bed, share: int) -> None:
    need_effects()
    point, truth = next(iter(bed.truths.items()))
    command = ["restore", point, str(bed.host.dir / "work" / "output"), "force"]
    output = _output_with_older_files(bed)
    before = sorted(path.name for path in output.rglob("*"))
    bed.zygote.walk(command).acts  # noqa: B018  raises when it failed
    effects = bed.zygote.effects
    for death in deaths(effects, 2, daily=True)[share::SHARES]:
        remove_tree(output)
        _output_with_older_files(bed)
        bed.zygote.walk(command, death=death)
        recovered = bed.zygote.run(["look"]).recovered
        try:
            assert_no_leavings(output)
            if recovered == [] and sorted(path.name for path in output.rglob("*")) == before:
                bed.zygote.run(command).acts  # noqa: B018  raises when it failed
            assert_files_hold(output, truth)
            bed.assert_nothing_stale(*checkpoints(bed.vm))
        except AssertionError as error:
            error.add_note(f"killed at {death}: {effects[(death.effect or 1) - 1]}")
            raise
    remove_tree(output)
    bed.sound = True


@pytest.mark.parametrize("share", range(SHARES))
def test_restore_as_vm_killed_at_any_effect_is_finished_or_never_began(bed: Bed, share: int) -> None:
    need_effects()
    point, truth = next(iter(bed.truths.items()))
    command = ["restore_vm", point, "copy", "same"]
    assert bed.zygote.walk(command).status == 0
    effects = bed.zygote.effects
    bed.host.vm("copy").delete()
    for death in deaths(effects, 2, daily=True)[share::SHARES]:
        bed.zygote.walk(command, death=death)
        bed.zygote.run(["look"]).acts  # noqa: B018  raises when it failed
        try:
            if "copy" not in [domain.name() for domain in bed.host.connection.listAllDomains()]:
                bed.zygote.run(command).acts  # noqa: B018  raises when it failed
            copy = bed.host.vm("copy")
            for target, image in truth.disks.items():
                assert_images_equal(read_offline_image(copy.disk_path(target)), bytes(image), target)
            assert (copy.tpm_state(), copy.nvram()) == (truth.tpm, truth.nvram)
            for directory in (bed.host.dir / "disks", copy.tpm_directory.parent, copy.nvram_path.parent):
                assert_no_leavings(directory)
            bed.assert_nothing_stale(*checkpoints(bed.vm))
        except AssertionError as error:
            error.add_note(f"killed at {death}: {effects[(death.effect or 1) - 1]}")
            raise
        copy.delete()
    bed.sound = True


def test_finishing_that_is_killed_itself_is_finished_by_the_start_after(bed: Bed) -> None:
    point, truth = next(iter(bed.truths.items()))
    output = bed.host.dir / "work" / "output"
    killed = [
        bed.zygote.run(["restore", point, str(output)], traps=[Trap("after", _RESTORE + "deliver_items")]),
        bed.zygote.run(["look"], traps=[Trap("before", _RESTORE + "publish#2")]),
        bed.zygote.run(["look"], traps=[Trap("after", "vmkeep.flows.engine:DBOS.resume_workflow")]),
    ]
    assert [outcome.status for outcome in killed] == [KILLED] * 3

    _assert_settled(bed, finished=True)
    assert_files_hold(output, truth)
    remove_tree(output)
    bed.sound = True


@pytest.mark.parametrize(
    "place",
    sampled(
        [
            ("before", "vmkeep.flows.take_point:remove_point"),
            ("after", "vmkeep.flows.take_point:remove_point"),
            ("before", "vmkeep.flows.take_point:record_committed_point"),
            ("after", "vmkeep.flows.take_point:record_committed_point"),
            ("after", "vmkeep.flows.engine:DBOS.cancel_workflow"),
        ],
        2,
    ),
    ids=_name,
)
def test_undoing_of_a_point_that_is_killed_itself_is_undone_by_the_start_after(
    bed: Bed, place: tuple[str, str]
) -> None:
    bed.change()
    killed_content = bed.content.copy()
    # A point that was committed would be recorded, and one of which nothing was begun has nothing to undo.
    committed = "record" in place[1]
    trap = Trap("after", f"vmkeep.flows.take_point:{'copy' if committed else 'open'}_point")
    assert bed.zygote.run(["backup", bed.vm.name], traps=[trap]).status == KILLED
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[Trap(*place)])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    bed.next_backup_and_prove_all(killed=killed_content)


def _output_with_older_files(bed: Bed) -> Path:
    """Make an output directory in which a file has to be replaced."""
    output = bed.host.dir / "work" / "output"
    output.mkdir()
    (output / "vda.raw").write_bytes(b"older")
    (output / "tpm").mkdir()
    (output / "tpm" / "older").touch()
    return output


def _assert_settled(bed: Bed, *, finished: bool) -> None:
    """Start vmkeep once more, and look that it told of the restore and that nothing is left open."""
    outcome = bed.zygote.run(["look"])
    unfinished, points, stored = outcome.acts[0]
    assert unfinished == []
    assert points == stored == sorted(bed.truths)
    assert [told for told in outcome.recovered if "was finished" in told] == outcome.recovered
    assert len(outcome.recovered) == (1 if finished else 0)
    bed.assert_nothing_stale(*checkpoints(bed.vm))
