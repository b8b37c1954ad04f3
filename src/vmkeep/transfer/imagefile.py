"""Disk images of VMs as they lie on the host: what they are, what they stand on, and the bitmaps in them.

Every name is given to QEMU's tools as a ``json:`` object, because a plain name is parsed: commas, colons and
leading dashes are options, protocols and switches there. The format of an image is always told, never probed: a
guest can write a qcow2 header into its raw disk, and name any file of the host in it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from vmkeep.transfer.imagekey import SECRET_ID, ImageKey, handed
from vmkeep.transfer.tools import run_tool

# libvirt's limit for a chain of backing files.
_MAX_LAYERS = 200
_LOCKED = re.compile(r'Failed to get (shared )?"[^"]*" lock|Failed to lock byte')
# QEMU takes a name for a local file when no colon comes before the first slash.
_PROTOCOL = re.compile(r"[^:/]*:")
_UNNAMED_FORMAT_HINT = (
    "Write the format into the image while the VM is off: `qemu-img rebase -u -F FORMAT -b BACKING IMAGE`."
)


@dataclass(frozen=True, slots=True)
class ImageBitmap:
    """A dirty bitmap stored in a qcow2 image.

    ``in_use``: the image was not closed properly (or is open now), so the bitmap cannot be trusted. ``recording``:
    whoever opens the image for writing goes on recording in it.
    """

    name: str
    granularity_bytes: int
    in_use: bool
    recording: bool


@dataclass(frozen=True, slots=True)
class ImageSnapshot:
    """An internal snapshot in a qcow2 image; ``memory_bytes`` is the VM's memory that was saved with it, if any."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One image of a chain. ``path`` is absolute; of a layer that is no local file it is QEMU's name for it.

    ``backing`` is the path of the next layer. ``holds_bitmaps``: the format has room for bitmaps, as qcow2 has from its
    version 3 on ("compat 1.1"). ``bitmaps`` are those in the file: what a running VM keeps in
    memory is not there, and what it loaded from the file is ``in_use`` while it runs. ``snapshots`` are the internal
    ones. ``corrupt``: QEMU marked it so, and opens it for reading only until it is repaired.
    """

    path: str
    format: str
    size_bytes: int
    bitmaps: tuple[ImageBitmap, ...]
    encrypted: bool
    data_file: str | None
    backing: str | None
    holds_bitmaps: bool = True
    snapshots: tuple[ImageSnapshot, ...] = ()
    corrupt: bool = False

    def bitmap(self, name: str) -> ImageBitmap | None:
        """Return the bitmap of that name."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


def describe_image(path: str | Path, image_format: str, *, chain: bool = True) -> tuple[ImageLayer, ...]:
    """Return the layers of an image, the top one first; only the top one without ``chain``.

    Takes no locks and writes nothing, so it works while a VM has the image open. Raises HostFileMissing with the
    path of the layer or data file that is not there, PermissionRefused, DiskUnsupported for a chain whose formats
    cannot be told without guessing, TransferError with qemu-img's words for all else.
    """
    walk = _layers(str(Path(path).absolute()), image_format)
    return tuple(walk) if chain else (next(walk),)


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
    words = ("create", "-q", "-f", "qcow2", "-F", base.format, "-b", base.path, "--", str(path), str(base.size_bytes))
    # One that outlived us would write to a file that is being made anew.
    try:
        run_tool("qemu-img", *words, doing=f"make the overlay {path}", path=str(path), dying=True)
        _sync(path)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


# -- internal snapshots ------------------------------------------------------------------------------------------


def internal_snapshots(path: str | Path, image_format: str) -> frozenset[str]:
    """Return the names of the snapshots that an image holds in itself; needs no lock."""
    return frozenset(snapshot["name"] for snapshot in _info(str(path), image_format, None).get("snapshots", ()))


def change_internal_snapshot(change: str, path: str | Path, image_format: str, name: str) -> None:
    """Create ("-c"), apply ("-a") or delete ("-d") a snapshot in an image that nobody has open.

    QEMU applies none to an image with bitmaps ("Device has active dirty bitmaps"). Raises VmBusy when it is open.
    """
    (top,) = describe_image(path, image_format, chain=False)
    node = image_node(top, read_only=False)
    doing = f"change the snapshot {name} in {path}"
    _qemu_img("snapshot", "-q", change, name, "--", node, doing=doing, path=top.path, node=node)
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
    node = "json:" + json.dumps(
        {
            "driver": layer.format,
            "file": _file_node(layer.path),
            "backing": None,
            "read-only": True,
            "force-share": True,
        }
    )
    doing = f"read what {layer.path} holds"
    ranges = json.loads(_qemu_img("map", "--output=json", "-U", node, doing=doing, path=layer.path, node=node))
    return any(piece["present"] for piece in ranges)


