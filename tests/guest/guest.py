"""A guest with an operating system: Linux with TPM tools and the guest agent, driven over a virtio-serial port."""

from __future__ import annotations

import base64
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

from lxml import etree

from tests.guest.build import guest_image
from tests.rig import DirectBoot, Disk, Host, MiB, RigError, Vm, VmState

_PORT = "org.vmkeep.test.0"
_AGENT_PORT = "org.qemu.guest_agent.0"
_WITH_AGENT = "vmkeep.agent"  # a word of the kernel's command line; init.sh looks for it
# quiet: each character on a console is an exit of the emulator. The rest leaves out work of the kernel's start.
_COMMAND_LINE = "quiet loglevel=0 mitigations=off no_timer_check tsc=reliable cryptomgr.notests panic=-1"
_BOOT_SECONDS = 90.0


class _Firmware(TypedDict, total=False):
    firmware: str
    tpm: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended in the guest, and what it printed on both streams."""

    status: int
    output: str


class LinuxGuest:
    """A Linux guest on a rig's host. ``vm`` is the rig's view of it: disks, NVRAM, TPM state.

    A context manager that pulls the plug at the end. The guest keeps nothing: its root file system is the initramfs,
    what is to last goes to a disk, the TPM or NVRAM.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._channel: _Channel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.destroy()

    @classmethod
    def define(
        cls,
        host: Host,
        name: str = "linux",
        *,
        disks: Sequence[Disk] = (Disk("vda", 16 * MiB),),
        agent: bool = False,
        ports: Sequence[str] = (),
        whole: bool = True,
    ) -> Self:
        """Define a VM that boots it. ``agent``: QEMU's guest agent runs in it; the channel for it is always there.

        ``ports`` are more channels, with nothing in the guest that listens to them. ``whole``: with UEFI and a vTPM, of
        which only a guest that uses its TPM wants something: a boot then takes 9.4 s of a processor in place of 2.6.
        """
        image = guest_image()
        kernel, initrd = (_copy_for_qemu(path, host) for path in (image.kernel, image.initrd))
        boot = DirectBoot(kernel, initrd, f"{_COMMAND_LINE} {_WITH_AGENT}" if agent else _COMMAND_LINE)
        channels = [
            f"<channel type='unix'><target type='virtio' name='{port}'/></channel>"
            for port in (_PORT, _AGENT_PORT, *ports)
        ]
        firmware: _Firmware = {} if whole else {"firmware": "bios", "tpm": False}
        return cls(host.define(name, disks=disks, memory_mib=384, device_xml=channels, boot=boot, **firmware))

    def boot(self) -> Self:
        """Start it, unless it runs already, and wait until it takes commands, and until its agent is there."""
        if self.vm.state() is VmState.OFF:
            self.vm.start()
        deadline = time.monotonic() + _BOOT_SECONDS
        self._channel = _Channel(self.socket(_PORT), deadline)
        with_agent = _WITH_AGENT in str(self._look("string(os/cmdline)")).split()
        while with_agent and not self.has_agent():
            if time.monotonic() > deadline:
                raise RigError(f"the agent of {self.vm.name} does not connect")
            time.sleep(0.02)
        return self

    def run(self, command: str, *, timeout_seconds: float = 30.0) -> str:
        """Run a shell command in the guest and return its output; RigError with the output when it fails."""
        answer = self.try_run(command, timeout_seconds=timeout_seconds)
        if answer.status != 0:
            raise RigError(f"{self.vm.name}: {command}: exit status {answer.status}\n{answer.output}")
        return answer.output

    def try_run(self, command: str, *, timeout_seconds: float = 30.0) -> Answer:
        """Run a shell command in the guest and return how it ended."""
        if self._channel is None:
            raise RigError(f"{self.vm.name} was not booted")
        return self._channel.ask(command, timeout_seconds)

    def shutdown(self) -> None:
        """Let the guest write out what it holds and switch itself off in order."""
        if self._channel is None:
            raise RigError(f"{self.vm.name} was not booted")
        self._channel.tell("sync; poweroff -f")
        deadline = time.monotonic() + _BOOT_SECONDS
        while self.vm.state() is not VmState.OFF:
            if time.monotonic() > deadline:
                raise RigError(f"{self.vm.name} does not switch itself off")
            time.sleep(0.02)
        self.disconnect()

    def destroy(self) -> None:
        """Pull the plug."""
        self.vm.destroy()
        self.disconnect()

    def disconnect(self) -> None:
        """Leave the guest to itself; ``boot`` connects again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def has_agent(self) -> bool:
        """Return whether something in the guest has the agent's channel open, as far as libvirt knows."""
        return bool(self._look(f"devices/channel/target[@name='{_AGENT_PORT}' and @state='connected']"))

    def socket(self, port: str) -> Path:
        """Return the host's end of a channel of the running guest."""
        path = str(self._look(f"string(devices/channel[target/@name='{port}']/source/@path)"))
        if not path:
            raise RigError(f"{self.vm.name} has no channel {port}")
        return self.vm.host.path(path)

    def _look(self, xpath: str) -> object:
        return etree.fromstring(self.vm.xml()).xpath(xpath)


class _Channel:
    """The driver's end of the port; init.sh says what goes over it."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""
        try:
            self._socket.connect(str(path))
            while self._line(deadline) != b"ready":
                pass  # the firmware or the kernel may have said something
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, timeout_seconds: float) -> Answer:
        self.tell(command)
        status, _, output = self._line(time.monotonic() + timeout_seconds).partition(b" ")
        return Answer(int(status), base64.b64decode(output).decode(errors="replace"))

    def tell(self, command: str) -> None:
        self._socket.sendall(base64.b64encode(command.encode()) + b"\n")

    def close(self) -> None:
        self._socket.close()

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._socket.recv(1 << 16)
            except TimeoutError:
                raise RigError(f"the guest does not answer; it said {self._received!r}") from None
            if not received:
                raise RigError(f"the guest is gone; it said {self._received!r}")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line


def _copy_for_qemu(path: Path, host: Host) -> Path:
    """Copy a file to where QEMU's user may read it and libvirt may change its owner."""
    directory = host.dir / "guest"
    directory.mkdir(exist_ok=True)
    copy = directory / path.name
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        shutil.copy(path, partial)
        partial.rename(copy)
    return copy
