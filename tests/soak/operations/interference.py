"""What others do behind vmkeep's back: checkpoints of their own, and its checkpoints and bitmaps removed."""

from __future__ import annotations

import random

from tests.soak.guest import Guest
from tests.soak.operations.registry import is_off, is_on, operation
from tests.soak.world import World
from tests.system.offline import bitmaps, qemu_img
from tests.system.truth import checkpoints

_MOST_CHECKPOINTS = 3


@operation(2, lambda world, guest: is_on(world, guest) and len(guest.checkpoints) < _MOST_CHECKPOINTS)
def create_checkpoint(world: World, guest: Guest, chance: random.Random) -> str:
    """By vmkeep or by virsh; either way it is not vmkeep's own."""
    name = world.fresh("mark")
    if chance.random() < 0.5 and guest.hold_bitmaps():
        capable = guest.hold_bitmaps()
        specs = [word for target in sorted(guest.disks) for word in _spec(target, capable=target in capable)]
        world.host.run(["virsh", "checkpoint-create-as", guest.name, name, *specs], check=True)
    else:
        outcome = world.commands.run("checkpoint", "create", guest.name, name)
        if not guest.hold_bitmaps():
            world.expect_refused(outcome, "disk-unsupported", "moment-invalid")
            return f"{name}: {outcome.code}"
        world.expect(outcome)
    guest.checkpoints.add(name)
    return name


def _spec(target: str, *, capable: bool) -> list[str]:
    return ["--diskspec", target if capable else f"{target},checkpoint=no"]


@operation(2, lambda _world, guest: bool(guest.checkpoints))
def delete_checkpoint(world: World, guest: Guest, chance: random.Random) -> str:
    name = chance.choice(sorted(guest.checkpoints))
    metadata = ["--metadata"] if chance.random() < 0.3 else []
    outcome = world.commands.run("checkpoint", "delete", guest.name, name, *metadata)
    world.expect(outcome)
    guest.checkpoints.discard(name)
    return " ".join([name, *metadata])


@operation(2)
def virsh_forgets_checkpoints(world: World, guest: Guest, chance: random.Random) -> str:
    """virsh checkpoint-delete --metadata of one checkpoint, vmkeep's or another."""
    names = checkpoints(guest.vm)
    if not names:
        return "there is none"
    name = chance.choice(names)
    world.host.run(["virsh", "checkpoint-delete", guest.name, name, "--metadata"], check=True)
    guest.checkpoints.discard(name)
    return name


@operation(2, is_off)
def remove_bitmap(_world: World, guest: Guest, chance: random.Random) -> str:
    """qemu-img bitmap --remove of one bitmap, in the image that the VM is on."""
    found = [
        (path, name)
        for target, path in sorted(guest.paths().items())
        if not guest.disks[target].kind.luks
        for name in bitmaps(path)
    ]
    if not found:
        return "there is none"
    path, name = chance.choice(found)
    qemu_img("bitmap", "--remove", path, name)
    return f"{name} of {path.name}"


@operation(1, lambda _world, guest: bool(guest.checkpoints))
def import_checkpoints(world: World, guest: Guest, chance: random.Random) -> str:
    """Exported, one forgotten by virsh, and imported: all are listed again."""
    file = world.work(world.fresh("checkpoints"))
    world.expect(world.commands.run("checkpoint", "export", guest.name, file))
    name = chance.choice(sorted(guest.checkpoints))
    children = guest.vm.domain.checkpointLookupByName(name).listAllChildren()
    world.host.run(["virsh", "checkpoint-delete", guest.name, name, "--metadata"], check=True)
    outcome = world.commands.run("checkpoint", "import", guest.name, file)
    # What hung from it hangs from another now, so it is not as in the file.
    if not world.expect(outcome, *(["moment-exists"] if children else [])):
        world.expect(world.commands.run("checkpoint", "import", guest.name, file, "--replace"))
    return f"{name}: {outcome.code}"


@operation(1)
def repair_checkpoints(world: World, guest: Guest, _chance: random.Random) -> str:
    outcome = world.commands.run("checkpoint", "repair", guest.name)
    world.expect(outcome)
    return outcome.code
