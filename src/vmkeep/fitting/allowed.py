"""What may stand in the definition of a VM without reaching into the host: a list of all that is let through.

It is held against the text, so what is not in it is not known to be harmless: a new element of libvirt, a word that an
older list lacks, another program's namespace. Nothing here names a file, a device, a program, a socket or a rank of the
host, except through a rule that asks the host (``~emulator``). Made from the schema of libvirt 9.0, element by element,
and held against that of 11.3; some names are of later releases.

How it is written: a line is an element, below the one that it is indented under. ``NAME`` allows an attribute with any
text without a slash, so that no path gets through; ``NAME=A|B`` allows these words; ``NAME~RULE`` what the rule takes.
``#``, ``#=A|B`` and ``#~RULE`` do so for the text of the element. ``!`` before an attribute: with another value it is
the whole element that is not let through, not the attribute. ``@GROUP`` stands for lines above. ``**`` lets everything
below through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

# Device lines that many devices have. A rank on a bus, a name, an order are the guest's; ``rom`` may name a file.
_GROUPS: Final = """
@device
    address **
    alias name
    acpi index
    boot order loadparm
    rom bar enabled
    driver name ats iommu packed page_per_vq iothread queues queue_size ioeventfd event_idx max_sectors cmd_per_lun
@console
    @device
    target type port name state
        model name
    source path~console mode=bind channel
        mouse mode
        clipboard copypaste
