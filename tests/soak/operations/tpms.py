"""The TPM is taken out of a VM and put back, and a blank one in between: no device without its state, nor otherwise."""

from __future__ import annotations

import hashlib
import random

from tests.soak.disturbance import put_right, run_disturbed
from tests.soak.guest import Guest
from tests.soak.model import Violation
from tests.soak.operations.registry import operation
from tests.soak.world import World


def _has_state_to_keep(_world: World, guest: Guest) -> bool:
    return guest.off and (guest.vm.tpm_directory / "tpm2" / "tpm2-00.permall").exists()


@operation(3, _has_state_to_keep)
def tpm(world: World, guest: Guest, chance: random.Random) -> str:
    """Removed, perhaps blank for a while, and put back from the version that is kept."""
    content, before = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2)
    _remove(world, guest)
    blank = chance.random() < 0.4
    if blank:
        world.expect(world.commands.run("tpm", "add", guest.name, "--model", chance.choice(("crb", "tis"))))
        if "<tpm" not in guest.vm.domain.XMLDesc(2) or guest.vm.tpm_directory.exists():
            raise Violation(f"VM {guest.name} was given a blank TPM, and has none, or a state in its place")
        _remove(world, guest)
    world.expect(world.commands.run(*_words_to_add(guest, content)))
    if not has_tpm(guest, content) or guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the TPM of VM {guest.name} did not come back as it was")
    return f"{'blank, then ' if blank else ''}put back"


@operation(2, _has_state_to_keep, timed=True)
def disturbed_tpm(world: World, guest: Guest, chance: random.Random) -> str:
    """Both ways are killed or stopped: afterwards all of it is there, or nothing, and the state is a version."""
    content, before = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2)
    told = []
    for words in (["tpm", "remove", guest.name, "--yes"], _words_to_add(guest, content)):
        if has_tpm(guest, content) and words[1] == "add":
            break
        end = run_disturbed(world, guest, words, chance)
        if not end.outcome.done:
            put_right(world)
        told.append(f"{words[1]} {end.told}, {'there' if has_tpm(guest, content) else 'gone'}")
    if not has_tpm(guest, content):
        world.expect(world.commands.run(*_words_to_add(guest, content)))
    if not has_tpm(guest, content) or guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the TPM of VM {guest.name} did not come back as it was")
    return "; ".join(told)


def has_tpm(guest: Guest, content: bytes) -> bool:
    """Return whether a VM has its TPM. Raises Violation for a device without the state, and a state without device."""
    device, lies_there = "<tpm" in guest.vm.domain.XMLDesc(2), guest.vm.tpm_directory.exists()
    if device != lies_there:
        raise Violation(f"VM {guest.name} has {'a TPM without' if device else 'no TPM, and'} a state on the host")
    if device and guest.vm.tpm_state() != content:
        raise Violation(f"the TPM state of VM {guest.name} is another one than before")
    beside = [path.name for path in guest.vm.tpm_directory.parent.glob(f".{guest.vm.uuid}.*")]
    if beside:
        raise Violation(f"{beside} were left beside the TPM state of VM {guest.name}")
    return device


def _remove(world: World, guest: Guest) -> None:
    outcome = world.commands.run("tpm", "remove", guest.name, "--yes")
    world.expect(outcome)
    if "<tpm" in guest.vm.domain.XMLDesc(2) or guest.vm.tpm_directory.exists():
        raise Violation(f"the TPM of VM {guest.name} was removed, and is there: {outcome.document['removed']['left']}")


def _words_to_add(guest: Guest, content: bytes) -> list[str]:
    return ["tpm", "add", guest.name, "--from", hashlib.sha256(content).hexdigest()[:16]]