def image_node(layer: ImageLayer, *, read_only: bool, encrypted: bool = False, past_cache: bool = False) -> str:
    """Return the name by which QEMU's tools open a layer, a local file or device, with all that is below it.

    ``encrypted``: the tool is given the passphrase as ``SECRET_ID``. Raises DiskUnsupported for an image that is not
    encrypted then: what is written to it would be plain. ``past_cache`` asks for O_DIRECT, which not every file system
    has.
    Read-only also takes no locks, so that it hinders no VM that is started meanwhile.
    """
    node: dict[str, object] = {"driver": layer.format, "file": _file_node(layer.path)}
    if layer.data_file is not None and _is_local(layer.data_file):
        # QEMU would take a relative name from its own working directory, libvirt takes it from the image's.
        node["data-file"] = _file_node(layer.data_file)
    if encrypted:
        node |= _unlocked(layer)
    if read_only:
        node |= {"read-only": True, "force-share": True}
    if past_cache:
        node["cache"] = {"direct": True, "no-flush": True}
    return "json:" + json.dumps(node)


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


def image_error(words: str, path: str, node: str | None = None) -> VmkeepError:
    """Return our error for what QEMU's tools said about an image; ``node`` is the name they were given."""
    if node is not None:
        words = words.replace(node, path)
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


def _layers(path: str, image_format: str) -> Iterator[ImageLayer]:
    next_path: str | None = path
    next_format: str | None = image_format
    seen: set[str] = set()
    overlay: str | None = None
    while next_path is not None:
        if next_path in seen or len(seen) == _MAX_LAYERS:
            raise TransferError(f"the backing files of {path} go in a circle or are more than {_MAX_LAYERS}", path=path)
        seen.add(next_path)
        info = _info(next_path, next_format, overlay)
        layer = _layer(next_path, info)
        if next_format is None and not _stands_alone(layer):
            # libvirt refuses such a chain too: what was probed may be what a guest wrote.
            raise DiskUnsupported(
                f"{overlay} does not say which format its backing file {next_path} has",
                path=overlay,
                hint=_UNNAMED_FORMAT_HINT,
            )
        yield layer
        overlay, next_path, next_format = next_path, layer.backing, info.get("backing-filename-format")


def _stands_alone(layer: ImageLayer) -> bool:
    """Tell whether an image names no other file; formats other than these have their own ways to do so."""
    return layer.format in ("raw", "qcow2") and layer.backing is None and layer.data_file is None


def _layer(path: str, info: dict[str, Any]) -> ImageLayer:
    specific = info.get("format-specific", {}).get("data", {})
    data_file = specific.get("data-file")
    if data_file is not None and _is_local(data_file):
        data_file = str(Path(path).parent / data_file)
        _check_file(data_file, f"the data file of {path}")
    return ImageLayer(
        path=path,
        format=info["format"],
        size_bytes=info["virtual-size"],
        bitmaps=tuple(
            ImageBitmap(
                name=bitmap["name"],
                granularity_bytes=bitmap["granularity"],
                in_use="in-use" in bitmap["flags"],
                recording="auto" in bitmap["flags"],
            )
            for bitmap in specific.get("bitmaps", ())
        ),
        encrypted=bool(info.get("encrypted", False)),
        data_file=data_file,
        backing=info.get("full-backing-filename", info.get("backing-filename")),
        holds_bitmaps=info["format"] == "qcow2" and specific.get("compat") != "0.10",
        snapshots=tuple(
            ImageSnapshot(name=snapshot["name"], memory_bytes=snapshot.get("vm-state-size", 0))
            for snapshot in info.get("snapshots", ())
        ),
        corrupt=bool(specific.get("corrupt", False)),
    )


def _info(path: str, image_format: str | None, overlay: str | None) -> dict[str, Any]:
    if _is_local(path):
        _check_file(path, "the disk image" if overlay is None else f"the backing file of {overlay}")
        driver = {} if image_format is None else {"driver": image_format}
        node = "json:" + json.dumps(driver | {"file": _file_node(path)})
        named = [node]
    else:
        node = path
        named = [*(() if image_format is None else ("-f", image_format)), "--", path]
    answer = _qemu_img("info", "--output=json", "-U", *named, doing=f"read what {path} is", path=path, node=node)
    info: dict[str, Any] = json.loads(answer)
    return info


def _change_bitmap(
    change: tuple[str, ...], path: str | Path, image_format: str, name: str, key: ImageKey | None, doing: str
) -> None:
    (top,) = describe_image(path, image_format, chain=False)
    node = image_node(top, read_only=False, encrypted=key is not None)
    with handed(key) as secret:
        words = ("bitmap", *change, *secret.arguments, "--", node, name)
        _qemu_img(*words, doing=doing, path=top.path, node=node, descriptors=secret.descriptors)


def _qemu_img(*arguments: str, doing: str, path: str, node: str, descriptors: tuple[int, ...] = ()) -> str:
    try:
        return run_tool("qemu-img", *arguments, doing=doing, path=path, descriptors=descriptors)
    except TransferError as error:
        raise image_error(error.message, path, node) from error


def _is_local(name: str) -> bool:
    return _PROTOCOL.match(name) is None


def _file_node(path: str) -> dict[str, str]:
    return {"driver": "host_device" if stat.S_ISBLK(Path(path).stat().st_mode) else "file", "filename": path}


def _check_file(path: str, role: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HostFileMissing(f"{role}, {path}, is not there", path=path) from error
    except PermissionError as error:
        raise PermissionRefused(f"{path} cannot be looked at: {error.strerror}", path=path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        # QEMU would wait for ever to open a pipe.
        raise TransferError(f"{role}, {path}, is neither a file nor a block device", path=path)
