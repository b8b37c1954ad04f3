"""A VM that is kept from starting while it is written over: its lock, its journal, and its definition meanwhile.

The lock keeps other operations of vmkeep away, the definition keeps everybody else's starts away, and the journal
keeps both over the death of a process. A step goes on only when all three are as it left them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from vmkeep.config import Settings
from vmkeep.definition import Definition, SourceKind
from vmkeep.definition.parking import is_parked, park, unpark
from vmkeep.definition.repointing import leave_chains_to_images
from vmkeep.errors import Interrupted, RestorePending, VmNotFound
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.records.restore import JournalDisk, RestoreJournal, RestoreStage, journal_path
from vmkeep.host.restores.selection import Selection
from vmkeep.host.tasks.restores import DeliveredItem, ParkVm
from vmkeep.host.vm.chains import chain_faults
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.grounds import forget_parked, remember_parked
from vmkeep.host.vm.images import image_chains
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.locks import FileLock
from vmkeep.logs import get_logger

_log = get_logger(__name__)


class Parking:
    """The VM of one restore in place, in this process or in one after a crash."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor, operation: str) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._operation = operation
        self._lock: FileLock | None = None

    # -- the journal -------------------------------------------------------------------------------------------

    def load(self) -> RestoreJournal | None:
        """Return the journal; None when there is none. Raises RestorePending for one that cannot be read."""
        path = journal_path(self._settings.restores_dir, self._operation)
        try:
            journal = RestoreJournal.load(path)
            remember_parked(journal.vm_uuid, journal.parked_element)
            return journal
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RestorePending(f"the journal {path} of a restore cannot be read: {error}", path=str(path)) from error

    def save(self, journal: RestoreJournal) -> None:
        """Write the journal durably."""
        journal.save(self._settings.restores_dir)

    def new_journal(
        self,
        request: ParkVm,
        domain: Domain,
        present: str,
        definition: Definition,
        selection: Selection,
        items: tuple[DeliveredItem, ...],
    ) -> RestoreJournal:
        """Return the journal of a restore that begins. ``present`` is the VM's definition as it is."""
        path, target, element = self.place(domain, present, definition)
        return RestoreJournal(
            operation=self._operation,
            uri=self._hypervisor.uri,
            vm=domain.name,
            vm_uuid=domain.uuid,
            point=request.point_id,
            safety=request.safety_id,
            disks=tuple(
                JournalDisk(
                    disk.target,
                    disk.image.path,
                    disk.image.format,
                    disk.made,
                    secret=disk.secret,
                    seen=request.images.get(disk.target, ""),
                )
                for disk in selection.disks
            ),
            items=items,
            parked_path=path,
            parked_target=target,
            parked_element=element,
            whole=selection.whole,
        )

    def place(self, domain: Domain, present: str, definition: Definition) -> tuple[str, str, str]:
        """Return the path at which the VM is parked, the target of the disk, and its element that puts it right.

        All are empty for a VM without disks, which is not parked.
        """
        path = str(self._settings.restores_dir / f"restore-of-{domain.name}-not-finished--run-vmkeep-doctor")
        if not any(disk.source_kind is not SourceKind.NONE and not disk.removable for disk in definition.disks):
            return "", "", ""
        parked = park(present, path)
        return path, parked.target, parked.element

    def resume(self, stop: Callable[[], None]) -> tuple[RestoreJournal, Domain]:
        """Return journal and VM of a restore that goes forward, with the lock held and the VM parked.

        Raises Interrupted when it was rolled back, or is being so; RestorePending when the VM is not parked any more.
        """
        journal = self.load()
        if journal is None:
            raise Interrupted(f"the restore {self._operation} was rolled back already")
        domain = self.domain(journal)
        self.lock(domain, stop)
        if journal.stage in (RestoreStage.BACK, RestoreStage.ROLLED_BACK):
            raise Interrupted(
                f"the process was killed while the restore of VM {journal.vm!r} was rolled back", vm=journal.vm
            )
        self.require_parked(domain, journal)
        return journal, domain

    def domain(self, journal: RestoreJournal) -> Domain:
        """Return the VM; raises VmNotFound when it was undefined meanwhile."""
        found = self._hypervisor.find_uuid(journal.vm_uuid)
        if found is None:
            raise VmNotFound(
                f"VM {journal.vm!r} is gone in the middle of its restore",
                vm=journal.vm,
                hint=f"Remove {journal_path(self._settings.restores_dir, journal.operation)}, and restore the point as "
                "a VM with --as NAME.",
            )
        return found

    def end(self, journal: RestoreJournal) -> None:
        """Remove the journal, and let go of the VM."""
        journal.remove(self._settings.restores_dir)
        forget_parked(journal.vm_uuid)
        self.unlock()

    # -- the lock ----------------------------------------------------------------------------------------------

    def lock(self, domain: Domain, stop: Callable[[], None], *, wait: bool = True) -> None:
        """Take the VM's lock if it is not held already; the children of a killed process are waited for."""
        if self._lock is None:
            doing = f"restore {self._operation}"
            self._lock = lock_vm(self._settings.locks_dir, domain.uuid, domain.name, doing, stop, wait=wait)

    def unlock(self) -> None:
        """Let go of the lock if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def sweep_lock(self, vm_uuid: str) -> None:
        """Let go of the lock, also of the file of one whose process was killed just before it removed it."""
        self.unlock()
        lock = FileLock.try_acquire(self._settings.locks_dir / f"{vm_uuid}.lock")
        if lock is not None:
            lock.release()

    # -- the definition ----------------------------------------------------------------------------------------

    def park(self, domain: Domain, journal: RestoreJournal) -> None:
        """Keep the VM from starting; on failure it is as it was, and the journal is gone."""
        try:
            self._park(domain, journal)
        except BaseException:
            self.unpark(domain, journal)
            journal.remove(self._settings.restores_dir)
            raise

    def _park(self, domain: Domain, journal: RestoreJournal) -> None:
        if not journal.parked_path:
            return
        present = domain.definition_xml(inactive=True, secure=True)
        if not is_parked(present, journal.parked_path):
            self._hypervisor.define(park(present, journal.parked_path).definition, domain.name)
        # It may have been started just before. From here on it cannot be.
        require_off(domain)

    def require_parked(self, domain: Domain, journal: RestoreJournal) -> None:
        """Raise unless nobody can have written to the VM's disks: VmRunning, RestorePending."""
        require_off(domain)
        if journal.parked_path and not is_parked(
            domain.definition_xml(inactive=True, secure=True), journal.parked_path
        ):
            path = journal_path(self._settings.restores_dir, journal.operation)
            raise RestorePending(
                f"the definition of VM {journal.vm!r} was put back by hand while its restore was not finished, so its "
                "disks may be of two points and were left alone",
                vm=journal.vm,
                path=str(path),
                hint=f"Remove {path}, {journal.before}.",
            )

    def unpark(self, domain: Domain, journal: RestoreJournal, *, written: Collection[str] = ()) -> None:
        """Let the VM start again; one that is not parked is left as it is.

        ``written`` are disks that were made what a point has, each by what its image says to stand below it: the
        definition says nothing else of them afterwards.
        """
        if not journal.parked_path:
            return
        present = domain.definition_xml(inactive=True, secure=True)
        back = unpark(present, journal.parked_path, journal.parked_target, journal.parked_element)
        if back is not None:
            self._hypervisor.define(self._with_chains_of_images(back, domain, written), domain.name)

    def _with_chains_of_images(self, xml: str, domain: Domain, targets: Collection[str]) -> str:
        """Return a definition in which these disks stand on what their images say; the same where they do already."""
        definition = with_volumes_found(read_definition(xml, domain), self._hypervisor)
        wrong = chain_faults(definition, image_chains(definition)).keys() & set(targets)
        if not wrong:
            return xml
        _log.info("chains left to the images", vm=domain.name, disks=sorted(wrong))
        return leave_chains_to_images(xml, wrong)

    def definition_xml(self, domain: Domain, journal: RestoreJournal | None) -> str:
        """Return the inactive definition as it is without its parking."""
        present = domain.definition_xml(inactive=True, secure=True)
        if journal is None or not journal.parked_path:
            return present
        return unpark(present, journal.parked_path, journal.parked_target, journal.parked_element) or present

    def definition(self, domain: Domain, journal: RestoreJournal) -> Definition:
        """Return what ``definition_xml`` says."""
        return read_definition(self.definition_xml(domain, journal), domain)
