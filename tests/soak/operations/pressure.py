"""What happens while a point is taken: the guest writes, a disk is full, other commands work."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.environment.injector import FOREVER, Fault
from tests.rig import KiB
from tests.soak.command import Outcome, Running
from tests.soak.disturbance import put_right
from tests.soak.guest import Guest
from tests.soak.invariants import wait_until_safe
from tests.soak.model import Moment, Violation
from tests.soak.operations.guestwrites import can_zero, write_pattern, write_random, write_zeroes
from tests.soak.operations.pointcommands import keep_taken
from tests.soak.operations.registry import is_on, operation
from tests.soak.world import World

_COPYING = '"stage": "copy"'  # in the record of the job; whatever is written from then on is not in the point
_BEGINS_SECONDS = 60.0


def _copies(world: World) -> bool:
    return any(_COPYING in _text(record) for record in (world.home / "guards").glob("*.json"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@operation(5, is_on)
def backup_while_the_guest_writes(world: World, guest: Guest, chance: random.Random) -> str:
    """The point is of the instant before all these writes."""
    moment = guest.now()
    running = world.commands.start("backup", guest.name, *(["--full"] if chance.random() < 0.5 else []))
    running.wait_for(lambda: _copies(world), _BEGINS_SECONDS)
    writes = 0
    if _copies(world):
        for _ in range(chance.randint(2, 12)):
            write = chance.choice((write_pattern, write_random, *([write_zeroes] if can_zero(world, guest) else [])))
            write(world, guest, chance)
            writes += 1
    outcome = running.wait()
    world.expect(outcome)
    return f"{writes} writes, {keep_taken(world, outcome.document['point'], moment)}"


@operation(2, lambda world, _guest: world.own_store)
def backup_with_a_full_repository(world: World, guest: Guest, chance: random.Random) -> str:
    """The repository has some KiB left: either they were enough, or it is told and nothing else is harmed."""
    moment = guest.now()
    with _nearly_full(world, chance, world.repository.parent) as told:
        outcome = world.commands.run("backup", guest.name)
    if world.expect(outcome, "no-space"):
        return f"{told}: {keep_taken(world, outcome.document['point'], moment)}"
    return f"{told}: {outcome.code}"


@operation(2, lambda world, _guest: world.own_store, timed=True)
def backup_with_a_full_home(world: World, guest: Guest, chance: random.Random) -> str:
    """The home's file system is full, from the beginning or in the middle of the work; what only reads goes on."""
    moment = guest.now()
    delay = chance.choice((0.0, 0.8, 1.6, 2.4)) * chance.random()
    with _home_on_a_small_file_system(world):
        running = world.commands.start("backup", guest.name) if delay else None
        time.sleep(delay)
        with _nearly_full(world, chance, world.home) as told:
            running = running or world.commands.start("backup", guest.name)
            outcome = running.wait()
            wait_until_safe(world)
            world.expect(world.commands.start("points").wait())
            world.expect(world.commands.start("vm", "list").wait())
    return f"{told} after {delay:.2f} s: {_settled(world, outcome, moment)}"


_HOME_SIZE = "64m"


@contextmanager
def _home_on_a_small_file_system(world: World) -> Iterator[None]:
    """Put a file system that can be filled over the home, with what is there, and bring back what it holds then."""
    home, kept = world.home, world.work(world.fresh("home"))
    world.host.run(["cp", "-a", home, kept], check=True)
    world.host.run(["mount", "-t", "tmpfs", "-o", f"size={_HOME_SIZE},mode=0700", "tmpfs", home], check=True)
    try:
        world.host.run(["cp", "-a", f"{kept}/.", home], check=True)
        yield
        world.host.run(["rm", "-r", kept], check=True)
        world.host.run(["cp", "-a", home, kept], check=True)
    finally:
        world.host.run(["umount", home], check=True)
    world.host.run(["find", home, "-mindepth", "1", "-delete"], check=True)
    world.host.run(["cp", "-a", f"{kept}/.", home], check=True)
    world.host.run(["rm", "-r", kept], check=True)


@contextmanager
def _nearly_full(world: World, chance: random.Random, place: Path) -> Iterator[str]:
    """Leave little room on the file system of this directory."""
    left = chance.choice((0, 4, 64, 512, 2048)) * KiB
    words = world.host.run(["stat", "-f", "-c", "%a %S", place], check=True).stdout.split()
    free = int(words[0]) * int(words[1])
    filler = place / "filler"
    size = str(max(4096, free - left))
    # A command may work there already, and have taken what was free just now: then as much as there is.
    fill = ["sh", "-c", 'fallocate -l "$1" "$2" 2>/dev/null || head -c "$1" /dev/zero > "$2" 2>/dev/null || true']
    world.host.run([*fill, "fill", size, filler], check=True)
    try:
        yield f"{left // KiB} KiB left"
    finally:
        world.host.run(["rm", filler], check=True)


