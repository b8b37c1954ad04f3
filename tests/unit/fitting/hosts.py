"""An older host as a value, as far as these tests ask, and the VM of a newer one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lxml import etree

from vmkeep.fitting import CpuModel, FirmwareBuild, HostAbilities, MachineType, Vocabulary

OVMF: Final = "/usr/share/OVMF"


def build(name: str, template: str, *, kib: int = 528, secure: bool, enrolled: bool = False) -> FirmwareBuild:
    return FirmwareBuild(
        code=f"{OVMF}/{name}",
        template=f"{OVMF}/{template}",
        variables_bytes=kib * 1024,
        secure_boot=secure,
        enrolled_keys=enrolled,
        needs_smm=secure,
        arch="x86_64",
        machines=("pc-q35-*",) if secure else ("pc-i440fx-*", "pc-q35-*"),
    )


FIRMWARE: Final = (
    build("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", secure=True, enrolled=True),
    build("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd", secure=True),
    build("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", secure=False),
)
SMALL: Final = replace(build("OVMF_CODE.fd", "OVMF_VARS.fd", kib=128, secure=False), described=False)
MACHINES: Final = tuple(
    MachineType(name=name)
    for name in ("pc-q35-7.1", "pc-q35-7.2", "pc-q35-2.4", "pc-q35-6.2", "pc-i440fx-7.2", "pc-i440fx-7.1", "microvm")
)
SCHEMA: Final = """\
<grammar xmlns="http://relaxng.org/ns/structure/1.0">
  <include href="common.rng"/>
  <define name="domain">
    <element name="domain"><ref name="any-attribute"/>
      <interleave>
        <element name="name"><text/></element><element name="uuid"><text/></element>
        <element name="memory"><ref name="any-attribute"/><text/></element>
        <element name="metadata"><zeroOrMore><element><anyName/></element></zeroOrMore></element>
        <element name="sysinfo"><ref name="anything"/></element>
        <element name="cpu"><ref name="anything"/></element>
        <element name="features"><ref name="anything"/></element>
        <element name="os">
          <optional>
            <attribute name="firmware"><choice><value>bios</value><value>efi</value></choice></attribute>
          </optional>
          <element name="type"><ref name="any-attribute"/><text/></element>
          <element name="firmware"><ref name="anything"/></element>
          <element name="loader"><attribute name="readonly"/><attribute name="secure"/><attribute name="type"/>
            <text/></element>
          <element name="nvram"><attribute name="template"/><text/></element>
        </element>
        <ref name="devices"/>
        <element name="commandline" ns="http://libvirt.org/schemas/domain/qemu/1.0"><ref name="anything"/></element>
      </interleave>
    </element>
  </define>
</grammar>
"""
COMMON: Final = """\
<grammar xmlns="http://relaxng.org/ns/structure/1.0">
  <define name="any-attribute"><attribute><anyName/></attribute></define>
  <define name="anything">
    <zeroOrMore><choice><attribute><anyName/></attribute><text/>
      <element><anyName/><ref name="anything"/></element></choice></zeroOrMore>
  </define>
  <define name="models"><choice><value>i6300esb</value><ref name="old-models"/></choice></define>
  <define name="old-models"><value>ib700</value></define>
  <define name="devices">
    <element name="devices">
      <zeroOrMore><choice>
        <element name="watchdog">
          <attribute name="model"><ref name="models"/></attribute>
          <optional><attribute name="action"><data type="string"/></attribute></optional>
          <ref name="address"/>
        </element>
        <element name="disk"><attribute name="type"/><attribute name="device"/>
          <element name="driver"><attribute name="name"/><attribute name="type"/></element>
          <element name="source"><ref name="any-attribute"/></element>
          <element name="target"><attribute name="dev"/><attribute name="bus"/></element>
          <ref name="address"/>
        </element>
        <element><choice><name>tpm</name><name>emulator</name><name>video</name><name>graphics</name></choice>
          <ref name="anything"/></element>
      </choice></zeroOrMore>
    </element>
  </define>
  <define name="address"><element name="address"><ref name="any-attribute"/></element></define>