"""

_ALLOWED: Final = """
domain !type=kvm|qemu id
    name #~text
    uuid #
    hwuuid #
    genid #
    title #~text
    description #~text
    metadata **
    memory unit dumpCore #
    currentMemory unit #
    maxMemory unit slots #
    memoryBacking
        nosharepages
        source !type=anonymous|memfd
        access mode
        allocation mode threads
        discard
    memtune
        hard_limit unit #
        soft_limit unit #
        swap_hard_limit unit #
        min_guarantee unit #
    blkiotune
        weight #
    vcpu placement cpuset current #
    vcpus
        vcpu id enabled hotpluggable order
    iothreads #
    iothreadids
        iothread id thread_pool_min thread_pool_max
            poll max grow shrink
    defaultiothread thread_pool_min thread_pool_max
    throttlegroups
        throttlegroup
            @limits
    cputune
        shares #
        period #
        quota #
        global_period #
        global_quota #
        emulator_period #
        emulator_quota #
        iothread_period #
        iothread_quota #
        vcpupin vcpu cpuset
        emulatorpin cpuset
        iothreadpin iothread cpuset
        vcpusched scheduler=batch|idle vcpus
        emulatorsched scheduler=batch|idle
        iothreadsched scheduler=batch|idle iothreads
    numatune
        memory mode nodeset placement
        memnode cellid mode nodeset
    resource
        partition #=/machine
    sysinfo !type=smbios|fwcfg
        bios
            entry name #~text
        system
            entry name #~text
        baseBoard
            entry name #~text
        chassis
            entry name #~text
        oemStrings
            entry #~text
        entry name~text #~text
    os firmware
        type arch machine #
        firmware
            feature name enabled
        loader readonly type secure stateless format=raw|qcow2 #~loader
        nvram template~template templateFormat=raw|qcow2 format=raw|qcow2 !type=file #~variables
            source file~variables
        boot dev
        bootmenu enable timeout
        bios useserial rebootTimeout
        smbios mode=emulate|sysinfo
    features
        acpi
        apic eoi
        pae
        hap state
        viridian
        privnet
        pvspinlock state
        pmu state
        vmport state
        smm state
            tseg unit #
        ioapic driver
        gic version
        hpt resizing
            maxpagesize unit #
        htm state
        nested-hv state
        ccf-assist state
        cfpc value
        sbbc value
        ibs value
        ras state
        ps2 state
        aia value
        vmcoreinfo state
        async-teardown enabled
        msrs unknown
        tcg
            tb-cache unit #
        hyperv mode
            @switches relaxed vapic spinlocks vpindex runtime synic stimer reset vendor_id frequencies
            @switches reenlightenment tlbflush ipi evmcs avic emsr_bitmap xmm_input
        kvm
            @switches hidden hint-dedicated poll-control pv-ipi dirty-ring
        xen
            @switches e820_host
    cpu mode match check migratable deprecated_features
        model fallback vendor_id #
        vendor #
        topology sockets dies clusters cores threads modules
        cache mode level
        maxphysaddr mode bits limit
        feature name policy
        numa
            cell id cpus memory unit memAccess discard
                distances
                    sibling id value
                cache level associativity policy
                    size value unit
                    line value unit
            interconnects
                latency initiator target cache type value
                bandwidth initiator target cache type value unit
    clock offset adjustment basis timezone~zone start
        timer name tickpolicy track present frequency mode
            catchup threshold slew limit
    on_poweroff #=destroy|restart|preserve|rename-restart
    on_reboot #=destroy|restart|preserve|rename-restart
    on_crash #=destroy|restart|preserve|rename-restart
    on_lockfailure #=poweroff|restart|pause|ignore
    pm
        suspend-to-mem enabled
        suspend-to-disk enabled
    seclabel !type=dynamic model relabel=yes
    devices
        emulator #~emulator
        disk !type=file !device=disk|cdrom|floppy model snapshot
            @device
            driver type=raw|qcow2 cache io discard error_policy rerror_policy
            driver copy_on_read detect_zeroes discard_no_unref
                iothreads
                    iothread id
                        queue id
                metadata_cache
                    max_size unit #
            source file~image startupPolicy
                seclabel model relabel labelskip
                @encryption
            @encryption
            backingStore
            target dev bus tray removable rotation_rate dpofua
            iotune
                @limits
            throttlefilters
                throttlefilter group
            blockio logical_block_size physical_block_size discard_granularity
            geometry cyls heads secs trans
            serial #~text
            wwn #
            vendor #~text
            product #~text
            readonly
            shareable
            transient shareBacking
        controller type index model ports vectors
            @device
            driver
                iothreads
                    iothread id
                        queue id
            master startport
            model name
            target chassisNr chassis port busNr index hotplug memReserve
                node #
            pcihole64 unit #
        interface !type~interface managed=no trustGuestRxFilters=no
            @device
            mac address type check currentAddress
            source network bridge dev portgroup portid portgroupid connectionid mode=bridge|private|vepa macTableManager
            target dev~network-device
            model type
            driver txmode rss rss_hash_report rx_queue_size tx_queue_size
                host csum gso tso4 tso6 ecn ufo mrg_rxbuf
                guest csum tso4 tso6 ecn ufo
            backend type=default
            link state
            mtu size
            coalesce
                rx
                    frames max
            port isolated
            tune
                sndbuf #
            bandwidth
                inbound average peak burst floor
                outbound average peak burst floor
            vlan trunk
                tag id nativeMode
            virtualport type
                parameters interfaceid profileid instanceid managerid typeid typeidversion
            filterref filter
                parameter name value~text
            ip address family prefix
            teaming type persistent
        input !type=mouse|tablet|keyboard bus model
            @device
        hub type
            @device
        serial !type=pty|null|vc|spicevmc|spiceport|qemu-vdagent tty~console
            @console
        parallel !type=pty|null|vc|spicevmc|spiceport tty~console
            @console
        console !type=pty|null|vc|spicevmc|spiceport|qemu-vdagent tty~console
            @console
        channel !type=pty|null|unix|spicevmc|spiceport|qemu-vdagent
            @console
        redirdev !type=spicevmc bus
            @device
        redirfilter
            usbdev class vendor product version allow
        smartcard !mode=passthrough !type=spicevmc
            @device
        graphics !type=vnc|spice port autoport tlsPort websocket passwd~text passwdValidTo sharePolicy keymap
        graphics listen defaultMode connected powerControl
            @graphics
        video
            @device
            driver name=qemu vgaconf
            model type vram vram64 ram vgamem heads primary blob edid
                acceleration accel2d accel3d
                resolution x y
        audio id !type=none|spice
            input mixingEngine fixedSettings voices bufferLength
                settings frequency channels format
            output mixingEngine fixedSettings voices bufferLength
                settings frequency channels format
        sound model multichannel streams
            @device
            audio id
            codec type
        memballoon model autodeflate freePageReporting
            @device
            stats period
        rng model
            @device
            rate bytes period
            backend !model=random|builtin #~random
        watchdog model action=reset|shutdown|poweroff|pause|none|inject-nmi
            @device
        panic model
            @device
        tpm model
            @device
            backend !type=emulator version persistent_state
                encryption secret
                profile source name removeDisabled=check|fips-host
                active_pcr_banks
                    sha1
                    sha256
                    sha384
                    sha512
        nvram
            @device
        iommu model
            @device
            driver intremap caching_mode eim iotlb aw_bits dma_translation passthrough xtsup
        memory !model=dimm|virtio-mem access=private discard
            @device
            uuid #
            target dynamicMemslots
                size unit #
                node #
                block unit #
                requested unit #
                current unit #
                address base
        crypto model type
            @device
            backend !model=builtin queues
