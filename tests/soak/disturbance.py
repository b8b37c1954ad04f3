"""What happens to a command while it works: it is killed or stopped, its guardian is, or what it works with."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass

import libvirt

from tests.soak.command import Outcome, Running
from tests.soak.guest import Guest
from tests.soak.invariants import wait_until_safe
from tests.soak.known import holders_keep_a_guest_alive
from tests.soak.model import Violation
from tests.soak.world import World

TERMINATION = ("interrupted", "terminated")
_BEGINS_SECONDS = 20.0

# Each with how often it comes and the codes that a command may end with because of it, besides "done".
_KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "kill": (6, ()),
    "kill both": (1, ()),
    "kill guardian": (2, ("job-aborted",)),
    "stop": (2, ("job-aborted",)),
    "stop guardian": (1, ("job-aborted",)),
    "term": (2, TERMINATION),
    "int": (2, TERMINATION),
    "kill libvirtd": (2, ("job-aborted", "hypervisor-unavailable", "snapshot-incomplete", "restore-pending")),
    "stop libvirtd": (2, ("job-aborted",)),
    "kill qemu": (1, ("job-aborted", "qemu-died", "snapshot-incomplete", "vm-busy")),
}


@dataclass(frozen=True, slots=True)
class Disturbed:
    """How a disturbed command ended, and what was done to it."""

    outcome: Outcome
    told: str


def run_disturbed(
    world: World, guest: Guest, words: list[str], chance: random.Random, refusals: tuple[str, ...] = ()
) -> Disturbed:
    """Run a command, do something bad at a random moment, and wait until nothing is in danger any more."""
    kind = _draw(guest, words, chance)
    guest.flush_all()
    running = world.commands.start(*words)
    delay = _wait(world, running, chance)
    told = f"{kind} after {delay:.3f} s"
    try:
        _do(kind, world, guest, running, chance)
        outcome = running.wait()
        if not outcome.killed:
            world.expect(outcome, *_KINDS[kind][1], *refusals)
        if kind == "kill both":
            put_right(world)
        wait_until_safe(world)
        if kind == "kill libvirtd" and has_stuck_job(guest):
            guest.stop()
            world.host.restart_libvirtd()
            _wait_for_libvirtd(world)
            told += ", the job stuck in libvirt and the VM was stopped"
        if kind == "kill libvirtd":
            put_right(world)  # scratch that it had not closed
    except Violation as violation:
        raise Violation(f"{told}: {violation}") from violation
    return Disturbed(outcome, f"{told}: {outcome.code}")


def put_right(world: World) -> None:
    """What dead commands left is finished or undone by the next one that runs an operation."""
    world.expect(world.commands.run("doctor", "--fix"))


def _draw(guest: Guest, words: list[str], chance: random.Random) -> str:
    possible = dict(_KINDS)
    if guest.off or words[0] != "backup":
        del possible["kill qemu"]  # what a snapshot or a revert of a dead VM must come to is not modelled
    if guest.in_io_threads and not holders_keep_a_guest_alive():
        del possible["kill both"]
    (kind,) = chance.choices(list(possible), [weight for weight, _ in possible.values()])
    return kind


def _wait(world: World, running: Running, chance: random.Random) -> float:
    """Wait for a random moment: of the whole command, or counted from the first record of what it does to a VM."""
    recorded = running.words[0] in ("backup", "snapshot") or "--in-place" in running.words
    if recorded and chance.random() < 0.7:
        records = [world.home / "guards", world.home / "restores", world.home / "snapshots"]
        running.wait_for(lambda: any(path.exists() and any(path.iterdir()) for path in records), _BEGINS_SECONDS)
        delay = chance.choice((0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8)) * chance.random()
    else:
        delay = 0.3 + 1.5 * chance.random()
    time.sleep(delay)
    return delay


def _do(kind: str, world: World, guest: Guest, running: Running, chance: random.Random) -> None:
    length = chance.choice((0.2, 1.0, 3.0))
    if kind == "kill":
        running.send(signal.SIGKILL)
    elif kind == "kill both":
        _send(world.commands.guardians(), signal.SIGKILL)
        running.send(signal.SIGKILL)
    elif kind == "term":
        running.send(signal.SIGTERM)
    elif kind == "int":
        running.send_to_all(signal.SIGINT)
    elif kind == "stop":
        running.send_to_all(signal.SIGSTOP)
        time.sleep(length)
        running.send_to_all(signal.SIGCONT)
    elif kind == "kill guardian":
        _send(world.commands.guardians(), signal.SIGKILL)
    elif kind == "stop guardian":
        guardians = world.commands.guardians()
        _send(guardians, signal.SIGSTOP)
        time.sleep(length)
        _send(guardians, signal.SIGCONT)
    elif kind == "stop libvirtd":
        world.host.signal_libvirtd(signal.SIGSTOP)
        time.sleep(length)
        world.host.signal_libvirtd(signal.SIGCONT)
    elif kind == "kill libvirtd":
        world.host.restart_libvirtd(signal.SIGKILL)
        _wait_for_libvirtd(world)
    else:
        guest.kill_qemu(flush=False)


def has_stuck_job(guest: Guest) -> bool:
    """Return whether libvirt says that a backup job is there which has no data, and does not end (see ``known``)."""
    try:
        guest.vm.domain.jobInfo()
    except libvirt.libvirtError as error:
        return "backup job data missing" in str(error)
    return False


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended in this moment


def _wait_for_libvirtd(world: World) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            world.host.connection.listAllDomains()
        except libvirt.libvirtError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
