"""Commands that are killed, stopped or doubled while they work."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.soak.command import Outcome, Running
from tests.soak.guest import Guest
from tests.soak.invariants import prove_guest, wait_until_safe
from tests.soak.model import Moment, SnapshotModel, Violation
from tests.soak.operations.pointcommands import keep_taken, point_words
from tests.soak.operations.registry import has_points, operation
from tests.soak.operations.restores import become, draw_in_place
from tests.soak.operations.snapshots import after_revert, can_have_one, draw_revert, snapshot_words
from tests.soak.world import World

_TERMINATION = ("interrupted", "terminated")
_BEGINS_SECONDS = 20.0


def disturb(world: World, running: Running, chance: random.Random) -> str:
    """Do something bad to a command at a random moment, and say what; the moment is counted from its first record."""
    kind = chance.choice(("kill", "kill", "kill", "kill guardian", "stop", "stop guardian", "term", "int"))
    recorded = running.words[0] in ("backup", "snapshot") or "--in-place" in running.words
    if recorded and chance.random() < 0.7:
        records = [world.home / "guards", world.home / "restores", world.home / "snapshots"]
        running.wait_for(lambda: any(path.exists() and any(path.iterdir()) for path in records), _BEGINS_SECONDS)
        delay = chance.choice((0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8)) * chance.random()
    else:
        delay = 0.3 + 1.5 * chance.random()
    time.sleep(delay)
    _do(kind, world, running, chance.choice((0.2, 1.0, 3.0)))
    return f"{kind} after {delay:.3f} s"


def _do(kind: str, world: World, running: Running, length: float) -> None:
    if kind == "kill":
        running.signal(signal.SIGKILL)
    elif kind in ("term", "int"):
        running.signal(signal.SIGTERM if kind == "term" else signal.SIGINT)
    elif kind == "stop":
        running.signal(signal.SIGSTOP)
        time.sleep(length)
        running.signal(signal.SIGCONT)
    else:
        numbers = [signal.SIGKILL] if kind == "kill guardian" else [signal.SIGSTOP, signal.SIGCONT]
        guardians = world.commands.guardians()
        for number in numbers:
            for pid in guardians:
                _signal(pid, number)
            if number is signal.SIGSTOP:
                time.sleep(length)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@dataclass(frozen=True, slots=True)
class Disturbed:
    """How a disturbed command ended."""

    outcome: Outcome
    told: str

    @property
    def broken_off(self) -> bool:
        """Whether it did not come to an end of its own."""
        return self.outcome.killed or self.outcome.code in _TERMINATION


def run_disturbed(
    world: World, words: list[str], chance: random.Random, refusals: tuple[str, ...] = ("job-aborted",)
) -> Disturbed:
    running = world.commands.start(*words)
    told = disturb(world, running, chance)
    outcome = running.wait()
    if not outcome.killed:
        world.expect(outcome, *_TERMINATION, *refusals)
    wait_until_safe(world)
    return Disturbed(outcome, f"{told}: {outcome.code}")


def put_right(world: World) -> None:
    """What dead commands left is finished or undone by the next one that runs an operation."""
    world.expect(world.commands.run("doctor", "--fix"))


@operation(8)
def disturbed_backup(world: World, guest: Guest, chance: random.Random) -> str:
    words, excluded = point_words(guest, chance)
    moment = guest.now().without(excluded)
    end = run_disturbed(world, words, chance)
    if end.outcome.done:
        return f"{end.told} {keep_taken(world, end.outcome.document['point'], moment, excluded)}"
    world.may_have_made(moment)
    put_right(world)
    return end.told


@operation(4, lambda world, guest: guest.off and has_points(world, guest))
def disturbed_restore_in_place(world: World, guest: Guest, chance: random.Random) -> str:
    """Afterwards the VM is wholly the point or wholly what it was."""
    asked = draw_in_place(world, guest, chance)
    if asked.refusal is not None:
        return "it would be refused"
    end = run_disturbed(world, list(asked.words), chance)
    if end.outcome.done:
        world.keep_point(end.outcome.document["restored"]["safety"], asked.before)
        become(guest, asked.after)
        return end.told
    world.may_have_made(asked.before)  # the safety point
    put_right(world)
    return f"{end.told}, it is {become_either(world, guest, asked.before, asked.after)}"


def become_either(world: World, guest: Guest, before: Moment, after: Moment) -> str:
    """Find out which of two the VM is; anything else is a violation."""
    reasons = []
    for name, moment in (("before", before), ("after", after)):
        try:
            become(guest, moment)
            prove_guest(world, guest)
        except Violation as violation:
            reasons.append(f"not {name}: {violation}")
        else:
            return name
    raise Violation(f"{guest.name} is something in between: {'; '.join(reasons)}")


@operation(3, can_have_one)
def disturbed_snapshot_create(world: World, guest: Guest, chance: random.Random) -> str:
    words, made = snapshot_words(world, guest)
    end = run_disturbed(world, words, chance, ("job-aborted", "snapshot-incomplete"))
    put_right(world)
    listed = {snapshot.getName() for snapshot in guest.vm.domain.listAllSnapshots()}
    if end.outcome.done and made.name not in listed:
        raise Violation(f"{made.name} was made, and libvirt does not list it")
    if made.name in listed:
        whole = end.outcome.done or _is_kept(world, guest, made)
        guest.snapshots[made.name] = SnapshotModel(made.name, made.moment, ours=whole, all_targets=made.all_targets)
    return f"{end.told}, {'listed' if made.name in listed else 'not listed'}"


def _is_kept(world: World, guest: Guest, made: SnapshotModel) -> bool:
    """Return whether state files are kept with a snapshot whose command was killed."""
    from tests.system.snapshots import kept_snapshot

    try:
        return bool(kept_snapshot(world.commands.vmkeep, guest.vm, made.name).states)
    except AssertionError:
        return False


@operation(2, lambda _world, guest: guest.off and bool(guest.snapshots))
def disturbed_snapshot_revert(world: World, guest: Guest, chance: random.Random) -> str:
    words, snapshot = draw_revert(guest, chance)
    if snapshot.spoilt or snapshot.all_targets != set(guest.disks):
        return "it would be refused"
    before = guest.now()
    end = run_disturbed(world, words, chance)
    after = after_revert(before, snapshot)
    if end.outcome.done:
        if end.outcome.document["reverted"]["safety"] is not None:
            world.keep_point(end.outcome.document["reverted"]["safety"], before)
        become(guest, after)
        return end.told
    world.may_have_made(before)
    put_right(world)
    return f"{end.told}, it is {become_either(world, guest, before, after)}"


@operation(2, lambda world, guest: len(world.points_of(guest)) > 3)
def disturbed_delete_point(world: World, guest: Guest, chance: random.Random) -> str:
    point = chance.choice(sorted(world.points_of(guest)))
    end = run_disturbed(world, ["point", "delete", point, "--yes"], chance)
    if end.outcome.done:
        del world.points.known[point]
    else:
        put_right(world)
        world.points.deleting.add(point)
    return f"{point[:8]} {end.told}"


@operation(2, has_points)
def disturbed_restore_to_files(world: World, guest: Guest, chance: random.Random) -> str:
    """A restore to files is there whole, or nothing of it is."""
    import shutil

    from tests.soak.invariants import assert_files_are

    point = chance.choice(sorted(world.points_of(guest)))
    moment = world.points.known[point]
    output = world.work(world.fresh("out"))
    decrypt = ["--decrypt"] if moment.encrypted & set(moment.images) else []
    end = run_disturbed(world, ["restore", point, "--output", str(output), "--format", "raw", *decrypt], chance)
    if not end.outcome.done:
        put_right(world)
    if output.exists() and any(output.iterdir()):
        assert_files_are(output, moment, point)
    elif end.outcome.done:
        raise Violation(f"nothing was restored to {output}")
    shutil.rmtree(output, ignore_errors=True)
    return f"{point[:8]} {end.told}"


@operation(4)
def two_at_once(world: World, guest: Guest, chance: random.Random) -> str:
    """Two commands at one time: each ends as it would alone, or is refused because the other holds the VM."""
    moment = guest.now()
    first = world.commands.start("backup", guest.name)
    time.sleep(chance.choice((0.0, 0.2, 0.6, 1.0)))
    second, words = _second(world, guest, chance)
    outcomes = [first.wait(), second.wait()]
    told = []
    for outcome in outcomes:
        world.expect(outcome, "vm-busy", *(["incomplete"] if outcome.words[1:2] == ("health",) else []))
        if outcome.done and outcome.words[0] == "backup":
            told.append(keep_taken(world, outcome.document["point"], moment))
    if all(outcome.code == "vm-busy" for outcome in outcomes):
        raise Violation(f"both were refused: {outcomes[0].told()}; {outcomes[1].told()}")
    return f"{' '.join(words)}: {outcomes[0].code}, {outcomes[1].code} {'; '.join(told)}"


def _second(world: World, guest: Guest, chance: random.Random) -> tuple[Running, list[str]]:
    words: Callable[[], list[str]] = chance.choice(
        (
            lambda: ["backup", guest.name],
            lambda: ["points"],
            lambda: ["vm", "list"],
            lambda: ["doctor", "--fix"],
            lambda: ["checkpoint", "health", guest.name],
        )
    )
    chosen = words()
    return world.commands.start(*chosen), chosen
