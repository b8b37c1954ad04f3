"""What is known of the bitmaps of one VM: what libvirt says of them, and what stands in the images. Only read.

A backup, `vmkeep doctor` and `vmkeep checkpoint health` all look through this, and ``vmkeep.planning.bitmaps`` judges
for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.definition import DefinedDisk, Definition, SourceKind
from vmkeep.errors import HypervisorError, HypervisorUnavailable, VmkeepError
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.planning import BitmapHealth, judge_bitmap
from vmkeep.transfer.imagefile import ImageBitmap, ImageLayer, describe_image, look_at
from vmkeep.transfer.imagelock import writer_of

_log = get_logger(__name__)
_BITMAP_FORMAT: Final = "qcow2"
OLD_QCOW2: Final = "its image is qcow2 of version 2, which cannot hold a bitmap"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
Chain = tuple[ImageLayer, ...]
Chains = Mapping[str, Chain]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitmaps:
    """The bitmaps of a VM. No I/O: ``look_at_bitmaps`` makes one.

    ``chains`` are the images of each disk that may hold bitmaps, the top one first. ``valid_bytes`` is, of a VM that
    runs, how much each disk changed since each checkpoint that libvirt was asked for, where the bitmap is valid; it is
    None of one that is off. ``unread`` says why a disk's images could not be read, ``writers`` what else has images
    of a VM that is off open, and ``unasked`` why libvirt could not be asked. ``refused`` are the checkpoints of which
    libvirt says nothing, and why: one bitmap that it cannot merge with others keeps it from telling of any.
    """

    chains: Chains
    valid_bytes: Mapping[str, Mapping[str, int]] | None
    unread: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    writers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    unasked: str | None = None
    refused: Mapping[str, str] = field(default_factory=lambda: _NOTHING)

    @property
    def running(self) -> bool:
        return self.valid_bytes is not None

    def layers(self, name: str, target: str) -> tuple[ImageBitmap | None, ...]:
        """Return what each image of a disk, the top one first, holds of a bitmap."""
        return tuple(layer.bitmap(name) for layer in self.chains.get(target, ()))

    def holders(self, name: str, target: str) -> tuple[ImageLayer, ...]:
        """Return the images of a disk that hold a bitmap of that name."""
        return tuple(layer for layer in self.chains.get(target, ()) if layer.bitmap(name) is not None)

    def valid_in_qemu(self, name: str, target: str) -> bool | None:
        """Return what libvirt says of a bitmap; None of a VM that is off, or when it was not asked."""
        if self.valid_bytes is None or name not in self.valid_bytes:
            return None
        return target in self.valid_bytes[name]

    def health(self, name: str, target: str) -> BitmapHealth:
        """Return how the bitmap of that name is in a disk."""
        valid = self.valid_in_qemu(name, target)
        if name in self.refused:
            return BitmapHealth.UNFITTING if self.grew(target) else BitmapHealth.UNKNOWN
        if not valid and self.why_unknown(target) is not None:
            return BitmapHealth.UNKNOWN
        layers = self.layers(name, target)
        if not layers:
            return BitmapHealth.SOUND if valid else BitmapHealth.MISSING  # a disk that holds no bitmaps
        # Of a checkpoint that libvirt does not list it says nothing, and of a VM that runs an image tells no soundness.
        said = False if self.running and valid is None else valid
        return judge_bitmap(layers, valid_in_qemu=said)

    def grew(self, target: str) -> bool:
        """Return whether the images of a disk are of different sizes: it grew or shrank since the lower ones."""
        return len({layer.size_bytes for layer in self.chains.get(target, ())}) > 1

    def why_unknown(self, target: str) -> str | None:
        """Return why nothing is known of a disk's bitmaps, for people; None when they could be looked at."""
        if self.running:
            return self.unasked or self.unread.get(target)
        if target in self.writers:
            return f"{self.writers[target]} has its image open"
        return self.unread.get(target)


def look_at_bitmaps(
    domain: Domain,
    definition: Definition,
    chains: Chains,
    names: Collection[str],
    *,
    stopped: bool,
    unread: Mapping[str, str] = _NOTHING,
    unasked: str | None = None,
) -> Bitmaps:
    """Ask libvirt for the checkpoints ``names``, all of which it lists, unless the VM is off.

    ``chains`` are the images of the disks that could be read, as they are now; ``unread`` says why the others could
    not. ``unasked`` says why libvirt must not be asked.
    """
    holding = {disk.target: disk for disk in definition.disks if can_hold_bitmaps(disk)}
    kept = {target: chain for target, chain in chains.items() if target in holding}
    missed = {target: unread.get(target, "its image cannot be read") for target in holding if target not in kept}
    if stopped:
        writers = {target: writer for target, chain in kept.items() if (writer := _writer(chain)) is not None}
        return Bitmaps(chains=kept, valid_bytes=None, unread=missed, writers=writers)
    asked = () if unasked is not None else names
    valid, refused = {}, {}
    for name in asked:
        try:
            valid[name] = domain.checkpoint_dirty_bytes(name)
        except HypervisorUnavailable:
            raise
        except HypervisorError as error:
            _log.warning("bitmaps not told", checkpoint=name, error=error.message)
            refused[name] = error.message
    return Bitmaps(chains=kept, valid_bytes=valid, unread=missed, unasked=unasked, refused=refused)


def can_hold_bitmaps(disk: DefinedDisk) -> bool:
    """Tell whether libvirt makes bitmaps of a disk."""
    return disk.format == _BITMAP_FORMAT and not (disk.readonly or disk.transient or disk.removable)


def amending(disk: DefinedDisk, chain: Chain) -> str | None:
    """Return the command that makes the image of a disk one that holds bitmaps; None where there is nothing to do."""
    if not chain or chain[0].holds_bitmaps or not can_hold_bitmaps(disk):
        return None
    return command_line("qemu-img amend -f qcow2 -o compat=1.1", chain[0].path)


def image_chains(definition: Definition) -> dict[str, Chain]:
    """Return the images of each disk that has some on this host, by target; disks that cannot be read are left out.

    Raises ToolMissing.
    """
    return describe_chains(definition)[0]


def top_images(definition: Definition) -> dict[str, Chain]:
    """Return the top image of each disk that has one on this host, by target: nothing that it names is opened."""
    return _described(definition, lambda disk: (look_at(str(disk.source), disk.image_format),))[0]


def describe_chains(definition: Definition) -> tuple[dict[str, Chain], dict[str, str]]:
    """Return the images of each disk that has some on this host, by target, and why the others could not be read."""
    return _described(definition, lambda disk: describe_image(str(disk.source), disk.image_format))


def _described(
    definition: Definition, describe: Callable[[DefinedDisk], Chain]
) -> tuple[dict[str, Chain], dict[str, str]]:
    chains, unread = {}, {}
    for disk in definition.disks:
        if disk.removable or disk.source is None:
            continue
        if disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
            unread[disk.target] = "it is no file or device of this host"
            continue
        try:
            chains[disk.target] = describe(disk)
        except VmkeepError as error:
            # The plan refuses the disk when its size is not known either; here it only has no bitmaps.
            _log.info("image not described", disk=disk.target, error=error.message)
            unread[disk.target] = error.message
    return chains, unread


def _writer(chain: Chain) -> str | None:
    """Return what has an image of a VM that is off open for writing: what stands in the image is not all then."""
    return next((writer for layer in chain if (writer := writer_of(layer.path)) is not None), None)
