"""What does not fit a host: found at once and all of it, changed where the guest does not mind, and else named."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.unit.fitting.hosts import FIRMWARE, NEWER_VM, OLDER, OVMF, SMALL, edited, found
from vmkeep.fitting import Fit, HostAbilities, StoredVariables, Wish, candidates, fit

ADAPT = Wish(adapt=True)
MOVED = Wish(adapt=True, machine="pc-q35-7.2")
VARIABLES = StoredVariables(size_bytes=528 * 1024, path="/nvram/win11_VARS.fd")


def libvirt_9_0(xml: str) -> str | None:
    """Refuse what libvirt 9.0 refuses, in its words, one thing at a time."""
    if re.search(r'<watchdog model="itco"', xml):
        return "unsupported configuration: unknown watchdog model 'itco'"
    loader = found(xml, "os[@firmware='efi']/loader")
    for attribute in () if loader is None else loader.attrib:
        if attribute in ("readonly", "type"):
            words = f"loader attribute '{attribute}' cannot be specified when firmware autoselection is enabled"
            return f"unsupported configuration: {words}"
    if found(xml, "os/firmware") is not None and found(xml, "os[@firmware]") is None:
        return "XML error: cannot use feature-based firmware autoselection when firmware autoselection is disabled"
    return None


def fitted(xml: str, wish: Wish = ADAPT, host: HostAbilities = OLDER, variables: StoredVariables = VARIABLES) -> Fit:
    return fit(xml, host, wish, variables=variables, trial=libvirt_9_0)


def parts(fit: Fit, *, open_for: Wish | None = None) -> list[str]:
    return [m.part for m in (fit.misfits if open_for is None else fit.left_open(open_for))]


def test_everything_is_found_at_once() -> None:
    assert parts(fitted(NEWER_VM, Wish()), open_for=Wish()) == [
        "os/type@machine",
        "os/loader@format",
        "os/nvram@templateFormat",
        "os/nvram@format",
        "devices/disk[vda]/driver@discard_no_unref",
        "devices/disk[vdb]/driver@shiny",
        "devices/watchdog@model",
        "os@firmware",
    ]


def test_only_the_machine_type_is_left_to_a_person() -> None:
    result = fitted(NEWER_VM)
    (left,) = result.left_open(ADAPT)
    assert (left.part, left.option) == ("os/type@machine", "--machine")
    assert left.choices == ("pc-q35-7.2", "pc-q35-7.1", "pc-q35-6.2", "pc-q35-2.4")


def test_what_the_guest_notices_is_told() -> None:
    result = fitted(NEWER_VM, MOVED)
    assert result.left_open(MOVED) == ()
    noticed = {m.part: m.guest for m in result.misfits if m.guest}
    assert set(noticed) == {"os/type@machine", "devices/disk[vdb]/driver@shiny", "devices/watchdog@model"}
    assert "activated" in noticed["os/type@machine"]
    assert "watchdog" in noticed["devices/watchdog@model"]


def test_adapted_definition_fits() -> None:
    result = fitted(NEWER_VM, MOVED)
    again = fitted(result.definition)
    assert again == Fit(definition=result.definition, misfits=())
    loader, nvram = found(result.definition, "os/loader"), found(result.definition, "os/nvram")
    assert loader is not None
    assert (loader.text, dict(loader.attrib)) == (
        f"{OVMF}/OVMF_CODE_4M.ms.fd",
        {"readonly": "yes", "secure": "yes", "type": "pflash"},
    )
    assert nvram is not None
    assert (nvram.text, dict(nvram.attrib)) == ("/nvram/win11_VARS.fd", {"template": f"{OVMF}/OVMF_VARS_4M.ms.fd"})
    assert found(result.definition, "devices/watchdog") is None
    assert found(result.definition, "os/firmware") is None


def test_definition_that_fits_stays_as_it_is_to_the_byte() -> None:
    plain = edited(machine="q35", watchdog="", automatic="", nvram_format=">/nvram")
    for text in (' format="raw"', ' templateFormat="raw"', ' discard_no_unref="on"', ' shiny="yes"'):
        plain = plain.replace(text, "")
    plain = re.sub(r"<firmware>.*</firmware>", "", plain, flags=re.DOTALL)
    assert fitted(plain, Wish()) == Fit(definition=plain, misfits=())


@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        ("pc-q35-10.0", "pc-q35-7.2"),
        ("pc-q35-7.1.1", "pc-q35-7.1"),
        ("pc-q35-rhel9.4.0", "pc-q35-7.2"),
        ("pc-q35-2.0", "pc-q35-2.4"),
        ("pc-i440fx-10.0", "pc-i440fx-7.2"),
    ],
)
def test_candidate_is_the_newest_of_the_family_that_is_not_newer(wanted: str, best: str) -> None:
    assert candidates(OLDER.machines, wanted)[0] == best


def test_machine_of_another_family_has_no_candidates() -> None:
    (left,) = fitted(edited(machine="virt-10.0", watchdog="")).left_open(ADAPT)
    assert (left.part, left.choices, left.option) == ("os/type@machine", (), "--machine")


# -- firmware --------------------------------------------------------------------------------------------------


def test_firmware_at_another_place_becomes_this_host_s_of_the_same_kind() -> None:
    xml = edited(
        loader="/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", template="/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"
    )
    loader = found(fitted(xml, MOVED).definition, "os/loader")
    assert loader is not None
    assert loader.text == f"{OVMF}/OVMF_CODE_4M.ms.fd"
    assert "PCR 0 " in next(m.guest for m in fitted(xml, MOVED).misfits if m.part == "os/loader")


def test_firmware_without_secure_boot_stays_without() -> None:
    xml = edited(loader="/elsewhere/OVMF_CODE_4M.fd", template="/elsewhere/OVMF_VARS_4M.fd").replace(
        'secure="yes" ', ""
    )
    xml = re.sub(r"<firmware>.*</firmware>", "", xml, flags=re.DOTALL)
    loader = found(fitted(xml, MOVED).definition, "os/loader")
    assert loader is not None
    assert (loader.text, loader.get("secure")) == (f"{OVMF}/OVMF_CODE_4M.fd", None)


def test_firmware_that_a_person_chose_is_named_in_full() -> None:
    chosen = replace(MOVED, firmware="/srv/firmware/OVMF of trixie.fd")
    result = fitted(NEWER_VM, chosen)
    loader, nvram = found(result.definition, "os[@firmware]"), found(result.definition, "os/nvram")
    assert loader is None
    assert nvram is not None
    loader = found(result.definition, "os/loader")
    assert loader is not None
    assert (loader.text, loader.get("secure"), nvram.text) == (chosen.firmware, "yes", "/nvram/win11_VARS.fd")
    assert result.left_open(chosen) == ()
    # It is a choice of its own: nothing else is changed for it.
    only = Wish(firmware=chosen.firmware)
    assert "os/loader" not in parts(fitted(NEWER_VM, only), open_for=only)


def test_variables_of_another_size_forbid_the_firmware() -> None:
    """Each build is made for one size of variables."""
    small = StoredVariables(size_bytes=128 * 1024)
    left = fitted(NEWER_VM, MOVED, variables=small).left_open(MOVED)
    assert [(m.part, m.change) for m in left] == [("os/loader", "")]
    assert "128 KiB" in left[0].what


def test_small_build_is_taken_where_there_is_one() -> None:
    xml = edited(loader="/elsewhere/OVMF_CODE.fd", template="/elsewhere/OVMF_VARS.fd").replace('secure="yes" ', "")
    xml = re.sub(r"<firmware>.*</firmware>", "", xml, flags=re.DOTALL)
    result = fitted(xml, MOVED, variables=StoredVariables(size_bytes=128 * 1024))
    loader = found(result.definition, "os/loader")
    assert loader is not None
    assert loader.text == SMALL.code
    assert result.left_open(MOVED) == ()


def test_automatic_firmware_is_named_where_libvirt_may_choose_a_wrong_one() -> None:
    xml = re.sub(r"<firmware>.*</nvram>", "", NEWER_VM, flags=re.DOTALL)
    both = replace(OLDER, firmware=(*FIRMWARE, replace(SMALL, described=True)))
    assert "os@firmware" not in parts(fitted(xml))
    result = fitted(xml, MOVED, host=both)
    assert "os@firmware" in parts(result)
    nvram = found(result.definition, "os/nvram")
    assert nvram is not None
    assert nvram.text == VARIABLES.path


def test_variables_in_qcow2_are_not_taken_for_raw_ones() -> None:
    left = fitted(edited(nvram_format=' format="qcow2">/nvram'), MOVED).left_open(MOVED)
    assert [m.part for m in left] == ["os/nvram@format"]
    assert "qemu-img convert" in left[0].remedy


# -- CPU, TPM, devices -----------------------------------------------------------------------------------------


def test_cpu_that_is_the_same_under_another_name_is_renamed() -> None:
    for name in ("qemu64-v1", "Haswell-v4"):
        cpu = f'<cpu mode="custom" check="none"><model fallback="forbid">{name}</model></cpu>'
        model = found(fitted(edited(cpu=cpu)).definition, "cpu/model")
        assert model is not None
        assert model.text in ("qemu64", "Haswell")


def test_unknown_cpu_is_a_person_s_choice() -> None:
    cpu = '<cpu mode="custom"><model>SierraForest</model><topology sockets="1" cores="2" threads="1"/></cpu>'
    left = fitted(edited(cpu=cpu), MOVED).left_open(MOVED)
    assert [(m.part, m.option, m.choices[0]) for m in left] == [("cpu", "--cpu", "host-model")]
    chosen = replace(MOVED, cpu="Haswell")
    result = fitted(edited(cpu=cpu), chosen)
    assert result.left_open(chosen) == ()
    model, topology = found(result.definition, "cpu/model"), found(result.definition, "cpu/topology")
    assert model is not None
    assert topology is not None
    assert (model.text, topology.get("cores")) == ("Haswell", "2")


def test_processor_that_cannot_be_the_model_says_what_it_lacks() -> None:
    cpu = '<cpu mode="custom"><model>EPYC</model></cpu>'
    left = fitted(edited(kind='type="kvm"', cpu=cpu), MOVED).left_open(MOVED)
    assert [m.what for m in left] == ["this host's processor cannot be a EPYC (it lacks svm, sha-ni)"]
    assert fitted(edited(cpu=cpu), MOVED).left_open(MOVED) == ()  # an emulated one can be any


def test_refused_device_is_told_with_what_the_host_has() -> None:
    def trial(xml: str) -> str | None:
        return "domain configuration does not support video model 'qxl'" if 'type="qxl"' in xml else libvirt_9_0(xml)

    (left,) = fit(edited(video='type="qxl"'), OLDER, MOVED, variables=VARIABLES, trial=trial).left_open(MOVED)
    assert left.part == "devices/video"
    assert "video model 'qxl'" in left.what
    assert "it has type vga, virtio" in left.remedy
    assert "qemu-system-modules-spice" in left.remedy


def test_what_libvirt_takes_is_not_refused_because_a_list_lacks_it() -> None:
    """Its lists leave out what it still takes: of channels those on sockets, of TPMs the external ones."""
    assert fitted(edited(video='type="qxl"'), MOVED).left_open(MOVED) == ()


def test_tpm_that_this_host_cannot_emulate_is_left_to_a_person() -> None:
    for host in (
        replace(OLDER, unsupported=frozenset({"tpm"})),
        replace(OLDER, enums={**OLDER.enums, "tpm.backendModel": frozenset({"passthrough"})}),
        replace(OLDER, enums={**OLDER.enums, "tpm.backendVersion": frozenset({"1.2"})}),
    ):
        (tpm,) = fitted(NEWER_VM, MOVED, host=host).left_open(MOVED)
        assert tpm.part == "devices/tpm"
        assert "swtpm" in tpm.remedy


def test_host_without_kvm_says_so_and_nothing_else() -> None:
    host = replace(OLDER, kinds=frozenset({("qemu", "x86_64")}))
    (only,) = fitted(edited(kind='type="kvm"'), host=host).misfits
    assert only.part == "domain@type"
    assert "/dev/kvm" in only.remedy


def test_emulator_elsewhere_becomes_this_host_s() -> None:
    emulator = found(fitted(edited(emulator="/usr/libexec/qemu-kvm")).definition, "devices/emulator")
    assert emulator is not None
    assert emulator.text == OLDER.emulator


# -- what libvirt itself refuses -------------------------------------------------------------------------------


def test_refusals_that_nobody_foresaw_are_all_told_with_their_element() -> None:
    host = replace(OLDER, vocabulary=None)
    words = {'dev="vda"': "no such disk", 'type="vga"': "no such video", "<acpi/>": "no acpi today"}

    def trial(xml: str) -> str | None:
        return next((refusal for mark, refusal in words.items() if mark in xml), None)

    left = fit(edited(machine="q35"), host, MOVED, trial=trial).left_open(MOVED)
    assert {m.part: m.what.rpartition(": ")[2] for m in left} == {
        "devices/disk[vda]": "no such disk",
        "devices/video": "no such video",
        "features/acpi": "no acpi today",
    }


def test_refusal_of_the_whole_ends_the_search() -> None:
    left = fit(edited(machine="q35"), OLDER, MOVED, trial=lambda _: "not today").left_open(MOVED)
    assert [m.part for m in left] == ["domain"]
