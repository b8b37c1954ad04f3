"""TPMs taken out, put back, reset, given a key, cloned and not deleted: no device without its state, nor otherwise."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from tests.rig import NvIndexMissingError
from tests.soak.command import Outcome
from tests.soak.disturbance import put_right, run_disturbed
from tests.soak.guest import Guest
from tests.soak.model import Violation
from tests.soak.operations.registry import operation
from tests.soak.world import World
from tests.system.test_tombstones import unwritable

_STORED = b"sealed by the guest"


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


@operation(2, _has_state_to_keep)
def tpm_reset(world: World, guest: Guest, chance: random.Random) -> str:
    """A new TPM, which its next start makes, in place of the one that was; that one comes back, or does not."""
    content, before = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2)
    outcome = world.commands.run("tpm", "reset", guest.name, "--yes")
    world.expect(outcome)
    if guest.vm.tpm_directory.exists() or guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the TPM of VM {guest.name} was reset, and is not new")
    _is_proved(world, guest, outcome.document["reset"]["removal"], content)
    if chance.random() < 0.5:
        _remove(world, guest)
        world.expect(world.commands.run(*_words_to_add(guest, content)))
        if not has_tpm(guest, content) or guest.vm.domain.XMLDesc(2) != before:
            raise Violation(f"the TPM of VM {guest.name} did not come back as it was")
        return "put back"
    _start_once(guest)
    return "new"


@operation(2, _has_state_to_keep)
def tpm_rekey(world: World, guest: Guest, chance: random.Random) -> str:
    """Encrypted, perhaps with another key once more, and in plain again: what the guest stored is there."""
    before, index = guest.vm.domain.XMLDesc(2), chance.randrange(1, 1 << 20)
    guest.vm.store_in_tpm(_STORED, index=index)
    for plain in ([], ["--plain"]) if chance.random() < 0.5 else ([], [], ["--plain"]):
        content = guest.vm.tpm_state()
        outcome = world.commands.run("tpm", "rekey", guest.name, "--yes", *plain)
        world.expect(outcome)
        _is_proved(world, guest, outcome.document["rekeyed"]["removal"], content)
        if chance.random() < 0.3:
            _start_once(guest)
    if guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the device of VM {guest.name} is another one than before it had a key")
    if guest.vm.load_from_tpm(len(_STORED), index=index) != _STORED:
        raise Violation(f"VM {guest.name} has another TPM than before it had a key")
    return f"index {index}"


@operation(2, _has_state_to_keep, timed=True)
def disturbed_renewal(world: World, guest: Guest, chance: random.Random) -> str:
    """A reset or a new key is killed or stopped: afterwards the TPM is the one or the other, and it starts."""
    verb, index = chance.choice(("reset", "rekey")), chance.randrange(1, 1 << 20)
    guest.vm.store_in_tpm(_STORED, index=index)
    content, before = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2)
    end = run_disturbed(world, guest, ["tpm", verb, guest.name, "--yes"], chance)
    if not end.outcome.done:
        put_right(world)
    lies_there = guest.vm.tpm_directory.exists()
    if lies_there and guest.vm.domain.XMLDesc(2) == before:
        has_tpm(guest, content)
        became = "as it was"
    elif verb == "rekey":
        world.expect(world.commands.run("tpm", "rekey", guest.name, "--plain", "--yes"))
        became = "another key"
    else:
        if lies_there or guest.vm.domain.XMLDesc(2) != before:
            raise Violation(f"VM {guest.name} has neither its TPM nor a new one")
        _start_once(guest)
        became = "new"
    if guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the device of VM {guest.name} is another one than before")
    try:
        stored = guest.vm.load_from_tpm(len(_STORED), index=index) == _STORED
    except NvIndexMissingError:
        stored = False
    if stored == (became == "new"):
        raise Violation(
            f"the TPM of VM {guest.name} is {became}, and what was stored is {'' if stored else 'not '}there"
        )
    return f"{verb} {end.told}, {became}"


@operation(2, lambda world, guest: _has_state_to_keep(world, guest) and len(world.guests) > 1)
def tpm_clone(world: World, guest: Guest, chance: random.Random) -> str:
    """The other VM's TPM in place of this one's, copied or blank, and this one's again."""
    other = next(each for each in world.guests if each is not guest)
    if not _has_state_to_keep(world, other):
        return "the other has none to copy"
    content, before, of_other = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2), other.vm.tpm_state()
    _remove(world, guest)
    how = chance.choice(("--copy", "--new"))
    world.expect(world.commands.run("tpm", "clone", other.name, guest.name, how, "--yes"))
    if how == "--copy":
        has_tpm(guest, of_other)
    elif "<tpm" not in guest.vm.domain.XMLDesc(2) or guest.vm.tpm_directory.exists():
        raise Violation(f"VM {guest.name} was given a blank TPM, and has none, or a state in its place")
    has_tpm(other, of_other)
    _remove(world, guest)
    world.expect(world.commands.run(*_words_to_add(guest, content)))
    if not has_tpm(guest, content) or guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the TPM of VM {guest.name} did not come back as it was")
    return how


@operation(2, _has_state_to_keep)
def tpm_not_deleted(world: World, guest: Guest, chance: random.Random) -> str:
    """Its storage is read-only when the TPM is removed: a tombstone is tried again, let be, or superseded."""
    content, before = guest.vm.tpm_state(), guest.vm.domain.XMLDesc(2)
    with unwritable(guest.vm):
        outcome = world.commands.run("tpm", "remove", guest.name, "--yes")
        world.expect(outcome)
        (tombstone,) = outcome.document["removed"]["tombstones"]
    if guest.vm.tpm_state() != content:
        raise Violation(f"what of the TPM of VM {guest.name} could not be deleted is another content")
    way = chance.choice(("retry", "waive", "add"))
    if way == "retry":
        world.expect(world.commands.run("tombstones", "retry", tombstone))
    elif way == "waive":
        world.expect(world.commands.run("tombstones", "waive", tombstone, "--yes", "--reason", "shredded"))
    if guest.vm.tpm_directory.exists() == (way == "retry"):
        raise Violation(
            f"after {way} what was left of the TPM of VM {guest.name} is {'' if way == 'retry' else 'not '}there"
        )
    world.expect(world.commands.run(*_words_to_add(guest, content)))
    if not has_tpm(guest, content) or guest.vm.domain.XMLDesc(2) != before:
        raise Violation(f"the TPM of VM {guest.name} did not come back as it was")
    listed = world.commands.run("tombstones", "list")
    if tombstone in [each["id"] for each in listed.document["tombstones"]]:
        raise Violation(f"tombstone {tombstone} is open, and VM {guest.name} has its TPM again")
    return way


def _start_once(guest: Guest) -> None:
    """libvirt makes a TPM state where there is none; the firmware does not run."""
    guest.start(run=False)
    guest.stop()


def _is_proved(world: World, guest: Guest, removal: str, content: bytes) -> None:
    """Raise Violation unless the repository has a signed proof that this content was deleted."""
    (proof,) = _shown(world.commands.run("tpm", "removal", "show", removal))
    deleted = {each["sha256"] for each in proof["files"] if each["outcome"] == "deleted"}
    if not proof["stored"] or proof["trust"] != "own" or hashlib.sha256(content).hexdigest() not in deleted:
        raise Violation(f"that the state of VM {guest.name} was deleted is not proved: {proof}")


def _shown(outcome: Outcome) -> list[dict[str, Any]]:
    if not outcome.done:
        raise Violation(f"not shown: {outcome.told()}")
    found: list[dict[str, Any]] = outcome.document["removals"]
    return found


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
