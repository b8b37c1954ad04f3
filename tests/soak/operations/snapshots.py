"""Snapshots, by vmkeep and by virsh, on the way there and back."""

from __future__ import annotations

import random

from tests.rig import VmState
from tests.soak.guest import Guest, snapshot_sources
from tests.soak.invariants import image_chain, image_format
from tests.soak.model import Moment, SnapshotModel, States
from tests.soak.operations.registry import has_snapshots, is_on, operation
from tests.soak.operations.restores import become
from tests.soak.world import World

_MOST_SNAPSHOTS = 4
_WITH_MEMORY = 0.2


def can_have_one(_world: World, guest: Guest) -> bool:
    """An encrypted disk takes no part, and one disk at least must."""
    return len(guest.snapshots) < _MOST_SNAPSHOTS and set(guest.disks) > guest.encrypted


def snapshot_words(world: World, guest: Guest, chance: random.Random) -> tuple[list[str], SnapshotModel]:
    """Return the words that make a snapshot of all disks that can be in one, and what must come of it."""
    name = world.fresh("snap")
    words = ["snapshot", "create", guest.name, name]
    for target in sorted(guest.encrypted):
        words += ["--diskspec", f"{target},snapshot=no"]
    memory = guest.state if not guest.off and not guest.encrypted and chance.random() < _WITH_MEMORY else None
    if memory is not None:
        words += ["--memspec", f"file={world.host.dir / 'disks' / f'{guest.name}.{name}.memory'}"]
    moment = guest.now().without(guest.encrypted)
    return words, SnapshotModel(name, moment, ours=True, all_targets=frozenset(guest.disks), memory=memory)


@operation(5, can_have_one)
def snapshot_create(world: World, guest: Guest, chance: random.Random) -> str:
    words, made = snapshot_words(world, guest, chance)
    world.expect(world.commands.run(*words))
    guest.snapshots[made.name] = made
    if made.memory is None:
        return made.name
    guest.activate_disks()
    return f"{made.name} with memory"


@operation(2, lambda world, guest: can_have_one(world, guest) and is_on(world, guest))
def virsh_snapshot(world: World, guest: Guest, _chance: random.Random) -> str:
    name = world.fresh("other")
    moment = guest.now().without(guest.encrypted)
    words = ["virsh", "snapshot-create-as", guest.name, name, "--disk-only", "--atomic"]
    for target in sorted(guest.encrypted):
        words += ["--diskspec", f"{target},snapshot=no"]
    world.host.run(words, check=True)
    guest.snapshots[name] = SnapshotModel(name, moment, ours=False, all_targets=frozenset(guest.disks))
    return name


def draw_revert(guest: Guest, chance: random.Random) -> tuple[list[str], SnapshotModel]:
    """Draw a snapshot and return the words that go back to it; its state files only when it is known to have them."""
    snapshot = guest.snapshots[chance.choice(sorted(guest.snapshots))]
    words = ["snapshot", "revert", guest.name, snapshot.name, "--yes", "--stop"]
    words += [] if snapshot.ours else ["--only", "disks"]  # which leaves the memory
    words += ["--no-safety"] if chance.random() < 0.4 else []
    words += ["--discard"] if chance.random() < 0.2 else []
    return words, snapshot


def _can_revert(_world: World, guest: Guest) -> bool:
    return bool(guest.snapshots)


@operation(4, _can_revert)
def snapshot_revert(world: World, guest: Guest, chance: random.Random) -> str:
    words, snapshot = draw_revert(guest, chance)
    paused = chance.random() < 0.2
    words += ["--paused"] if paused else []
    afterwards = VmState.PAUSED if paused else (snapshot.memory or VmState.OFF) if snapshot.ours else VmState.OFF
    if snapshot.spoilt:
        return f"{snapshot.name} is spoilt: nobody can go back to it"
    guest.flush_all()
    before = guest.now()
    outcome = world.commands.run(*words)
    told = " ".join(words[2:])
    missing = set(snapshot.moment.images) - set(guest.disks)
    since = set(guest.disks) - snapshot.all_targets if snapshot.ours else set()  # with --only they stay as they are
    if missing or since:
        world.expect_refused(outcome, "invalid-request")
        return f"{told}: {outcome.code}"
    world.expect(outcome)
    reverted = outcome.document["reverted"]
    if reverted["safety"] is not None:
        world.keep_point(reverted["safety"], before, safety=True)
    went_back(guest, afterwards)
    become(guest, after_revert(before, snapshot))
    if snapshot.ours and snapshot.memory is not None:
        guest.activate_disks()
    return told


