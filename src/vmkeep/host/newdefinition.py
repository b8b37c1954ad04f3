"""The definition of a VM that a point is made into: its name, identity and places, and nothing that may not be here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmkeep.definition import DefinedDisk, Definition, DefinitionError, DiskPlacement, Remap, SourceKind, remap
from vmkeep.errors import InvalidRequest
from vmkeep.fitting import Wish
from vmkeep.host.landing import variables_place
from vmkeep.host.reach import Judged, OwnVm, judge_definition, stays_in_drive
from vmkeep.host.tasks import DefineVm, DeliveredItem, HostParts, PrepareVm
from vmkeep.hypervisor import Hypervisor
from vmkeep.repository import PointRecord
from vmkeep.statefiles.location import StateRoots


@dataclass(frozen=True, slots=True)
class NewDefinition:
    """The definition of a VM to be made, the same each time for the same identity and items."""

    hypervisor: Hypervisor
    record: PointRecord
    original: Definition
    name: str
    vm_uuid: str
    identity: str
    items: Sequence[DeliveredItem]
    own_vm: OwnVm | None
    request: PrepareVm | DefineVm

    def judged(self, roots: StateRoots) -> Judged:
        """Return the definition as it may be defined here. Raises DefinitionReaches."""
        allowed = HostParts(self.request.host_parts)
        place = next((item.final for item in self.items if item.role == "nvram"), None)
        nvram = place or str(variables_place(self.original, self.name, roots, self.own_vm))
        excluded = {each.target for each in self.record.excluded}
        drives = [disk for disk in self.original.disks if disk.removable]
        asked_for = [disk for disk in drives if disk.target in excluded or allowed is not HostParts.TRUSTED]
        emptied = [disk for disk in asked_for if not self._stays(disk, allowed)]
        lacking = [disk for disk in self.original.disks if disk.target in excluded and not disk.removable]
        definition = self._remapped(nvram, {disk.target for disk in (*lacking, *emptied)})
        judged = judge_definition(
            self.hypervisor,
            definition,
            allowed,
            images={item.name: item.final for item in self.items if item.role == "disk"},
            media=[str(disk.source) for disk in asked_for if disk not in emptied],
            variables=nvram,
            own_vm=self.own_vm,
            wish=self.wish,
            vm=self.name,
            source=f"point {self.record.id}",
        )
        return Judged(judged.definition, (*_told_of_media(emptied, allowed), *judged.told))

    @property
    def wish(self) -> Wish:
        """What a person chose for what does not fit this host."""
        chosen = self.request
        return Wish(adapt=chosen.adapt, machine=chosen.machine, cpu=chosen.cpu, firmware=chosen.firmware)

    def _stays(self, disk: DefinedDisk, allowed: HostParts) -> bool:
        """Return whether the medium of a drive is on this host and may be in it."""
        on_this_host = disk.source_kind in (SourceKind.FILE, SourceKind.BLOCK)
        return on_this_host and disk.source is not None and stays_in_drive(disk.source, allowed, self.own_vm)

    def _remapped(self, nvram: str, removed: Collection[str]) -> str:
        changes = Remap(
            name=self.name,
            uuid=self.vm_uuid,
            new_mac=None if self.identity == "same" else _mac_addresses(self.vm_uuid),
            disks={item.name: DiskPlacement(item.final, item.format) for item in self.items if item.role == "disk"},
            removed=frozenset(removed),
            nvram=nvram if self.original.firmware.nvram is not None else None,
            default_tpm_place=True,
        )
        try:
            return remap(self.record.definition, changes)
        except DefinitionError as error:
            words = f"the point's definition cannot be restored as {self.name!r}: {error}"
            raise InvalidRequest(words, vm=self.name) from error


def _told_of_media(emptied: Sequence[DefinedDisk], allowed: HostParts) -> list[str]:
    """Say which media are on this host and were left out all the same, because the point is of somebody else."""
    if allowed in (HostParts.TRUSTED, HostParts.DEFINED):
        return []
    return [
        f"The medium {disk.source} was left out of the drive {disk.target}: the point is not known to be of this host. "
        "Put it in again if the guest may read it."
        for disk in emptied
        if disk.source is not None and Path(disk.source).exists()
    ]


def _mac_addresses(seed: str) -> Callable[[], str]:
    """Return a source of addresses in QEMU's range, fixed by the new UUID so that a repeated step agrees."""
    count = 0

    def following() -> str:
        nonlocal count
        digest = hashlib.sha256(f"{seed}/{count}".encode()).digest()
        count += 1
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])

    return following
