"""Places that are full, gone, or not to be seen, before a command or in the middle of it."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Printed, assert_files_hold
from tests.environment.injector import FOREVER, Fault
from tests.environment.stage import Stage
from tests.rig import VmState
from tests.rig.cli import COMMAND, Vmkeep

pytestmark = pytest.mark.system


def _error(ended: Printed) -> dict[str, Any]:
    assert ended.status != 0, f"it should fail, and printed {ended.out}"
    error = json.loads(ended.err)["error"]
    assert isinstance(error, dict)
    return error


@contextmanager
def _unmounted(stage: Stage) -> Iterator[None]:
    """Take the repository's file system away from its place, as somebody would; it comes back afterwards."""
    place, aside = stage.repository, stage.host.dir / "work" / "aside"
    aside.mkdir(exist_ok=True)
    stage.host.run(["mount", "--bind", place, aside], check=True)
    stage.host.run(["umount", "--lazy", place], check=True)
    try:
        yield
        assert list(stage.inside(place).iterdir()) == [], "something was written to the empty mount point"
    finally:
        stage.host.run(["mount", "--bind", aside, place], check=True)
        stage.host.run(["umount", aside], check=True)


def test_repository_that_is_not_mounted_is_told_with_its_mount(stage: Stage) -> None:
    with _unmounted(stage):
        for words in (("backup", stage.bed.vm.name), ("verify", "--all"), ("restore", stage.point, "--output", "/x")):
            error = _error(stage.walk.run(words, {}))
            assert error["code"] == "repository-not-found"
            assert error["path"] == str(stage.repository / "repository")
            assert "mount" in f"{error['message']} {error['hint']}"
        stage.assert_guest_is_free()
    assert stage.walk.run(("verify", "--all"), {}).status == 0


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(("words", "at"), [("backup", 1), ("backup", 9), ("verify", 4), ("restore", 9)])
def test_repository_that_is_unmounted_in_the_middle_is_told_with_its_mount(stage: Stage, words: str, at: int) -> None:
    bed = stage.bed
    bed.change()
    command = {
        "backup": ("backup", bed.vm.name),
        "verify": ("verify", "--all"),
        "restore": ("restore", stage.point, "--output", str(stage.next_output())),
    }[words]
    kinds = ("create",) if words == "backup" else ("open",)
    env = stage.walk.injector.environment(Fault((stage.repository,), at=at, kinds=kinds, delay_ms=700))
    ended: list[Printed] = []
    thread = threading.Thread(target=lambda: ended.append(stage.walk.run(command, env)))
    thread.start()
    deadline = time.monotonic() + 20
    while not any(call.hit for call in stage.walk.injector.calls()):
        assert time.monotonic() < deadline
        assert thread.is_alive(), ended
        time.sleep(0.01)
    with _unmounted(stage):
        thread.join()
        stage.assert_guest_is_free()
    error = _error(ended[0])
    assert error["code"] == "repository-not-found", error
    assert str(stage.repository) in error["message"]
    assert f"mounted at {stage.repository} is gone" in error["message"]
    assert error["path"] == str(stage.repository / "repository")
    assert not stage.output.exists() or words != "restore"
    if words == "backup":
        bed.next_backup_and_prove_all(killed=bed.content.copy())


def test_full_run_directory_is_told(stage: Stage) -> None:
    """Also the sockets of a VM that is off are made there."""
    host = stage.host
    host.run(["mkdir", "-p", "/run/vmkeep"], check=True)
    host.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1,mode=0711", "tmpfs", "/run/vmkeep"], check=True)
    try:
        error = _error(stage.walk.run(("backup", stage.bed.vm.name), {}))
        assert error["code"] == "no-space"
        assert error["path"].startswith("/run/vmkeep")
        stage.assert_guest_is_free()
    finally:
        host.run(["umount", "/run/vmkeep"], check=True)
    stage.bed.next_backup_and_prove_all(killed=stage.bed.content.copy())


