"""Whether a point's definition may reach into this host: asked before libvirt sees any of it.

libvirt runs the emulator that a definition names already when it is defined, to learn what it can do. So nothing of a
definition that another made is given to libvirt, not even to be tried, before it was looked at here
(docs/adr/0025-definitions-of-others.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from lxml import etree

from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.definition.reading import read_domain
from vmkeep.errors import DefinitionReaches
from vmkeep.fitting import MOST_PARTS, HostOwn, HostPart, Reaching, Wish, as_part, reaching, strip_host_parts
from vmkeep.host.restores.suitability import programs_for, unknown_here
from vmkeep.host.tasks.restores import HostParts
from vmkeep.hypervisor import Hypervisor
from vmkeep.values import dataclass
from vmkeep.xmltext import serialise_xml


@dataclass(frozen=True, slots=True)
class OwnVm:
    """The VM of this host that has the UUID of a point's, and its definition as it will start next."""

    root: etree._Element
    definition: Definition

    @classmethod
    def of(cls, hypervisor: Hypervisor, uuid: str) -> OwnVm | None:
        """Return it; None when there is none, or none whose definition can be read."""
        found = hypervisor.find_uuid(uuid)
        if found is None:
            return None
        xml = found.definition_xml(inactive=found.is_persistent(), secure=True)
        try:
            return cls(read_domain(xml), parse_definition(xml))
        except DefinitionError:
            return None

    @property
    def media(self) -> frozenset[str]:
        """The files that its drives for media hold."""
        return frozenset(disk.source for disk in self.definition.disks if disk.removable and disk.source is not None)


@dataclass(frozen=True, slots=True)
class Judged:
    """The definition that may be defined, and what a person should know of it."""

    definition: str
    told: tuple[str, ...] = ()


def judge_definition(
    hypervisor: Hypervisor,
    xml: str,
    allowed: HostParts,
    *,
    images: Mapping[str, str],
    media: Collection[str],
    variables: str,
    own_vm: OwnVm | None,
    wish: Wish,
    fitted: bool,
    vm: str,
    source: str,
) -> Judged:
    """Return the definition as it may be defined here; the restore makes ``images`` (by target) and ``variables``.

    ``allowed`` says what was decided about parts that reach into the host. A part that the VM of that UUID on this host
    has as well is let through; a disk is not, as the images of that VM are its own. One that is not ``fitted`` to this
    host yet may name programs and firmware that are not here. Raises DefinitionReaches with all that is left.
    """
    if allowed is HostParts.TRUSTED:
        return Judged(xml)
    root = read_domain(xml)
    programs = programs_for(hypervisor, root, wish)
    if fitted:
        programs = replace(programs, absent=frozenset(), replaced_loader=wish.firmware)
    own = replace(programs, images=images, media=frozenset(media), variables=variables)
    parts = _foreign(root, own, own_vm)
    if not parts:
        return Judged(xml)
    if allowed is HostParts.DEFINED:
        return Judged(
            xml, () if fitted else (f"The definition reaches into this host, as was allowed: {_listed(parts)}.",)
        )
    if allowed is HostParts.REFUSED:
        raise _reaches(parts, vm, source)
    strip_host_parts(parts)
    left = _foreign(root, own, own_vm)
    if left:
        raise _reaches(left, vm, source, stripped=True)
    return Judged(serialise_xml(root), tuple(f"Taken out of the definition: {_named(part)}." for part in parts))


def _foreign(root: etree._Element, own: HostOwn, own_vm: OwnVm | None) -> Sequence[HostPart]:
    """Return the parts that are no business of a VM of somebody else's, as many as are told."""
    unheard = _unheard(root)
    has = set() if own_vm is None else {place.key for place in reaching(own_vm.root, own) if not place.is_disk}
    places = (
        place
        for place in reaching(root, own)
        if place not in unheard and Reaching(place.element) not in unheard and not (has and place.key in has)
    )
    return [as_part(place) for place in islice(places, MOST_PARTS)]


def _unheard(root: etree._Element) -> frozenset[Reaching]:
    """Return what libvirt never hears of, because it does not know it: it is taken out before it is defined."""
    return frozenset(Reaching(each.element, each.attribute) for each in unknown_here(root))


def _reaches(parts: Sequence[HostPart], vm: str, source: str, *, stripped: bool = False) -> DefinitionReaches:
    count = "one part" if len(parts) == 1 else f"{len(parts)} parts"
    if stripped:
        message = f"{count} of the definition in {source} cannot be taken out: the VM would be another one"
        hint = (
            "Nothing was written. --trust-definition defines the VM with all parts; or restore to files (--output "
            "DIR), change domain.xml and define it."
        )
        return DefinitionReaches(message, vm=vm, parts=[_as_json(part) for part in parts], hint=hint)
    return DefinitionReaches(
        f"the definition in {source}, which is not known to be of this host, reaches into this host in {count}",
        vm=vm,
        parts=[_as_json(part) for part in parts],
    )


def _as_json(part: HostPart) -> dict[str, object]:
    return {"part": part.part, "what": part.what, "value": part.value, "strippable": part.strippable}


def _named(part: HostPart) -> str:
    return f"{part.part}, {part.what}" + (f" ({part.value})" if part.value else "")


def _listed(parts: Sequence[HostPart]) -> str:
    return "; ".join(_named(part) for part in parts)


def stays_in_drive(medium: str, allowed: HostParts, own_vm: OwnVm | None) -> bool:
    """Return whether a medium that a point's definition names may stay in its drive.

    It is read by the guest, and libvirt makes it readable for QEMU, whatever file it is.
    """
    if not Path(medium).exists():
        return False
    # Not with --trust-definition either: media are not in the list that was agreed to, as they can be put in again.
    return allowed is HostParts.TRUSTED or (own_vm is not None and medium in own_vm.media)
