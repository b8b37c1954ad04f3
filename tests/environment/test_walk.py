"""Commands whose storage fails at one of their calls: the guest runs, nothing is lost, and the next command works.

`make test` plays a small sample of the calls; `python -m tests.environment` plays each kind of call with every error.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import Content, assert_files_hold
from tests.environment.injector import FOREVER
from tests.environment.stage import Stage
from tests.environment.walk import EVERY, MOST, Faulty
from tests.rig import Host, VmState
from tests.system.truth import checkpoints

pytestmark = [pytest.mark.system, pytest.mark.timeout(36_000 if EVERY or MOST else 300)]


def _cases(**most: int) -> list[tuple[str, int]]:
    """Return the places, and how many cases of each the small sample has; those without any are played by hand only."""
    return [(place, number) for place, number in most.items() if number or EVERY or MOST]


def _places(stage: Stage) -> dict[str, tuple[str | Path, ...]]:
    return {
        "home": (stage.home,),
        "repository": (stage.repository,),
        "images": (stage.host.dir / "disks", "/var/lib/libvirt"),
        "run": ("/run/vmkeep",),
    }


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=2, repository=1, images=1, run=0))
def test_backup_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    bed = stage.bed
    stage.turn(VmState.RUNNING)

    def words() -> Sequence[str]:
        bed.change()
        return ("backup", bed.vm.name)

    def check(faulty: Faulty) -> None:
        content = bed.content.copy()
        stage.assert_guest_is_free()
        if faulty.done:
            bed.truths[faulty.document()["point"]["id"]] = content
        if faulty.fault.times == FOREVER or faulty.hit.startswith("unlink"):
            stage.walk.run(("doctor", "--fix"), {})  # removes what could not be removed then
        bed.next_backup_and_prove_all(killed=content)

    stage.walk.over(_places(stage)[place], most, words, check)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=1, repository=1, output=2))
def test_restore_to_files_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    places = {**_places(stage), "output": (stage.host.dir / "work" / "out-",)}

    def words() -> Sequence[str | Path]:
        return ("restore", stage.point, "--output", stage.next_output(), "--format", "raw")

    def check(faulty: Faulty) -> None:
        _judge_files(stage, faulty)

    stage.walk.over(places[place], most, words, check)
    assert stage.walk.run(words(), {}).status == 0
    assert_files_hold(stage.output, stage.bed.truths[stage.point])
    shutil.rmtree(stage.output)


def _judge_files(stage: Stage, faulty: Faulty) -> None:
    """All of it is there and status 0, or none of it; what could not be removed bears our names."""
    output = stage.output
    if faulty.done:
        names = {path.name for path in output.iterdir()}
        left = {name for name in names if name.endswith((".partial", ".published", ".replaced"))}
        assert not left or faulty.fault.at, left
        for name in left:
            (output / name).unlink()
        assert_files_hold(output, stage.bed.truths[stage.point])
    elif output.exists():
        whole = [path.name for path in output.iterdir() if not path.name.startswith(".")]
        assert not whole or faulty.fault.times == FOREVER, whole
    if output.exists():
        shutil.rmtree(output)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=0, images=1))
def test_restore_as_a_vm_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    host, vm = stage.host, stage.bed.vm

    def words() -> Sequence[str]:
        return ("restore", stage.point, "--as", "copy", "--tpm", "same")

    def check(faulty: Faulty) -> None:
        stage.assert_guest_is_free()
        names = {domain.name() for domain in host.connection.listAllDomains()}
        assert vm.name in names
        if faulty.done:
            truth = stage.bed.truths[stage.point]
            copy = host.vm("copy")
            for target, image in truth.disks.items():
                assert copy.read_image(target) == bytes(image)
            assert (copy.tpm_state(), copy.nvram()) == (truth.tpm, truth.nvram)
        elif faulty.fault.times != FOREVER:
            assert names == {vm.name}, "a VM that was not made whole is defined"
        _remove_copy(host)
        stage.walk.run(("doctor", "--fix"), {})

    stage.walk.over(_places(stage)[place], most, words, check)


def _remove_copy(host: Host) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        host.vm("copy").delete()
    for path in (*(host.dir / "disks").glob("*copy*"), *host.path("/var/lib/libvirt/qemu/nvram").glob("*copy*")):
        path.unlink()
    for path in host.path("/var/lib/libvirt/swtpm").glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()  # the mark of a rename


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=0, repository=2))
def test_verify_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    def check(_: Faulty) -> None:
        condemned = stage.inside(stage.repository / "repository" / "condemned")
        assert not condemned.exists() or not list(condemned.iterdir()), "what could not be read was condemned"

    stage.walk.over(_places(stage)[place], most, lambda: ("verify", "--all"), check)
    assert stage.walk.run(("verify", "--all"), {}).status == 0


def test_commands_that_read_whose_home_fails(stage: Stage) -> None:
    for words in (("points",), ("log",), ("vm", "list")):
        stage.walk.over(_places(stage)["home"], 1, lambda words=words: words, lambda _: None)  # type: ignore[misc]


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=1, images=0))
def test_snapshot_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    bed = stage.bed
    number = 0

    def words() -> Sequence[str]:
        nonlocal number
        number += 1
        return ("snapshot", "create", bed.vm.name, f"s{number}")

    def check(faulty: Faulty) -> None:
        stage.assert_guest_is_free()
        made = {snapshot.getName() for snapshot in bed.vm.domain.listAllSnapshots()}
        if faulty.done:
            assert f"s{number}" in made
        stage.walk.run(("doctor", "--fix"), {})
        for name in made:
            deleted = stage.walk.run(("snapshot", "delete", bed.vm.name, name, "--yes"), {})
            assert deleted.status == 0, deleted
        assert bed.vm.domain.listAllSnapshots() == []

    stage.walk.over(_places(stage)[place], most, words, check)
    bed.next_backup_and_prove_all(killed=bed.content.copy())


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(("place", "most"), _cases(home=1, repository=0, images=1, run=0))
def test_restore_in_place_whose_storage_fails(stage: Stage, place: str, most: int) -> None:
    bed, vm = stage.bed, stage.bed.vm
    stage.turn(VmState.OFF)

    def words() -> Sequence[str]:
        bed.change()
        return ("restore", stage.point, "--in-place", "--yes")

    def check(faulty: Faulty) -> None:
        truth = bed.truths[stage.point]
        before = bed.content.copy()
        if not faulty.done:
            ended = stage.walk.run(("doctor", "--fix"), {})
            assert ended.status in (0, 37), ended
        _assert_one_of(stage, (truth,) if faulty.done else (truth, before))
        bed.content = Content({t: bytearray(vm.read_image(t)) for t in truth.disks}, vm.tpm_state(), vm.nvram())
        _forget_safety_points(stage)
        assert vm.state() is VmState.OFF
        assert len(checkpoints(vm)) <= 2

    stage.walk.over(_places(stage)[place], most, words, check)
    stage.turn(VmState.RUNNING)


def _assert_one_of(stage: Stage, truths: Sequence[Content]) -> None:
    """Fail unless the VM is wholly as one of these: never of two points."""
    vm = stage.bed.vm
    now = Content({target: bytearray(vm.read_image(target)) for target in truths[0].disks}, vm.tpm_state(), vm.nvram())
    assert now in truths, "the VM is of two points"


def _forget_safety_points(stage: Stage) -> None:
    for point in stage.walk.run(("points",), {}).document()["points"]:
        if point["id"] not in stage.bed.truths:
            assert stage.walk.run(("point", "delete", point["id"], "--yes"), {}).status == 0
