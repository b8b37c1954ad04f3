"""Points of another release: held against this host before anything is written, refused whole, or made to fit.

One VM with disks, UEFI variables and a TPM is kept once. Its point is put into the repository again with other
definitions: of a release that does not exist yet, so that the same does not fit on every host, and those that the two
Debians wrote (tests/unit/fitting/golden).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree
from lxml.builder import E

from tests.rig import Disk, Host, KiB, MiB, VmState
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth, files_below
from vmkeep.hypervisor import Hypervisor
from vmkeep.keys import KeyFile
from vmkeep.repository import Repository

pytestmark = pytest.mark.system

_GOLDEN = Path(__file__).parents[1] / "unit" / "fitting" / "golden"
_SECRET = b"seals the guest's disks"


@dataclass(slots=True)
class Kept:
    """The VM's one point, the truth about it, and the ways to it with another definition."""

    host: Host
    vmkeep: Vmkeep
    truth: Truth
    point: dict[str, Any]
    definition: str

    def point_with(self, definition: str) -> str:
        """Put the point into the repository once more, with another definition; return its id."""
        keys = self.vmkeep.home / "keys"
        location = str(self.vmkeep.home / "repository")
        repository = Repository.open(location, lambda recipients: KeyFile.find(keys, recipients[0]))
        record = repository.point(self.point["id"])
        cache = self.host.dir / "work" / "cache"
        with repository.begin(purpose="point", host=record.host, cache=cache) as writer:
            again = writer.commit(
                replace(
                    record,
                    id="",
                    parent=None,
                    definition=definition,
                    checkpoint=None,
                )
            )
        self.vmkeep.json("init", "--repository", location, "--adopt")
        return again.id

    def written(self) -> dict[str, bytes]:
        """Return everything on the host that a restore could write, and the names of all VMs."""
        places = ["/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm", "/etc/libvirt/qemu"]
        found = {f"disks/{name}": content for name, content in files_below(self.host.dir / "disks").items()}
        for place in places:
            found |= {f"{place}/{name}": content for name, content in files_below(self.host.path(place)).items()}
        return found | {f"vm {each.name()}": b"" for each in self.host.connection.listAllDomains()}

    def clear(self) -> None:
        for domain in self.host.connection.listAllDomains():
            self.host.vm(domain.name()).delete()


@pytest.fixture(scope="module")
def kept(session_host: Host) -> Iterator[Kept]:
    session_host.clear()
    vmkeep = Vmkeep(session_host)
    # What is put into the repository again counts as another's, whose disks go only where this host keeps images.
    (vmkeep.home / "vmkeep.toml").write_text(f'images_dir = "{session_host.dir}/disks"\n')
    vm = session_host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB, format="raw")])
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_SECRET)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    vm.write_random("vdb", start=1 * MiB, length=64 * KiB, seed=2)
    vm.change_nvram()
    truth = Truth.of(vm)
    point = vmkeep.backup("guest")
    definition = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.delete()
    yield Kept(session_host, vmkeep, truth, point, definition)
    session_host.clear()


@pytest.fixture(autouse=True)
def without_vms(kept: Kept) -> Iterator[None]:
    yield
    kept.clear()


def _of_the_future(kept: Kept) -> str:
    """Return the definition as a libvirt would write it that knows more than any, with its firmware elsewhere."""
    root = etree.fromstring(kept.definition)
    system, devices = root.find("os"), root.find("devices")
    assert system is not None
    assert devices is not None
    machine, emulator, driver = system.find("type"), devices.find("emulator"), devices.find("disk/driver")
    assert machine is not None
    assert emulator is not None
    assert driver is not None
    machine.set("machine", "pc-q35-99.0")
    system.attrib.pop("firmware", None)
    for child in [*system.findall("loader"), *system.findall("nvram"), *system.findall("firmware")]:
        system.remove(child)
    system.append(E.loader("/opt/edk2/OVMF_CODE_4M.fd", readonly="yes", type="pflash"))
    nvram = "/var/lib/libvirt/qemu/nvram/guest_VARS.fd"
    system.append(E.nvram(nvram, template="/opt/edk2/OVMF_VARS_4M.fd", wear="yes"))
    emulator.text = "/opt/qemu/bin/qemu-system-x86_64"
    driver.set("shiny", "yes")
    for watchdog in devices.findall("watchdog"):
        devices.remove(watchdog)
    devices.append(E.watchdog(model="quartz", action="reset"))
    devices.append(E.oracle(model="delphi"))
    return etree.tostring(root, encoding="unicode")


