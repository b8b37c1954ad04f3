"""Whether definitions of checkpoints and snapshots that come from a file reach into this host.

libvirt runs the emulator that the VM's definition in a snapshot names as soon as it takes it, to learn what it can do
(seen with 9.0; of a checkpoint it keeps the definition only), and a revert makes that definition the VM's own, opens
the images that it names, and loads the memory from the file that the snapshot names, with the definition in that file.
So nothing of a file that another may have written is given to libvirt before it was held against what the VM has on
this host already (docs/adr/0028-moments-of-others.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Final

from lxml import etree

from vmkeep.definition import DefinitionError, SourceKind, parse_definition
from vmkeep.errors import DefinitionReaches, VmkeepError
from vmkeep.fitting import MOST_PARTS, HostOwn, Wish, as_part, reaching
from vmkeep.host.restores.suitability import programs_for
from vmkeep.host.tasks.moments import VmMoments
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.moments import Snapshot
from vmkeep.values import dataclass
from vmkeep.xmltext import XmlRefused, element_children, parse_xml, tag_name

_DEFINITIONS: Final = ("domain", "inactiveDomain")
_OF_LIBVIRT: Final = frozenset({"name", "description", "state", "parent", "creationTime", "active", "cookie"})
_DISKS: Final = ("disks", "revertDisks")
_IMAGE_ATTRIBUTES: Final = ("file", "dev")
_MEMORY: Final = "a file of the host whose memory, and the definition in it, a revert starts"
_IMAGE: Final = "a file or device of the host that is no image of this VM's"
_ELEMENT: Final = "not known to leave the host alone"
_MOST_SHOWN: Final = 120


@dataclass(frozen=True, slots=True)
class _Found:
    part: str
    what: str
    value: str

    def as_json(self, moment: str) -> dict[str, Any]:
        value = self.value if len(self.value) <= _MOST_SHOWN else f"{self.value[:_MOST_SHOWN]}..."
        return {"moment": moment, "part": self.part, "what": self.what, "value": value, "strippable": False}


def refuse_reaching_moments(
    hypervisor: Hypervisor, domain: Domain, found: VmMoments, given: Iterable[tuple[str, str]]
) -> None:
    """Raise DefinitionReaches when documents (each with its name) reach further into this host than the VM does.

    ``found`` are the moments that libvirt lists of the VM, with the definitions in them and with passwords. Nothing is
    changed, and libvirt sees nothing of the documents.
    """
    own = _OwnParts(hypervisor, domain, found)
    told: dict[_Found, str] = {}
    for name, xml in given:
        for part in own.foreign(xml):
            told.setdefault(part, name)
            if len(told) > MOST_PARTS:
                break
    if told:
        count = "one part" if len(told) == 1 else f"{len(told)} parts"
        raise DefinitionReaches(
            f"what is to be listed as {found.kind}s of VM {found.vm!r} is not known to be of this host, and reaches "
            f"into this host in {count} that the VM does not have",
            vm=found.vm,
            parts=[part.as_json(name) for part, name in told.items()],
            hint="Nothing was changed, and libvirt has seen nothing of it. Look at the file; --trust-definition takes "
            "it as it is.",
        )


class _OwnParts:
    """What a VM has on this host: by its definitions, and by libvirt's records of its checkpoints and snapshots."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain, found: VmMoments) -> None:
        self._hypervisor = hypervisor
        self._programs: dict[tuple[str | None, ...], tuple[HostOwn, frozenset[tuple[object, ...]]]] = {}
        self._judged: dict[str, tuple[_Found, ...]] = {}
        texts = [domain.definition_xml(inactive=True, secure=True)] if domain.is_persistent() else []
        texts += [domain.definition_xml(secure=True)] if found.running or not texts else []
        self._present = tuple(texts)
        texts += [text for moment in found.moments for text in _definitions_of(moment) if text is not None]
        self._roots = list(_readable(dict.fromkeys(texts)))
        snapshots = [moment for moment in found.moments if isinstance(moment, Snapshot)]
        self._memories = {moment.memory.file for moment in snapshots}
        sources = (disk.source for moment in snapshots for disk in (*moment.disks, *moment.revert_disks))
        self._recorded = {source for source in sources if source is not None}

    def foreign(self, xml: str) -> Iterator[_Found]:
        """Yield what of a moment's document the VM does not have. What cannot be read as XML was refused before."""
        root = parse_xml(xml)
        for child in element_children(root):
            tag = tag_name(child)
            if tag in _DEFINITIONS:
                child.tail = None
                text = etree.tostring(child, encoding="unicode", with_tail=False)
                if text not in self._judged:
                    self._judged[text] = tuple(islice(self._foreign_in_domain(text), MOST_PARTS))
                yield from self._judged[text]
            elif tag == "memory":
                file = child.get("file")
                if file is not None and file not in self._memories:
                    yield _Found("memory", _MEMORY, file)
            elif tag in _DISKS:
                yield from self._foreign_images(child)
            elif tag not in _OF_LIBVIRT:
                yield _Found(tag, _ELEMENT, "")

    def _foreign_images(self, disks: etree._Element) -> Iterator[_Found]:
        for source in disks.iter("source"):
            disk = next((each for each in source.iterancestors("disk")), source)
            if not self._is_own(source):
                value = next(iter(source.attrib.values()), "")
                yield _Found(f"{tag_name(disks)}/disk[{disk.get('name', '')}]/source", _IMAGE, str(value))

    def _is_own(self, source: etree._Element) -> bool:
        named = {str(name): str(value) for name, value in source.attrib.items() if name != "index"}
        is_plain = len(named) == 1 and not element_children(source) and set(named) <= set(_IMAGE_ATTRIBUTES)
        return is_plain and self._is_image(next(iter(named.values())))

    def _is_image(self, path: str) -> bool:
        return path in self._named or path in self._recorded or path in self._below

    def _foreign_in_domain(self, text: str) -> Iterator[_Found]:
        root = parse_xml(text)
        root.tag = "domain"  # of <inactiveDomain>
        for disk in root.findall("./devices/disk"):
            self._forget_own_chain(disk)
        programs, has = self._own_for(root)
        sources = (disk.find("source") for disk in root.findall("./devices/disk"))
        images = {
            _target(source.getparent()): str(next(iter(source.attrib.values())))
            for source in sources
            if source is not None and self._is_own(_without_security(source))
        }
        for place in reaching(root, replace(programs, images=images, media=frozenset(images.values()))):
            if place.key not in has:
                part = as_part(place)
                yield _Found(f"domain/{part.part}", part.what, part.value)

    def _forget_own_chain(self, disk: etree._Element) -> None:
        """Take out what a disk says to stand below its image where all of it is of this VM."""
        store = disk.find("backingStore")
        if store is None:
            return
        known = {"backingStore", "format", "source"}
        elements = [each for each in store.iter(etree.Element) if each is not store]
        sources = [each for each in elements if each.tag == "source"]
        if all(each.tag in known for each in elements) and all(self._is_own(source) for source in sources):
            disk.remove(store)

    def _own_for(self, root: etree._Element) -> tuple[HostOwn, frozenset[tuple[object, ...]]]:
        """Return the host's programs for a VM of that kind, and what of the VM's own reaches into the host."""
        system = root.find("os/type")
        of_kind = ("", "") if system is None else (system.get("arch"), system.get("machine"))
        kind = (root.get("type"), *of_kind)
        if kind not in self._programs:
            # What is not on the host is no excuse: somebody could put it there.
            programs = replace(programs_for(self._hypervisor, root, Wish()), absent=frozenset())
            has = frozenset(place.key for own in self._roots for place in reaching(own, programs))
            self._programs[kind] = (programs, has)
        return self._programs[kind]

    @cached_property
    def _named(self) -> frozenset[str]:
        """The images that definitions of the VM name, with what they put below them."""
        sources = (source for root in self._roots for disk in root.iter("disk") for source in disk.iter("source"))
        return frozenset(
            str(source.get(name)) for source in sources for name in _IMAGE_ATTRIBUTES if source.get(name) is not None
        )

    @cached_property
    def _below(self) -> frozenset[str]:
        """What the images that the VM is on stand on, as far as their headers may be followed."""
        from vmkeep.transfer.imagefile import describe_image

        paths: set[str] = set()
        for text in self._present:
            try:
                disks = parse_definition(text).disks
            except DefinitionError:
                continue
            for disk in disks:
                if disk.source_kind in (SourceKind.FILE, SourceKind.BLOCK) and disk.source is not None:
                    try:
                        paths |= {layer.path for layer in describe_image(disk.source, disk.image_format)}
                    except VmkeepError:
                        continue  # nothing of it is known, so it is asked for
        return frozenset(paths)


def _definitions_of(moment: object) -> tuple[str | None, ...]:
    inactive = moment.inactive_domain if isinstance(moment, Snapshot) else None
    return (getattr(moment, "domain", None), inactive)


def _readable(texts: Mapping[str, None]) -> Iterator[etree._Element]:
    for text in texts:
        try:
            root = parse_xml(text)
        except XmlRefused:
            continue
        root.tag = "domain"
        yield root


def _without_security(source: etree._Element) -> etree._Element:
    """Return a source without what the allow-list judges in it."""
    bare = etree.Element(source.tag)
    for name, value in source.attrib.items():
        if name != "startupPolicy":
            bare.set(name, value)
    return bare


def _target(disk: etree._Element | None) -> str:
    target = None if disk is None else disk.find("target")
    return "" if target is None else target.get("dev", "")
