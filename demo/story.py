"""The demo's story: a VM lives, is backed up on and off, goes back in time and forward, is lost, and comes back."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo.narration import Narration
from demo.truth import Truth, compare, truth_of
from tests.rig import Disk, Host, MiB, NvIndexMissingError, RigError, Vm, random_bytes
from tests.system.offline import write_offline, zero_offline

VMKEEP = Path(os.environ.get("VMKEEP_COMMAND") or Path(sys.executable).with_name("vmkeep"))
NAME = "win11"
DISKS = (Disk("vda", 512 * MiB), Disk("vdb", 256 * MiB))
TARGETS = tuple(disk.target for disk in DISKS)
SECRET = b"the key of an encrypted disk, sealed in the TPM"


class Demo:
    """One run on one host."""

    def __init__(self, host: Host, narration: Narration) -> None:
        self._host = host
        self._tell = narration

    def run(self) -> None:
        """Tell the story; what fails to hold is in the narration."""
        (self._host.dir / "home").chmod(0o700)  # as vmkeep makes it where it is not there yet
        with ExitStack() as images:
            vm = self._make_vm()
            uuid = vm.uuid
            first = self._back_up(vm, images, "Take the first point: it reads everything")
            self._change(vm)
            second = self._back_up(vm, images, "Take the second point: it reads what changed")
            self._prove_that_they_differ("the first and the second point", first, second)
            third = self._back_up_while_off(vm, images)
            self._prove_that_they_differ("the second and the third point", second, third)
            self._go_back_and_forward(vm, images, self._points()[1], second, third)
            with self._tell.step("Verify all points: all that they need is read and proved"):
                self._vmkeep("verify", NAME)
            with self._tell.step("Lose the VM: definition, disks, UEFI variables and TPM"):
                vm.delete()
                self._prove_that_it_is_gone(vm)
            points = self._points()
            back = self._bring_back(points[0], first, uuid, "first")
            with self._tell.step("Take another point: it descends from the first, so the tree branches"):
                self._vmkeep("backup", NAME, "--label", "why=went back")
                branch = self._points()[-1]
                self._tell.proof("its parent is the first point", holds=branch["parent"] == points[0]["id"])
            back.delete()
            self._bring_back(points[2], third, uuid, "third")
            with self._tell.step("Show the tree of points"):
                self._vmkeep("points", "--tree")
            self._check_up()

    # -- before the loss ---------------------------------------------------------------------------------------

    def _make_vm(self) -> Vm:
        with self._tell.step("Make a UEFI VM with two disks and a TPM, and store a secret in the TPM"):
            vm = self._host.define(NAME, disks=DISKS)
            vm.start()  # the firmware makes UEFI variables and TPM state
            vm.settle()
            vm.destroy()
            vm.store_in_tpm(SECRET)
            vm.start()
            vm.write_random("vda", start=0, length=96 * MiB, seed=1)
            vm.write("vda", start=200 * MiB, length=64 * MiB, pattern=0x5A)
            vm.write_random("vdb", start=32 * MiB, length=48 * MiB, seed=2)
            vm.settle()
            self._vmkeep("vm", "show", NAME)
        return vm

    def _back_up(self, vm: Vm, images: ExitStack, title: str) -> Truth:
        with self._tell.step(title):
            self._vmkeep("backup", NAME)
            return images.enter_context(truth_of(vm, TARGETS))

    def _change(self, vm: Vm) -> None:
        with self._tell.step("Change the VM: write, zero and discard on the disks; UEFI variables and TPM"):
            vm.write_random("vda", start=10 * MiB, length=3 * MiB, seed=3)
            vm.write_zeroes("vda", start=40 * MiB, length=2 * MiB)
            vm.discard("vda", start=220 * MiB, length=4 * MiB)
            vm.write_zeroes("vdb", start=33 * MiB, length=1 * MiB, unmap=True)
            vm.write("vdb", start=200 * MiB, length=1 * MiB, pattern=0xC3)
            vm.change_tpm()
            vm.settle()
            vm.change_nvram()

    def _prove_that_they_differ(self, which: str, one: Truth, other: Truth) -> None:
        """Without this, a restore of the wrong point could pass for the right one."""
        same = [what for what, difference in compare(one, other) if not difference]
        self._tell.proof(f"between {which} both disks, UEFI variables and TPM changed", holds=not same)

    def _back_up_while_off(self, vm: Vm, images: ExitStack) -> Truth:
        with self._tell.step("Shut the VM down, change all of it, and take the third point while it is off"):
            vm.destroy()
            _change_while_off(vm, seed=4)
            self._vmkeep("backup", NAME)
            point = self._points()[-1]
            self._tell.proof("it read what changed", holds={disk["mode"] for disk in point["disks"]} == {"incremental"})
            self._tell.proof("the VM is still off", holds=not vm.domain.isActive())
            return images.enter_context(truth_of(vm, TARGETS))

    # -- back in time, and forward again -----------------------------------------------------------------------

    def _go_back_and_forward(
        self, vm: Vm, images: ExitStack, point: dict[str, Any], expected: Truth, newest: Truth
    ) -> None:
        with self._tell.step("Change the VM once more, and take it back to the second point where it is"):
            _change_while_off(vm, seed=6)
            unsaved = images.enter_context(truth_of(vm, TARGETS))
            self._prove_that_they_differ("the third point and now", newest, unsaved)
            self._vmkeep("restore", str(point["id"])[:8], "--in-place", "--yes")
            self._prove_that_it_is(vm, expected)
        with self._tell.step("Go forward again: the safety point holds what no other point has"):
            safety = self._points()[-1]
            self._vmkeep("restore", str(safety["id"])[:8], "--in-place", "--yes")
            self._prove_that_it_is(vm, unsaved)

    # -- the loss and after ------------------------------------------------------------------------------------

    def _prove_that_it_is_gone(self, vm: Vm) -> None:
        left = [path for path in self._files_of(vm) if path.exists()]
        self._tell.proof("no file of the VM is left on the host", holds=not left, detail=", ".join(map(str, left)))

    def _files_of(self, vm: Vm) -> Iterator[Path]:
        yield vm.tpm_directory
        yield self._host.path(f"/var/lib/libvirt/qemu/nvram/{NAME}_VARS.fd")
        yield from (self._host.dir / "disks").iterdir()

    def _bring_back(self, point: dict[str, Any], expected: Truth, uuid: str, which: str) -> Vm:
        with self._tell.step(f"Bring the VM back from the {which} point"):
            self._vmkeep("restore", str(point["id"])[:8], "--as", NAME)
            vm = self._host.vm(NAME)
            self._tell.proof(f"it is the same machine: UUID {uuid}", holds=vm.uuid == uuid, detail=vm.uuid)
            self._prove_that_it_is(vm, expected)
            vm.start()
            vm.settle()
            self._tell.proof("the VM starts", holds=bool(vm.domain.isActive()))
        return vm

    def _prove_that_it_is(self, vm: Vm, expected: Truth) -> None:
        """Compare all of a VM that is off."""
        with truth_of(vm, TARGETS) as found:
            for what, difference in compare(found, expected):
                self._tell.proof(what, holds=not difference, detail=difference)
        # Only now: to answer, the TPM is started, and that changes its state.
        self._tell.proof("the secret is in the TPM", holds=_secret_in(vm) == SECRET)

    def _check_up(self) -> None:
        with self._tell.step("Ask the doctor: nothing is wrong, and nothing was left behind"):
            self._vmkeep("doctor")
            looked = self._host.run([VMKEEP, "--json", "doctor"], check=True)
            findings = json.loads(looked.stdout)["doctor"]["findings"]
            # A full disk of this machine is worth a warning, but says nothing about vmkeep.
            wrong = [f["code"] for f in findings if f["severity"] != "note" and f["code"] != "space-low"]
            self._tell.proof("it found nothing wrong", holds=not wrong, detail=", ".join(wrong))

    # -- the command line --------------------------------------------------------------------------------------

    def _vmkeep(self, *arguments: str) -> None:
        """Run vmkeep on the host as a person would, and show what it prints."""
        with self._tell.command(shlex.join(["vmkeep", *arguments])):
            result = self._host.run([VMKEEP, *arguments])
        self._tell.output(result.stderr)  # told while the command works, the result at its end
        self._tell.output(result.stdout)
        if result.returncode != 0:
            raise RigError(f"vmkeep {arguments[0]} ended with exit status {result.returncode}")

    def _points(self) -> list[dict[str, Any]]:
        """Return the VM's points, oldest first."""
        listed = self._host.run([VMKEEP, "--json", "points", NAME], check=True)
        points = json.loads(listed.stdout)["points"]
        assert isinstance(points, list)
        return points


def _change_while_off(vm: Vm, *, seed: int) -> None:
    write_offline(vm, "vda", random_bytes(seed, 2 * MiB), start=seed * 16 * MiB)
    zero_offline(vm, "vda", start=202 * MiB, length=1 * MiB)
    write_offline(vm, "vdb", random_bytes(seed + 1, 1 * MiB), start=seed * 8 * MiB)
    vm.change_nvram()
    vm.change_tpm()


def _secret_in(vm: Vm) -> bytes | None:
    try:
        return vm.load_from_tpm(len(SECRET))
    except NvIndexMissingError:
        return None
