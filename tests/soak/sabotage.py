"""Harm done on purpose, each of a kind that the soak must find: only then a soak without violations says something."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.rig import VmState
from tests.soak.world import World
from tests.system.offline import qemu_img

_left: list[object] = []


@dataclass(frozen=True, slots=True)
class Sabotage:
    run: Callable[[World, random.Random], str]
    possible: Callable[[World], bool]


def _flip_a_byte(world: World, chance: random.Random) -> str:
    """A pack of the repository has another byte at its middle, as a bad disk would have it."""
    inside = Path(f"/proc/{world.host.init_pid}/root{world.repository}")
    pack = max((inside / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    place = pack.stat().st_size // 2
    with pack.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))
    return f"{pack.name} at {place}"


def _lose_a_point(world: World, chance: random.Random) -> str:
    """A point is deleted, and the model is not told."""
    point = chance.choice(sorted(world.points.known))
    world.expect(world.commands.run("point", "delete", point, "--yes"))
    return point


def _pause_a_vm(world: World, chance: random.Random) -> str:
    guest = chance.choice([guest for guest in world.guests if not guest.off])
    if guest.state is VmState.PAUSED:
        guest.resume()  # and so that it can be found paused
    guest.vm.suspend()
    return guest.name


def _change_the_chain(world: World, _chance: random.Random) -> str:
    """The image gets a backing file, and a definition that has an end below it does not say so."""
    guest = next(guest for guest in world.guests if guest.off)
    target = next(target for target, disk in guest.disks.items() if _plain_qcow2(disk.kind.name))
    path = guest.paths()[target]
    base = path.with_name("wrong-base.qcow2")
    path.rename(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    xml = guest.vm.domain.XMLDesc(2)
    source = f"<source file='{path}'"
    place = xml.index("/>", xml.index(source)) + 2
    guest.host.connection.defineXML(f"{xml[:place]}<backingStore/>{xml[place:]}")
    return str(path)


def _plain_qcow2(kind: str) -> bool:
    return kind in ("qcow2", "scsi")


def _leave_a_job(world: World, chance: random.Random) -> str:
    """A backup job goes on that nobody reads."""
    guest = chance.choice([guest for guest in world.guests if not guest.off])
    target = min(guest.disks)
    job = guest.vm.own_backup_job([target])
    job.__enter__()
    _left.append(job)  # its end would be the end of the job
    return guest.name


def _something_is_on(world: World) -> bool:
    return any(not guest.off for guest in world.guests)


SABOTAGES = {
    "flipped-byte": Sabotage(_flip_a_byte, lambda world: bool(world.points.known)),
    "lost-point": Sabotage(_lose_a_point, lambda world: bool(world.points.known)),
    "paused-vm": Sabotage(_pause_a_vm, _something_is_on),
    "wrong-chain": Sabotage(
        _change_the_chain,
        lambda world: any(
            guest.off and any(_plain_qcow2(disk.kind.name) for disk in guest.disks.values()) for guest in world.guests
        ),
    ),
    "left-job": Sabotage(_leave_a_job, _something_is_on),
}
