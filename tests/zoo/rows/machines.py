"""Machine, firmware, TPM, and other devices."""

from __future__ import annotations

from tests.zoo.row import NOT_TRIED, Edit, Image, Promise, Refused, Row

TPM_2 = "<backend type='emulator' version='2.0'/>"
TPM_12 = "<backend type='emulator' version='1.2'/>"
_ENCRYPTED = "<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
_SECURE = (
    Edit("features", children=("<smm state='on'/>",)),
    Edit(
        "os",
        children=(
            (
                "<firmware><feature enabled='yes' name='enrolled-keys'/>"
                "<feature enabled='yes' name='secure-boot'/></firmware>"
            ),
        ),
    ),
)
_OWN_PATHS = (
    Edit(
        "os",
        remove=False,
        children=(
            f"<loader readonly='yes' type='pflash'>{_CODE}</loader>",
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{place}/own_VARS.fd</nvram>",
        ),
    ),
)
_NOT_EMULATED = Refused("state-unsupported", "none that libvirt emulates")
_NETWORK = "<interface type='user'><mac address='52:54:00:00:00:{number:02x}'/><model type='{model}'/></interface>"

ROWS = (
    Row("pc", "machine `pc` (i440FX)", edits=(Edit("os/type", (("machine", "pc"),)),)),
    Row("uefi", "UEFI", firmware="uefi"),
    Row("uefi-tpm", "UEFI and TPM 2.0 (CRB)", firmware="uefi", tpm=TPM_2, sample=True),
    Row("secure-boot", "UEFI with Secure Boot and enrolled keys, TPM 2.0", firmware="uefi", tpm=TPM_2, edits=_SECURE),
    Row("uefi-own-paths", "UEFI with loader and variables named in the definition", firmware="own", edits=_OWN_PATHS),
    Row(
        "uefi-stateless",
        "UEFI without variables (`stateless='yes'`)",
        edits=(Edit("os", children=(f"<loader readonly='yes' type='pflash' stateless='yes'>{_CODE}</loader>",)),),
    ),
    Row(
        "uefi-2m",
        "UEFI of the old size (2 MiB)",
        promise_of_libvirt_11=Promise(*[NOT_TRIED] * 8),
        remark="Debian 13 has no such firmware",
        firmware="own",
        edits=(
            Edit(
                "os",
                children=(
                    "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>",
                    "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>{place}/own_VARS.fd</nvram>",
                ),
            ),
        ),
    ),
    Row("tpm-tis", "TPM 2.0 (TIS), BIOS", tpm=TPM_2, edits=(Edit("devices/tpm", (("model", "tpm-tis"),)),)),
    Row("tpm-1.2", "TPM 1.2", tpm=TPM_12),
    Row("tpm-encrypted", "TPM 2.0 whose state libvirt encrypts", firmware="uefi", tpm=_ENCRYPTED, tpm_encrypted=True),
    Row(
        "tpm-persistent",
        "`persistent_state='yes'`",
        tpm=TPM_2,
        edits=(Edit("devices/tpm/backend", (("persistent_state", "yes"),)),),
    ),
    Row(
        "tpm-external",
        "a TPM of another program",
        tpm="external",
        promise=Promise(tpm=_NOT_EMULATED),
        remark="kept without the TPM state, and every point says so",
    ),
    Row(
        "tpm-passthrough",
        "a TPM of the host",
        tpm="<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
        promise=Promise(
            running=NOT_TRIED,
            snapshot=NOT_TRIED,
            revert=NOT_TRIED,
            as_vm=NOT_TRIED,
            in_place=NOT_TRIED,
            tpm=_NOT_EMULATED,
        ),
        remark="kept without the TPM state, and every point says so; tried while the VM is off",
    ),
    Row(
        "devices",
        "several network cards, balloon, sound, serial port, RNG, watchdog",
        devices=(
            *(
                _NETWORK.format(number=number, model=model)
                for number, model in enumerate(("virtio", "e1000e", "rtl8139"))
            ),
            "<memballoon model='virtio'/>",
            "<sound model='ich9'/>",
            "<serial type='pty'/>",
            "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
            "<watchdog model='i6300esb' action='reset'/>",
            "<video><model type='virtio'/></video>",
        ),
        edits=(Edit("devices/memballoon[@model='none']", remove=True),),
    ),
    Row(
        "cpu-model",
        "a CPU model, two processors, NUMA",
        edits=(
            Edit(
                "/domain",
                children=(
                    (
                        "<cpu mode='custom' match='exact' check='none'><model fallback='allow'>Westmere</model>"
                        "<numa><cell id='0' cpus='0-1' memory='65536' unit='KiB'/></numa></cpu>"
                    ),
                ),
            ),
            Edit("vcpu[.='1']", remove=True),
            Edit("/domain", children=("<vcpu>2</vcpu>",)),
        ),
    ),
    Row(
        "qemu-commandline",
        "arguments for QEMU in the definition (`qemu:commandline`)",
        edits=(
            Edit(
                "/domain",
                children=(
                    (
                        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-global'/>"
                        "<q:arg value='virtio-blk-pci.write-cache=on'/></q:commandline>"
                    ),
                ),
            ),
        ),
    ),
    Row(
        "described",
        "title, description, metadata, generation id, on_reboot",
        edits=(
            Edit(
                "/domain",
                children=(
                    "<title>Büro &amp; Lager</title>",
                    "<description>two\nlines &lt;tag&gt;</description>",
                    "<metadata><a:app xmlns:a='urn:example'><a:owner>somebody</a:owner></a:app></metadata>",
                    "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>",
                    "<on_reboot>destroy</on_reboot>",
                ),
            ),
        ),
    ),
    Row(
        "seclabel",
        "images owned by another user (`seclabel` of model `dac`)",
        (Image(),),
        edits=(
            Edit(
                "/domain",
                children=(
                    "<seclabel type='static' model='dac' relabel='yes'><label>libvirt-qemu:kvm</label></seclabel>",
                ),
            ),
        ),
    ),
    Row(
        "memory-shared",
        "shared memory (memfd), locked off",
        edits=(
            Edit("/domain", children=("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",)),
        ),
    ),
    Row(
        "agent-channel",
        "a guest agent's channel, with no agent",
        devices=("<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",),
    ),
)
