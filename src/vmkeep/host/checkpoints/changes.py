"""The checkpoints and bitmaps of one VM changed: listed again, narrowed, removed. Each call may be repeated.

While the VM runs, libvirt changes the bitmaps. While it is off, libvirt changes its record only, and qemu-img the
bitmap. Which of them may be changed is judged elsewhere (``vmkeep.host.checkpoints.bases``,
``vmkeep.planning.checkpoint_repair``, ``vmkeep.host.checkup.vm``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from vmkeep.definition import Definition
from vmkeep.host.checkpoints.bindings import noted
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.moments import Checkpoint, CheckpointDisk, CheckpointType, format_checkpoint
from vmkeep.planning.bitmaps import Chains
from vmkeep.transfer.imagefile import remove_bitmap
from vmkeep.transfer.imagekey import ImageKey

_log = get_logger(__name__)


class Checkpoints:
    """Changes those of one VM. ``chains`` are the images of its disks, ``key`` opens one of a VM that is off."""

    def __init__(
        self,
        domain: Domain,
        definition: Definition,
        chains: Chains,
        *,
        stopped: bool,
        key: Callable[[str], ImageKey | None] = lambda _target: None,
    ) -> None:
        self._domain = domain
        self._definition = definition
        self._chains = chains
        self._stopped = stopped
        self._key = key

    def list_again(
        self, name: str, targets: Collection[str], *, parent: str | None, creation_time: int
    ) -> frozenset[str]:
        """Make libvirt list a checkpoint whose bitmaps are there; return the disks that have one, none if it was not.

        Metadata is lost with a transient VM, a migration, an undefine; the bitmaps stay in the images. While the VM
        runs libvirt proves each bitmap, and a disk whose bitmap it refuses is left out; while it is off the caller
        names the sound ones.
        """
        candidates = set(targets)
        while candidates:
            xml = checkpoint_xml(self._definition, name, candidates, creation_time=creation_time, parent=parent)
            assert xml is not None
            broken = self._domain.redefine_checkpoint(xml, validate=not self._stopped)
            if broken is None:
                _log.info("lost checkpoint listed again", vm=self._domain.name, checkpoint=name)
                return frozenset(candidates)
            candidates.discard(broken)
        return frozenset()

    def narrow(self, name: str, keep: Collection[str], drop: Collection[str]) -> None:
        """Make a checkpoint that is listed have bitmaps in the disks ``keep`` only, and remove those in ``drop``.

        The rest of the record stays as it is. libvirt removes a bitmap of a running VM only together with its record,
        which is written again at once; killed in between, it is a lost checkpoint.
        """
        narrowed = self._domain.checkpoint_xml_with(name, keep)
        if self._stopped:
            self._domain.redefine_checkpoint(narrowed)
            for target in drop:
                self.remove_bitmap_of(name, target, [layer.path for layer in self._chains[target]])
            return
        if drop:
            self._domain.drop_bitmaps(name, sorted(drop))
        self._domain.redefine_checkpoint(narrowed)

    def remove_bitmap_of(self, name: str, target: str, paths: Collection[str]) -> None:
        """Remove the bitmap of that name from those images of a disk of a VM that is off."""
        for layer in self._chains[target]:
            if layer.path in paths and layer.bitmap(name) is not None:
                # Below an encrypted overlay there may be a plain image.
                remove_bitmap(layer.path, layer.format, name, self._key(target) if layer.encrypted else None)

    def remove(self, name: str) -> None:
        """Remove a checkpoint with its bitmaps; of a VM that is off, from the top images."""
        if self._stopped:
            self._domain.forget_checkpoint(name)
            self.remove_bitmaps(name)
        elif not self._domain.delete_checkpoint(name):
            self.remove_bitmaps(name)

    def remove_bitmaps(self, name: str) -> None:
        """Remove the bitmaps of that name, which no checkpoint names, from the disks whose top images hold one.

        Images below may be shared with other VMs; while the VM runs, libvirt removes what they hold as well.
        """
        targets = [target for target, chain in self._chains.items() if chain[0].bitmap(name) is not None]
        if not self._stopped:
            if targets:
                self._domain.drop_bitmaps(name, targets)
            return
        for target in targets:
            top = self._chains[target][0]
            remove_bitmap(top.path, top.format, name, self._key(target))


def checkpoint_xml(
    definition: Definition,
    name: str,
    targets: Collection[str],
    *,
    creation_time: int = 0,
    parent: str | None = None,
    begun: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Return the checkpoint with bitmaps in the disks of ``targets`` and in no others; None without such a disk.

    ``creation_time`` (seconds since 1970) is needed to redefine one, which then hangs from ``parent``; both are left
    to libvirt when one is created. ``begun`` names images in which bitmaps were made anew
    (``vmkeep.host.checkpoints.bindings``).
    """
    if not targets:
        return None
    disks = tuple(
        CheckpointDisk(disk.target, CheckpointType.BITMAP if disk.target in targets else CheckpointType.NO)
        for disk in definition.disks
    )
    text = noted("Base of the next incremental point of vmkeep; deleted when that is made", begun)
    return format_checkpoint(
        Checkpoint(name=name, description=text, parent_name=parent, creation_time=creation_time, disks=disks)
    )
