"""The repository fills up or stalls while a guest writes all the time: it does not notice, and no point is lost."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import wait_until
from tests.rig import Host, MiB, VmState, read_offline_image
from tests.rig.cli import Vmkeep, finished
from tests.system.busy_guest import TARGETS, Watch, WritingGuest
from tests.system.truth import assert_left_alone, checkpoints, has_backup_job

pytestmark = pytest.mark.system

_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE and FITHAW of linux/fs.h


@dataclass(slots=True)
class _Stage:
    """A guest that writes, an installation whose repository is on a file system of its own, and its points."""

    guest: WritingGuest
    vmkeep: Vmkeep
    mount: Path
    kept: list[tuple[dict[str, Any], dict[str, bytes]]]
    compared: int = 0

    @property
    def checkpoints(self) -> list[str]:
        return [str(self.kept[-1][0]["checkpoint"])]

    def keep(self) -> dict[str, Any]:
        point = self.vmkeep.backup(self.guest.vm.name)
        self.kept.append((point, self.guest.base()))
        return point

    def set_patience(self, seconds: int) -> None:
        settings = self.vmkeep.home / "vmkeep.toml"
        lines = [line for line in settings.read_text().splitlines() if not line.startswith("stalled_after_seconds")]
        settings.write_text("\n".join([*lines, f"stalled_after_seconds = {seconds}", ""]))

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Freeze the repository's file system: who writes to it then sleeps, uninterruptibly and without an error."""
        inside = Path(f"/proc/{self.vmkeep.host.init_pid}/root{self.mount}")
        directory = os.open(inside, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _FREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(directory, _THAW, 0)
        finally:
            os.close(directory)

    def assert_kept(self, *, again: bool = False) -> None:
        """Fail unless every point is there, and is both disks as they were between two writes of the guest.

        Without ``again``, those that were compared before are only looked for.
        """
        listed = {point["id"] for point in self.vmkeep.json("points")["points"]}
        assert listed == {point["id"] for point, _ in self.kept}
        new = self.kept if again else self.kept[self.compared :]
        self.compared = len(self.kept)
        parent = self.vmkeep.host.dir / "work" / "points"
        parent.mkdir()
        outputs = self.vmkeep.restore_all([point for point, _ in new], parent)
        came = 0
        for (_, base), output in zip(new, outputs, strict=True):
            images = {target: read_offline_image(output / f"{target}.qcow2", "qcow2") for target in TARGETS}
            writes = self.guest.assert_of_one_instant(images, base)
            assert writes > came
            came = writes
        shutil.rmtree(parent)


@pytest.fixture(scope="module")
def stage(session_host: Host) -> Iterator[_Stage]:
    host = session_host
    image, mount = host.dir / "work" / "repository.img", host.dir / "work" / "mount"
    mount.mkdir()
    with image.open("wb") as stream:
        stream.truncate(256 * MiB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    host.run(["mount", "-o", "loop", image, mount], check=True)
    vmkeep = Vmkeep(host)
    vmkeep.json("init", "--repository", mount / "repository")
    stage = _Stage(WritingGuest(host, "writer", size=24 * MiB), vmkeep, mount, [])
    stage.keep()
    yield stage
    host.run(["umount", "--lazy", mount], check=True)
    host.clear()


def _changed(stage: _Stage, seed: int) -> None:
    """Give the next point so much to store that it is not done before a fault can be made."""
    stage.guest.change(start=8 * MiB, length=16 * MiB, seed=seed)


def test_full_repository_fails_the_point_and_the_guest_writes_on(stage: _Stage) -> None:
    _changed(stage, seed=10)
    filler = stage.mount / "filler"
    fill = f"dd if=/dev/zero of={filler} bs=1M; sync; rm -f {filler}.; fallocate -l 4K {filler}."
    stage.vmkeep.host.run(["sh", "-c", fill])
    with Watch(stage.guest) as watch:
        failure = stage.vmkeep.fails("backup", "writer")
    assert (failure.code, failure.status) == ("no-space", 34)
    assert str(stage.mount) in str(failure.error["path"])
    watch.assert_not_held_up()
    assert_left_alone(stage.guest.vm, checkpoints_before=stage.checkpoints)

    stage.vmkeep.host.run(["sh", "-c", f"rm -f {filler}*"], check=True)
    assert stage.keep()["kind"] == "incremental"
    stage.assert_kept()


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(
    ("end", "status", "code", "free_seconds"),
    [("waited", 38, "stalled", 6), (signal.SIGINT, 130, "interrupted", 3), (signal.SIGKILL, -9, "", 3)],
    ids=["waited", "ctrl-c", "killed"],
)
def test_repository_that_stalls_holds_neither_the_guest_nor_the_command(
    stage: _Stage, end: str | signal.Signals, status: int, code: str, free_seconds: float
) -> None:
    """No process that waits for the storage can be ended, and yet everything else ends."""
    vm = stage.guest.vm
    _changed(stage, seed=20 + status)
    stage.set_patience(3 if end == "waited" else 60)
    with Watch(stage.guest) as watch:
        process = stage.vmkeep.start("backup", "writer")
        wait_until(lambda: has_backup_job(vm), "the backup does not begin", 20)
        with stage.stalled():
            began = time.monotonic()
            time.sleep(0.5)
            assert has_backup_job(vm), "nothing hangs"
            if isinstance(end, signal.Signals):
                process.send_signal(end)
                began = time.monotonic()
            wait_until(lambda: not has_backup_job(vm), "the guest is not let go", free_seconds)
            assert vm.state() is VmState.RUNNING
            if end == signal.SIGKILL:
                assert process.wait(timeout=10) == status
            else:
                ended, document = finished(process, timeout_seconds=15)
                assert (ended, document["error"]["code"], document["error"]["vm"]) == (status, code, "writer")
                told = [document["error"]["message"], *document.get("notes", ())]
                assert any(str(stage.mount) in text and "storage" in text for text in told), document
            assert time.monotonic() - began < 12
            if end == "waited":  # while it stalls still, the next command ends as well, and touches no guest
                again = stage.vmkeep.fails("backup", "writer")
                assert (again.code, again.status) == ("stalled", 38)
                assert any("has not answered" in text for text in document["notices"])
            wait_until(lambda: checkpoints(vm) == stage.checkpoints, "the new checkpoint stays", 3)
        if end == signal.SIGKILL:
            process.communicate()  # what hung kept its end of the pipes
    watch.assert_not_held_up()

    stage.set_patience(60)
    point = stage.keep()
    assert point["kind"] == "incremental"
    assert_left_alone(vm, checkpoints_before=stage.checkpoints)
    stage.assert_kept(again=end == signal.SIGKILL)
    for name in ("owners", "guards", "locks"):
        assert [path.name for path in (stage.vmkeep.home / name).iterdir()] == [], name
