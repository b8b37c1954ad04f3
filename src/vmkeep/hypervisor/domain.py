"""One VM as libvirt runs it: its definition, its run state, its checkpoints and its backup job."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum

import libvirt
from lxml import etree

from vmkeep.errors import (
    AgentUnavailable,
    HypervisorError,
    HypervisorUnavailable,
    PermissionRefused,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.hypervisor.translation import libvirt_errors, shortened, translate
from vmkeep.moments import Checkpoint, MomentError, Snapshot, parse_checkpoint, parse_snapshot
from vmkeep.values import dataclass

# By default libvirt waits for an agent for ever, also for one that is connected and hangs (seen on 9.0). A freeze
# waits until the guest has written out what it holds. The value is the VM's until it is set again, and a call that
# waits for its turn has the value of then: so it is never set back to the default, as the guardian may ask as well.
_AGENT_ANSWER_SECONDS = 5
_AGENT_WORK_SECONDS = 60
_NO_JOB_DATA = "backup job data missing"
_BEGINNING_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class RunState(StrEnum):
    """What a VM does, as far as a point cares."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    OTHER = "other"


_RUN_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: RunState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: RunState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: RunState.PAUSED,
    # Suspended by the guest itself (S3): its processors stand still, and QEMU serves a backup job as always.
    libvirt.VIR_DOMAIN_PMSUSPENDED: RunState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: RunState.OFF,
    # Its guest crashed and QEMU was kept (`on_crash` preserve): it holds its disks, and serves a job as always.
    libvirt.VIR_DOMAIN_CRASHED: RunState.PAUSED,
}


@dataclass(frozen=True, slots=True)
class DomainState:
    """Run state; whether the VM stopped itself on an I/O error (which includes a full scratch disk); whether it is
    off because its QEMU died; whether its guest suspended it (S3); whether libvirt is starting it just now; whether its
    guest crashed and QEMU was kept, so that only a reset or the end of QEMU lets anything go on."""

    run: RunState
    io_error: bool
    killed: bool = False
    asleep: bool = False
    starting: bool = False
    crashed: bool = False


