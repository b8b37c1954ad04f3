"""The end of an operation that keeps a VM from starting: a restore in place, or a revert to a snapshot.

It is finished when the VM may be started already, and else taken back, whoever does it: the flow that failed, or the
next command after its process died.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Self

from vmkeep.config import Settings
from vmkeep.definition import DefinitionError
from vmkeep.errors import RestorePending, VmBusy, VmkeepError
from vmkeep.filesystem import fault_error
from vmkeep.host.operation import Operation
from vmkeep.host.records.restore import RestoreJournal, RestoreStage, journal_path
from vmkeep.host.restores.items import discard_replaced, withdraw_items
from vmkeep.host.restores.parking import Parking
from vmkeep.host.tasks.restores import DiscardReplaced, WithdrawItems
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.unfinished import RestoreSettled
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.repository import Repository


class Unfinished(ABC):
    """One such operation. Its tasks are called one after the other; ``stop`` raises when it was cancelled."""

    kind: ClassVar[str]
    """What it is called: "restore"."""
    doubt: ClassVar[str]
    """What is so of a VM that could not be made what it was."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        repository: Repository,
        operation: str,
        *,
        stop: Callable[[], None],
        watch: Callable[[Progress], None],
    ) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._repository = repository
        self._operation = operation
        self._parking = Parking(settings, hypervisor, operation)
        self._prefix = checkpoint_prefix(repository.id)
        self._stop = stop
        self._watch = watch

    @classmethod
    def of(cls, operation: Operation) -> Self:
        """Return the one that an operation is; its first task makes it."""
        return operation.kept(
            cls,
            lambda: cls(
                operation.settings,
                operation.connected(),
                operation.repository(),
                operation.id,
                stop=operation.stop,
                watch=operation.watch,
            ),
        )

    def put_back(self, vm_uuid: str) -> None:
        """Make the VM what it was; can be repeated. Raises RestorePending when it cannot be."""
        self._stop = lambda: None  # what was cancelled is taken back, and that must not be cancelled
        journal = self._parking.load()
        if journal is None:
            self._parking.sweep_lock(vm_uuid)
            return
        try:
            self._put_back(journal, self._parking.domain(journal))
        except VmkeepError as error:
            raise self._pending(journal, error) from error
        except (OSError, DefinitionError) as error:
            raise self._pending(journal, fault_error(error)) from error
        finally:
            self._parking.unlock()

    def settle(self) -> RestoreSettled | None:
        """End one that no flow carries on; None when another process does, or it is over."""
        journal = self._parking.load()
        if journal is None:
            return None
        try:
            self._parking.lock(self._parking.domain(journal), self._stop, wait=False)
        except VmBusy:
            return None
        journal = self._parking.load()
        if journal is None:  # it came to its end while we looked
            self._parking.unlock()
            return None
        forward = journal.stage is RestoreStage.RELEASED
        self.put_back(journal.vm_uuid)
        return self._settled(journal, forward=forward)

    def _let_start(self, vm_uuid: str) -> tuple[str, ...]:
        """Let the VM start again and remove what was kept; only the former can fail. Answers what could not be removed.

        Can be repeated: of one that had come to its end nothing is left but a lock.
        """
        journal = self._parking.load()
        if journal is None:
            self._parking.sweep_lock(vm_uuid)
            return ()
        domain = self._parking.domain(journal)
        self._parking.lock(domain, self._stop)
        if journal.stage is not RestoreStage.RELEASED:
            self._parking.resume(self._stop)
            journal = replace(journal, stage=RestoreStage.RELEASED)
            self._parking.save(journal)
        self._parking.unpark(domain, journal, written=[disk.target for disk in journal.disks])
        left = discard_replaced(DiscardReplaced(journal.items))
        self._end(journal)
        return left

    def _end(self, journal: RestoreJournal) -> None:
        self._parking.end(journal)

    def _put_back(self, journal: RestoreJournal, domain: Domain) -> None:
        """Lock the VM and take back what was done, by the journal's stage; what was released is finished."""
        self._parking.lock(domain, self._stop)
        if journal.stage is RestoreStage.RELEASED:
            self._let_start(journal.vm_uuid)
            return
        begun = journal.stage is not RestoreStage.PARKED
        if not begun:
            withdraw_items(WithdrawItems(journal.items))
        elif journal.stage is not RestoreStage.ROLLED_BACK:
            self._roll_back(journal, domain)
            journal = replace(journal, stage=RestoreStage.ROLLED_BACK)
            # Before the VM may start: from here on what it has is the guest's again.
            self._parking.save(journal)
        self._parking.unpark(domain, journal, written=[disk.target for disk in journal.disks] if begun else ())
        self._end(journal)

    def _roll_back(self, journal: RestoreJournal, domain: Domain) -> None:
        """Put back what was replaced, of a VM that is kept from starting until then."""
        self._parking.require_parked(domain, journal)
        self._parking.save(replace(journal, stage=RestoreStage.BACK))
        withdraw_items(WithdrawItems(journal.items))

    @abstractmethod
    def _settled(self, journal: RestoreJournal, *, forward: bool) -> RestoreSettled:
        """Return what is told of one that was finished (``forward``) or taken back."""

    def _pending(self, journal: RestoreJournal, error: VmkeepError) -> RestorePending:
        return RestorePending(
            f"VM {journal.vm!r} could not be made what it was before its {self.kind} ({error.message}); {self.doubt}",
            vm=journal.vm,
            disk=error.disk,
            path=str(journal_path(self._settings.restores_dir, journal.operation)),
            hint=error.hint if isinstance(error, RestorePending) else None,
        )


def may_take_back(operation: Operation) -> bool:
    """Tell whether one can still be taken back; see the task."""
    journal = Parking(operation.settings, operation.connected(), operation.id).load()
    return journal is not None and journal.stage is not RestoreStage.RELEASED
