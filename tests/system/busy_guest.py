"""Guests that are a boot sector: they write all the time, or power off. And what is seen of one from outside."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import libvirt

from tests.rig import Disk, Host, MiB, Vm, VmState, assert_images_equal, random_bytes

TARGETS = ("vda", "vdb")
_SECTOR = 512
_WRITE_BYTES = 64 * _SECTOR
_FIRST = 1 * MiB
_SLOTS = 64  # 2 MiB, written round and round


class WritingGuest:
    """A VM whose guest writes 32 KiB to each of two disks at 91 ticks a second, round 2 MiB for ever.

    Each write begins with its number, so the whole content of both disks follows from how far the guest has come. The
    writes go through the device: unlike the rig's own they meet its error policy, and at an error the guest halts.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        size: int = 8 * MiB,
        policies: tuple[str | None, str | None] = (None, None),
        iothread: bool = False,
    ) -> None:
        disks = [
            # The firmware lets a boot sector reach only the disks that are to be booted from.
            Disk(target, size, error_policy=policy, extra_xml=(f"<boot order='{number}'/>",), iothread=iothread)
            for number, (target, policy) in enumerate(zip(TARGETS, policies, strict=True), 1)
        ]
        self.vm = host.define(name, disks=disks, firmware="bios", tpm=False)
        self.vm.start(paused=True)
        for number, target in enumerate(TARGETS, 1):
            self.vm.write_random(target, start=4 * MiB, length=2 * MiB, seed=number)
        self.vm.write_bytes("vda", start=0, content=_writing_program())
        # The first round overwrites nothing that a job would have to keep.
        self._base = {target: bytearray(self.vm.read_image(target)) for target in TARGETS}
        self.vm.resume()
        self.wait_written((_SLOTS + 4) * _WRITE_BYTES, seconds=60)

    def change(self, *, start: int, length: int, seed: int) -> None:
        """Change both disks where the guest does not write."""
        for number, target in enumerate(TARGETS):
            content = random_bytes(seed + number, length)
            self.vm.write_bytes(target, start=start, content=content)
            self._base[target][start : start + length] = content

    def base(self) -> dict[str, bytes]:
        """Return what the disks hold where the guest does not write, to compare an earlier point with."""
        return {target: bytes(content) for target, content in self._base.items()}

    def written_bytes(self) -> int:
        return int(self.vm.domain.blockStats("vda")[3])

    def wait_written(self, more_bytes: int, seconds: float = 40) -> None:
        """Wait until the guest has written more: it runs, and met no error."""
        end, deadline = self.written_bytes() + more_bytes, time.monotonic() + seconds
        while self.written_bytes() < end:
            assert time.monotonic() < deadline, "the guest does not write"
            time.sleep(0.01)

    def assert_of_one_instant(self, images: dict[str, bytes], base: dict[str, bytes] | None = None) -> int:
        """Fail unless these are the whole disks between two writes of the guest; return how many it had made."""
        counts = {target: max(_numbers(images[target])) for target in TARGETS}
        assert counts["vda"] - counts["vdb"] in (0, 1), counts
        rest = images["vda"][_FIRST + 4 : _FIRST + _WRITE_BYTES]  # what the guest's memory holds after the number
        for target in TARGETS:
            expected = bytearray((base or self._base)[target])
            for number in range(max(1, counts[target] - _SLOTS + 1), counts[target] + 1):
                start = _FIRST + (number - 1) % _SLOTS * _WRITE_BYTES
                expected[start : start + _WRITE_BYTES] = number.to_bytes(4, "little") + rest
            assert_images_equal(images[target], bytes(expected), target)
        return counts["vda"]


def _numbers(image: bytes) -> list[int]:
    starts = range(_FIRST, _FIRST + _SLOTS * _WRITE_BYTES, _WRITE_BYTES)
    return [int.from_bytes(image[start : start + 4], "little") for start in starts]


def wait_until_in_io_thread(vm: Vm) -> None:
    """Wait until the firmware has begun to use the VM's first disk: only from then on it is in its I/O thread.

    While the VM is paused it is not there either, and nothing that clients do can harm QEMU.
    """
    deadline = time.monotonic() + 60
    while vm.domain.blockStats(vm.disks()[0].target)[0] == 0:
        assert time.monotonic() < deadline, "the firmware does not read the disk"
        time.sleep(0.02)


class Watch:
    """Looks at a VM all the time: how long it stood still, and how long its guest wrote nothing, at most."""

    def __init__(self, guest: WritingGuest) -> None:
        self._guest = guest
        # A connection of its own, for its thread.
        self._connection = libvirt.open(guest.vm.host.outer_uri)
        self._domain = self._connection.lookupByUUIDString(guest.vm.uuid)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.longest_stop_seconds = 0.0
        self.longest_silence_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._connection.close()

    def assert_not_held_up(self) -> None:
        """The instant of a point pauses a guest for a fraction of a second; anything more is a fault."""
        assert self.longest_stop_seconds < 2, self.longest_stop_seconds
        assert self.longest_silence_seconds < 3, self.longest_silence_seconds

    def _look(self) -> None:
        ran = wrote = time.monotonic()
        written = 0
        while not self._ending.wait(0.02):
            now = time.monotonic()
            if self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                ran = now
            count = int(self._domain.blockStats("vda")[3])
            if count != written:
                written, wrote = count, now
            self.longest_stop_seconds = max(self.longest_stop_seconds, now - ran)
            self.longest_silence_seconds = max(self.longest_silence_seconds, now - wrote)


def power_off_soon(vm: Vm) -> None:
    """Let the guest of a paused BIOS VM boot, and power off by itself: some seconds after it is resumed."""
    assert vm.state() is VmState.PAUSED
    # ACPI: sleep state S5 into the power management register, where the firmware of the q35 machine puts it.
    vm.write_bytes("vda", start=0, content=_boot_sector(bytes.fromhex("ba0406 b80020 ef f4 ebfd")))


def _writing_program() -> bytes:
    first, end = (position // _SECTOR for position in (_FIRST, _FIRST + _SLOTS * _WRITE_BYTES))
    code = bytes.fromhex(
        "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # no segments, stack below the code
        "b036 e643 b033 e640 e640"  # the clock: 91 ticks a second
        "66ff060080"  # again: the number of the write, at 0:8000, which is written from
        "b280 e82200 b281 e81d00"  # to either disk
        "6683065a7c40"  # 64 sectors on
    )
    code += bytes.fromhex("66813e5a7c") + end.to_bytes(4, "little") + bytes.fromhex("7209")
    code += bytes.fromhex("66c7065a7c") + first.to_bytes(4, "little")
    code += bytes.fromhex("f4 ebd4")  # wait for the tick, and again
    code += bytes.fromhex("b80043 be527c cd13 7201 c3 fa f4 ebfc")  # extended write of the packet; halt when it failed
    code += bytes.fromhex("1000 4000 0080 0000") + first.to_bytes(8, "little")  # the packet: 64 sectors from 0:8000
    return _boot_sector(code)


def _boot_sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"
