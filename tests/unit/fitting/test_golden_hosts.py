"""The two Debians, by what their libvirt said itself, and each other's definitions on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fitting.hosts import FIRMWARE, OVMF
from vmkeep.fitting import (
    HostAbilities,
    Misfit,
    Wish,
    candidates,
    fit,
    known_machine,
    read_domain_capabilities,
    read_guests,
)

GOLDEN = Path(__file__).parent / "golden"
KIND = ("qemu", "x86_64")


def golden(debian: str, name: str) -> str:
    return (GOLDEN / debian / f"{name}.xml").read_text(encoding="utf-8")


def abilities(debian: str) -> HostAbilities:
    guests = read_guests(golden(debian, "capabilities"))
    domain = read_domain_capabilities(golden(debian, "domcapabilities-q35"))
    files = {"/usr/bin/qemu-system-x86_64", f"{OVMF}/OVMF_CODE_4M.snakeoil.fd", f"{OVMF}/OVMF_VARS_4M.snakeoil.fd"}
    return HostAbilities(
        release=debian,
        kinds=guests.kinds,
        machines=guests.machines[KIND],
        emulator=domain.emulator,
        enums=domain.enums,
        unsupported=domain.unsupported,
        cpu_modes=domain.cpu_modes,
        cpu_models=domain.cpu_models,
        firmware=FIRMWARE,
        files=frozenset({*files, *(path for each in FIRMWARE for path in (each.code, each.template or ""))}),
    )


@pytest.mark.parametrize("name", ["win", "plain", "linux"])
@pytest.mark.parametrize("debian", ["bookworm", "trixie"])
def test_definition_fits_the_host_that_wrote_it(debian: str, name: str) -> None:
    xml = golden(debian, f"definition-{name}")
    assert fit(xml, abilities(debian), Wish()).misfits == ()


def _misfits(host: str, guest: str) -> dict[str, Misfit]:
    result = fit(golden(guest, "definition-win"), abilities(host), Wish())
    return {misfit.part: misfit for misfit in result.misfits}


def test_older_definition_fits_the_newer_host() -> None:
    assert _misfits("trixie", "bookworm") == {}


def test_newer_machine_type_is_not_on_the_older_host() -> None:
    misfits = _misfits("bookworm", "trixie")
    assert set(misfits) == {"os/type@machine"}
    assert misfits["os/type@machine"].choices[0] == "pc-q35-7.2"


def test_machine_types_and_aliases_are_read() -> None:
    machines = abilities("bookworm").machines
    alias = known_machine(machines, "q35")
    assert alias is not None
    assert alias.canonical == "pc-q35-7.2"
    assert candidates(machines, "pc-i440fx-10.0")[0] == "pc-i440fx-7.2"
    assert known_machine(abilities("trixie").machines, "pc-q35-7.2") is not None


def test_capabilities_of_a_kind_of_vm_are_read() -> None:
    older, newer = abilities("bookworm"), abilities("trixie")
    for host in (older, newer):
        assert host.enums["os.firmware"] == {"efi"}
        assert host.enums["tpm.backendVersion"] >= {"2.0"}
        assert host.cpu_modes >= {"maximum", "custom"}
        assert "tpm" not in host.unsupported
    models = {model.name: model for model in newer.cpu_models}
    assert models["Broadwell-IBRS"].canonical == "Broadwell-v3"
    assert not models["EPYC"].usable
    assert models["EPYC"].blockers
    assert {model.name for model in older.cpu_models if model.usable} > {"qemu64", "kvm64"}
