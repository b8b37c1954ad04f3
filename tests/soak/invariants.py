"""What must be true after each step, and what is proved from time to time because it takes longer."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
from lxml import etree

from tests.rig import VmState
from tests.rig.qemufiles import images_open
from tests.soak.guest import Guest, read_image, snapshot_sources
from tests.soak.model import Moment, Violation
from tests.soak.world import World
from tests.system.truth import PERMALL, has_backup_job

SAFE_SECONDS = 10.0
"""How long a guardian may take after its vmkeep was killed: 3 s are promised, and the machine is busy here."""


_ENDING_SECONDS = 5.0


def check(world: World) -> None:
    """Raise Violation unless the host, each VM and the list of points are what the model says."""
    for guest in world.guests:
        _check_life(guest)
        _check_moments(guest)
        _check_chains(guest)
        _check_written(guest)
    _check_nothing_left(world)
    if world.commands.ended != world.settled_at:  # a step without vmkeep changes no point
        listed = world.commands.run("points")
        world.expect(listed)
        for unknown in world.settle_points([point["id"] for point in listed.document["points"]]):
            _adopt(world, unknown)
        world.settled_at = world.commands.ended


def _adopt(world: World, point_id: str) -> None:
    """Give a point that a killed command made the one moment that it is of, by its content."""
    shown = world.commands.run("point", "show", point_id).document["point"]
    fitting = [moment for moment in world.points.pending if moment.vm_uuid == shown["vm_uuid"]]
    reasons = []
    for moment in reversed(fitting):
        world.points.known[point_id] = moment
        try:
            prove_point(world, point_id)
        except Violation as violation:
            reasons.append(str(violation))
            del world.points.known[point_id]
        else:
            world.points.pending.remove(moment)
            world.points.safety |= {point_id} if "vmkeep.safety" in shown["labels"] else set()
            return
    told = "; ".join(reasons) or "nobody made one"
    raise Violation(f"point {point_id} of {shown['vm']} is nothing that a command was asked to keep: {told}")


def wait_until_safe(world: World) -> None:
    """Wait until the guardians of killed commands have ended; then the guest must be what it was."""
    deadline = time.monotonic() + SAFE_SECONDS
    while True:
        troubles = [*_unsafe(world)]
        if not troubles:
            return
        if time.monotonic() > deadline:
            raise Violation(f"{SAFE_SECONDS} s after a command was killed: {'; '.join(troubles)}")
        time.sleep(0.05)


def _unsafe(world: World) -> Iterator[str]:
    yield from (f"guardian {pid} is still there" for pid in world.commands.guardians())
    yield from (f"qemu-nbd {pid} is still there" for pid in world.commands.image_servers())
    for guest in world.guests:
        state = guest.vm.state()
        if state is not guest.state:
            yield f"{guest.name} is {state.value} in place of {guest.state.value}"
        elif not guest.off and has_backup_job(guest.vm):
            yield f"{guest.name} has a backup job"


def _check_life(guest: Guest) -> None:
    state, pid = guest.vm.state(), guest.qemu_pid()
    if state is not guest.state:
        reason = guest.vm.domain.state()[1]
        log = guest.host.path(f"/var/log/libvirt/qemu/{guest.name}.log")
        said = log.read_text(errors="replace")[-400:] if log.exists() else ""
        what = f"{guest.name} is {state.value} (reason {reason}) in place of {guest.state.value}"
        raise Violation(f"{what}; QEMU's log ends: {said}")
    if pid != guest.pid:
        raise Violation(f"{guest.name} has QEMU {pid or 'none'} in place of {guest.pid or 'none'}")
    if state is not VmState.OFF:
        if has_backup_job(guest.vm):
            raise Violation(f"{guest.name} has a backup job: {guest.vm.domain.backupGetXMLDesc()}")
        if guest.vm.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            raise Violation(f"{guest.name} has a job: {guest.vm.domain.jobStats()}")


def _check_moments(guest: Guest) -> None:
    domain = guest.vm.domain
    snapshots = {snapshot.getName() for snapshot in domain.listAllSnapshots()}
    if snapshots != set(guest.snapshots):
        raise Violation(f"{guest.name} has snapshots {sorted(snapshots)} in place of {sorted(guest.snapshots)}")
    checkpoints = {checkpoint.getName() for checkpoint in domain.listAllCheckpoints()}
    foreign = {name for name in checkpoints if not name.startswith("vmkeep-")}
    if foreign != guest.checkpoints:
        raise Violation(f"{guest.name}: others' checkpoints are {sorted(foreign)}, not {sorted(guest.checkpoints)}")


def _check_chains(guest: Guest) -> None:
    """The definition's chain is the image's chain, of each disk, in the live definition and in the persistent one."""
    inactive = guest.definition(inactive=True)
    definitions = [inactive] if guest.off else [inactive, guest.definition(inactive=False)]
    for target, path in guest.paths().items():
        images = image_chain(path, guest.disks[target].kind.format)
        for root in definitions:
            defined, ended = _defined_chain(root, target)
            if defined[0] != images[0]:
                raise Violation(f"{guest.name} {target}: the definition names {defined[0]}, it is on {images[0]}")
            if defined != images[: len(defined)] or (ended and defined != images):
                raise Violation(f"{guest.name} {target}: the definition's chain is {defined}, the image's {images}")


def _check_written(guest: Guest) -> None:
    """QEMU writes to the images of the definition, and to none of a disk besides; one that waits may write to none."""
    if guest.off:
        return
    opened = images_open(guest.vm)
    images = set(guest.paths().values())
    others = {path for path, writable in opened.items() if writable and path.parent.name == "disks"} - images
    if others:
        raise Violation(f"{guest.name}: QEMU writes to {sorted(map(str, others))} besides {sorted(map(str, images))}")
    for path in images - opened.keys():
        raise Violation(f"{guest.name}: QEMU does not have {path} open")


def image_chain(path: Path, image_format: str) -> list[str]:
    """Return the files of an image from the top down, as their own headers say."""
    if image_format == "raw" and path.suffix == ".raw":
        return [str(path)]
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Violation(f"the chain of {path} is broken: {done.stderr.strip()}")
    return [str(image["filename"]) for image in json.loads(done.stdout)]


def _defined_chain(root: etree._Element, target: str) -> tuple[list[str], bool]:
    """Return the files that a definition names for a disk, and whether it says that there are no more."""
    found = root.xpath("devices/disk[target/@dev=$target]", target=target)
    if not isinstance(found, list) or not found or not isinstance(found[0], etree._Element):
        raise Violation(f"the definition has no disk {target}")
    layer: etree._Element | None = found[0]
    files: list[str] = []
    while layer is not None:
        source = layer.find("source")
        if source is None:
            return files, True
        files.append(str(source.get("file")))
        layer = layer.find("backingStore")
    return files, False


def _check_nothing_left(world: World) -> None:
    left = [str(path) for path in (world.host.dir / "disks").rglob("*") if ".scratch" in path.name]
    left += [str(path) for path in (world.host.dir / "disks").rglob(".*") if path.name.endswith(".partial")]
    for directory in (world.host.path("/run/vmkeep"), world.home / "guards", world.home / "restores"):
        left += [str(path) for path in directory.iterdir()] if directory.exists() else []
    left += [str(path) for path in world.host.path("/var/lib/libvirt/qemu").glob("domain-*/vmkeep-*")]
    left += _processes_left(world)
    secrets = world.host.secret_uuids()
    if len(secrets) > 1:
        left.append(f"secrets {sorted(secrets)}")
    if left:
        raise Violation(f"left behind: {', '.join(left)}")


def _processes_left(world: World) -> list[str]:
    """Return processes that do not end. A guardian that was given no job ends when it has seen that its vmkeep has."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        found = [f"guardian {pid}" for pid in world.commands.guardians()]
        found += [f"qemu-nbd {pid}" for pid in world.commands.image_servers()]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


