"""Second VMs, new names, and UEFI variables made anew, changed and brought from a file."""

from __future__ import annotations

import random

from tests.soak.guest import Guest
from tests.soak.model import States, Violation
from tests.soak.operations.registry import is_off, operation
from tests.soak.world import World


@operation(2, is_off)
def vm_clone(world: World, guest: Guest, chance: random.Random) -> str:
    """A second VM, which is compared with the first, started, and taken away again."""
    name, tpm, nvram = world.fresh("clone"), chance.choice(("copy", "new", "none")), chance.choice(("copy", "new"))
    directory = world.work(name)
    directory.mkdir()
    moment = guest.now()
    words = ["vm", "clone", guest.name, name, "--tpm", tpm, "--nvram", nvram, "--disks-dir", str(directory), "--yes"]
    world.expect(world.commands.run(*words))
    made = world.host.vm(name)
    try:
        copy = Guest(world.host, made, {})
        for target, image in moment.images.items():
            raw = world.work("clone.raw")
            copy.read_to(target, raw)
            difference = image.difference(raw)
            if difference is not None:
                raise Violation(f"{target} of VM {name}, a clone of {guest.name}: {difference}")
        if nvram == "copy" and made.nvram() != moment.states.nvram:
            raise Violation(f"the UEFI variables of VM {name} are not those of {guest.name}")
        if tpm == "copy" and made.tpm_state() != moment.states.tpm:
            raise Violation(f"the TPM state of VM {name} is not that of {guest.name}")
        made.start(paused=True)  # what lies there counts for the gate
    finally:
        made.delete()
    if guest.states() != moment.states:
        raise Violation(f"the state files of VM {guest.name} are others since it was cloned")
    return f"{name} --tpm {tpm} --nvram {nvram}"


@operation(1, is_off)
def vm_rename(world: World, guest: Guest, _chance: random.Random) -> str:
    """Its state files are the VM's under another name as well; its points know it by the one that it has again then."""
    before, name, other = guest.now(), guest.name, world.fresh("renamed")
    outcome = world.commands.run("vm", "rename", name, other)
    world.expect(outcome)
    guest.vm = world.host.vm(other)
    if guest.vm.uuid != before.vm_uuid or guest.states() != before.states:
        raise Violation(f"VM {other} has not what it had as {name}")
    guest.start(run=False)
    guest.stop()
    now = guest.states()
    world.expect(world.commands.run("vm", "rename", other, name))
    guest.vm = world.host.vm(name)
    if guest.states() != now:
        raise Violation(f"VM {name} has not what it had as {other}")
    return f"{other}, and back"


@operation(2, is_off)
def nvram_replaced(world: World, guest: Guest, chance: random.Random) -> str:
    """Made anew, changed, or brought from a file; what was comes back by the one command that is told, or does not."""
    before, verb = guest.states(), chance.choice(("reset", "enroll", "import"))
    words = ["nvram", verb, guest.name, "--yes"]
    if verb == "import":
        file = world.work(world.fresh("variables"))
        world.expect(world.commands.run("nvram", "export", guest.name, file))
        guest.change_states(tpm=False)
        before = guest.states()
        words.insert(3, str(file))
    outcome = world.commands.run(*words)
    if not world.expect(outcome, *(["state-unsupported"] if verb == "enroll" else [])):
        return f"{verb}: {outcome.code}"
    if guest.states().tpm != before.tpm:
        raise Violation(f"the TPM of VM {guest.name} is another one since its UEFI variables were replaced")
    replaced = outcome.document["replaced"]
    if replaced["way_back"] is not None and chance.random() < 0.6:
        world.expect(world.commands.run(*replaced["way_back"].split()[1:], "--yes"))
        if guest.states() != States(before.nvram, before.tpm):
            raise Violation(f"the UEFI variables of VM {guest.name} did not come back as they were")
        return f"{verb}, and back"
    return verb
