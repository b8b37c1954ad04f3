"""What of a definition reaches into the host: told by an allow-list, so whatever is new or unheard of is told too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig.domain_xml import Disk, domain_xml
from tests.zoo.row import Row
from tests.zoo.rows import ROWS
from vmkeep.definition import DiskPlacement, Remap, parse_definition, remap
from vmkeep.definition.reading import read_domain
from vmkeep.fitting import (
    HostOwn,
    HostPart,
    host_parts,
    read_domain_capabilities,
    read_guests,
    strip_host_parts,
    template_of,
)
from vmkeep.xmltext import serialise_xml

GOLDEN = Path(__file__).parent / "golden"
QEMU = "/usr/bin/qemu-system-x86_64"
CODE, VARS = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
IMAGE, NVRAM = "/images/guest-vda.qcow2", "/var/lib/libvirt/qemu/nvram/guest_VARS.fd"
OWN = HostOwn(
    images={"vda": IMAGE},
    variables=NVRAM,
    emulators=frozenset({QEMU}),
    loaders=frozenset({CODE}),
    templates=frozenset({VARS}),
)
DISK = f"<disk type='file' device='disk'><source file='{IMAGE}'/><target dev='vda' bus='virtio'/></disk>"
_QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def domain(devices: str = "", more: str = "", system: str = "", attributes: str = "type='kvm'") -> str:
    return (
        f"<domain {attributes}><name>guest</name><memory unit='KiB'>65536</memory><vcpu>1</vcpu>{more}"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{system}</os>"
        f"<devices><emulator>{QEMU}</emulator>{DISK}{devices}</devices></domain>"
    )


def parts(xml: str, own: HostOwn = OWN) -> list[HostPart]:
    return list(host_parts(read_domain(xml), own))


def names(xml: str, own: HostOwn = OWN) -> list[str]:
    return [part.part for part in parts(xml, own)]


ORDINARY_DEVICES = {
    "libvirt's network": "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/>"
    "<model type='virtio'/><address type='pci' domain='0' bus='1' slot='0' function='0'/></interface>",
    "a bridge": "<interface type='bridge'><source bridge='br0'/><target dev='vnet3'/></interface>",
    "macvtap": "<interface type='direct'><source dev='enp1s0' mode='bridge'/></interface>",
    "a filter": "<interface type='bridge'><source bridge='br0'/><filterref filter='clean-traffic'>"
    "<parameter name='IP' value='10.0.0.0/24'/></filterref></interface>",
    "Open vSwitch": "<interface type='bridge'><source bridge='ovs'/><vlan><tag id='7'/></vlan>"
    "<virtualport type='openvswitch'><parameters interfaceid='1'/></virtualport></interface>",
    "a serial console": "<serial type='pty'><source path='/dev/pts/3'/><target type='isa-serial' port='0'>"
    "<model name='isa-serial'/></target></serial><console type='pty' tty='/dev/pts/3'><target type='serial' port='0'/>"
    "</console>",
    "the agent's channel": "<channel type='unix'><source mode='bind' "
    "path='/var/lib/libvirt/qemu/channel/target/domain-guest/org.qemu.guest_agent.0'/>"
    "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "spice": "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
    "<graphics type='spice' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/>"
    "<image compression='off'/><gl enable='no'/></graphics><audio id='1' type='spice'/>"
    "<redirdev bus='usb' type='spicevmc'><address type='usb' bus='0' port='2'/></redirdev>"
    "<redirfilter><usbdev class='0x08' allow='yes'/></redirfilter><smartcard mode='passthrough' type='spicevmc'/>",
    "vnc": "<graphics type='vnc' port='-1' autoport='yes' keymap='en-us' passwd='a/b'><listen type='none'/></graphics>",
    "a drive": "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/>"
    "<readonly/><address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>",
    "a TPM": "<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'>"
    "<encryption secret='11111111-2222-3333-4444-555555555555'/><active_pcr_banks><sha256/></active_pcr_banks>"
    "</backend></tpm>",
    "what virt-install adds": "<controller type='usb' model='qemu-xhci' ports='15'/>"
    "<controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/>"
    "<target chassis='1' port='0x10' hotplug='off'/></controller><controller type='scsi' model='virtio-scsi'>"
    "<driver queues='4' iothread='1'/></controller><input type='tablet' bus='usb'/><sound model='ich9'/>"
    "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1' primary='yes'/></video>"
    "<video><model type='virtio'><acceleration accel3d='no'/><resolution x='1' y='1'/></model></video>"
    "<watchdog model='itco' action='reset'/><memballoon model='virtio'><stats period='5'/></memballoon>"
    "<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend></rng>"
    "<panic model='isa'/><iommu model='intel'><driver intremap='on'/></iommu><hub type='usb'/>",
}
ORDINARY_PARTS = {
    "tuning": "<iothreads>2</iothreads><iothreadids><iothread id='1'/></iothreadids><cputune><shares>2048</shares>"
    "<vcpupin vcpu='0' cpuset='0-3,^1'/><emulatorpin cpuset='0'/><quota>-1</quota></cputune>"
    "<numatune><memory mode='strict' nodeset='0'/></numatune><resource><partition>/machine</partition></resource>",
    "texts": "<title>a/b</title><description>two\nlines, one /path</description><genid>1</genid>"
    "<metadata><a:app xmlns:a='urn:x'><a:file>/etc/shadow</a:file></a:app></metadata>",
    "memory": "<memoryBacking><nosharepages/><source type='memfd'/><access mode='shared'/></memoryBacking>"
    "<maxMemory slots='4' unit='KiB'>1</maxMemory>",
    "processor": "<cpu mode='host-passthrough' check='none' migratable='on'><topology sockets='1' cores='2'/>"
    "<feature policy='disable' name='vmx'/><numa><cell id='0' cpus='0-1' memory='1' unit='KiB'/></numa></cpu>"
    "<clock offset='timezone' timezone='Europe/Berlin'><timer name='rtc' tickpolicy='catchup'/></clock>"
    "<features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/><spinlocks state='on' retries='8191'/>"
    "<stimer state='on'><direct state='on'/></stimer></hyperv><kvm><hidden state='on'/></kvm><smm/></features>"
    "<on_poweroff>destroy</on_poweroff><on_crash>restart</on_crash><pm><suspend-to-mem enabled='no'/></pm>",
    "its own texts": "<sysinfo type='smbios'><system><entry name='serial'>1/2</entry></system></sysinfo>"
    "<seclabel type='dynamic' model='apparmor' relabel='yes'/>",
}


@pytest.mark.parametrize("name", ORDINARY_DEVICES)
def test_ordinary_device_reaches_nowhere(name: str) -> None:
    assert names(domain(ORDINARY_DEVICES[name])) == []


@pytest.mark.parametrize("name", ORDINARY_PARTS)
def test_ordinary_part_reaches_nowhere(name: str) -> None:
    assert names(domain(more=ORDINARY_PARTS[name])) == []


def test_this_hosts_own_firmware_and_variables_are_ordinary() -> None:
    named = f"<loader readonly='yes' secure='no' type='pflash'>{CODE}</loader><nvram template='{VARS}'>{NVRAM}</nvram>"
    assert names(domain(system=named + "<boot dev='hd'/><bootmenu enable='yes'/>")) == []
    beside = CODE.replace("4M", "4M.snakeoil")
    assert names(domain(system=f"<loader readonly='yes' type='pflash'>{beside}</loader>")) == []


HOSTILE_DEVICES = {
    "host device": ("<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>", "hostdev"),
    "folder": ("<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem>", "filesystem"),
    "serial to a file": ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", "serial"),
    "console to a device": ("<console type='dev'><source path='/dev/sda'/></console>", "console"),
    "parallel port": ("<parallel type='dev'><source path='/dev/parport0'/></parallel>", "parallel"),
    "channel to a socket": (
        "<channel type='unix'><source mode='connect' path='/run/docker.sock'/></channel>",
        "channel/source@path",
    ),
    "channel elsewhere": (
        "<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/../../../x'/></channel>",
        "channel/source@path",
    ),
    "channel by the network": ("<channel type='tcp'><source mode='connect' host='1.2.3.4'/></channel>", "channel"),
    "log of a console": ("<serial type='pty'><log file='/etc/x' append='on'/></serial>", "serial/log"),
    "script": ("<interface type='bridge'><script path='/tmp/x'/></interface>", "interface/script"),
    "ethernet": ("<interface type='ethernet'><script path='/tmp/x'/></interface>", "interface"),
    "vhost-user": ("<interface type='vhostuser'><source type='unix' path='/x'/></interface>", "interface"),
    "host's loopback": ("<interface type='user'/>", "interface"),
    "whole network card": ("<interface type='direct'><source dev='e' mode='passthrough'/></interface>", "@mode"),
    "backend of a card": ("<interface type='bridge'><backend tap='/dev/x'/></interface>", "backend@tap"),
    "name of a card": ("<interface type='bridge'><target dev='tun0'/></interface>", "target@dev"),
    "rom": ("<interface type='bridge'><rom file='/etc/shadow'/></interface>", "rom@file"),
    "a disk": ("<disk type='file'><source file='/etc/shadow'/><target dev='vdb'/></disk>", "disk[vdb]"),
    "a device": ("<disk type='block'><source dev='/dev/sda'/><target dev='vdb'/></disk>", "disk[vdb]"),
    "a network disk": ("<disk type='network'><source protocol='nbd'/><target dev='vdb'/></disk>", "disk[vdb]"),
    "a medium": ("<disk device='cdrom'><source file='/root/x'/><target dev='sda'/></disk>", "disk[sda]/source@file"),
    "an image of another disk": (f"<disk><source file='{IMAGE}'/><target dev='vdb'/></disk>", "disk[vdb]"),
    "spice socket": ("<graphics type='spice'><listen type='socket' socket='/x'/></graphics>", "listen@socket"),
    "keymap": ("<graphics type='vnc' keymap='../../etc/x'/>", "graphics@keymap"),
    "GPU": ("<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/x'/></graphics>", "graphics/gl@enable"),
    "screen": ("<graphics type='sdl' xauth='/root/.Xauthority'/>", "graphics"),
    "sound to a file": ("<audio id='1' type='file' path='/etc/x'/>", "audio"),
    "input": ("<input type='evdev'><source dev='/dev/input/event0'/></input>", "input"),
    "random from a file": ("<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", "rng"),
    "random from a socket": ("<rng model='virtio'><backend model='egd' type='udp'/></rng>", "rng"),
    "real TPM": ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "tpm"),
    "TPM of another": ("<tpm><backend type='external'><source type='unix' path='/x'/></backend></tpm>", "tpm"),
    "place of a TPM": (
        "<tpm><backend type='emulator'><source type='dir' path='/x'/></backend></tpm>",
        "backend/source",
    ),
    "shared memory": ("<shmem name='x'><server path='/x'/></shmem>", "shmem"),
    "memory in a file": ("<memory model='nvdimm'><source><path>/x</path></source></memory>", "memory"),
    "dump": ("<watchdog model='i6300esb' action='dump'/>", "watchdog@action"),
    "video": ("<video><driver name='vhostuser'/></video>", "video/driver@name"),
    "smartcard": ("<smartcard mode='host-certificates'><database>/etc</database></smartcard>", "smartcard"),
    "crash store": ("<pstore backend='acpi-erst'><path>/x</path></pstore>", "pstore"),
    "vsock": ("<vsock model='virtio'><cid auto='yes'/></vsock>", "vsock"),
    "lock": ("<lease><lockspace>x</lockspace></lease>", "lease"),
    "of next year": ("<teleporter model='virtio' path='/x'/>", "teleporter"),
    "a word of next year": ("<sound model='ich9' sink='/x'/>", "sound@sink"),
    "another emulator": ("<emulator>/tmp/x</emulator>", "devices/emulator[2]"),
}


@pytest.mark.parametrize("name", HOSTILE_DEVICES)
def test_device_that_reaches_into_the_host_is_told_and_taken_out(name: str) -> None:
    xml, expected = HOSTILE_DEVICES[name]
    root = read_domain(domain(xml))
    found = list(host_parts(root, OWN))
    assert any(part.part.endswith(expected) for part in found), [part.part for part in found]
    assert all(part.what for part in found)
    strip_host_parts(found)
    assert list(host_parts(root, OWN)) == []
    assert parse_definition(serialise_xml(root)).disks[0].target == "vda"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("<disk type", "<disk rawio='yes' type", ["devices/disk[vda]@rawio"]),
        ("/></disk>", "/><driver name='qemu' type='vmdk'/></disk>", ["devices/disk[vda]/driver@type"]),
        (f"'{IMAGE}'/>", f"'{IMAGE}'><reservations/></source>", ["devices/disk[vda]/source/reservations"]),
        (
            f"'{IMAGE}'/>",
            f"'{IMAGE}'><seclabel model='dac'><label>+0:+0</label></seclabel></source>",
            ["devices/disk[vda]/source/seclabel/label"],
        ),
        ("/></disk>", "/><driver type='raw'/><driver type='qcow2'/></disk>", ["devices/disk[vda]"]),
        ("/></disk>", "/><source file='/etc/shadow'/></disk>", ["devices/disk[vda]"]),
        ("/></disk>", "/><backingStore type='file'><source file='/x'/></backingStore></disk>", None),
    ],
)
def test_more_of_a_disk_than_its_image_is_told(before: str, after: str, expected: list[str] | None) -> None:
    found = names(domain().replace(before, after))
    assert found
    assert expected is None or found == expected


HOSTILE_PARTS = {
    "arguments": (f"<qemu:commandline {_QEMU}><qemu:arg value='-x'/></qemu:commandline>", "qemu:commandline"),
    "overrides": (f"<qemu:override {_QEMU}/>", "qemu:override"),
    "arguments by another prefix": (f"<q:commandline {_QEMU.replace(':qemu=', ':q=')}/>", "qemu:commandline"),
    "another's namespace": ("<x:y xmlns:x='urn:x'/>", "x:y"),
    "rank": ("<seclabel type='static' model='dac'><label>+0:+0</label></seclabel>", "seclabel"),
    "no rank": ("<seclabel type='none'/>", "seclabel"),
    "base of a rank": ("<seclabel type='dynamic'><baselabel>x</baselabel></seclabel>", "seclabel/baselabel"),
    "rank of files": ("<seclabel type='dynamic' relabel='no'/>", "seclabel@relabel"),
    "large pages": ("<memoryBacking><hugepages/></memoryBacking>", "memoryBacking/hugepages"),
    "memory in files": ("<memoryBacking><source type='file'/></memoryBacking>", "memoryBacking/source"),
    "locked memory": ("<memoryBacking><locked/></memoryBacking>", "memoryBacking/locked"),
    "processor's keys": ("<launchSecurity type='sev'><dhCert>x</dhCert></launchSecurity>", "launchSecurity"),
    "core dumps": ("<on_crash>coredump-destroy</on_crash>", "on_crash"),
    "group of processes": ("<resource><partition>/system.slice</partition></resource>", "resource/partition"),
    "precedence": ("<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/></cputune>", "vcpusched@scheduler"),
    "throttled devices": ("<blkiotune><device><path>/dev/sda</path></device></blkiotune>", "blkiotune/device"),
    "time zone": ("<clock offset='timezone' timezone='/etc/shadow'/>", "clock@timezone"),
    "firmware's file": ("<sysinfo type='fwcfg'><entry name='opt/x' file='/x'/></sysinfo>", "sysinfo/entry@file"),
    "boot loader": ("<bootloader>/bin/sh</bootloader>", "bootloader"),
    "mapped users": ("<idmap><uid start='0' target='0' count='1'/></idmap>", "idmap"),
    "text where none belongs": ("<features>x</features>", "features"),
}


@pytest.mark.parametrize("name", HOSTILE_PARTS)
def test_part_that_reaches_into_the_host_is_told_and_taken_out(name: str) -> None:
    xml, expected = HOSTILE_PARTS[name]
    root = read_domain(domain(more=xml))
    found = list(host_parts(root, OWN))
    assert any(part.part.endswith(expected) for part in found), [part.part for part in found]
    strip_host_parts(found)
    assert list(host_parts(root, OWN)) == []


@pytest.mark.parametrize(
    ("system", "expected", "goes"),
    [
        (
            "<kernel>/boot/vmlinuz</kernel><initrd>/x</initrd><cmdline/>",
            ["kernel", "initrd", "cmdline"],
            True,
        ),
        ("<dtb>/x</dtb><acpi><table type='slic'>/etc/shadow</table></acpi>", ["dtb", "acpi"], True),
        ("<smbios mode='host'/>", ["smbios@mode"], True),
        ("<loader readonly='yes' type='pflash'>/etc/shadow</loader>", ["loader"], False),
        ("<loader type='rom'>/usr/share/OVMF/../../../etc/x.fd</loader>", ["loader"], False),
        ("<nvram>/etc/cron.d/x</nvram>", ["nvram"], False),
        ("<nvram type='network'><source protocol='nbd'/></nvram>", ["nvram"], False),
        (f"<nvram template='/etc/shadow'>{NVRAM}</nvram>", ["nvram@template"], True),
        (f"<nvram format='vmdk'>{NVRAM}</nvram>", ["nvram@format"], False),
        ("<init>/bin/sh</init>", ["init"], True),
    ],
)
def test_what_boots_from_the_host_is_told(system: str, expected: list[str], *, goes: bool) -> None:
    root = read_domain(domain(system=system))
    found = list(host_parts(root, OWN))
    assert [part.part for part in found] == [f"os/{name}" for name in expected]
    assert [part.strippable for part in found] == [goes] * len(found)
    strip_host_parts(found)
    assert bool(list(host_parts(root, OWN))) is not goes


def test_another_kind_of_vm_is_told_and_stays() -> None:
    (part,) = parts(domain(attributes="type='lxc'"))
    assert (part.part, part.strippable) == ("domain", False)


def test_part_says_what_it_names() -> None:
    (part,) = parts(domain("<filesystem type='mount'><source dir='/etc'/><target dir='share'/></filesystem>"))
    assert (part.part, part.value, part.what) == ("devices/filesystem", "/etc", "a folder of the host")


def test_same_part_elsewhere_is_known_again_and_another_is_not() -> None:
    device = "<hostdev mode='subsystem' type='usb' managed='yes'>{}<source><vendor id='0x{}'/></source></hostdev>"
    (here,) = parts(domain(device.format("<alias name='hostdev0'/>", 1)))
    (same,) = parts(domain("<!-- moved -->" + device.format("<address type='usb' bus='0' port='2'/>", 1)))
    (other,) = parts(domain(device.format("", 2)))
    assert here.place.key == same.place.key
    assert here.place.key != other.place.key
    (serial,) = parts(domain("<serial type='pty'><log file='/x'/></serial>"))
    (console,) = parts(domain("<console type='pty'><log file='/x'/></console>"))
    assert serial.place.key != console.place.key


def test_session_may_use_the_network_of_its_user() -> None:
    own = replace(OWN, session=True)
    assert names(domain("<interface type='user'><model type='virtio'/></interface>"), own) == []
    forwarded = "<interface type='user'><portForward proto='tcp'><range start='22'/></portForward></interface>"
    assert names(domain(forwarded), own) == ["devices/interface/portForward"]


# What rows of the zoo have that reaches into the host: of a point of another host these are asked about.
_REACHING = {
    "devices": [
        f"devices/interface[{number}]" for number in (1, 2, 3)
    ],  # through the host's own network, with the host's loopback (10.0.2.2)
    "qemu-commandline": ["qemu:commandline"],
    "seclabel": ["seclabel"],
    "shared-folder": ["devices/filesystem"],
    "tpm-passthrough": ["devices/tpm"],
}


def _zoo_definition(row: Row) -> str:
    """Return the definition of a row as a restore makes it: its disks are placed, its media ejected."""
    place = Path("/disks")
    disks = [
        (
            Disk(image.target, format=image.format, bus=image.bus, device=image.device, extra_xml=image.elements),
            None if not image.medium else place / f"{image.target}.{image.format}",
        )
        for image in row.images
    ]
    devices = [each.replace("{place}", str(place)) for each in row.devices]
    tpm = row.tpm if row.tpm and row.tpm.startswith("<") else None
    xml = domain_xml(row.name, disks, uefi=row.firmware == "uefi", tpm=tpm, memory_mib=64, device_xml=devices)
    root = read_domain(xml.replace("{secret}", "11111111-2222-3333-4444-555555555555"))
    for change in row.edits:
        change(root, place)
    return serialise_xml(root)


@pytest.mark.parametrize("name", ROWS)
def test_definition_of_the_zoo(name: str) -> None:
    xml = _zoo_definition(ROWS[name])
    definition = parse_definition(xml)
    placed = {disk.target: f"/images/{disk.target}" for disk in definition.disks if not disk.removable}
    xml = remap(
        xml,
        Remap(
            disks={target: DiskPlacement(path, "qcow2") for target, path in placed.items()},
            removed=frozenset(disk.target for disk in definition.disks if disk.removable),
            nvram=NVRAM if definition.firmware.nvram is not None else None,
            default_tpm_place=True,
        ),
    )
    own = replace(OWN, images=placed)
    assert names(xml, own) == _REACHING.get(name, [])


@pytest.mark.parametrize("host", ["bookworm", "trixie"])
@pytest.mark.parametrize("guest", ["linux", "plain", "win"])
def test_definition_as_libvirt_writes_it(host: str, guest: str) -> None:
    """Only what was put there for the test: a kernel from outside, and a network through the host's own."""
    guests = read_guests((GOLDEN / host / "capabilities.xml").read_text())
    able = read_domain_capabilities((GOLDEN / host / "domcapabilities-q35.xml").read_text())
    xml = (GOLDEN / host / f"definition-{guest}.xml").read_text()
    definition = parse_definition(xml)
    own = HostOwn(
        images={disk.target: disk.source for disk in definition.disks if disk.source is not None},
        variables=definition.firmware.nvram,
        emulators=guests.emulators,
        loaders=frozenset(able.loaders),
        templates=frozenset(map(template_of, able.loaders)),
    )
    kernel = ["os/kernel", "os/initrd", "os/cmdline"]
    assert names(xml, own) == (kernel if guest == "linux" else ["devices/interface"])


@pytest.mark.parametrize("hidden", ["<!-- c -->", "<?p q?>"])
def test_path_that_goes_on_behind_a_comment_is_not_the_one_before_it(hidden: str) -> None:
    """libvirt takes all the text in an element: what this host's own VM has says nothing of it."""
    (own,) = parts(domain(system="<kernel>/boot/vmlinuz</kernel>"))
    (other,) = parts(domain(system=f"<kernel>/boot/vmlinuz{hidden}-of-root</kernel>"))
    assert own.place.key != other.place.key