def _settled(world: World, outcome: Outcome, moment: Moment) -> str:
    """Keep what a backup beside failing storage made or may have made, put right what it left, and say how it ended."""
    if world.expect(outcome, *_OF_STORAGE):
        told = keep_taken(world, outcome.document["point"], moment)
    else:
        world.may_have_made(moment)  # the point was stored, and something after it failed
        told = outcome.code
    put_right(world)
    return told


_WRITING = ("create", "write", "sync", "rename", "unlink", "mkdir")
_OF_STORAGE = ("no-space", "store-error", "catalog-error", "host-exhausted", "permission-denied", "job-aborted")


@operation(3, timed=True)
def backup_on_a_failing_storage(world: World, guest: Guest, chance: random.Random) -> str:
    """What is written to the home or to the repository fails, for once or from some moment on."""
    moment = guest.now()
    place = chance.choice((world.home, world.repository))
    error = chance.choice((errno.ENOSPC, errno.EIO, errno.EROFS))
    fault = Fault((place,), error, chance.randint(1, 90), chance.choice((1, FOREVER)), _WRITING)
    outcome = world.commands.start("backup", guest.name, env=world.hosts.injector(world.host).environment(fault)).wait()
    wait_until_safe(world)
    told = f"{errno.errorcode[error]} at {fault.at} of {place.name}{', lasting' if fault.times == FOREVER else ''}"
    return f"{told}: {_settled(world, outcome, moment)}"


@operation(2, is_on)
def backup_with_small_scratch(world: World, guest: Guest, chance: random.Random) -> str:
    """Scratch that has hardly room for its own tables: refused or done, and nothing is left there."""
    moment = guest.now()
    size = chance.choice((64, 512, 1024, 4096))
    directory = world.small_directory("scratch", f"{size}k")
    settings = world.home / "vmkeep.toml"
    before = settings.read_text() if settings.exists() else ""
    settings.write_text(f'{before}scratch_dir = "{directory}"\n')
    try:
        outcome = world.commands.run("backup", guest.name)
    finally:
        settings.write_text(before)
        left = world.host.run(["ls", "-A", directory]).stdout.split()
        world.host.run(["umount", "--lazy", directory], check=True)
    if left:
        raise Violation(f"left in the scratch's directory: {left}")
    if world.expect(outcome, "no-space", "job-aborted"):
        return f"{size} KiB: {keep_taken(world, outcome.document['point'], moment)}"
    return f"{size} KiB: {outcome.code}"


@operation(4, timed=True)
def two_at_once(world: World, guest: Guest, chance: random.Random) -> str:
    """Two commands at one time: each ends as it would alone, or is refused because the other holds the VM."""
    moments = {other.name: other.now() for other in world.guests}
    fresh = not world.points.known
    first = world.commands.start("backup", guest.name)
    time.sleep(chance.choice((0.0, 0.2, 0.6, 1.0)))
    second = _second(world, guest, chance)
    outcomes = [first.wait(), second.wait()]
    told = [_settle(world, outcome, moments, fresh=fresh) for outcome in outcomes]
    if all(outcome.code == "vm-busy" for outcome in outcomes):
        raise Violation(f"both were refused: {outcomes[0].told()}; {outcomes[1].told()}")
    return f"{' '.join(second.words)}: {'; '.join(told)}"


def _settle(world: World, outcome: Outcome, moments: dict[str, Moment], *, fresh: bool) -> str:
    judges = outcome.words[1:2] == ("health",)
    # The other command's work may look like something that is not finished, and before it there may be no repository.
    world.expect(
        outcome,
        "vm-busy",
        *(["incomplete"] if judges else []),
        *(["repository-not-found"] if outcome.words[0] == "verify" and fresh else []),
    )
    if outcome.done and outcome.words[0] == "backup":
        point = outcome.document["point"]
        return keep_taken(world, point, moments[point["vm"]])
    return outcome.code


def _second(world: World, guest: Guest, chance: random.Random) -> Running:
    other = chance.choice(world.guests)
    words = chance.choice(
        (
            ["backup", guest.name],
            ["backup", other.name],
            ["points"],
            ["vm", "list"],
            ["verify", "--all"],
            ["doctor", "--fix"],
            ["checkpoint", "health", guest.name],
            ["checkpoint", "repair", guest.name],
        )
    )
    return world.commands.start(*words)
