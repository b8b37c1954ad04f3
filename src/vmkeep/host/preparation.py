"""What must be known of a VM before a point of it can be planned; also the basis of `vmkeep vm show`."""

from __future__ import annotations

import os
from pathlib import Path

from vmkeep.definition import Definition, SourceKind, TpmBackend, parse_definition
from vmkeep.errors import HypervisorError, VmkeepError, error_classes
from vmkeep.host.tasks import KnownPoint
from vmkeep.hypervisor import Domain
from vmkeep.planning import Base, BaseDisk, PlannableDisk, Refused


def disk_sizes(domain: Domain, live: Definition) -> dict[str, int]:
    """Return the size in bytes of each disk whose size libvirt can tell."""
    sizes = {}
    for disk in live.disks:
        if disk.removable or disk.source_kind is SourceKind.NONE:
            continue
        try:
            sizes[disk.target] = domain.disk_capacity_bytes(disk.target)
        except HypervisorError:
            continue  # a disk whose file is gone, or of a kind libvirt cannot ask: the plan says what that means
    return sizes


def scratch_directory(source: str, configured: Path | None) -> Path:
    """Return where the scratch of an image goes: where the settings say, else beside the image.

    Beside the image is where libvirt puts it by default, and where stock AppArmor and SELinux policies let QEMU.
    """
    return configured or Path(source).parent


def plannable_disks(live: Definition, sizes: dict[str, int], scratch_dir: Path | None) -> tuple[PlannableDisk, ...]:
    """Return the disks of a VM as the plan sees them."""
    return tuple(
        PlannableDisk(
            target=disk.target,
            device=disk.device,
            bus=disk.bus,
            source_kind=str(disk.source_kind),
            source=disk.source,
            format=disk.format,
            readonly=disk.readonly,
            shareable=disk.shareable,
            transient=disk.transient,
            encrypted=disk.encrypted,
            size_bytes=sizes.get(disk.target),
            error_policy=disk.error_policy,
            free_scratch_bytes=_free_scratch_bytes(disk.source, scratch_dir),
        )
        for disk in live.disks
    )


def _free_scratch_bytes(source: str | None, scratch_dir: Path | None) -> int | None:
    if source is None or not source.startswith("/"):
        return None
    try:
        about = os.statvfs(scratch_directory(source, scratch_dir))
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def definition_to_keep(domain: Domain, live: Definition, live_xml: str) -> tuple[str, list[str]]:
    """Return the definition that a restore makes, and warnings: the persistent one unless its disks are others."""
    if not domain.is_persistent():
        return live_xml, []
    inactive_xml = domain.definition_xml(inactive=True, secure=True)
    kept = {(disk.target, disk.source) for disk in parse_definition(inactive_xml).disks if not disk.removable}
    runs = {(disk.target, disk.source) for disk in live.disks if not disk.removable}
    if kept == runs:
        return inactive_xml, []
    return live_xml, ["The VM runs with other disks than its persistent definition has; the point keeps it as it runs."]


def state_warnings(live: Definition) -> list[str]:
    """Say what of the TPM a point cannot hold."""
    tpm = live.tpm
    if tpm is None:
        return []
    if tpm.backend is not TpmBackend.EMULATOR:
        return [
            (
                f"The VM's TPM is a {tpm.backend} one: its state is no file of this host and is not in the point. "
                "Keep recovery keys of the guest at hand."
            )
        ]
    if tpm.secret_uuid is not None:
        return [
            (
                f"The TPM state is encrypted with libvirt's secret {tpm.secret_uuid}, which is not in the point. Keep "
                "the secret's value safe: a restored VM needs it."
            )
        ]
    return []


def base_of(point: KnownPoint) -> Base:
    """Return an earlier point as the plan sees it."""
    disks = {
        disk.target: BaseDisk(source=disk.source, size_bytes=disk.size_bytes, format=disk.format)
        for disk in point.disks
    }
    return Base(point_id=point.point_id, checkpoint=point.checkpoint, disks=disks)


def refusal(outcome: Refused, vm: str) -> VmkeepError:
    """Return one error for all refusals: the class of the first, the words of all."""
    first = outcome.refusals[0]
    kind = error_classes()[str(first.code)]
    message = "; ".join(refused.message for refused in outcome.refusals)
    hints = dict.fromkeys(refused.hint for refused in outcome.refusals)
    return kind(message, vm=vm, disk=first.target, hint=" ".join(hints))
