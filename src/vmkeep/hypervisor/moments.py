"""The checkpoints, or the snapshots, that libvirt lists of one VM: one adapter for both kinds.

Lists are flat, and deletions are of one moment at a time. What walks over descendants kills libvirtd 9.0 when a
deletion of a subtree failed half-way before (docs/internals/moments.md); which moments are meant is decided by
``vmkeep.moments``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import libvirt

from vmkeep.commandline import command_line
from vmkeep.errors import CheckpointBroken, HypervisorError, MomentExists, MomentInvalid, MomentNotFound, VmkeepError
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.translation import libvirt_errors, translate
from vmkeep.moments import MomentKind, SnapshotState

_GONE: Final = {
    MomentKind.CHECKPOINT: libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
    MomentKind.SNAPSHOT: libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
}
_BAD_DOCUMENT: Final = frozenset(
    (
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    )
)
# The same bits for both kinds.
_ROOTS: Final = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_ROOTS
_LEAVES: Final = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_LEAVES
_GIVEN: Final = ("create", "redefine")
"""What libvirt is given a document for."""
_DELETE_METADATA: Final = {
    MomentKind.CHECKPOINT: libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY,
    MomentKind.SNAPSHOT: libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY,
}


class DomainMoments:
    """The moments of one kind of one VM. Methods raise errors of the tree that name the VM and the moment."""

    def __init__(self, domain: Domain, kind: MomentKind) -> None:
        self.domain = domain
        self.kind = kind
        self._handle = domain.handle

    def definitions(self, *, secure: bool = False, domain: bool = True) -> dict[str, str]:
        """Return the XML of all of them by name. One that goes meanwhile is not among them.

        ``secure`` keeps passwords, ``domain`` false leaves the VM's own definition out of checkpoints.
        """
        listed: list[libvirt.virDomainCheckpoint] | list[libvirt.virDomainSnapshot]
        with libvirt_errors(f"list the {self.kind}s", self.domain.name):
            checkpoints = self.kind is MomentKind.CHECKPOINT
            listed = self._handle.listAllCheckpoints() if checkpoints else self._handle.listAllSnapshots()
        found = {}
        flags = self._xml_flags(secure=secure, domain=domain)
        for moment in listed:
            try:
                found[moment.getName()] = moment.getXMLDesc(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != _GONE[self.kind]:
                    raise self._translated(error, "read", moment.getName()) from error
        return found

    def definition(self, name: str, *, secure: bool = False, domain: bool = True, sizes: bool = False) -> str:
        """Return the XML of one, as libvirt writes it. ``sizes`` asks a running VM for the bytes dirtied since."""
        flags = self._xml_flags(secure=secure, domain=domain)
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE if sizes else 0
        with self._errors("read", name):
            return self._look_up(name).getXMLDesc(flags)

    def current(self) -> str | None:
        """Return the name of the current snapshot. libvirt tells of no checkpoint that it is the current one."""
        if self.kind is MomentKind.CHECKPOINT:
            return None
        with libvirt_errors("tell the current snapshot", self.domain.name):
            try:
                return self._handle.snapshotCurrent().getName() if self._handle.hasCurrentSnapshot() else None
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                    return None  # it went since
                raise

    def linked(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names of roots and of leaves, as libvirtd's own links have them and not the definitions.

        Such lists look at each moment by itself and follow no link.
        """
        with libvirt_errors(f"list the {self.kind}s", self.domain.name):
            if self.kind is MomentKind.CHECKPOINT:
                roots = [one.getName() for one in self._handle.listAllCheckpoints(_ROOTS)]
                leaves = [one.getName() for one in self._handle.listAllCheckpoints(_LEAVES)]
            else:
                roots = [one.getName() for one in self._handle.listAllSnapshots(_ROOTS)]
                leaves = [one.getName() for one in self._handle.listAllSnapshots(_LEAVES)]
        return frozenset(roots), frozenset(leaves)

    def create_checkpoint(self, name: str, xml: str) -> None:
        """Make a checkpoint of a running VM, with a bitmap in each disk that takes part."""
        with self._errors("create", name):
            self._handle.checkpointCreateXML(xml)

    def redefine(
        self, name: str, xml: str, *, state: SnapshotState | None = None, current: bool = False, validate: bool = False
    ) -> None:
        """Make libvirt list a moment as ``xml`` says, in the place of one of that name; disks are not touched.

        ``state`` is a snapshot's. ``validate``: of a checkpoint of a running VM, that its bitmaps are there and
        record; of a snapshot, that its XML is as libvirt's schema has it.
        """
        with self._errors("redefine", name):
            if self.kind is MomentKind.CHECKPOINT:
                flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
                flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE if validate else 0
                self._handle.checkpointCreateXML(xml, flags)
                return
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if current else 0
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE if validate else 0
            # libvirt takes the disks of such a snapshot for internal ones without it; virsh edits them so too.
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if state is SnapshotState.DISK_SNAPSHOT else 0
            self._handle.snapshotCreateXML(xml, flags)

    def delete(self, name: str) -> None:
        """Delete one with what it holds; what hangs from it hangs from its parent then.

        A checkpoint goes also when one of its bitmaps is gone already, and needs a running VM.
        """
        if self.kind is MomentKind.SNAPSHOT:
            with self._errors("delete", name):
                self._look_up(name).delete()
            return
        try:
            found = self.domain.delete_checkpoint(name)
        except VmkeepError as error:
            raise self._with_way_out(error, name) from error.__cause__
        if not found:
            raise self._not_found(name)

    def forget(self, name: str) -> None:
        """Remove libvirt's record of one and nothing else, also while the VM is off."""
        with self._errors("forget", name):
            self._look_up(name).delete(_DELETE_METADATA[self.kind])

    def _look_up(self, name: str) -> libvirt.virDomainCheckpoint | libvirt.virDomainSnapshot:
        if self.kind is MomentKind.CHECKPOINT:
            return self._handle.checkpointLookupByName(name)
        return self._handle.snapshotLookupByName(name)

    def _xml_flags(self, *, secure: bool, domain: bool) -> int:
        if self.kind is MomentKind.SNAPSHOT:
            return libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE if secure else 0
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE if secure else 0
        return flags | (0 if domain else libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)

    @contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            raise self._translated(error, doing, name) from error

    def _translated(self, error: libvirt.libvirtError, doing: str, name: str) -> VmkeepError:
        code, text, vm = error.get_error_code(), str(error), self.domain.name
        words = f"libvirt could not {doing} {self.kind} {name!r} of VM {vm!r}: {text}"
        if code == _GONE[self.kind]:
            return self._not_found(name)
        if code == libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
            return CheckpointBroken(words, vm=vm)
        if "already exists" in text:
            # QEMU's words for a bitmap that a checkpoint left which was forgotten only.
            bitmap = "Bitmap already exists" in text
            hint = "A bitmap of that name is left in an image of the VM. Choose another name." if bitmap else None
            return MomentExists(words, vm=vm, hint=hint)
        if code in _BAD_DOCUMENT and doing in _GIVEN:
            return MomentInvalid(words, vm=vm)
        translated = translate(error, f"{doing} {self.kind} {name!r} of VM {vm!r}", vm)
        return self._with_way_out(translated, name) if doing == "delete" else translated

    def _with_way_out(self, error: VmkeepError, name: str) -> VmkeepError:
        if type(error) is HypervisorError:
            vm = self.domain.name
            forget = command_line(f"vmkeep {self.kind} delete", vm, name, options="--metadata")
            error.hint = f"`{forget}` removes libvirt's record of it only."
        return error

    def _not_found(self, name: str) -> MomentNotFound:
        vm = self.domain.name
        hint = f"`{command_line(f'vmkeep {self.kind} list', vm)}` shows them."
        return MomentNotFound(f"VM {vm!r} has no {self.kind} {name!r}", vm=vm, hint=hint)


def snapshots_of(domain: Domain) -> DomainMoments:
    """Return the snapshots that libvirt lists of a VM."""
    return DomainMoments(domain, MomentKind.SNAPSHOT)
