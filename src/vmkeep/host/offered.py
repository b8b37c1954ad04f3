"""Names that a shell may offer: what libvirt of this machine knows, read only, and without a question to anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from lxml import etree

from vmkeep.host.connection import refuse_remote
from vmkeep.hypervisor import DomainSnapshots, Hypervisor
from vmkeep.moments import MomentKind


def vm_states(uri: str) -> Mapping[str, str]:
    """Return the state of each VM by its name. Raises VmkeepError."""
    with _looked_at(uri) as hypervisor:
        return {domain.name: str(domain.state().run) for domain in hypervisor.domains()}


def moment_names(uri: str, vm: str, kind: MomentKind) -> tuple[str, ...]:
    """Return the names of a VM's checkpoints or snapshots. Raises VmkeepError."""
    with _looked_at(uri) as hypervisor:
        domain = hypervisor.domain(vm)
        checkpoints = kind is MomentKind.CHECKPOINT
        return tuple(sorted(domain.checkpoint_names() if checkpoints else DomainSnapshots(domain).names()))


def disk_sources(uri: str, vm: str) -> Mapping[str, str]:
    """Return the source of each of a VM's disks by its target, "" for none. Raises VmkeepError."""
    with _looked_at(uri) as hypervisor:
        definition = etree.fromstring(hypervisor.domain(vm).definition_xml().encode())
    found: dict[str, str] = {}
    for disk in definition.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None:
            places = [] if source is None else [source.get(place) for place in ("file", "dev", "name")]
            found[target.get("dev", "")] = next((place for place in places if place), "")
    return found


@contextlib.contextmanager
def _looked_at(uri: str) -> Iterator[Hypervisor]:
    refuse_remote(uri)  # it could ask for a password
    with contextlib.closing(Hypervisor.look(uri)) as hypervisor:
        yield hypervisor