def test_lock_folder_that_cannot_be_written_is_told(stage: Stage) -> None:
    locks = stage.home / "locks"
    stage.host.run(["mount", "--bind", locks, locks], check=True)
    stage.host.run(["mount", "-o", "remount,bind,ro", locks], check=True)
    try:
        error = _error(stage.walk.run(("backup", stage.bed.vm.name), {}))
        assert error["code"] == "permission-denied"
        assert error["path"].startswith(str(locks))
        assert "read-only" in error["message"]
    finally:
        stage.host.run(["umount", locks], check=True)
    stage.bed.next_backup_and_prove_all(killed=stage.bed.content.copy())


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.OFF], ids=["running", "off"])
def test_images_that_only_libvirt_sees_are_named(stage: Stage, state: VmState) -> None:
    """vmkeep is in a mount namespace of its own, as a unit with PrivateMounts or a container is."""
    bed, vm = stage.bed, stage.bed.vm
    stage.turn(state)
    images = {target: vm.read_image(target) for target in bed.content.disks}
    commands = [f"backup {vm.name}", f"snapshot create {vm.name} unseen"]
    if state is VmState.OFF:
        commands.append(f"restore {stage.point} --in-place --yes")
    vmkeep, disks = Vmkeep(stage.host), stage.host.dir / "disks"
    for command in commands:
        hidden = f"mount -t tmpfs tmpfs {disks} && exec {COMMAND} --json {command}"
        result = stage.host.run(["unshare", "--mount", "sh", "-c", hidden], env=vmkeep.environment)
        error = _error(Printed(result.returncode, result.stdout, result.stderr))
        assert error["code"] == "host-file-missing", error
        assert error["path"] == str(vm.disk_path("vda"))
        assert error["disk"] == "vda"
        assert vm.state() is state
    assert {target: vm.read_image(target) for target in images} == images
    stage.turn(VmState.RUNNING)
    bed.next_backup_and_prove_all(killed=bed.content.copy())


def test_too_few_open_files_are_told_before_anything_is_begun(stage: Stage) -> None:
    vmkeep = Vmkeep(stage.host)
    for limit in (40, 100):
        command = f"ulimit -n {limit}; exec {COMMAND} --json backup {stage.bed.vm.name}"
        result = stage.host.run(["sh", "-c", command], env=vmkeep.environment)
        error = _error(Printed(result.returncode, result.stdout, result.stderr))
        assert error["code"] == "host-exhausted", error
        assert "RLIMIT_NOFILE" in error["message"]
        stage.assert_guest_is_free()
    assert stage.bed.guardians() == []
    stage.bed.next_backup_and_prove_all(killed=stage.bed.content.copy())


def test_storage_that_fails_for_a_while_condemns_nothing(stage: Stage) -> None:
    """Every read of a pack fails in one pass; the next pass finds all sound, and no mark is left."""
    fault = Fault((stage.repository / "repository" / "packs",), errno.EIO, at=1, times=FOREVER, kinds=("read",))
    ended = stage.walk.run(("verify", "--all"), stage.walk.injector.environment(fault))
    assert _error(ended)["code"] == "store-error"
    condemned = stage.inside(stage.repository / "repository" / "condemned")
    assert not condemned.exists() or not list(condemned.iterdir())
    assert stage.walk.run(("verify", "--all"), {}).status == 0
    assert stage.bed.take_point()["kind"] == "incremental"


def test_restored_files_stay_when_what_they_replaced_cannot_be_removed(stage: Stage) -> None:
    """By then all of them are in their places. To undo it would leave some of the files, with and without the old."""
    stage.turn(VmState.OFF)
    output = stage.host.dir / "work" / "replaced"
    words = ("restore", stage.point, "--output", output, "--format", "raw", "--force")
    assert stage.walk.run(words, {}).status == 0
    counting = Fault((output,), kinds=("unlink",))
    assert stage.walk.run(words, stage.walk.injector.environment(counting)).status == 0
    removed = [call.number for call in stage.walk.injector.calls() if call.path.endswith((".replaced", ".published"))]
    fault = Fault((output,), errno.EIO, at=removed[len(removed) // 2], kinds=("unlink",))
    ended = stage.walk.run(words, stage.walk.injector.environment(fault))
    (hit,) = [call.path for call in stage.walk.injector.calls() if call.hit]
    assert ended.status == 0, ended
    assert Path(hit).name in ended.err + ended.out
    (output / Path(hit).name).unlink()  # the only one that stays, and it was named
    assert_files_hold(output, stage.bed.truths[stage.point])
    shutil.rmtree(output)
