"""The definition of a VM that a point is made into: its name, identity and places, and nothing that may not be here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vmkeep.definition import DefinedDisk, Definition, DefinitionError, DiskPlacement, Remap, SourceKind, remap
from vmkeep.errors import InvalidRequest
from vmkeep.fitting import Wish
from vmkeep.host.restores.landing import variables_place
from vmkeep.host.restores.reach import Judged, OwnVm, judge_definition, stays_in_drive
from vmkeep.host.tasks.restores import DefineVm, DeliveredItem, HostParts, PrepareVm
from vmkeep.hypervisor import Hypervisor
from vmkeep.repository import PointRecord
from vmkeep.statefiles.location import StateRoots
from vmkeep.values import dataclass


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

    def judged(self) -> Judged:
        """Return the definition as it may be tried on this host, and made fit for it. Raises DefinitionReaches."""
        emptied = [disk for disk in self._asked_for() if not self._stays(disk)]
        excluded = {each.target for each in self.record.excluded}
        lacking = [disk for disk in self.original.disks if disk.target in excluded and not disk.removable]
        judged = self._judged(self._remapped({disk.target for disk in (*lacking, *emptied)}), fitted=False)
        return Judged(judged.definition, (*_told_of_media(emptied, self._allowed), *judged.told))

    def settled(self, fitted: str) -> Judged:
        """Return the definition, made fit, as it may be defined. Raises DefinitionReaches.

        What was not on this host must be gone from it: somebody could put it there.
        """
        return self._judged(fitted, fitted=True)

    @property
    def _allowed(self) -> HostParts:
        return HostParts(self.request.host_parts)

    def _judged(self, definition: str, *, fitted: bool) -> Judged:
        return judge_definition(
            self.hypervisor,
            definition,
            self._allowed,
            images={item.name: item.final for item in self.items if item.role == "disk"},
            media=[str(disk.source) for disk in self._asked_for() if self._stays(disk)],
            variables=self._variables,
            own_vm=self.own_vm,
            wish=self.wish,
            fitted=fitted,
            vm=self.name,
            source=f"point {self.record.id}",
        )

    @property
    def _variables(self) -> str:
        place = next((item.final for item in self.items if item.role == "nvram"), None)
        roots = StateRoots.of(self.hypervisor.uri)
        return place or str(variables_place(self.original, self.name, roots, self.own_vm))

    def _asked_for(self) -> list[DefinedDisk]:
        """Return the drives whose media may have to go: a point of this host leaves out those that it had."""
        excluded = {each.target for each in self.record.excluded}
        drives = [disk for disk in self.original.disks if disk.removable]
        return [disk for disk in drives if disk.target in excluded or self._allowed is not HostParts.TRUSTED]

    @property
    def wish(self) -> Wish:
        """What a person chose for what does not fit this host."""
        chosen = self.request
        return Wish(adapt=chosen.adapt, machine=chosen.machine, cpu=chosen.cpu, firmware=chosen.firmware)

    def _stays(self, disk: DefinedDisk) -> bool:
        """Return whether the medium of a drive is on this host and may be in it."""
        on_this_host = disk.source_kind in (SourceKind.FILE, SourceKind.BLOCK)
        return on_this_host and disk.source is not None and stays_in_drive(disk.source, self._allowed, self.own_vm)

    def _remapped(self, removed: Collection[str]) -> str:
        changes = Remap(
            name=self.name,
            uuid=self.vm_uuid,
            new_mac=None if self.identity == "same" else mac_addresses(self.vm_uuid),
            disks={item.name: DiskPlacement(item.final, item.format) for item in self.items if item.role == "disk"},
            removed=frozenset(removed),
            nvram=self._variables if self.original.firmware.nvram is not None else None,
            default_tpm_place=True,
        )
        try:
            return remap(self.record.definition, changes)
        except DefinitionError as error:
            words = f"the point's definition cannot be restored as {self.name!r}: {error}"
            raise InvalidRequest(words, vm=self.name) from error


def _told_of_media(emptied: Sequence[DefinedDisk], allowed: HostParts) -> list[str]:
    """Say which media are on this host and were left out all the same, because the point is of somebody else."""
    if allowed is HostParts.TRUSTED:
        return []
    return [
        f"The medium {disk.source} was left out of the drive {disk.target}: the point is not known to be of this host. "
        "Put it in again if the guest may read it."
        for disk in emptied
        if disk.source is not None and Path(disk.source).exists()
    ]


def mac_addresses(seed: str) -> Callable[[], str]:
    """Return a source of addresses in QEMU's range, fixed by the new UUID so that a repeated step agrees."""
    count = 0

    def following() -> str:
        nonlocal count
        digest = hashlib.sha256(f"{seed}/{count}".encode()).digest()
        count += 1
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])

    return following