def _parts(misfits: list[dict[str, Any]]) -> set[str]:
    return {misfit["part"] for misfit in misfits}


_FUTURE = {
    "os/type@machine",
    "os/loader",
    "os/nvram@wear",
    "devices/emulator",
    "devices/disk[vda]/driver@shiny",
    "devices/watchdog@model",
    "devices/oracle",
}


def test_all_that_does_not_fit_is_told_at_once_and_nothing_is_written(kept: Kept) -> None:
    point = kept.point_with(_of_the_future(kept))
    before = kept.written()
    refused = kept.vmkeep.fails("restore", point, "--as", "guest")

    assert (refused.code, refused.status, refused.error["vm"]) == ("host-unfit", 13, "guest")
    assert _parts(refused.error["misfits"]) == _FUTURE
    assert all(misfit["what"] and misfit["remedy"] for misfit in refused.error["misfits"])
    assert kept.written() == before
    # For people, the same: a line for each, and the command that goes on.
    words = kept.vmkeep.run("restore", point, "--as", "guest").stderr
    assert {part for part in _FUTURE if f"also: {part}: " in words} == _FUTURE
    (machine,) = [each for each in refused.error["misfits"] if each["option"] == "--machine"]
    assert f"--adapt --machine {machine['choices'][0]}" in refused.error["hint"]

    # What only a person can choose is left with --adapt alone.
    alone = kept.vmkeep.fails("restore", point, "--as", "guest", "--adapt")
    assert _parts(alone.error["misfits"]) == {"os/type@machine"}
    assert kept.written() == before
    wrong = kept.vmkeep.fails("restore", point, "--as", "guest", "--adapt", "--machine", "pc-q35-98.0")
    assert (wrong.code, machine["choices"][0] in wrong.error["hint"]) == ("invalid-request", True)
    assert kept.written() == before


def test_adapted_vm_has_every_byte_and_starts(kept: Kept) -> None:
    point = kept.point_with(_of_the_future(kept))
    refused = kept.vmkeep.fails("restore", point, "--as", "guest")
    (machine,) = [each["choices"][0] for each in refused.error["misfits"] if each["option"] == "--machine"]
    restored = kept.vmkeep.json("restore", point, "--as", "guest", "--adapt", "--machine", machine)["restored"]
    vm = kept.host.vm("guest")

    assert len(restored["changes"]) == len(_FUTURE)
    noticed = [each["change"] for each in restored["changes"] if each["guest"]]
    assert any(machine in change for change in noticed)
    assert not any("emulator" in change for change in noticed)
    kept.truth.assert_vm(vm)
    assert machine in vm.xml()
    vm.start()
    assert vm.state() is VmState.RUNNING
    vm.destroy()
    assert vm.load_from_tpm(len(_SECRET)) == _SECRET


def test_definition_that_fits_is_not_touched(kept: Kept) -> None:
    restored = kept.vmkeep.json("restore", kept.point["id"], "--as", "guest", "--adapt")["restored"]
    assert restored["changes"] == []
    now = kept.host.vm("guest").domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert _without_paths(now) == _without_paths(kept.definition)


def _without_paths(xml: str) -> str:
    return re.sub(r"<nvram.*</nvram>", "", xml)


def test_libvirt_reads_a_trial_and_defines_nothing(kept: Kept) -> None:
    """The trick that refusals are heard by: it must change nothing on a host, also when the definition is sound."""
    before = kept.written()
    with closing(Hypervisor.connect(kept.host.outer_uri)) as hypervisor:
        assert hypervisor.refusal(kept.definition) is None
        refusal = hypervisor.refusal(kept.definition.replace("<vcpu", "<vcpu current='9'"))
    assert refusal is not None
    assert "vCPU" in refusal
    assert kept.written() == before


def test_variables_that_no_firmware_here_is_made_for_are_not_given_to_one(kept: Kept) -> None:
    """No firmware is made for them: each has one size of variables."""
    keys = kept.vmkeep.home / "keys"
    location = str(kept.vmkeep.home / "repository")
    repository = Repository.open(location, lambda recipients: KeyFile.find(keys, recipients[0]))
    record = repository.point(kept.point["id"])
    _, content = repository.state(next(each.version_id for each in record.states if each.kind == "nvram"))
    with repository.begin(purpose="point", host=record.host, cache=kept.host.dir / "work" / "cache") as writer:
        nvram = writer.put_state(
            content[: 200 * KiB],
            vm_uuid=record.vm_uuid,
            kind="nvram",
            generation=90,
            file="nvram.fd",
            owner="root",
            group="root",
            mode=0o600,
        )
        states = tuple(each for each in record.states if each.kind != "nvram")
        again = writer.commit(replace(record, id="", parent=None, checkpoint=None, states=(*states, nvram.ref())))
    kept.vmkeep.json("init", "--repository", location, "--adopt")
    before = kept.written()
    refused = kept.vmkeep.fails("restore", again.id, "--as", "guest", "--adapt")
    assert refused.code == "host-unfit"
    assert [(each["part"], "200 KiB" in each["what"]) for each in refused.error["misfits"]] == [("os/loader", True)]
    assert kept.written() == before


