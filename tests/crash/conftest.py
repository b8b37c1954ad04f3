"""One host for all crash tests, and one VM whose points they kill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import libvirt
import pytest

from tests.crash.bed import Bed
from tests.rig import Disk, Host, MiB


@pytest.fixture(scope="package")
def crash_host() -> Iterator[Host]:
    with Host("crash", idle_firmware=True) as host:
        yield host


class _Beds:
    """Keeps one bed for many tests; a test that fails spoils it, and the next one gets another."""

    def __init__(self, host: Host, *, off: bool = False) -> None:
        self._host = host
        self._off = off
        self._bed: Bed | None = None

    def sound(self) -> Bed:
        if self._bed is not None and not self._bed.sound:
            self.clear()
        if self._bed is None:
            self._host.clear()  # of a bed that did not come to be
            vm = self._host.define("guest", disks=[Disk("vda", 6 * MiB), Disk("vdb", 2 * MiB + 512)])
            vm.start()
            vm.settle()
            self._bed = Bed.make(self._host, vm)
            if self._off:
                vm.destroy()
        self._bed.sound = False
        return self._bed

    def clear(self) -> None:
        if self._bed is not None:
            self._bed.zygote.close()
            self._bed.kill_guardians()
        self._bed = None
        with contextlib.suppress(libvirt.libvirtError):
            self._host.clear()
            return
        self._host.close()  # its libvirtd is dead
        self._host.start()


@pytest.fixture(scope="package")
def beds() -> Iterator[_Beds]:
    """On a host of their own, which no file clears for VMs of its own: a bed costs five seconds of a processor."""
    with Host("crash", idle_firmware=True) as host:
        beds = _Beds(host)
        yield beds
        beds.clear()


@pytest.fixture
def bed(beds: _Beds) -> Bed:
    """A running, settled VM with two disks and two points; its start costs seconds, so tests share it."""
    return beds.sound()


@pytest.fixture(scope="package")
def beds_of_stopped_vms() -> Iterator[_Beds]:
    with Host("crash", idle_firmware=True) as host:
        beds = _Beds(host, off=True)
        yield beds
        beds.clear()


@pytest.fixture
def stopped_bed(beds_of_stopped_vms: _Beds) -> Bed:
    """A VM like that of ``bed``, which is off."""
    return beds_of_stopped_vms.sound()
