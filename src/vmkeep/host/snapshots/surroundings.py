"""A VM and its images, looked at before a snapshot of it is planned. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.definition import Definition, parse_definition
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.images import image_chains
from vmkeep.host.vm.unseen import refuse_unseen_images
from vmkeep.hypervisor import Domain, DomainSnapshots, DomainState, Hypervisor
from vmkeep.planning.images import ImageLayer
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a snapshot meets: the VM as it stands, its images, and what libvirt lists of it.

    ``chains`` are the images of each disk, the top one first. ``saved``: its memory is saved (managed save).
    ``libvirt`` is its version.
    """

    vm: str
    state: DomainState
    persistent: bool
    domain_xml: str
    definition: Definition
    chains: Mapping[str, tuple[ImageLayer, ...]]
    snapshots: frozenset[str]
    checkpoints: frozenset[str]
    saved: bool
    libvirt: int


def surroundings(domain: Domain, hypervisor: Hypervisor) -> Surroundings:
    """Look at a VM, and at its images, without changing anything. Raises HostFileMissing for images hidden from us."""
    xml = domain.definition_xml(secure=True)
    definition = with_volumes_found(parse_definition(xml), hypervisor)
    refuse_unseen_images(domain, definition)
    return Surroundings(
        vm=domain.name,
        state=domain.state(),
        persistent=domain.is_persistent(),
        domain_xml=xml,
        definition=definition,
        chains=image_chains(definition),
        snapshots=DomainSnapshots(domain).names(),
        checkpoints=domain.checkpoint_names(),
        saved=domain.has_saved_memory(),
        libvirt=hypervisor.versions()[0],
    )