class Domain:
    """A handle of a VM. Methods raise VmNotFound once the VM is gone, HypervisorError for libvirt's refusals."""

    def __init__(self, handle: libvirt.virDomain) -> None:
        self._handle = handle
        self.name = handle.name()
        self.uuid = handle.UUIDString()

    @property
    def handle(self) -> libvirt.virDomain:
        """libvirt's own handle, for the other modules of this package."""
        return self._handle

    @property
    def uri(self) -> str:
        """The URI of the libvirt that has it."""
        with libvirt_errors("tell its URI", self.name):
            return self._handle.connect().getURI()

    def state(self) -> DomainState:
        """Return what the VM does now. Needs no job lock, so it answers while a job runs."""
        with libvirt_errors("tell the state", self.name):
            state, reason = self._handle.state()
        run = _RUN_STATES.get(state, RunState.OTHER)
        return DomainState(
            run,
            io_error=state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR,
            # What libvirt 9.0 says after a kill -9 of QEMU; an orderly `virsh destroy` is "destroyed".
            killed=state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED,
            asleep=state == libvirt.VIR_DOMAIN_PMSUSPENDED,
            # Also while a memory is read from its file, which may take minutes.
            starting=state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
            crashed=state == libvirt.VIR_DOMAIN_CRASHED,
        )

    def definition_xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        """Return the definition: as it runs, or as it will start next."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        with libvirt_errors("give the definition", self.name):
            return self._handle.XMLDesc(flags)

    def run_number(self) -> int | None:
        """Return the number that libvirt gave this run of the VM; None while it is off."""
        with libvirt_errors("tell the number of the VM", self.name):
            number = self._handle.ID()
        return number if number >= 0 else None

    def is_persistent(self) -> bool:
        """Return whether the VM stays defined when it stops."""
        with libvirt_errors("tell whether the VM is persistent", self.name):
            return bool(self._handle.isPersistent())

    def disk_capacity_bytes(self, target: str) -> int:
        """Return the size of a disk as the guest sees it."""
        with libvirt_errors(f"tell the size of disk {target}", self.name):
            return self._handle.blockInfo(target)[0]

    def suspend(self) -> None:
        """Stop the virtual processors; QEMU flushes the disks on the way."""
        with libvirt_errors("suspend the VM", self.name):
            self._handle.suspend()

    def resume(self) -> None:
        """Let the virtual processors run again."""
        with libvirt_errors("resume the VM", self.name):
            self._handle.resume()

    def start(self, *, paused: bool = False, reset_nvram: bool = False) -> None:
        """Start the VM. ``reset_nvram`` makes its UEFI variables anew from their template."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        flags |= libvirt.VIR_DOMAIN_START_RESET_NVRAM if reset_nvram else 0
        with libvirt_errors("start the VM", self.name):
            self._handle.createWithFlags(flags)

    def power_off(self) -> None:
        """Pull the plug; a VM that is off is fine."""
        try:
            self._handle.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                with libvirt_errors("power the VM off", self.name):
                    raise

    def undefine(self) -> None:
        """Remove the definition and nothing else: NVRAM and TPM files are kept."""
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        with libvirt_errors("undefine the VM", self.name):
            self._handle.undefineFlags(flags)

    def rename(self, name: str) -> None:
        """Give the VM, which is off, another name; raises HypervisorError with libvirt's reason."""
        with libvirt_errors(f"give the VM the name {name}", self.name):
            self._handle.rename(name)

    def has_saved_memory(self) -> bool:
        """Return whether a managed save image waits: the next start goes on from it instead of booting."""
        with libvirt_errors("tell whether the VM has a managed save image", self.name):
            return bool(self._handle.hasManagedSaveImage())

    def saved_definition_xml(self) -> str | None:
        """Return the definition that its managed save image goes on with; None when there is no such image."""
        if not self.has_saved_memory():
            return None
        with libvirt_errors("give the definition in the managed save image", self.name):
            return self._handle.managedSaveGetXMLDesc()

    # -- guest agent -------------------------------------------------------------------------------------------

    def require_agent(self) -> None:
        """Raise AgentUnavailable unless the guest agent answers. Nothing is changed in the guest."""
        with self._agent_answers("cannot be asked for the guest's file systems", _AGENT_ANSWER_SECONDS):
            self._handle.fsInfo()

    def freeze(self) -> int:
        """Freeze the guest's file systems through its agent; return how many. Raises AgentUnavailable."""
        with self._agent_answers("could not freeze the guest's file systems", _AGENT_WORK_SECONDS):
            return int(self._handle.fsFreeze())

    def thaw(self, answer_seconds: int = _AGENT_WORK_SECONDS) -> int:
        """Thaw what is frozen; return how many were. Thawing twice is harmless. Raises AgentUnavailable."""
        with self._agent_answers("could not thaw the guest's file systems", answer_seconds):
            return int(self._handle.fsThaw())

    @contextmanager
    def _agent_answers(self, failing: str, seconds: int) -> Iterator[None]:
        """Have libvirt wait for an answer for so long; raises what is to be told when ``failing`` is all that it did.

        libvirt asks an agent for a sign first, for which it waits 5 s at most, and takes no answer over 10 MiB.
        """
        try:
            self._handle.agentSetResponseTimeout(seconds)
            yield
        except libvirt.libvirtError as error:
            raise _agent_error(error, failing, self.name) from error
        finally:
            with suppress(libvirt.libvirtError):
                self._handle.agentSetResponseTimeout(_AGENT_WORK_SECONDS)

    # -- backup job --------------------------------------------------------------------------------------------

    def has_job(self) -> bool:
        """Return whether libvirt is at a long operation on the VM: a backup, migration, save or dump, ours or not.

        To begin a backup then fails only after 30 s ("cannot acquire state change lock", libvirt 9.0 and 11.3).
        """
        try:
            return self._handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                return False  # the VM is off
            # "backup job data missing": a backup job has no statistics before backupBegin has got that far.
            if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and "backup" in str(error):
                return True
            with libvirt_errors("tell the running job", self.name):
                raise

    def has_stuck_job(self) -> bool:
        """Return whether libvirt keeps a backup job without data: for some 10 ms while one begins, or for ever.

        For ever when libvirtd 9.0 was killed in the middle of backupBegin: abortJob does nothing then, no other job
        begins, and a VM that was stopped is not started again. It ends when libvirtd is restarted with the VM off.
        """
        deadline = time.monotonic() + _BEGINNING_SECONDS
        while True:
            try:
                self._handle.jobInfo()
                return False
            except libvirt.libvirtError as error:
                if _NO_JOB_DATA not in str(error):
                    return False
            if time.monotonic() > deadline:
                return True
            time.sleep(_LOOK_SECONDS)

    def begin_backup(self, backup_xml: str, checkpoint_xml: str | None, *, scratch_made: bool = False) -> None:
        """Start the pull-mode job and create its checkpoint, if any, in one transaction of QEMU.

        ``scratch_made``: the scratch files are there, of the right format and size; libvirt leaves them at the end.
        """
        flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL if scratch_made else 0
        with libvirt_errors("begin the backup job", self.name):
            self._handle.backupBegin(backup_xml, checkpoint_xml, flags)

    def backup_socket(self) -> str | None:
        """Return the socket of the running backup job ("" for a job without one), or None without a job."""
        try:
            text = self._handle.backupGetXMLDesc()
        except libvirt.libvirtError as error:
            # A VM that is off has no job either; libvirt reports that as an invalid operation.
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
                return None
            with libvirt_errors("tell the backup job", self.name):
                raise
        server = etree.fromstring(text.encode()).find("server")
        return "" if server is None else str(server.get("socket") or "")

    def abort_backup(self) -> None:
        """End the backup job; for a pull-mode job this is also the normal end."""
        with libvirt_errors("end the backup job", self.name):
            self._handle.abortJob()

    def block_jobs(self) -> tuple[str, ...]:
        """Return the disks of the running VM on which a block job works (copy, commit, pull), whoever began it."""
        found = []
        root = etree.fromstring(self.definition_xml().encode())
        for disk in root.iterfind("devices/disk"):
            target = disk.find("target")
            name = "" if target is None else str(target.get("dev") or "")
            try:
                busy = disk.find("mirror") is not None or bool(self._handle.blockJobInfo(name))
            except libvirt.libvirtError:
                continue  # an empty drive, or a VM that stops just now
            if busy:
                found.append(name)
        return tuple(found)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def checkpoint_names(self) -> frozenset[str]:
        """Return the names of the checkpoints that libvirt lists, ours and others'."""
        with libvirt_errors("list the checkpoints", self.name):
            return frozenset(checkpoint.getName() for checkpoint in self._handle.listAllCheckpoints())

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return the checkpoints that libvirt lists, each without the VM's definition of then."""
        with libvirt_errors("list the checkpoints", self.name):
            handles = self._handle.listAllCheckpoints()
        texts = (self._moment_xml(handle, "checkpoint", _CHECKPOINT_ALONE) for handle in handles)
        with _understood("checkpoint", self.name):
            return tuple(parse_checkpoint(text, redefine=True) for text in texts if text is not None)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots that libvirt lists."""
        with libvirt_errors("list the snapshots", self.name):
            handles = self._handle.listAllSnapshots()
        texts = (self._moment_xml(handle, "snapshot", 0) for handle in handles)
        with _understood("snapshot", self.name):
            return tuple(parse_snapshot(text, redefine=True) for text in texts if text is not None)

    def _moment_xml(
        self, handle: libvirt.virDomainCheckpoint | libvirt.virDomainSnapshot, kind: str, flags: int
    ) -> str | None:
        """Return a moment's XML; None when it was deleted meanwhile."""
        try:
            return str(handle.getXMLDesc(flags))
        except libvirt.libvirtError as error:
            if error.get_error_code() in _MOMENT_GONE:
                return None
            with libvirt_errors(f"read the {kind} {handle.getName()}", self.name):
                raise

    def checkpoint_targets(self, name: str) -> frozenset[str]:
        """Return the disks that have a bitmap of the checkpoint, as libvirt remembers it; none when it is gone."""
        try:
            text = self._handle.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return frozenset()
            with libvirt_errors(f"read checkpoint {name}", self.name):
                raise
        disks = etree.fromstring(text.encode()).iterfind("disks/disk[@checkpoint='bitmap']")
        return frozenset(str(disk.get("name")) for disk in disks)

    def checkpoint_dirty_bytes(self, name: str) -> dict[str, int]:
        """Return how much each disk changed since the checkpoint, for the disks whose bitmap is valid.

        libvirt leaves the size away for a bitmap that is missing, inconsistent, not persistent or not
        recording anywhere in the chain (qemuCheckpointGetXMLDescUpdateSize, libvirt 9.0), so a target that is
        missing here cannot be the base of an incremental point. Needs a running VM.
        """
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE | libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
        with libvirt_errors(f"read the bitmaps of checkpoint {name}", self.name):
            text = self._handle.checkpointLookupByName(name).getXMLDesc(flags)
        disks = etree.fromstring(text.encode()).iterfind("disks/disk")
        return {str(disk.get("name")): int(str(disk.get("size"))) for disk in disks if disk.get("size") is not None}

    def checkpoint_disks(self, name: str) -> frozenset[str]:
        """Return the targets of the disks in which a checkpoint has a bitmap, as libvirt recorded it."""
        with libvirt_errors(f"read checkpoint {name}", self.name):
            text = self._handle.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
        disks = etree.fromstring(text.encode()).iterfind("disks/disk[@checkpoint='bitmap']")
        return frozenset(str(disk.get("name")) for disk in disks)

    def delete_checkpoint(self, name: str) -> bool:
        """Delete the checkpoint with all its bitmaps; return False when there was none of that name.

        libvirt (9.0, 11.3) refuses to delete a checkpoint one of whose bitmaps is gone already ("bitmap … not found in
        backing chain of 'vdb'"), and the checkpoint would stay for ever. That disk is then taken out of the
        checkpoint by redefining it, so that the bitmaps of the other disks still go with it.
        """
        try:
            checkpoint = self._handle.checkpointLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return False
            with libvirt_errors(f"find checkpoint {name}", self.name):
                raise
        with libvirt_errors(f"delete checkpoint {name}", self.name):
            while True:
                try:
                    checkpoint.delete()
                    return True
                except libvirt.libvirtError as error:
                    lost = _BITMAP_GONE.search(str(error))
                    if lost is None:
                        raise
                    definition = etree.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE).encode())
                    if not _drop_disk(definition, lost.group(1)):
                        raise
                    if definition.find("disks/disk[@checkpoint='bitmap']") is None:
                        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
                        return True
                    text = etree.tostring(definition, encoding="unicode")
                    self._handle.checkpointCreateXML(text, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)

    def forget_checkpoint(self, name: str) -> bool:
        """Remove libvirt's record of a checkpoint and no bitmap, also while the VM is off. False: there is none."""
        try:
            checkpoint = self._handle.checkpointLookupByName(name)
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return False
            with libvirt_errors(f"forget checkpoint {name}", self.name):
                raise
        return True

    def checkpoint_definitions(self, *, secure: bool = True) -> dict[str, str]:
        """Return what libvirt records of each checkpoint by name, parents before their children.

        With all passwords, unless told otherwise by ``secure``.
        """
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE if secure else 0
        found: dict[str, tuple[str, str]] = {}
        with libvirt_errors("read the checkpoints", self.name):
            for checkpoint in self._handle.listAllCheckpoints():
                text = checkpoint.getXMLDesc(flags)
                found[checkpoint.getName()] = (etree.fromstring(text.encode()).findtext("parent/name") or "", text)
        ordered: dict[str, str] = {}
        while found:
            ready = [name for name, (parent, _) in found.items() if parent not in found or parent == name]
            for name in ready or list(found):  # a circle is no order, and libvirt says so when they are defined again
                ordered[name] = found.pop(name)[1]
        return ordered

    def redefine_checkpoint(self, xml: str, *, validate: bool = False) -> str | None:
        """Make libvirt list a checkpoint whose bitmaps exist already; works while the VM is off.

        With ``validate`` (running VMs only) libvirt proves that the bitmaps are there and record: the answer is then
        the target of the first disk whose bitmap is missing or broken, and nothing was changed; None is success.
        """
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE if validate else 0
        try:
            self._handle.checkpointCreateXML(xml, flags)
        except libvirt.libvirtError as error:
            broken = _BITMAP_BROKEN.search(str(error))
            if validate and error.get_error_code() == libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT and broken:
                return str(broken.group(1))
            with libvirt_errors("redefine a checkpoint", self.name):
                raise
        return None

    def checkpoint_xml_with(self, name: str, targets: Collection[str]) -> str:
        """Return a checkpoint's definition with bitmaps in these disks and in no others, and else as it is."""
        with libvirt_errors(f"read checkpoint {name}", self.name):
            text = self._handle.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        definition = etree.fromstring(text.encode())
        listed = {str(disk.get("name")): disk for disk in definition.iterfind("disks/disk")}
        for target, disk in listed.items():
            if target not in targets:
                _drop_disk(definition, target)
            elif disk.get("checkpoint") != "bitmap":
                disk.set("checkpoint", "bitmap")
                disk.set("bitmap", name)
        return str(etree.tostring(definition, encoding="unicode"))

    def hang_checkpoint(self, name: str, parent: str) -> None:
        """Make libvirt list a checkpoint below another one; its bitmaps and the rest of its record stay."""
        with libvirt_errors(f"read checkpoint {name}", self.name):
            text = self._handle.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        definition = etree.fromstring(text.encode())
        for element in definition.findall("parent"):
            definition.remove(element)
        etree.SubElement(etree.SubElement(definition, "parent"), "name").text = parent
        self.redefine_checkpoint(str(etree.tostring(definition, encoding="unicode")))

    def drop_bitmaps(self, name: str, targets: Sequence[str]) -> None:
        """Remove the bitmaps of that name from disks of a running VM that no checkpoint names any more.

        libvirt has no call for it. A checkpoint redefined over them and then deleted takes them along, from every
        image of the chain, whatever their condition (tried on 9.0 and 11.3).
        """
        root = etree.Element("domaincheckpoint")
        etree.SubElement(root, "name").text = name
        etree.SubElement(root, "creationTime").text = "1"
        disks = etree.SubElement(root, "disks")
        for target in targets:
            etree.SubElement(disks, "disk", name=target, checkpoint="bitmap")
        self.redefine_checkpoint(etree.tostring(root, encoding="unicode"))
        self.delete_checkpoint(name)


