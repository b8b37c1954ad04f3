"""Start, stop, pause, and what ends QEMU or libvirtd."""

from __future__ import annotations

import random
import signal

from tests.rig import Vm, VmState
from tests.rig.images import random_bytes
from tests.soak.guest import Guest
from tests.soak.operations.guestwrites import draw_target
from tests.soak.operations.registry import is_off, is_on, operation
from tests.soak.world import World


@operation(10, is_off, while_saved=True)
def start(_world: World, guest: Guest, chance: random.Random) -> str:
    run = chance.random() < 0.2  # its firmware takes some seconds to come to rest
    guest.start(run=run)
    return guest.state.value


@operation(5, is_on)
def stop(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.stop()
    return ""


@operation(2, lambda _world, guest: guest.state is VmState.RUNNING)
def pause(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.suspend()
    return ""


@operation(1, lambda _world, guest: guest.state is VmState.PAUSED)
def resume(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.resume()
    return ""


@operation(1, lambda _world, guest: guest.state is VmState.RUNNING)
def reset(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.reset()
    return ""


@operation(2, is_on)
def kill_qemu(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.kill_qemu()
    return ""


@operation(1)
def restart_libvirtd(_world: World, guest: Guest, chance: random.Random) -> str:
    number = chance.choice((signal.SIGKILL, signal.SIGTERM))
    guest.host.restart_libvirtd(number)
    return number.name


@operation(1, lambda _world, guest: guest.state is VmState.RUNNING and guest.settled)
def managed_save(_world: World, guest: Guest, _chance: random.Random) -> str:
    guest.save_memory()
    return ""


def _can_migrate(_world: World, guest: Guest) -> bool:
    """libvirt migrates no VM that has snapshots. One that is paused gives its images back only when it resumes."""
    return guest.state is VmState.RUNNING and guest.settled and not guest.snapshots and not guest.encrypted


@operation(2, _can_migrate)
def migrate_away_and_back(world: World, guest: Guest, chance: random.Random) -> str:
    """Both hosts see the disks under the same path, as on shared storage. Checkpoints do not travel."""
    other = world.hosts.host("beta")
    _migrate(guest.vm, other.outer_uri, str(other.dir / "jobs" / "incoming.sock"))
    away = Vm(other, guest.vm.uuid, guest.name)
    target = draw_target(guest, chance)
    content = random_bytes(chance.getrandbits(32), 64 * 1024)
    away.write_bytes(target, start=0, content=content)
    guest.disks[target].image.write(0, content)
    _migrate(away, world.host.outer_uri, str(world.host.dir / "jobs" / "incoming.sock"))
    guest.pid = guest.qemu_pid()
    guest.checkpoints.clear()
    return target


def _migrate(vm: Vm, destination: str, socket: str) -> None:
    words = ["virsh", "migrate", "--live", "--persistent", "--undefinesource", "--p2p", "--unsafe", vm.name]
    vm.host.run(["rm", "-f", socket], check=True)
    vm.host.run([*words, destination, "--migrateuri", f"unix://{socket}"], check=True)
