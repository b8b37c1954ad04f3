"""Start, stop, pause, and what ends QEMU or libvirtd."""

from __future__ import annotations

import os
import random
import shutil
import signal

import libvirt

from tests.rig import Vm, VmState
from tests.rig.images import random_bytes
from tests.soak.guest import Guest
from tests.soak.model import Violation
from tests.soak.operations.guestwrites import draw_target
from tests.soak.operations.registry import is_off, is_on, operation
from tests.soak.world import World

DANGEROUS = ("missing", "superseded", "conflict")


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


@operation(2, is_off)
def lose_the_state(world: World, guest: Guest, chance: random.Random) -> str:
    """Somebody takes the TPM away, or puts another one there: the gate does what `state list` says of it."""
    permall = guest.vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    if not permall.exists():
        return "none"
    about, now = permall.stat(), permall.read_bytes()
    kept = [moment.states.tpm for moment in world.points_of(guest).values() if moment.states.tpm is not None]
    lost = not kept or chance.random() < 0.5

    def put(content: bytes) -> None:
        permall.parent.mkdir(exist_ok=True)
        permall.write_bytes(content)
        os.chown(permall, about.st_uid, about.st_gid)
        permall.chmod(about.st_mode & 0o777)

    permall.unlink()
    if not lost:
        put(chance.choice(kept))
    listed = world.commands.run("state", "list", guest.name)
    world.expect(listed)
    (standing,) = {state["standing"] for state in listed.document["states"] if state["kind"] == "tpm"}
    if kept and lost and standing != "missing":
        raise Violation(f"the TPM state of VM {guest.name} is gone, and `state list` says {standing}")
    try:
        guest.vm.start(paused=True)
    except libvirt.libvirtError as error:
        if standing not in DANGEROUS or "vmkeep: VM" not in str(error):
            raise
    else:
        guest.vm.destroy()
        if standing in DANGEROUS:
            raise Violation(f"VM {guest.name} was started, and its TPM state is {standing}")
    shutil.rmtree(permall.parent)
    put(now)
    os.chown(permall.parent, about.st_uid, about.st_gid)
    permall.parent.chmod(0o700)
    return f"{'lost' if lost else 'replaced'}: {standing}"


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
