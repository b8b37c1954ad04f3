"""A point gives libvirt no secret but one for the TPM of its own VM: whatever another holder of the key put into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from tests.unit.repository.records import GOOD
from vmkeep.errors import SecretUnfit
from vmkeep.host.vm.secrets import NeededSecret, define_secrets, plan_secrets, put_secret_back
from vmkeep.hypervisor import Hypervisor, Secret, Withheld
from vmkeep.repository import PointRecord, PointSecret, Repository

UUID = "11111111-2222-3333-4444-555555555555"
RECORD = PointRecord.from_json(GOOD, "points/a")
NEEDED = NeededSecret(UUID, "TPM state")
TPM_SECRET = PointSecret("vtpm", UUID, "tpm", "", ephemeral=False, value=b"value")
RECORD_WITH_IT = replace(RECORD, secrets=(TPM_SECRET.ref(),))


@dataclass
class Libvirt:
    """What is asked of libvirt: secrets by UUID with their usages, and who uses them."""

    usages: dict[str, str] = field(default_factory=dict)
    kept: list[Secret] = field(default_factory=list)
    vms: dict[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> Libvirt:
        return self

    def read(self, uuid: str) -> Withheld:
        return Withheld.EMPTY if uuid in self.usages else Withheld.ABSENT

    def usage(self, uuid: str) -> str | None:
        return self.usages.get(uuid)

    def keep(self, secret: Secret) -> None:
        self.kept.append(secret)

    def domains(self) -> Iterator[Machine]:
        return iter([Machine(uuid, secret) for uuid, secret in self.vms.items()])


@dataclass
class Machine:
    uuid: str
    secret: str

    name = "other"

    def is_persistent(self) -> bool:
        return True

    def definition_xml(self, *, inactive: bool) -> str:
        del inactive
        return (
            f"<domain type='kvm'><name>other</name><uuid>{self.uuid}</uuid><os><type>hvm</type></os><devices>"
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>"
            f"<encryption secret='{self.secret}'/></backend></tpm></devices></domain>"
        )


@dataclass
class Stored:
    """A repository with one point."""

    secret: PointSecret

    def holder(self, _point: str, _pin: str) -> PointRecord:
        return RECORD

    def secrets(self, _record: PointRecord) -> tuple[PointSecret, ...]:
        return (self.secret,)

    def point(self, _point: str) -> PointRecord:
        return RECORD_WITH_IT


def restore(libvirt: Libvirt, secret: PointSecret = TPM_SECRET) -> tuple[str, ...]:
    """Give libvirt what a restore would, and return what is told."""
    hypervisor, repository = cast("Hypervisor", libvirt), cast("Repository", Stored(secret))
    plan = plan_secrets(hypervisor, repository, RECORD_WITH_IT, [NEEDED], vm="guest", must_open=True)
    define_secrets(hypervisor, repository, RECORD_WITH_IT, plan)
    return plan.warnings


@pytest.mark.parametrize("usages", [{}, {UUID: "vtpm"}])
def test_the_secret_of_the_vms_own_tpm_is_given(usages: dict[str, str]) -> None:
    libvirt = Libvirt(usages, vms={RECORD.vm_uuid: UUID})
    assert restore(libvirt) == ()
    assert [(secret.uuid, secret.usage) for secret in libvirt.kept] == [(UUID, "vtpm")]


@pytest.mark.parametrize("usage", ["volume", "ceph", "iscsi", "tls", "none"])
def test_a_secret_for_another_use_is_never_made(usage: str) -> None:
    for usages in ({}, {UUID: "vtpm"}):
        libvirt = Libvirt(dict(usages))
        with pytest.raises(SecretUnfit, match=usage):
            restore(libvirt, replace(TPM_SECRET, usage=usage))
        with pytest.raises(SecretUnfit, match=usage):
            put_back(libvirt, replace(TPM_SECRET, usage=usage))
        assert libvirt.kept == []


@pytest.mark.parametrize("usage", ["volume", "ceph"])
def test_a_secret_that_the_host_has_for_another_use_gets_no_value(usage: str) -> None:
    libvirt = Libvirt({UUID: usage})
    with pytest.raises(SecretUnfit, match=usage):
        restore(libvirt)
    with pytest.raises(SecretUnfit, match=usage):
        put_back(libvirt)
    assert libvirt.kept == []


@pytest.mark.parametrize("usages", [{}, {UUID: "vtpm"}])
def test_a_secret_that_another_vm_needs_gets_no_value(usages: dict[str, str]) -> None:
    libvirt = Libvirt(usages, vms={"99999999-2222-3333-4444-555555555555": UUID})
    with pytest.raises(SecretUnfit, match="'other'"):
        restore(libvirt)
    with pytest.raises(SecretUnfit, match="'other'"):
        put_back(libvirt)
    assert libvirt.kept == []


def put_back(libvirt: Libvirt, secret: PointSecret = TPM_SECRET) -> None:
    put_secret_back(cast("Hypervisor", libvirt), cast("Repository", Stored(secret)), RECORD.id, "", UUID)
