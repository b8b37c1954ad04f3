"""Commands that are killed, stopped or doubled while they work."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

from tests.soak.disturbance import put_right, run_disturbed
from tests.soak.guest import Guest
from tests.soak.invariants import assert_files_are, prove_guest
from tests.soak.model import Moment, SnapshotModel, Violation
from tests.soak.operations.pointcommands import keep_taken, point_words
from tests.soak.operations.registry import has_points, operation
from tests.soak.operations.restores import become, draw_in_place
from tests.soak.operations.snapshots import after_revert, can_have_one, draw_revert, snapshot_words
from tests.soak.world import World
from tests.system.snapshots import kinds_kept


@operation(8, while_saved=True, timed=True)
def disturbed_backup(world: World, guest: Guest, chance: random.Random) -> str:
    words, excluded = point_words(guest, chance)
    moment = guest.now().without(excluded)
    end = run_disturbed(world, guest, words, chance)
    if end.outcome.done:
        return f"{end.told} {keep_taken(world, end.outcome.document['point'], moment, excluded)}"
    world.may_have_made(moment)
    put_right(world)
    return end.told


@operation(4, lambda world, guest: guest.off and has_points(world, guest), timed=True)
def disturbed_restore_in_place(world: World, guest: Guest, chance: random.Random) -> str:
    """Afterwards the VM is wholly the point or wholly what it was."""
    asked = draw_in_place(world, guest, chance)
    if asked.refusal is not None:
        return "it would be refused"
    end = run_disturbed(world, guest, list(asked.words), chance)
    if end.outcome.done:
        world.keep_point(end.outcome.document["restored"]["safety"], asked.before, safety=True)
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


@operation(3, can_have_one, timed=True)
def disturbed_snapshot_create(world: World, guest: Guest, chance: random.Random) -> str:
    words, made = snapshot_words(world, guest, chance)
    end = run_disturbed(world, guest, words, chance, ("snapshot-incomplete",))
    put_right(world)
    if made.memory is not None:
        guest.activate_disks()
    listed = {snapshot.getName() for snapshot in guest.vm.domain.listAllSnapshots()}
    if end.outcome.done and made.name not in listed:
        raise Violation(f"{made.name} was made, and libvirt does not list it")
    if made.name in listed:
        whole = end.outcome.done or _is_kept(world, guest, made)
        guest.snapshots[made.name] = replace(made, ours=whole)
    return f"{end.told}, {'listed' if made.name in listed else 'not listed'}"


def _is_kept(world: World, guest: Guest, made: SnapshotModel) -> bool:
    """Return whether state files are kept with a snapshot whose command was killed."""
    try:
        return bool(kinds_kept(world.commands.vmkeep, guest.vm, made.name))
    except AssertionError:
        return False


@operation(2, lambda _world, guest: guest.off and bool(guest.snapshots), timed=True)
def disturbed_snapshot_revert(world: World, guest: Guest, chance: random.Random) -> str:
    """Without memory: what a VM does whose revert was killed while its memory started is not modelled."""
    words, snapshot = draw_revert(guest, chance)
    words += ["--no-memory"] if snapshot.ours and snapshot.memory is not None else []
    if snapshot.spoilt or snapshot.all_targets != set(guest.disks):
        return "it would be refused"
    before = guest.now()
    end = run_disturbed(world, guest, words, chance)
    after = after_revert(before, snapshot)
    if end.outcome.done:
        if end.outcome.document["reverted"]["safety"] is not None:
            world.keep_point(end.outcome.document["reverted"]["safety"], before, safety=True)
        become(guest, after)
        return end.told
    world.may_have_made(before)
    put_right(world)
    return f"{end.told}, it is {become_either(world, guest, before, after)}"


@operation(2, lambda world, guest: len(world.points_of(guest)) > 3, timed=True)
def disturbed_delete_point(world: World, guest: Guest, chance: random.Random) -> str:
    point = chance.choice(sorted(world.points_of(guest)))
    end = run_disturbed(world, guest, ["point", "delete", point, "--yes"], chance)
    if end.outcome.done:
        del world.points.known[point]
    else:
        put_right(world)
        world.points.deleting.add(point)
    return f"{point[:8]} {end.told}"


@operation(2, has_points, timed=True)
def disturbed_restore_to_files(world: World, guest: Guest, chance: random.Random) -> str:
    """A restore to files is there whole, or nothing of it is."""
    point = chance.choice(sorted(world.points_of(guest)))
    moment = world.points.known[point]
    output = world.work(world.fresh("out"))
    decrypt = ["--decrypt"] if moment.encrypted & set(moment.images) else []
    end = run_disturbed(world, guest, ["restore", point, "--output", str(output), "--format", "raw", *decrypt], chance)
    if not end.outcome.done:
        put_right(world)
    if output.exists() and any(output.iterdir()):
        assert_files_are(output, moment, point)
    elif end.outcome.done:
        raise Violation(f"nothing was restored to {output}")
    shutil.rmtree(output, ignore_errors=True)
    return f"{point[:8]} {end.told}"
