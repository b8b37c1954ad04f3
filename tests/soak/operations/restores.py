"""Restores as a VM and in place."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.soak.guest import Guest
from tests.soak.model import Moment, States, Violation
from tests.soak.operations.registry import has_points, is_off, is_on, operation
from tests.soak.world import World

_LOST_IMAGES = 0.15


@operation(1, has_points)
def restore_as_vm(world: World, guest: Guest, chance: random.Random) -> str:
    """As another VM, which is compared with the point and taken away again."""
    point = chance.choice(sorted(world.points_of(guest)))
    moment = world.points.known[point]
    tpm, name = chance.choice(("same", "new")), world.fresh("copy")
    directory = world.work(name)
    directory.mkdir()
    outcome = world.commands.run("restore", point, "--as", name, "--tpm", tpm, "--disks-dir", directory)
    world.expect(outcome)
    made = world.host.vm(name)
    try:
        copy = Guest(world.host, made, {})
        for target, image in moment.images.items():
            raw = world.work("copy.raw")
            copy.read_to(target, raw)
            difference = image.difference(raw)
            if difference is not None:
                raise Violation(f"{target} of VM {name}, made of point {point}: {difference}")
        if moment.states.nvram is not None and made.nvram() != moment.states.nvram:
            raise Violation(f"the UEFI variables of VM {name} are not those of point {point}")
        if tpm == "same" and moment.states.tpm is not None and made.tpm_state() != moment.states.tpm:
            raise Violation(f"the TPM state of VM {name} is not that of point {point}")
    finally:
        made.delete()
    return f"{point[:8]} --tpm {tpm}"


@dataclass(frozen=True, slots=True)
class InPlace:
    """A restore in place: the command, what the VM is before, and what it must be afterwards."""

    words: tuple[str, ...]
    before: Moment
    after: Moment
    refusal: str | None
    chosen: frozenset[str]


def draw_in_place(world: World, guest: Guest, chance: random.Random) -> InPlace:
    """Draw a point and the parts of it that go back over the VM as it is now."""
    point = chance.choice(sorted(world.points_of(guest)))
    moment = world.points.known[point]
    only = _draw_parts(moment, chance)
    keep_tpm = not only and chance.random() < 0.1
    chosen = set(moment.images) if not only or "disks" in only else set(moment.images) & set(only)
    words = ["restore", point, "--in-place", "--yes", *(word for part in only for word in ("--only", part))]
    before = guest.now()
    images = {**before.images, **{target: moment.images[target] for target in chosen}}
    back = moment.states if not only or "state" in only else States(None, None)
    tpm = None if keep_tpm else back.tpm
    states = States(back.nvram or before.states.nvram, tpm or before.states.tpm)
    if (not only or "state" in only) and None in (moment.states.nvram, moment.states.tpm):
        states = States(None, None)  # they were changing when the point was made
    lacking = not chosen <= set(guest.disks)
    return InPlace(
        words=(*words, *(["--tpm", "keep"] if keep_tpm else [])),
        before=before,
        after=Moment(guest.vm.uuid, images, states, guest.encrypted),
        chosen=frozenset(chosen),
        refusal="invalid-request" if lacking else None if guest.off else "vm-running",
    )


def _draw_parts(moment: Moment, chance: random.Random) -> list[str]:
    drawn = chance.random()
    if drawn < 0.6 or not moment.images:
        return []
    if drawn < 0.7:
        return ["disks"]
    if drawn < 0.8:
        return ["state"]
    targets = chance.sample(sorted(moment.images), chance.randint(1, len(moment.images)))
    return [*targets, *(["state"] if chance.random() < 0.3 else [])]


@operation(8, lambda world, guest: has_points(world, guest) and is_off(world, guest))
def restore_in_place(world: World, guest: Guest, chance: random.Random) -> str:
    asked = draw_in_place(world, guest, chance)
    removed = _remove_an_image(guest, asked, chance)
    outcome = world.commands.run(*asked.words)
    told = " ".join(asked.words[1:])
    if asked.refusal is not None:
        world.expect_refused(outcome, asked.refusal)
        return f"{told}: {outcome.code}"
    world.expect(outcome)
    safety = world.keep_point(outcome.document["restored"]["safety"], asked.before.without(removed), safety=True)
    become(guest, asked.after)
    return f"{told}, safety point {safety}{''.join(f', {target} was gone' for target in removed)}"


def _remove_an_image(guest: Guest, asked: InPlace, chance: random.Random) -> set[str]:
    """Now and then lose the image of a disk that goes back; it is made anew."""
    paths = guest.paths()
    lost = sorted(asked.chosen & set(guest.disks))
    if asked.refusal is not None or not lost or chance.random() > _LOST_IMAGES:
        return set()
    target = chance.choice(lost)
    paths[target].unlink()
    return {target}


@operation(1, lambda world, guest: has_points(world, guest) and is_on(world, guest))
def restore_in_place_while_on(world: World, guest: Guest, chance: random.Random) -> str:
    asked = draw_in_place(world, guest, chance)
    outcome = world.commands.run(*asked.words)
    world.expect_refused(outcome, "vm-running", *(["invalid-request"] if asked.refusal == "invalid-request" else []))
    return outcome.code


@operation(3, lambda world, guest: guest.saved and has_points(world, guest), while_saved=True)
def refused_while_saved(world: World, guest: Guest, chance: random.Random) -> str:
    """A saved memory belongs to the present disks: nothing may take them back or put overlays on them."""
    words = list(draw_in_place(world, guest, chance).words)
    codes = ("vm-running", "invalid-request")
    if chance.random() < 0.4:
        words, codes = ["snapshot", "create", guest.name, world.fresh("refused")], ("vm-running", "vm-busy")
    outcome = world.commands.run(*words)
    world.expect_refused(outcome, *codes)
    return f"{' '.join(words[:2])}: {outcome.code}"


def become(guest: Guest, moment: Moment) -> None:
    """The VM holds this now: note it, and look at its state files at once, which nothing else tells later."""
    for target, disk in guest.disks.items():
        disk.image = moment.images[target].copy()
    found = guest.states()
    for what, one, other in (
        ("UEFI variables", found.nvram, moment.states.nvram),
        ("TPM state", found.tpm, moment.states.tpm),
    ):
        if other is not None and one != other:
            raise Violation(f"the {what} of {guest.name} are not those that it was taken back to")