"""

_MORE_GROUPS: Final = """
@limits
    total_bytes_sec #
    read_bytes_sec #
    write_bytes_sec #
    total_iops_sec #
    read_iops_sec #
    write_iops_sec #
    total_bytes_sec_max #
    read_bytes_sec_max #
    write_bytes_sec_max #
    total_iops_sec_max #
    read_iops_sec_max #
    write_iops_sec_max #
    total_bytes_sec_max_length #
    read_bytes_sec_max_length #
    write_bytes_sec_max_length #
    total_iops_sec_max_length #
    read_iops_sec_max_length #
    write_iops_sec_max_length #
    size_iops_sec #
    group_name #
@encryption
    encryption format engine=qemu
        secret type uuid usage~text
        cipher name size mode hash
        ivgen name hash
@graphics
    listen !type=address|network|none|socket address network
    gl enable=no
    channel name mode
    image compression
    jpeg compression
    zlib compression
    playback compression
    streaming mode
    clipboard copypaste
    mouse mode
    filetransfer enable
    audio id
"""

Rules = Mapping[str, Callable[[str], bool]]
"""The rules that ask the host, by name."""
Rule = str
"""What a text must be: ``=A|B`` one of these words, ``~NAME`` what a rule of that name takes, empty: no slash in it."""


@dataclass(slots=True)
class Allowed:
    """What may be in one element. ``text`` None: only white space. ``kinds`` are the attributes marked with ``!``."""

    attributes: dict[str, Rule] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    text: Rule | None = None
    children: dict[str, Allowed] = field(default_factory=dict)
    anything: bool = False


@cache
def allowed_domain() -> Allowed:
    """Return what may stand in ``<domain>``."""
    groups: dict[str, list[str]] = {}
    for text in (_GROUPS, _MORE_GROUPS):
        for line in text.strip("\n").splitlines():
            if line.startswith("@"):
                lines = groups.setdefault(line.strip(), [])
            else:
                lines.append(line[4:])
    root = Allowed()
    _read(list(_expanded(_ALLOWED.strip("\n").splitlines(), groups)), root)
    return root.children["domain"]


def _expanded(lines: list[str], groups: dict[str, list[str]]) -> Iterator[str]:
    for line in lines:
        word, *rest = line.split()
        indent = line[: len(line) - len(line.lstrip())]
        if word == "@switches":
            # Of Hyper-V and KVM: a state, and now and then a number, a name or a switch below.
            for name in rest:
                yield f"{indent}{name} state retries value size"
                yield f"{indent}    direct state"
                yield f"{indent}    extended state"
        elif word.startswith("@"):
            yield from _expanded([indent + each for each in groups[word]], groups)
        else:
            yield line


def _read(lines: list[str], into: Allowed) -> None:
    """Read lines into the tree; a line again at the same place adds to what stands there."""
    open_at: list[tuple[int, Allowed]] = [(-1, into)]
    for line in lines:
        indent = len(line) - len(line.lstrip())
        while open_at[-1][0] >= indent:
            open_at.pop()
        name, *words = line.split()
        element = open_at[-1][1].children.setdefault(name, Allowed())
        for word in words:
            _read_word(word, element)
        open_at.append((indent, element))


_WORD: Final = re.compile(r"(?P<kind>!?)(?P<name>#|\*\*|[A-Za-z0-9_]+)(?P<rule>[=~].*)?")


def _read_word(word: str, element: Allowed) -> None:
    match = _WORD.fullmatch(word)
    assert match is not None, word
    name, rule = match["name"], match["rule"] or ""
    if name == "**":
        element.anything = True
    elif name == "#":
        element.text = rule
    else:
        element.attributes[name] = rule
        if match["kind"]:
            element.kinds.add(name)


_PLAIN: Final = re.compile(r"[^/\x00-\x1f\x7f]*")
_TEXT: Final = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*")


def takes(rule: Rule, value: str, rules: Rules) -> bool:
    """Return whether a rule takes a value; ``rules`` are those by name besides ``~text``."""
    if not rule:
        return _PLAIN.fullmatch(value) is not None
    if rule.startswith("="):
        return value in rule[1:].split("|")
    if rule == "~text":
        return _TEXT.fullmatch(value) is not None
    return rules[rule[1:]](value)
