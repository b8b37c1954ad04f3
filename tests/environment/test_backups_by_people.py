"""Backups by people whose terminal, folder, umask or programs are not as one expects: on a real host."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment.test_rights import open_to_others
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import COMMAND, Vmkeep

pytestmark = pytest.mark.system

_TOOLS = ("qemu-img", "qemu-nbd", "setpriv")


@pytest.fixture(scope="module")
def people(session_host: Host) -> Iterator[tuple[Vm, Vm, Vmkeep]]:
    """A VM that runs, one that is off, and an installation; they are made once for all."""
    vms = [
        session_host.define(name, disks=[Disk("vda", 8 * MiB)], firmware="bios", tpm=False) for name in ("on", "off")
    ]
    vms[0].start()
    vmkeep = Vmkeep(session_host, home=session_host.dir / "home" / "people")
    vmkeep.json("init")
    yield vms[0], vms[1], vmkeep
    session_host.clear()


def shell(vmkeep: Vmkeep, line: str) -> tuple[int, str, str]:
    """Run a line of shell, in which $vmkeep is the command."""
    ended = vmkeep.host.run(["/bin/sh", "-c", f"vmkeep={COMMAND}; {line}"], env=vmkeep.environment)
    return ended.returncode, ended.stdout, ended.stderr


def points(vmkeep: Vmkeep) -> int:
    return len(vmkeep.json("points")["points"])


@pytest.mark.parametrize("streams", [">&-", "2>&- >/dev/full"])
def test_points_are_made_although_nobody_can_be_told(people: tuple[Vm, Vm, Vmkeep], streams: str) -> None:
    vmkeep = people[2]
    before = points(vmkeep)
    status, _, said = shell(vmkeep, f"$vmkeep backup on off {streams}")
    assert status == 50
    assert points(vmkeep) == before + 2
    if "2>" not in streams:
        assert "What was asked for was done, but standard output cannot be written" in said


def test_reader_that_is_gone_is_told_that_the_point_was_made(people: tuple[Vm, Vm, Vmkeep]) -> None:
    vmkeep = people[2]
    before = points(vmkeep)
    _, status, said = shell(vmkeep, "exec 3>&1; { $vmkeep backup off; echo $? >&3; } | true")
    assert points(vmkeep) == before + 1
    assert "What was asked for was done, but standard output was closed by its reader" in said
    assert status.strip() == "141"


@pytest.mark.parametrize("umask", ["000", "077"])
def test_whole_run_leaves_nothing_open_to_others(people: tuple[Vm, Vm, Vmkeep], umask: str) -> None:
    vmkeep = people[2]
    host = vmkeep.host
    run_dir = host.path("/run/vmkeep")
    seen: set[str] = set()
    line = (
        f"umask {umask}; $vmkeep --debug backup on off && $vmkeep snapshot create on s{umask} && "
        f"$vmkeep restore off@latest --output {host.dir}/work/out{umask} && "
        "$vmkeep restore off@latest --in-place --yes"
    )
    process = host.popen(["/bin/sh", "-c", f"vmkeep={COMMAND}; {line}"], env=vmkeep.environment)
    while process.poll() is None:
        seen |= set(_open_sockets(run_dir))
        time.sleep(0.001)  # or the look takes a processor of its own
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert [*open_to_others(vmkeep.home), *open_to_others(host.dir / "work" / f"out{umask}")] == []
    assert seen == set()
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o711


def _open_sockets(run_dir: Path) -> Iterator[str]:
    """Yield what of the directories of sockets others may enter."""
    try:
        for directory in run_dir.iterdir():
            if stat.S_IMODE(directory.stat().st_mode) & 0o077:
                yield str(directory)
    except FileNotFoundError:
        return


def test_backup_and_restore_in_a_folder_that_was_deleted(people: tuple[Vm, Vm, Vmkeep]) -> None:
    vmkeep = people[2]
    gone = vmkeep.host.dir / "work" / "gone"
    status, _, said = shell(
        vmkeep,
        f"mkdir {gone} && cd {gone} && rmdir {gone} && $vmkeep backup on off && "
        f"$vmkeep restore on@latest --output {vmkeep.host.dir}/work/back",
    )
    assert status == 0, said


def test_program_that_is_missing_is_named_before_anything_is_begun(people: tuple[Vm, Vm, Vmkeep]) -> None:
    vmkeep = people[2]
    host = vmkeep.host
    known = points(vmkeep)
    point = vmkeep.json("points", "off")["points"][-1]["id"]
    commands = {
        "qemu-img": [["backup", "on"], ["backup", "off"], ["snapshot", "create", "on", "never"]],
        "qemu-nbd": [["restore", point, "--in-place", "--yes"]],
        "setpriv": [["backup", "off"]],
    }
    for missing in _TOOLS:
        programs = host.dir / "work" / f"without-{missing}"
        programs.mkdir()
        for tool in {*_TOOLS} - {missing}:
            (programs / tool).symlink_to(f"/usr/bin/{tool}")
        for command in commands[missing]:
            status, _, said = shell(vmkeep, f"PATH={programs} exec $vmkeep --json {' '.join(command)}")
            error = json.loads(said)["error"]
            assert (status, error["code"], error["path"]) == (9, "tool-missing", missing), command
            assert f"the program {missing} is not installed, which is needed to" in error["message"]
            assert error["message"].endswith((" on", " off"))
    assert points(vmkeep) == known


def test_image_that_is_missing_is_named_with_its_disk(people: tuple[Vm, Vm, Vmkeep]) -> None:
    _, off, vmkeep = people
    image = off.disk_path("vda")
    aside = image.with_suffix(".aside")
    image.rename(aside)
    try:
        failed = vmkeep.fails("backup", "off")
        assert failed.error["disk"] == "vda"
        assert str(image) in failed.error["message"]
    finally:
        aside.rename(image)