def test_owner_of_the_tpm_is_called_by_the_name_that_it_has(kept: Kept) -> None:
    """The first restore comes back as it was under a new name; it is the VM that the TPM belongs to then."""
    kept.vmkeep.json("restore", kept.point["id"], "--as", "renamed")
    refused = kept.vmkeep.fails("restore", kept.point["id"], "--as", "second")
    assert refused.code == "choice-required"
    assert refused.error["message"].startswith("VM 'renamed', whose TPM this is, exists")
    assert "'guest'" in refused.error["message"]


def test_vm_that_is_called_like_a_uuid_is_not_taken_for_the_vm_of_that_uuid(kept: Kept) -> None:
    uuid = kept.point["vm_uuid"]
    kept.host.define(uuid, disks=[Disk("vda", 1 * MiB)], tpm=False)
    restored = kept.vmkeep.json("restore", kept.point["id"], "--as", "guest")["restored"]
    assert (restored["identity"], restored["uuid"]) == ("same", uuid)
    kept.truth.assert_vm(kept.host.vm("guest"))


# What does not fit a host of a release, in the definitions that the two Debians wrote.
_NOT_ON = {
    ("9.0", "trixie"): {
        "os/type@machine",
        "os/loader@format",
        "os/nvram@templateFormat",
        "os/nvram@format",
        "devices/watchdog@model",
        "os@firmware",
    },
    ("9.0", "bookworm"): set[str](),
    ("11.3", "trixie"): set[str](),
    ("11.3", "bookworm"): set[str](),
}


@pytest.mark.parametrize("debian", ["bookworm", "trixie"])
def test_point_of_either_debian_comes_back(kept: Kept, debian: str) -> None:
    version = kept.host.connection.getLibVersion()
    expected = _NOT_ON[f"{version // 1_000_000}.{version // 1000 % 1000}", debian]
    point = kept.point_with((_GOLDEN / debian / "definition-win.xml").read_text(encoding="utf-8"))
    # Its network is the host's own; of another's point that is asked about first.
    options = ["--trust-definition"]
    asked = kept.vmkeep.fails("restore", point, "--as", "guest")
    assert [part["part"] for part in asked.error["parts"]] == ["devices/interface"]
    if expected:
        before = kept.written()
        refused = kept.vmkeep.fails("restore", point, "--as", "guest", *options)
        assert _parts(refused.error["misfits"]) == expected
        assert kept.written() == before
        options += ["--adapt", "--machine", "pc-q35-7.2"]
    restored = kept.vmkeep.json("restore", point, "--as", "guest", *options)["restored"]
    assert len(restored["changes"]) == len(expected)
    vm = kept.host.vm("guest")
    kept.truth.assert_vm(vm)
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_SECRET)) == _SECRET


def test_own_firmware_is_given_by_name(kept: Kept) -> None:
    """What is sealed to PCR 7 opens with the very build that the VM had, which is brought along."""
    firmware = kept.host.dir / "disks" / "firmware of the old host.fd"
    firmware.write_bytes(Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd").read_bytes())
    missing = kept.vmkeep.fails("restore", kept.point["id"], "--as", "guest", "--firmware", "/nowhere.fd")
    assert (missing.code, missing.error["path"]) == ("host-file-missing", "/nowhere.fd")
    secure = kept.point_with((_GOLDEN / "bookworm" / "definition-win.xml").read_text(encoding="utf-8"))
    kept.vmkeep.json("restore", secure, "--as", "guest", "--trust-definition", "--firmware", firmware)
    vm = kept.host.vm("guest")
    kept.truth.assert_vm(vm)
    loader = etree.fromstring(vm.xml()).find("os/loader")
    assert loader is not None
    assert (loader.text, loader.get("secure")) == (str(firmware), "yes")
    vm.start(paused=True)
    vm.destroy()
    firmware.unlink()
