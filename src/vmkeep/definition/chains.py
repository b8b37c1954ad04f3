"""What a definition itself says to stand below a disk's image: ``<backingStore>``.

libvirt writes the element at each snapshot of a running VM, and users may. At the next start it takes its word: it
looks into the images only from where the element ends on, and at ``<backingStore/>`` not even then (libvirt,
formatdomain; seen on 9.0 and 11.3). So a guest can read something else through it than through the image.
"""

from __future__ import annotations

from lxml import etree

from vmkeep.definition.model import BackingLayer, DefinedBacking
from vmkeep.definition.tree import remove_children

# What says of the former image what is below or beside it.
_OF_FORMER_IMAGE = ("backingStore", "mirror")
_PATHS = {"file": "file", "block": "dev"}


def read_backing(disk: etree._Element) -> DefinedBacking | None:
    """Return what a disk's element says to stand below its image; None when it leaves that to the image."""
    store = disk.find("backingStore")
    if store is None:
        return None
    layers = []
    while store is not None and len(store):
        kind, source, image_format = store.get("type", "file"), store.find("source"), store.find("format")
        path = None if source is None or kind not in _PATHS else source.get(_PATHS[kind])
        layers.append(BackingLayer(path=path, format=None if image_format is None else image_format.get("type")))
        store = store.find("backingStore")
    return DefinedBacking(layers=tuple(layers), ends=store is not None)


def leave_to_image(disk: etree._Element) -> None:
    """Take out of a disk's element what it says to stand below its image, and the data file that it names."""
    remove_children(disk, _OF_FORMER_IMAGE)
    source = disk.find("source")
    if source is not None:
        remove_children(source, ("dataStore",))