def went_back(guest: Guest, state: VmState) -> None:
    """Note that the VM has another QEMU, or none. One that goes on from a memory has a firmware that came to rest."""
    guest.ended()
    guest.state, guest.pid = state, guest.qemu_pid()
    guest.settled = state is VmState.RUNNING


def after_revert(before: Moment, snapshot: SnapshotModel) -> Moment:
    """Return what a VM is after it went back: disks that are not in the snapshot stay."""
    states = snapshot.moment.states if snapshot.ours else before.states
    known = States(states.nvram, states.tpm)
    return Moment(before.vm_uuid, {**before.images, **snapshot.moment.images}, known, before.encrypted)


@operation(3, has_snapshots)
def snapshot_delete(world: World, guest: Guest, chance: random.Random) -> str:
    """Deleted with what it holds; where an image is needed by something else it is refused and all stays."""
    name = chance.choice(sorted(guest.snapshots))
    outcome = world.commands.run("snapshot", "delete", guest.name, name, "--yes")
    if world.expect(outcome, "snapshot-needed"):
        del guest.snapshots[name]
    return f"{name}: {outcome.code}"


@operation(1, has_snapshots)
def snapshot_forget(world: World, guest: Guest, chance: random.Random) -> str:
    """libvirt's record goes, by us or by virsh; all images stay."""
    name = chance.choice(sorted(guest.snapshots))
    if guest.off or chance.random() < 0.5:
        outcome = world.commands.run("snapshot", "delete", guest.name, name, "--metadata", "--yes")
        if not world.expect(outcome, "vm-off"):
            return f"{name}: {outcome.code}"
    else:
        # libvirt 9.0 rewrites the records of what hangs from it.
        virsh = world.host.run(["virsh", "snapshot-delete", guest.name, name, "--metadata"])
        if virsh.returncode and "not found in domain" in virsh.stderr:
            return f"{name}: libvirt refuses, as a disk of it was unplugged since"
        virsh.check_returncode()
        world.expect(world.commands.run("snapshot", "repair", guest.name))
    del guest.snapshots[name]
    return name


@operation(1, is_on)
def virsh_blockcopy(world: World, guest: Guest, chance: random.Random) -> str:
    """A disk moves to another file, flat; what it was on stays as it is."""
    plain = sorted(set(guest.disks) - guest.encrypted)
    if not plain:
        return "no disk can be copied"
    target = chance.choice(plain)
    place = world.host.dir / "disks" / f"{guest.name}-{world.fresh('moved')}.qcow2"
    words = ["virsh", "blockcopy", guest.name, target, "--dest", str(place), "--format", "qcow2"]
    world.host.run([*words, "--transient-job", "--wait", "--pivot"], check=True)
    return f"{target} to {place.name}"


def _images_below(guest: Guest, name: str) -> set[str]:
    """Return all images that a snapshot needs: those with its state and what they stand on."""
    sources = snapshot_sources(guest, name).values()
    return {image for path in sources if path.exists() for image in image_chain(path, image_format(path))}


def _can_commit(_world: World, guest: Guest) -> bool:
    return not guest.off and bool(guest.snapshots)


@operation(2, _can_commit)
def virsh_blockcommit(world: World, guest: Guest, chance: random.Random) -> str:
    """A disk's overlay is merged into the image below: a snapshot that stands on that is lost."""
    paths = guest.paths()
    deep = [
        target
        for target, disk in sorted(guest.disks.items())
        if len(image_chain(paths[target], disk.kind.format)) > 1 and not disk.kind.luks
    ]
    if not deep:
        return "no disk has an overlay"
    target = chance.choice(deep)
    chain = image_chain(paths[target], guest.disks[target].kind.format)
    written = set(chain[1:])
    words = ["virsh", "blockcommit", guest.name, target, "--active", "--pivot", "--wait"]
    standing = {name: _images_below(guest, name) for name in guest.snapshots}
    world.host.run(words, check=True)
    for name, snapshot in guest.snapshots.items():
        snapshot.spoilt = snapshot.spoilt or bool(standing[name] & {*written, chain[0]})
    return f"{target} into {chain[-1]}"
