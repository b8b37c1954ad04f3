"""The bitmaps of a checkpoint in the images of a VM that is off, where libvirt removes its record only."""

from __future__ import annotations

from functools import partial

from vmkeep.commandline import command_line
from vmkeep.definition import SourceKind, parse_definition
from vmkeep.errors import DiskUnsupported, VmkeepError
from vmkeep.host.checkpoints.changes import Checkpoints
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.images import image_chains
from vmkeep.host.vm.keys import key_of_disk
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.transfer.imagefile import describe_image


class StoredBitmaps:
    """The images of one VM."""

    def __init__(self, domain: Domain, hypervisor: Hypervisor) -> None:
        self._domain = domain
        self._definition = with_volumes_found(parse_definition(domain.definition_xml(secure=True)), hypervisor)
        self._chains = image_chains(self._definition)
        key = partial(key_of_disk, hypervisor, self._definition)
        self._checkpoints = Checkpoints(domain, self._definition, self._chains, stopped=True, key=key)

    def remove(self, name: str) -> None:
        """Remove the bitmaps of that name from every image of every chain, as libvirt does while the VM runs.

        A disk that the VM does not have any more is left alone. Raises what keeps a bitmap from being removed, with
        the way out as its hint.
        """
        try:
            self._demand_images(name)
            for target, chain in self._chains.items():
                self._checkpoints.remove_bitmap_of(name, target, [layer.path for layer in chain])
        except VmkeepError as error:
            vm = self._domain.name
            error.vm = vm
            error.hint = (
                f"{error.hint} Or forget the checkpoint and leave its bitmaps where they are: "
                f"`{command_line('vmkeep checkpoint delete', vm, name, options='--metadata')}`."
            )
            raise

    def _demand_images(self, name: str) -> None:
        """Raise unless every image can be looked at in which the checkpoint has a bitmap."""
        for target in sorted(self._domain.checkpoint_targets(name) - self._chains.keys()):
            disk = self._definition.disk(target)
            if disk is None or disk.source is None:
                continue
            if disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
                raise DiskUnsupported(
                    f"disk {target} of VM {self._domain.name!r} is on the network, and the bitmap {name} in it can be "
                    "removed only while the VM runs",
                    disk=target,
                    hint="Start the VM and run the command again.",
                )
            describe_image(disk.source, disk.image_format)