</grammar>
"""
OLDER: Final = HostAbilities(
    release="9.0",
    kinds=frozenset({("qemu", "x86_64"), ("kvm", "x86_64")}),
    machines=(*MACHINES, MachineType(name="q35", canonical="pc-q35-7.2")),
    emulator="/usr/bin/qemu-system-x86_64",
    enums={
        "os.firmware": frozenset({"efi"}),
        "tpm.model": frozenset({"tpm-tis", "tpm-crb"}),
        "tpm.backendModel": frozenset({"passthrough", "emulator"}),
        "tpm.backendVersion": frozenset({"1.2", "2.0"}),
        "video.modelType": frozenset({"vga", "virtio"}),
        "disk.bus": frozenset({"virtio", "scsi", "sata"}),
    },
    cpu_modes=frozenset({"host-passthrough", "host-model", "maximum", "custom"}),
    cpu_models=(
        CpuModel(name="qemu64", usable=True),
        CpuModel(name="EPYC", usable=False, blockers=("svm", "sha-ni")),
        CpuModel(name="Haswell", usable=True, canonical="Haswell-v4"),
    ),
    firmware=(*FIRMWARE, SMALL),
    files=frozenset(
        {"/usr/bin/qemu-system-x86_64", *(path for b in (*FIRMWARE, SMALL) for path in (b.code, b.template or ""))}
    ),
    vocabulary=Vocabulary.of({"domain.rng": SCHEMA, "common.rng": COMMON}),
)
NEWER_VM: Final = f"""\
<domain type="qemu">
  <name>win11</name>
  <uuid>1e7b8fcd-3747-4a9f-9dc4-b0087b3eb7e7</uuid>
  <memory unit="KiB">2097152</memory>
  <os firmware="efi">
    <type arch="x86_64" machine="pc-q35-10.0">hvm</type>
    <firmware>
      <feature enabled="yes" name="enrolled-keys"/>
      <feature enabled="yes" name="secure-boot"/>
    </firmware>
    <loader readonly="yes" secure="yes" type="pflash" format="raw">{OVMF}/OVMF_CODE_4M.ms.fd</loader>
    <nvram template="{OVMF}/OVMF_VARS_4M.ms.fd" templateFormat="raw" format="raw">/nvram/win11_VARS.fd</nvram>
  </os>
  <features><acpi/><smm state="on"/></features>
  <cpu mode="custom" match="exact" check="none"><model fallback="forbid">qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" discard_no_unref="on"/>
      <source file="/images/vda.qcow2"/>
      <target dev="vda" bus="virtio"/>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" shiny="yes"/>
      <source file="/images/vdb.qcow2"/>
      <target dev="vdb" bus="virtio"/>
    </disk>
    <tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>
    <watchdog model="itco" action="reset"/>
    <video><model type="vga"/></video>
  </devices>
</domain>
"""


def edited(**changes: str) -> str:
    """Return the VM of the newer host with texts replaced: ``old=new``, where the keys are those of ``_TEXTS``."""
    text = NEWER_VM
    for key, value in changes.items():
        assert _TEXTS[key] in text, key
        text = text.replace(_TEXTS[key], value)
    return text


_TEXTS: Final = {
    "kind": 'type="qemu"',
    "machine": "pc-q35-10.0",
    "loader": f"{OVMF}/OVMF_CODE_4M.ms.fd",
    "template": f"{OVMF}/OVMF_VARS_4M.ms.fd",
    "automatic": ' firmware="efi"',
    "emulator": "/usr/bin/qemu-system-x86_64",
    "cpu": '<cpu mode="custom" match="exact" check="none"><model fallback="forbid">qemu64</model></cpu>',
    "tpm": 'model="tpm-crb"',
    "video": 'type="vga"',
    "watchdog": '<watchdog model="itco" action="reset"/>',
    "nvram_format": ' format="raw">/nvram',
}


def found(xml: str, path: str) -> etree._Element | None:
    return etree.fromstring(xml).find(path)
