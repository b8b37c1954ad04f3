"""A backup job does not end while a client is in the middle of connecting: QEMU would hang, and the guest with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.wire import breaks, heard
from tests.system.busy_guest import wait_until_in_io_thread
from tests.system.truth import has_backup_job
from vmkeep.errors import HypervisorError, JobAborted, VmBusy
from vmkeep.host.guard.clients import Channel, HeldClients
from vmkeep.host.guard.handshakes import abort_job, allow_connections, making_connection
from vmkeep.hypervisor import Hypervisor
from vmkeep.transfer.nbd import BASE_ALLOCATION, NbdConnection

pytestmark = pytest.mark.system

# Like vmkeep's own connections: under the lock, and here it never comes to its end.
_CLIENT = """
import fcntl, os, socket, sys, time
lock = os.open(sys.argv[2], os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_SH)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print(len(connection.recv(18)), flush=True)
time.sleep(600)
"""


@pytest.fixture
def vm(host: Host) -> Vm:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    return vm


@pytest.fixture
def directory(host: Host) -> Path:
    directory = host.dir / "work" / "sockets"
    directory.mkdir()
    directory.chmod(0o777)  # QEMU makes its socket in it
    allow_connections(directory)
    return directory


@dataclass(frozen=True, slots=True)
class _Killed:
    process: subprocess.Popen[str]

    def kill_owner(self) -> None:
        self.process.kill()


@contextmanager
def _connecting(host: Host, socket: Path, directory: Path) -> Iterator[subprocess.Popen[str]]:
    command: list[str | Path] = ["python3", "-c", _CLIENT, socket, directory / "handshakes"]
    client = host.popen(command, stderr=subprocess.DEVNULL)
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "18\n"
        yield client
    finally:
        client.kill()
        client.wait()
        client.stdout.close()


def _begin(vm: Vm, socket: Path) -> None:
    server = f"<server transport='unix' socket='{socket}'/>"
    vm.domain.backupBegin(f"<domainbackup mode='pull'>{server}</domainbackup>", None, 0)


def test_job_stays_until_a_connection_is_made_and_ends_when_its_process_stands_still(
    host: Host, vm: Vm, directory: Path
) -> None:
    socket = directory / "nbd"
    _begin(vm, socket)
    with closing(Hypervisor.connect(host.outer_uri)) as hypervisor, _connecting(host, socket, directory) as client:
        domain = hypervisor.domain("guest")
        with pytest.raises(VmBusy):
            abort_job(domain, str(socket), str(directory))
        assert has_backup_job(vm)

        abort_job(domain, str(socket), str(directory), owner=_Killed(client))
        assert client.wait(5) == -signal.SIGKILL
    _assert_alive(vm)


def test_connection_that_was_given_up_a_moment_before_holds_up_nothing(host: Host, vm: Vm, directory: Path) -> None:
    """The client is dead, and what QEMU has not seen of that yet is waited for."""
    with closing(Hypervisor.connect(host.outer_uri)) as hypervisor:
        domain = hypervisor.domain("guest")
        for number in range(5):
            socket = directory / f"nbd{number}"
            _begin(vm, socket)
            with _connecting(host, socket, directory) as client:
                client.kill()
                abort_job(domain, str(socket), str(directory))
            _assert_alive(vm)
            allow_connections(directory)


def test_job_that_is_ended_twice_at_once_hangs_nobody(host: Host, directory: Path) -> None:
    """As by a vmkeep that is killed just then, and its guardian: the second finds the job listed still."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB, iothread=True)], firmware="bios", tpm=False)
    vm.start()
    wait_until_in_io_thread(vm)
    with closing(Hypervisor.connect(host.outer_uri)) as hypervisor:
        domain = hypervisor.domain("guest")
        for number in range(5):
            allow_connections(directory)
            socket = directory / f"nbd{number}"
            _begin(vm, socket)
            while domain.backup_socket() == str(socket):
                with suppress(HypervisorError):  # the job was gone just then
                    abort_job(domain, str(socket), str(directory))
            _assert_alive(vm)


def test_client_that_dies_anywhere_in_its_handshake_harms_no_guest(host: Host) -> None:
    """Each client breaks off a little later; all sockets are a guardian's, whose vmkeep is dead."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB, iothread=True)], firmware="bios", tpm=False)
    vm.start()
    wait_until_in_io_thread(vm)
    context = "qemu:dirty-bitmap:backup-vda"
    vm.domain.checkpointCreateXML("<domaincheckpoint><name>before</name></domaincheckpoint>")

    def connect(client: socket.socket) -> NbdConnection:
        return NbdConnection(client, "vda", (BASE_ALLOCATION, context), "vda")

    with ExitStack() as until_the_job_is_gone, vm.own_backup_job(["vda"], since="before") as path:
        handshake = until_the_job_is_gone.enter_context(heard(path, connect))
        for length in breaks(handshake):
            channel = Channel()
            held = HeldClients(channel.theirs.dup(), os.getpid())
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(handshake[:length])
                channel.take(client)
            channel.close()
            began = time.monotonic()
            held.wait_decided(10)
            assert time.monotonic() - began < 1
            assert vm.state() is VmState.RUNNING, f"{length} bytes of {len(handshake)}"
            assert held.any_open() == (length == len(handshake))
    _assert_alive(vm)


def test_nobody_connects_when_the_end_was_asked_for(host: Host, vm: Vm, directory: Path) -> None:
    socket = directory / "nbd"
    _begin(vm, socket)
    with closing(Hypervisor.connect(host.outer_uri)) as hypervisor:
        with making_connection(directory):
            pass
        abort_job(hypervisor.domain("guest"), str(socket), str(directory))
        with pytest.raises(JobAborted), making_connection(directory):
            pass
    _assert_alive(vm)


def _assert_alive(vm: Vm) -> None:
    wait_until(lambda: not has_backup_job(vm), "the job does not end", 20)
    assert len(vm.read_image("vda")) == 8 * MiB  # asked of QEMU: one that hangs would not answer