# -- what takes longer -----------------------------------------------------------------------------------------


def prove_guest(world: World, guest: Guest) -> None:
    """Raise Violation unless the disks of a VM hold what was written, and the images of its snapshots what they did."""
    raw = world.work("proof.raw")
    for target, disk in guest.disks.items():
        guest.read_to(target, raw)
        _compare(disk.image.difference(raw), f"{target} of {guest.name}")
    for snapshot in guest.snapshots.values():
        if snapshot.spoilt:
            continue
        for target, path in snapshot_sources(guest, snapshot.name).items():
            top = image_format(path)
            read_image(path, top, raw)
            difference = snapshot.moment.images[target].difference(raw)
            _compare(difference, f"{target} of snapshot {snapshot.name} of {guest.name} ({path})")
    raw.unlink(missing_ok=True)


def image_format(path: Path) -> str:
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def prove_point(world: World, point_id: str) -> None:
    """Raise Violation unless a point comes back as files to the last byte."""
    moment = world.points.known[point_id]
    output = world.work(f"proof-{point_id}")
    decrypt = ["--decrypt"] if moment.encrypted & set(moment.images) else []
    outcome = world.commands.run("restore", point_id, "--output", output, "--format", "raw", *decrypt)
    world.expect(outcome)
    try:
        assert_files_are(output, moment, point_id)
    finally:
        shutil.rmtree(output)


def assert_files_are(output: Path, moment: Moment, point_id: str) -> None:
    for target, image in moment.images.items():
        raw = output / f"{target}.raw"
        if not raw.exists():
            raise Violation(f"point {point_id} lacks disk {target}")
        _compare(image.difference(raw), f"{target} of point {point_id}")
    extra = {path.stem for path in output.glob("*.raw")} - set(moment.images)
    if extra:
        raise Violation(f"point {point_id} has disks that it should not: {sorted(extra)}")
    for what, kept, path in (
        ("UEFI variables", moment.states.nvram, output / "nvram.fd"),
        ("TPM state", moment.states.tpm, output / PERMALL),
    ):
        if kept is not None and (not path.exists() or path.read_bytes() != kept):
            raise Violation(f"the {what} of point {point_id} are not what they were")


def prove_all(world: World) -> None:
    for guest in world.guests:
        prove_guest(world, guest)
    for point_id in list(world.points.known):
        prove_point(world, point_id)


def _compare(difference: str | None, what: str) -> None:
    if difference is not None:
        raise Violation(f"{what}: {difference}")