_CHECKPOINT_ALONE = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
_MOMENT_GONE = (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT)
_BITMAP_BROKEN = re.compile(r"missing or broken bitmap '.*' for disk '([^']+)'")
_BITMAP_GONE = re.compile(r"not found in backing chain of '([^']+)'")


@contextmanager
def _understood(kind: str, vm: str) -> Iterator[None]:
    """Translate the error of a definition that libvirt gave and its rules forbid."""
    try:
        yield
    except MomentError as error:
        raise HypervisorError(f"libvirt's definition of a {kind} of the VM cannot be read: {error}", vm=vm) from error


def _drop_disk(checkpoint: etree._Element, target: str) -> bool:
    """Take a disk out of a checkpoint's XML; return False when it takes no part already."""
    for disk in checkpoint.iterfind("disks/disk"):
        if disk.get("name") == target and disk.get("checkpoint") == "bitmap":
            disk.set("checkpoint", "no")
            disk.attrib.pop("bitmap", None)
            return True
    return False


def _agent_error(error: libvirt.libvirtError, what: str, vm: str) -> VmkeepError:
    """Return AgentUnavailable, unless libvirt's number says that the VM or libvirt itself is gone, or at something.

    The words are the guest's: it may well say that there is no space left on a device, and have none of this host.
    """
    translated = translate(error, "speak to the guest agent", vm)
    if isinstance(translated, VmNotFound | PermissionRefused | VmBusy | HypervisorUnavailable):
        return translated
    told = AgentUnavailable(f"the guest agent of the VM {what}: {shortened(str(error))}", vm=vm)
    told.refused = error.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE
    return told
