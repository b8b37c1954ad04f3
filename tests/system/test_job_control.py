"""Ctrl-Z and `fg` at a real terminal: the guest never stands still for it, and the command goes on to its end."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import COMMAND, Vmkeep
from tests.system.held import is_in_its_copy
from tests.system.truth import has_backup_job

pytestmark = pytest.mark.system


class Terminal:
    """An interactive shell with job control inside a host."""

    def __init__(self, vmkeep: Vmkeep) -> None:
        self._end, theirs = pty.openpty()
        self._process = vmkeep.host.popen(
            ["setsid", "--ctty", "--wait", "bash", "--norc", "-i"],
            env={**vmkeep.environment, "PS1": "", "TERM": "dumb", "HISTFILE": ""},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_shown(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Return what a pattern finds in what was shown since the last such wait."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.shown)
            if found is not None:
                self.shown = self.shown[found.end() :]
                return found
            assert time.monotonic() < deadline, f"{pattern} was not shown: {self.shown}"
            if select.select([self._end], [], [], 0.05)[0]:
                self.shown += os.read(self._end, 4096).decode(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)


@pytest.fixture
def terminal(vmkeep: Vmkeep) -> Iterator[Terminal]:
    terminal = Terminal(vmkeep)
    yield terminal
    terminal.close()


@pytest.fixture
def repository_apart(host: Host, vmkeep: Vmkeep) -> Iterator[None]:
    """A repository on a file system of its own, for which the command works in a child process."""
    directory = host.dir / "work" / "apart"
    directory.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", directory], check=True)
    vmkeep.json("init", "--repository", directory / "repository")
    yield
    host.run(["umount", "--lazy", directory], check=True)


@pytest.mark.usefixtures("repository_apart")
def test_command_goes_on_after_ctrl_z_and_fg_and_its_guest_never_stands_still_for_it(
    host: Host, vmkeep: Vmkeep, terminal: Terminal
) -> None:
    vm = _vm_with_a_long_point(host)
    _stop_when(terminal, vm, lambda: is_in_its_copy(vmkeep))
    terminal.wait_shown("Stopped")
    time.sleep(0.5)
    assert has_backup_job(vm)
    _go_on(terminal)

    with _slow(host.qemu_pid(vm.name)):  # an instant of some 40 ms is not met by who is not let run for as long
        _stop_when(terminal, vm, lambda: vm.state() is VmState.PAUSED)
    wait_until(lambda: vm.state() is VmState.RUNNING, "the guest stands still with the command", 1.5)
    terminal.wait_shown("Stopped")
    assert vm.state() is VmState.RUNNING
    _go_on(terminal)
    points = vmkeep.json("points", "long")["points"]
    assert len(points) == 2
    vm.delete()


def _vm_with_a_long_point(host: Host) -> Vm:
    """A running VM whose instant takes long enough to be met, and whose copy does."""
    disks = [Disk("vda", 96 * MiB), *(Disk(f"vd{letter}", 1 * MiB) for letter in "bcdefgh")]
    vm = host.define("long", disks=disks, firmware="bios", tpm=False)
    vm.start(paused=True)
    for number in range(3):
        vm.write_random("vda", start=number * 32 * MiB, length=32 * MiB, seed=number)
    vm.resume()
    return vm


@contextmanager
def _slow(pid: int) -> Iterator[None]:
    """Let a process run for a tenth of the time."""
    over = threading.Event()

    def hold_up() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.02)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.002)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def _stop_when(terminal: Terminal, vm: Vm, condition: Callable[[], bool]) -> None:
    terminal.type(f"{COMMAND} backup --full {vm.name}\n")
    deadline = time.monotonic() + 30
    while not condition():  # without a pause: the instant is short
        assert time.monotonic() < deadline, "the moment did not come, or was not seen"
    terminal.type("\x1a")


def _go_on(terminal: Terminal) -> None:
    terminal.type("fg; echo status=$?=\n")
    assert terminal.wait_shown(r"status=(\d+)=")[1] == "0"
