"""What of libvirt's directories of state belongs to VMs: by every definition that libvirt has, or would go back to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from vmkeep.config import Settings
from vmkeep.custody.orphans import Claims
from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.errors import HypervisorUnavailable, InvalidRequest, RestorePending, VmkeepError, VmNotFound
from vmkeep.host.records.restore import RestoreJournal
from vmkeep.host.records.unended import journals
from vmkeep.host.vm.secrets import needed_secrets
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor
from vmkeep.moments import MomentError, MomentKind, Snapshot, parse_moment, redefinable
from vmkeep.statefiles.location import StateRoots


def roots_to_judge(uri: str) -> StateRoots:
    """Return the directories of state that the VMs of a libvirt, and nobody else, have. Raises InvalidRequest.

    Another driver (`test:///default`), or another machine, has none of the VMs whose state lies here.
    """
    parts = urlsplit(uri)
    local = parts.scheme in ("qemu", "qemu+unix") and not parts.netloc and not parts.query
    if not local or parts.path not in ("/system", "/session"):
        raise InvalidRequest(
            f"whose the state on this machine is cannot be told by {uri}",
            hint="Ask the libvirt of this machine: --connect qemu:///system.",
        )
    return StateRoots.of(uri)


def claims_of_vms(hypervisor: Hypervisor, settings: Settings) -> Claims:
    """Return what VMs of the host have, running, off or saved, and what their snapshots and checkpoints name.

    What a restore in place that is not at its end has moved or will move belongs to it as well.
    """
    claims = _Claims(StateRoots.of(hypervisor.uri))
    for domain in hypervisor.domains():
        claims.add_vm(domain)
    claims.add_restores(settings)
    return claims.claims()


def claims_but_of_checkpoints(hypervisor: Hypervisor, settings: Settings, vm_uuid: str) -> Claims:
    """Return the same without what only checkpoints of one VM name: nothing goes back to a definition in one."""
    claims = _Claims(StateRoots.of(hypervisor.uri))
    for domain in hypervisor.domains():
        claims.add_vm(domain, (MomentKind.SNAPSHOT,) if domain.uuid == vm_uuid else tuple(MomentKind))
    claims.add_restores(settings)
    return claims.claims()


class _Claims:
    """Claims, as they are gathered."""

    def __init__(self, roots: StateRoots) -> None:
        self._roots = roots
        self._vms: set[str] = set()
        self._paths: set[str] = set()
        self._secrets: set[str] = set()
        self._doubts: list[str] = []

    def claims(self) -> Claims:
        real = {os.path.realpath(path) for path in self._paths}
        identities = frozenset(_identities(self._paths))
        return Claims(
            frozenset(self._vms),
            frozenset(self._paths | real),
            identities,
            frozenset(self._secrets),
            tuple(self._doubts),
        )

    def add_vm(self, domain: Domain, kinds: tuple[MomentKind, ...] = tuple(MomentKind)) -> None:
        self._vms.add(domain.uuid)
        try:
            for xml in _definitions(domain, kinds):
                self._add(parse_definition(xml))
        except HypervisorUnavailable:
            raise
        except VmNotFound:
            return  # it was removed meanwhile: what it leaves is looked at the next time
        except (VmkeepError, DefinitionError, MomentError) as error:
            self._doubts.append(f"what VM {domain.name!r} names could not all be read: {error}")

    def add_restores(self, settings: Settings) -> None:
        try:
            for path in journals(settings):
                journal = RestoreJournal.load(path)
                self._vms.add(journal.vm_uuid)
                self._paths |= {place for item in journal.items for place in (item.final, item.staged)}
        except FileNotFoundError:
            return  # finished just now
        except (ValueError, OSError, RestorePending) as error:
            self._doubts.append(f"the journal of a restore in place could not be read: {error}")

    def _add(self, definition: Definition) -> None:
        if definition.uuid is not None:
            self._vms.add(definition.uuid)
        firmware, tpm = definition.firmware, definition.tpm
        if firmware.nvram:
            self._paths.add(firmware.nvram)
        elif firmware.has_variables:
            # libvirt 9.0 does not name what it chose of a VM that is off.
            chosen = self._roots.nvram_file(definition.name)
            self._paths |= {str(chosen), str(chosen.with_suffix(".qcow2"))}
        if tpm is not None and tpm.source is not None:
            self._paths.add(tpm.source)
        self._secrets |= {need.uuid for need in needed_secrets(definition)}
        self._secrets |= {name for disk in definition.disks if disk.encryption for name in disk.encryption.secrets}


def _definitions(domain: Domain, kinds: tuple[MomentKind, ...]) -> Iterator[str]:
    yield domain.definition_xml()
    if domain.is_persistent():
        yield domain.definition_xml(inactive=True)
        saved = domain.saved_definition_xml()
        if saved is not None:
            yield saved
    for kind in kinds:
        for xml in DomainMoments(domain, kind).definitions().values():
            moment = parse_moment(kind, redefinable(xml))
            if moment.domain is not None:
                yield moment.domain
            if isinstance(moment, Snapshot) and moment.inactive_domain is not None:
                yield moment.inactive_domain


def _identities(paths: set[str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        try:
            about = Path(path).stat()
        except (OSError, ValueError):
            continue
        yield about.st_dev, about.st_ino
