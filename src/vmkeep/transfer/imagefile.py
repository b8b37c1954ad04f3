"""Disk images of VMs as they lie on the host: what they are, what they stand on, and the bitmaps in them.

What an image is and names is read by us (``vmkeep.transfer.imagechain``). QEMU's tools then get each file as a
descriptor and each layer as a node of a ``json:`` object, with an end below the last one: no header decides what they
open, and no name is parsed for commas, colons and leading dashes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vmkeep.errors import (
    DiskUnsupported,
    HostFileMissing,
    NoSpace,
    PermissionRefused,
    TargetExists,
    TransferError,
    VmBusy,
    VmkeepError,
    WrongKey,
)
from vmkeep.filesystem import file_error, file_errors
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer.imagechain import OpenChain, OpenFile, OpenLayer, look_at_image, named_chain, open_chain
from vmkeep.transfer.imagekey import SECRET_ID, ImageKey, handed
from vmkeep.transfer.tools import run_tool

__all__ = [
    "OF_AN_IMAGE",
    "add_bitmap",
    "change_internal_snapshot",
    "describe_image",
    "holds_data",
    "image_error",
    "image_node",
    "internal_snapshots",
    "look_at",
    "make_overlay",
    "names_in_chain",
    "remove_bitmap",
]

OF_AN_IMAGE = (TransferError, HostFileMissing, DiskUnsupported)
"""What reading a chain raises of its images. All else (a libvirt that does not answer, too many open files, a user who
may not look) says nothing of them, and who takes it for the end of a chain takes what stands below for unneeded."""
_LOCKED = re.compile(r'Failed to get (shared )?"[^"]*" lock|Failed to lock byte')
# The formats whose images stand on others: QEMU's drivers of them take no <null> for what is below.
_WITHOUT_BACKING = frozenset({"raw", "luks", "vdi", "vpc"})


def describe_image(path: str | Path, image_format: str, *, chain: bool = True) -> tuple[ImageLayer, ...]:
    """Return the layers of an image, the top one first; only the top one without ``chain``.

    Takes no locks and writes nothing, so it works while a VM has the image open. Raises HeaderRefused for a file that a
    header names and that may not be followed (``vmkeep.planning.imagetrust``), before anything of it is read,
    HostFileMissing with the path of the layer or data file that is not there, PermissionRefused, DiskUnsupported for a
    format that vmkeep does not read, TransferError for all else.
    """
    with open_chain(_absolute(path), image_format, chain=chain) as opened:
        return tuple(each.layer for each in opened.layers)


def look_at(path: str | Path, image_format: str) -> ImageLayer:
    """Return what an image says of itself; nothing that it names is opened. Raises as ``describe_image``."""
    return look_at_image(_absolute(path), image_format)


def names_in_chain(path: str | Path, image_format: str) -> tuple[str, ...]:
    """Return the paths of an image and of what it stands on, with a last one that may not be followed.

    Raises as ``describe_image``: ``OF_AN_IMAGE`` is what that raises of the images themselves.
    """
    return named_chain(_absolute(path), image_format)


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def add_bitmap(
    path: str | Path, image_format: str, name: str, key: ImageKey | None = None, *, granularity_bytes: int | None = None
) -> None:
    """Add an empty bitmap that records from now on to an image that nobody has open; ``key`` opens an encrypted one.

    Unless given, the granularity is QEMU's default for the image, which is also what libvirt's checkpoints have: the
    cluster size, between 4 and 64 KiB. Raises TargetExists when there is one of that name, VmBusy when the image is
    open, NoSpace when there is no room for it, and otherwise as ``describe_image``.
    """
    change = ("--add", *(() if granularity_bytes is None else ("-g", str(granularity_bytes))))
    _change_bitmap(change, path, image_format, name, key, f"add the bitmap {name} to {path}")
    (top,) = describe_image(path, image_format, chain=False)
    if top.bitmap(name) is None:
        # qemu-img 7.2 ends with 0 when there was no room for it; the bitmaps that were there are broken then.
        raise NoSpace(f"could not add the bitmap {name} to {path}: there is no room for it", path=str(path))


def remove_bitmap(path: str | Path, image_format: str, name: str, key: ImageKey | None = None) -> bool:
    """Remove a bitmap from an image that nobody has open, also one that is ``in_use``; False: there was none.

    Raises VmBusy when the image is open, and otherwise as ``describe_image``.
    """
    (top,) = describe_image(path, image_format, chain=False)
    if top.bitmap(name) is None:
        return False
    _change_bitmap(("--remove",), path, image_format, name, key, f"remove the bitmap {name} from {path}")
    return True


def make_overlay(path: str | Path, base: ImageLayer) -> None:
    """Make an empty qcow2 image on top of ``base``, which is only read from then on; nobody else may read it yet.

    What is at ``path`` already is made anew. Raises NoSpace, PermissionRefused, TransferError.
    """
    try:
        Path(path).unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise file_error(error, Path(path)) from error
    # -u: qemu-img would open the base, and all that its header names.
    words = ("create", "-q", "-u", "-f", "qcow2", "-F", base.format, "-b", base.path, "--", str(path))
    # One that outlived us would write to a file that is being made anew.
    try:
        run_tool("qemu-img", *words, str(base.size_bytes), doing=f"make the overlay {path}", path=str(path), dying=True)
        _sync(path)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


# -- internal snapshots ------------------------------------------------------------------------------------------


def internal_snapshots(path: str | Path, image_format: str) -> frozenset[str]:
    """Return the names of the snapshots that an image holds in itself; needs no lock."""
    return frozenset(snapshot.name for snapshot in look_at(path, image_format).snapshots)


def change_internal_snapshot(change: str, path: str | Path, image_format: str, name: str) -> None:
    """Create ("-c"), apply ("-a") or delete ("-d") a snapshot in an image that nobody has open.

    QEMU applies none to an image with bitmaps ("Device has active dirty bitmaps"). Raises VmBusy when it is open.
    """
    with open_chain(_absolute(path), image_format, chain=False) as opened:
        node = image_node(opened.layers, read_only=False)
        _qemu_img("snapshot", "-q", change, name, "--", node, doing=f"change the snapshot {name} in {path}", on=opened)
    _sync(path)


def _sync(path: str | Path) -> None:
    with file_errors(Path(path)):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def holds_data(layer: ImageLayer) -> bool:
    """Return whether anything was written to a qcow2 overlay itself: data, or zeroes over what is below it.

    Takes no locks. Raises as ``describe_image``.
    """
    with open_chain(layer.path, layer.format, chain=False) as opened:
        node = image_node(opened.layers, read_only=True)
        doing = f"read what {layer.path} holds"
        printed = _qemu_img("map", "--output=json", "-U", node, doing=doing, on=opened)
    try:
        return any(piece["present"] for piece in json.loads(printed))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        # It has read what others wrote, and an image may have led it astray.
        raise TransferError(f"could not {doing}: qemu-img printed no map of it", path=layer.path) from error


def image_node(
    layers: Sequence[OpenLayer], *, read_only: bool, encrypted: bool = False, past_cache: bool = False
) -> str:
    """Return the name by which QEMU's tools open the first of these layers, standing on the others and on no more.

    The tools must inherit the descriptors of all. ``encrypted``: the tool is given the passphrase as ``SECRET_ID``.
    Raises DiskUnsupported for an image that is not encrypted then: what is written to it would be plain. ``past_cache``
    asks for O_DIRECT, which not every file system has.
    Read-only also takes no locks, so that it hinders no VM that is started meanwhile.
    """
    node = _nodes(layers)
    if encrypted:
        node |= _unlocked(layers[0].layer)
    if read_only:
        node |= {"read-only": True, "force-share": True}
    if past_cache:
        node["cache"] = {"direct": True, "no-flush": True}
    return "json:" + json.dumps(node)


def _nodes(layers: Sequence[OpenLayer]) -> dict[str, object]:
    below: dict[str, object] | None = None
    node: dict[str, object] = {}
    for each in reversed(layers):
        node = {"driver": each.layer.format, "file": _file_node(each.file)}
        if each.data is not None:
            node["data-file"] = _file_node(each.data)
        if each.layer.format not in _WITHOUT_BACKING:
            node["backing"] = below
        below = node
    return node


def _file_node(file: OpenFile) -> dict[str, object]:
    return {"driver": "host_device" if file.is_device else "file", "filename": file.handed}


def _unlocked(layer: ImageLayer) -> dict[str, object]:
    if not layer.encrypted:
        raise DiskUnsupported(
            f"{layer.path} is not encrypted, and the definition of its VM says that it is",
            path=layer.path,
            hint="No VM can be started with it as it is. Take <encryption> out of the definition, or encrypt it.",
        )
    if layer.format == "qcow2":
        return {"encrypt": {"format": "luks", "key-secret": SECRET_ID}}
    return {"key-secret": SECRET_ID}


def image_error(words: str, path: str, node: str | None = None, files: Sequence[OpenFile] = ()) -> VmkeepError:
    """Return our error for what QEMU's tools said about an image; ``node`` is the name that they were given for it,
    and ``files`` are those that they inherited.
    """
    if node is not None:
        words = words.replace(node, path)
    for file in files:
        words = file.path.join(re.split(rf"{re.escape(file.handed)}(?![0-9])", words))
    if _LOCKED.search(words):
        return VmBusy(
            f"{path} is in use by another process: {words}",
            path=path,
            hint="Something uses the image now, as a VM that was started does; wait for its end, or stop it.",
        )
    if "Invalid password" in words:
        return WrongKey(
            f"the value of the libvirt secret does not open {path}: {words}",
            path=path,
            hint="Set the secret to the passphrase of the image: `virsh secret-set-value UUID --file FILE --plain`.",
        )
    if "No such file or directory" in words:
        return HostFileMissing(words, path=path)
    if any(said in words for said in ("Permission denied", "Operation not permitted", "Read-only file system")):
        return PermissionRefused(words, path=path)
    if "Bitmap already exists" in words:
        return TargetExists(words, path=path, hint="Remove the bitmap that is there, or choose another name.")
    if "No space left on device" in words:
        return NoSpace(words, path=path)
    return TransferError(words, path=path)


def _change_bitmap(
    change: tuple[str, ...], path: str | Path, image_format: str, name: str, key: ImageKey | None, doing: str
) -> None:
    with open_chain(_absolute(path), image_format, chain=False) as opened, handed(key) as secret:
        node = image_node(opened.layers, read_only=False, encrypted=key is not None)
        words = ("bitmap", *change, *secret.arguments, "--", node, name)
        _qemu_img(*words, doing=doing, on=opened, descriptors=secret.descriptors)


def _qemu_img(*arguments: str, doing: str, on: OpenChain, descriptors: tuple[int, ...] = ()) -> str:
    path = on.layers[0].layer.path
    try:
        return run_tool(
            "qemu-img", *arguments, doing=doing, path=path, descriptors=(*on.descriptors, *descriptors), confined=True
        )
    except TransferError as error:
        node = next((word for word in arguments if word.startswith("json:")), None)
        raise image_error(error.message, path, node, on.files) from error
