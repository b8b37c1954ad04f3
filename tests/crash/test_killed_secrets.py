"""vmkeep is killed between a secret and what belongs to it: neither is left without the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.crash.bed import KILLED, Trap, Zygote
from tests.rig import Disk, Host, MiB, Vm, VmState

pytestmark = [pytest.mark.system, pytest.mark.crash]

_VALUE = b"opens the TPM"
_HYPERVISOR = "vmkeep.hypervisor.connection:Hypervisor."
_SECRETS = "vmkeep.hypervisor.secrets:Secrets."


@dataclass(frozen=True, slots=True)
class Encrypted:
    host: Host
    zygote: Zygote
    secret: str
    points: list[str]

    @property
    def vm(self) -> Vm:
        return self.host.vm("guest")

    def look(self) -> tuple[list[str], list[str]]:
        """Recover what was killed; return the points, and those that have an envelope."""
        unfinished, points, stored = self.zygote.run(["look"]).acts[0]
        assert (unfinished, points) == ([], stored)
        envelopes = self.host.dir / "home" / "repository" / "envelopes"
        return points, sorted(path.name for path in envelopes.iterdir())


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Encrypted]:
    with Host("crash", idle_firmware=True) as host:
        secret = host.define_secret(_VALUE)
        backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
        vm = host.define("guest", disks=[Disk("vda", 2 * MiB)], firmware="bios", tpm_backend=backend)
        vm.start(paused=True)
        vm.destroy()
        zygote = Zygote(host, host.dir / "home")
        point = zygote.run(["backup", "guest"]).acts[0]["point"]
        yield Encrypted(host, zygote, secret, [point["id"]])
        zygote.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_point_leaves_no_secrets_without_it(encrypted: Encrypted, when: str) -> None:
    outcome = encrypted.zygote.run(["backup", "guest"], traps=[Trap(when, "vmkeep.repository.writer:put_envelope")])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    assert encrypted.look() == (encrypted.points, encrypted.points)
    assert encrypted.zygote.run(["verify"]).acts == [[]]


@pytest.mark.parametrize(
    "place",
    [
        ("before", _SECRETS + "keep"),
        ("after", _SECRETS + "keep"),
        ("before", _HYPERVISOR + "define"),
    ],
    ids=lambda place: f"{place[0]}-{place[1].rpartition('.')[2]}",
)
def test_killed_restore_ends_with_the_vm_and_its_secret(encrypted: Encrypted, place: tuple[str, str]) -> None:
    encrypted.vm.delete()
    encrypted.host.connection.secretLookupByUUIDString(encrypted.secret).undefine()
    outcome = encrypted.zygote.run(["restore_vm", encrypted.points[0], "guest"], traps=[Trap(*place)])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    encrypted.look()
    assert encrypted.host.secrets() == {encrypted.secret: _VALUE}
    encrypted.vm.start(paused=True)
    assert encrypted.vm.state() is VmState.PAUSED
    encrypted.vm.destroy()
