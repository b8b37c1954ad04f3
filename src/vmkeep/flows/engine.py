"""Running flows in this process: DBOS with an executor id of its own, and what a dead process left behind.

Each process has its own executor id, because with DBOS's default one a second process runs the steps of the
first again (seen). A lock on a file named after the id proves that the process lives. At its start an engine
looks for flows whose owner is dead and undoes or finishes them, by the rule at the head of each flow.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vmkeep.catalog import SAFETY_LABEL, OperationState
from vmkeep.commandline import command_line
from vmkeep.errors import (
    ChoiceRequired,
    DiskUnsupported,
    GivenUp,
    Interrupted,
    NoSpace,
    SecretMissing,
    SecretPrivate,
    StateUnsupported,
    UndoStopped,
    VmkeepError,
    VmStarted,
)
from vmkeep.filesystem import OF_STORAGE, fault_error, file_error, make_private_file, require_descriptors
from vmkeep.flows.declared import DECLARED, PRUNE, REPAIR, TAKE_POINT, declared_flow
from vmkeep.flows.durable import DBOS, DatabaseError, DBOSConfig, SetWorkflowID, launching
from vmkeep.flows.finished import forget_finished_flows
from vmkeep.flows.hosts import refuse_distrusted
from vmkeep.flows.installation import Premises
from vmkeep.flows.plan import Flow, Run, workflow_of
from vmkeep.flows.recovery import Recovery
from vmkeep.flows.requests import (
    THIS_HOST,
    AddTpm,
    FilesRestored,
    InPlaceRestored,
    NvramReplaced,
    PointTaken,
    RekeyTpm,
    RemoveTpm,
    ReplaceNvram,
    ResetTpm,
    RestoreFiles,
    RestoreInPlace,
    RestoreStates,
    RestoreVm,
    RevertSnapshot,
    SnapshotReverted,
    SnapshotTaken,
    StatesRestored,
    TakePoint,
    TakeSnapshot,
    TpmAdded,
    TpmRemoved,
    TpmRenewed,
    VmRestored,
)
from vmkeep.flows.rows import refuse_foreign_rows
from vmkeep.flows.services import Services, end_operation, stoppable
from vmkeep.flows.tables import has_nothing_to_note, make_flow_tables
from vmkeep.flows.unsettled import HARMLESS, refuse_beside_unsettled
from vmkeep.flows.values import FlowSerializer, refuse_pickle
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.locks import WhoHoldsVm
from vmkeep.host.tasks.survey import FindVm, Progress
from vmkeep.host.tasks.task import Task
from vmkeep.locks import FileLock
from vmkeep.logs import get_logger
from vmkeep.sqlite import raised_within, sqlite_error

if TYPE_CHECKING:
    from vmkeep.catalog import Operation
    from vmkeep.flows.clone_requests import CloneTpm, CloneVm, RenameVm, TpmCloned, VmCloned, VmRenamed
    from vmkeep.flows.point_requests import (
        ChangeProtection,
        DeletePoint,
        PointDeleted,
        PointsRetained,
        PointUndeleted,
        ProtectionChanged,
        RetainPoints,
        UndeletePoint,
    )
    from vmkeep.host.tasks.restores import InPlaceChecked
    from vmkeep.host.tasks.reverts import RevertChecked
    from vmkeep.repository.prune import PruneOptions, PruneReport
    from vmkeep.repository.repair import RepairReport

_log = get_logger(__name__)
"""Label of a point that was taken before a restore in place; its value is the point that was restored."""
R = TypeVar("R")
Watch = Callable[[Progress], None]

# One version for ever: DBOS would leave the flows of another version alone. That a newer vmkeep can finish what
# an older one began is a rule for those who change a flow (docs/internals/flows.md).
_APPLICATION_VERSION = "1"
_APPLICATION = "vmkeep"
# Databases with their logs, locks, the connection to libvirt; what a task needs besides it asks for itself.
_DESCRIPTORS = 48


class Engine:
    """Runs flows. One a process; use it with ``with``. ``recovered`` tells what was undone or finished at start.

    ``needs_home``: what will be run must be recorded, so a home that cannot be written is refused; else the engine does
    without it, and leaves alone what dead processes left. ``last``: the process ends right after the engine, so DBOS's
    threads need not be stopped when all went well. They look for flows of other processes, and their end is waited for
    0.07 s, which a short command would feel.
    """

    def __init__(
        self,
        premises: Premises,
        hosts: Mapping[str, Host],
        *,
        needs_home: bool = True,
        last: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """``hosts`` are where the VMs are, by the ids that requests name; who gives them closes them. ``watch`` is told
        of what the engine waits for while no operation runs: at its start.
        """
        self._premises = premises
        self._hosts = hosts
        self._needs_home = needs_home
        self._last = last
        self._cancelled: VmkeepError | None = None
        self._unwatched = watch or _unwatched
        self._watch: Watch = self._unwatched
        self._executor = uuid.uuid4().hex
        self._away: tuple[str, ...] = ()
        self._runs: dict[str, Run] = {}
        self._alive: FileLock | None = None
        self.recovered: tuple[str, ...] = ()
        self._recovery = Recovery(premises.settings, self._executor, self._runs, self._services)

    def __enter__(self) -> Self:
        require_descriptors(_DESCRIPTORS, "vmkeep")
        self._away = self._leave_broken_home()
        settings = self._premises.settings
        note = f"(process {os.getpid()})"
        self._alive = FileLock.try_acquire(settings.owners_dir / f"{self._executor}.lock", note)
        try:
            self._launch(settings.flows_path)
            self.recovered = self._away or self._recovery.recover()
            forget_finished_flows(settings.flows_path)
            if not self._away:
                self._go_on_deleting()
        except BaseException as error:
            with suppress(Exception):  # what failed to start may fail to end
                DBOS.destroy(destroy_registry=True)
            self._let_go()
            if (signalled := raised_within(error)) is not None:
                raise signalled from None
            if isinstance(error, Exception) and not isinstance(error, VmkeepError):
                raise self._fault(error) from error
            raise
        return self

    def _go_on_deleting(self) -> None:
        """Try what could not be deleted on hosts again, when that is due, and store proofs that could not be stored."""
        catalog = self._premises.catalog
        if catalog.open_tombstones() or catalog.unstored_deletions():
            from vmkeep.flows.tombstones import retry_quietly

            retry_quietly(self._services())

    def _leave_broken_home(self) -> tuple[str, ...]:
        """Return what is to be told of a home that is done without; nothing for one that can be written."""
        try:
            self._premises.require_home()
        except OF_STORAGE as error:
            if self._needs_home:
                raise
            self._premises.leave_home(error)
            told = "this operation is recorded nowhere, and what was interrupted before stays as it is"
            return (f"{error.message}; {told}",)
        return ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A process that fails may be unable to end, with a thread that hangs in a call to a storage. DBOS's threads
        # take the write lock of the flow database for moments, and one that was taken then would stay: every other
        # command of this home would find it locked.
        if not self._last or error is not None:
            DBOS.destroy(destroy_registry=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._alive is not None:
            self._alive.release()

    # -- what can be asked -------------------------------------------------------------------------------------

    def take_point(self, request: TakePoint, watch: Watch) -> PointTaken:
        """Take a point; raises the error that ended it, after everything was undone.

        A VM that is started while its point is copied from the images is kept as it runs then.
        """
        from vmkeep.flows.take_point import take_point

        self._prepare_to_sign(watch)
        try:
            return self._run(take_point, request, request.vm, watch)
        except VmStarted as error:
            _log.info("started meanwhile", vm=request.vm, error=error.message)
            taken = self._run(take_point, request, request.vm, watch)
            told = f"{taken.point['vm']} was started while its point was copied, so this point is of the running VM."
            return dataclasses.replace(taken, warnings=(told, *taken.warnings))

    def holder_of(self, vm: str, host: str = THIS_HOST) -> str | None:
        """Return what works on a VM just now, for people; None when nothing does. Raises VmNotFound."""
        services = self._services().on(host)
        return services.host.ask(WhoHoldsVm(services.host.ask(FindVm(vm))))

    def take_snapshot(self, request: TakeSnapshot, watch: Watch) -> SnapshotTaken:
        """Make a snapshot; raises the error that ended it. One that was made stays, and the error says so."""
        from vmkeep.flows.take_snapshot import take_snapshot

        return self._run(take_snapshot, request, request.vm, watch)

    def restore_files(self, request: RestoreFiles, watch: Watch) -> FilesRestored:
        """Restore to files."""
        from vmkeep.flows.restore_files import restore_files

        return self._run(restore_files, request, None, watch)

    def restore_vm(self, request: RestoreVm, watch: Watch) -> VmRestored:
        """Restore as a VM."""
        from vmkeep.flows.restore_vm import restore_vm

        refuse_distrusted(self._premises.catalog, request.point)
        return self._run(restore_vm, request, request.name, watch)

    def take_safety_point(self, request: RestoreInPlace, watch: Watch) -> tuple[RestoreInPlace, PointTaken]:
        """Refuse a restore in place that cannot be done, then take the point of the VM as it is now.

        Disks whose image is gone are left out of it. Nothing of the VM was changed when this raises. Returns the
        request made complete as well.
        """
        refuse_beside_unsettled(self._premises.catalog, request.vm, request.vm_uuid)
        checked = self.check_in_place(request, watch)
        _refuse_other_name(request, checked)
        labels = {SAFETY_LABEL: request.point}
        without = "Or restore to files or as a VM of its own (`vmkeep restore --help`): neither needs a safety point."
        taken = self._take_safety_point(_safety_point(request.host, checked, labels), without, watch)
        return dataclasses.replace(request, safety=str(taken.point["id"]), images=checked.images), taken

    def check_in_place(self, request: RestoreInPlace, watch: Watch) -> InPlaceChecked:
        """Raise what refuses a restore in place; nothing is changed."""
        from vmkeep.host.tasks.restores import CheckInPlace

        refuse_distrusted(self._premises.catalog, request.point)
        task = CheckInPlace(request.point, request.only, str(request.tpm), request.vm_uuid)
        return self._ask(request.host, task, watch)

    def _ask(self, host: str, task: Task[R], watch: Watch) -> R:
        """Carry out a task of the host that belongs to no flow."""
        self._stop()
        self._watch = watch
        try:
            return self._services().on(host).on_host(uuid.uuid4().hex, task)
        finally:
            self._watch = self._unwatched

    def restore_in_place(self, request: RestoreInPlace, watch: Watch) -> InPlaceRestored:
        """Write a point over its VM, whose safety point was just taken; on failure the VM is as before.

        The request is one that ``take_safety_point`` returned.

        Raises RestorePending when it is not: it is kept from starting then.
        """
        from vmkeep.flows.restore_in_place import restore_in_place

        return self._run(restore_in_place, request, request.vm, watch)

    def restore_states(self, request: RestoreStates, watch: Watch) -> StatesRestored:
        """Put kept versions back in place of a VM's state files, which were just kept; on failure it has those.

        Raises RestorePending when it does not: it is kept from starting then.
        """
        from vmkeep.flows.restore_states import restore_states

        return self._run(restore_states, request, request.vm, watch)

    def check_revert(self, request: RevertSnapshot, watch: Watch) -> tuple[RevertSnapshot, RevertChecked]:
        """Raise what refuses a revert, and change nothing; return the request made complete, and what it would do."""
        from vmkeep.flows.revert_snapshot import choice_of, known_snapshot
        from vmkeep.host.tasks.reverts import CheckRevert

        vm_uuid = self._services().on(request.host).host.ask(FindVm(request.vm))
        refuse_beside_unsettled(self._premises.catalog, request.vm, vm_uuid)
        known = known_snapshot(self._premises.catalog, vm_uuid, request.snapshot)
        checked = self._ask(request.host, CheckRevert(vm_uuid, choice_of(request), known, request.stop), watch)
        complete = dataclasses.replace(
            request, vm=checked.vm_name, vm_uuid=vm_uuid, creation_time=checked.creation_time
        )
        return complete, checked

    def stop_for_revert(self, request: RevertSnapshot, watch: Watch) -> None:
        """Pull the plug of a VM that will be reverted."""
        from vmkeep.host.tasks.reverts import StopForRevert

        self._ask(request.host, StopForRevert(request.vm_uuid), watch)

    def take_point_before_revert(self, request: RevertSnapshot, checked: RevertChecked, watch: Watch) -> PointTaken:
        """Take the point of the VM as it is now. Disks whose image is gone are left out of it."""
        labels = {SAFETY_LABEL: f"snapshot {request.snapshot}"}
        command = command_line("vmkeep snapshot revert", request.vm, request.snapshot, options="--no-safety")
        without = f"Or go without a safety point, and what the VM is now is lost: `{command}`."
        return self._take_safety_point(_safety_point(request.host, checked, labels), without, watch)

    def _take_safety_point(self, request: TakePoint, without: str, watch: Watch) -> PointTaken:
        """Take a point that goes first. ``without``: how to do without it, told when the VM's state forbids it."""
        try:
            return self.take_point(request, watch)
        except (DiskUnsupported, NoSpace, SecretMissing, SecretPrivate, StateUnsupported) as error:
            raise type(error)(
                f"The safety point that goes first cannot be taken: {error.message}",
                vm=error.vm,
                disk=error.disk,
                path=error.path,
                hint=" ".join(filter(None, (error.hint, without))),
            ) from error

    def revert_snapshot(self, request: RevertSnapshot, watch: Watch) -> SnapshotReverted:
        """Take a VM back to a snapshot; on failure it is as before. The request is one that ``check_revert`` returned.

        Raises RestorePending when it is not: it is kept from starting then.
        """
        from vmkeep.flows.revert_snapshot import revert_snapshot

        return self._run(revert_snapshot, request, request.vm, watch)

    def remove_tpm(self, request: RemoveTpm, watch: Watch) -> TpmRemoved:
        """Take a VM's TPM out; on failure it is as it was."""
        from vmkeep.flows.remove_tpm import remove_tpm

        self._prepare_to_sign(watch)
        return self._run(remove_tpm, request, request.vm, watch)

    def add_tpm(self, request: AddTpm, watch: Watch) -> TpmAdded:
        """Give a VM a TPM; on failure it has none."""
        from vmkeep.flows.add_tpm import add_tpm

        return self._run(add_tpm, request, request.vm, watch)

    def reset_tpm(self, request: ResetTpm, watch: Watch) -> TpmRenewed:
        """Give a VM a new, blank TPM with a new key; on failure it has its own."""
        from vmkeep.flows.reset_tpm import reset_tpm

        self._prepare_to_sign(watch)
        return self._run(reset_tpm, request, request.vm, watch)

    def rekey_tpm(self, request: RekeyTpm, watch: Watch) -> TpmRenewed:
        """Give the state of a VM's TPM a new key; on failure it has the old one."""
        from vmkeep.flows.rekey_tpm import rekey_tpm

        self._prepare_to_sign(watch)
        return self._run(rekey_tpm, request, request.vm, watch)

    def clone_tpm(self, request: CloneTpm, watch: Watch) -> TpmCloned:
        """Give a VM a TPM like another one's, with a key of its own; on failure it has none."""
        from vmkeep.flows.clone_tpm import clone_tpm
        from vmkeep.flows.cloned_key import with_own_key

        self._prepare_to_sign(watch)
        cloned: TpmCloned = self._run(clone_tpm, request, request.vm, watch)
        if not (cloned.secret and cloned.sha256):
            return cloned
        return with_own_key(cloned, lambda uuid: self.rekey_tpm(RekeyTpm(uuid), watch))

    def clone_vm(self, request: CloneVm, watch: Watch) -> VmCloned:
        """Make a second VM of one that is off, its TPM with a key of its own; on failure nothing of it stays."""
        from vmkeep.flows.clone_vm import clone_vm
        from vmkeep.flows.cloned_key import with_own_key

        refuse_beside_unsettled(self._premises.catalog, request.source)
        self._prepare_to_sign(watch)
        cloned: VmCloned = self._run(clone_vm, request, request.name, watch)
        if not (cloned.secret and cloned.tpm == "copy"):
            return cloned
        return with_own_key(cloned, lambda uuid: self.rekey_tpm(RekeyTpm(uuid), watch))

    def rename_vm(self, request: RenameVm, watch: Watch) -> VmRenamed:
        """Give a VM that is off another name; on failure it has the one that it had."""
        from vmkeep.flows.rename_vm import rename_vm

        return self._run(rename_vm, request, request.vm, watch)

    def replace_nvram(self, request: ReplaceNvram, watch: Watch) -> NvramReplaced:
        """Replace a VM's UEFI variables; on failure they are as they were."""
        from vmkeep.flows.replace_nvram import replace_nvram

        self._prepare_to_sign(watch)
        return self._run(replace_nvram, request, request.vm, watch)

    def delete_point(self, request: DeletePoint, watch: Watch) -> PointDeleted:
        """Hide a point, and remove it when its grace is over."""
        from vmkeep.flows.delete_point import delete_point

        self._prepare_to_sign(watch)
        return self._run(delete_point, request, self._vm_of(request.point), watch)

    def undelete_point(self, request: UndeletePoint, watch: Watch) -> PointUndeleted:
        """Bring a hidden point back."""
        from vmkeep.flows.undelete_point import undelete_point

        return self._run(undelete_point, request, self._vm_of(request.point), watch)

    def protect_point(self, request: ChangeProtection, watch: Watch) -> ProtectionChanged:
        """Protect a point from being removed, or end that."""
        from vmkeep.flows.protect_point import protect_point

        self._prepare_to_sign(watch)
        return self._run(protect_point, request, self._vm_of(request.point), watch)

    def retain_points(self, request: RetainPoints, watch: Watch) -> PointsRetained:
        """Let the points go that were chosen (``plan_retention``)."""
        from vmkeep.flows.retain_points import retain_points

        self._prepare_to_sign(watch)
        return self._run(retain_points, request, None, watch)

    def _vm_of(self, point_id: str) -> str | None:
        """Return the name of a point's VM, also of one that is hidden; None of one that could not be read."""
        catalog = self._premises.catalog
        point = catalog.point(point_id)
        if point is not None:
            return point.vm_name
        return next((each.vm_name for each in catalog.removals() if each.point_id == point_id), None)

    def prune(self, options: PruneOptions, watch: Watch) -> PruneReport:
        """Delete what nothing in the repository needs; one that died is gone on with by the next."""
        from vmkeep.flows.prune import prune_repository

        def prune(operation: str) -> PruneReport:
            services = stoppable(self._services(), operation)
            return prune_repository(services, operation, options, self._premises.settings.cache_dir)

        request = {"waste": options.waste, "max_copy": options.max_copy_bytes, "dry_run": options.dry_run}
        self._stop()
        return self._recorded(PRUNE, request, None, watch, prune)

    def repair(self, watch: Watch, *, dry_run: bool) -> RepairReport:
        """Find what points have lost elsewhere in the repository, and have readers find it."""
        from vmkeep.flows.repair import repair_repository

        def repair(operation: str) -> RepairReport:
            return repair_repository(stoppable(self._services(), operation), operation, dry_run=dry_run)

        self._stop()
        return self._recorded(REPAIR, {"dry_run": dry_run}, None, watch, repair)

    def resume(self, operation: Operation, watch: Watch) -> str:
        """Take an operation up whose undo stopped, and return what came of it as a sentence.

        Raises NeedsOperator when it stopped again, and OperationRuns when another process is at it.
        """
        self._stop()
        self._watch = watch
        try:
            return self._recovery.resume(operation)
        finally:
            self._watch = self._unwatched

    def resume_all(self) -> tuple[str, ...]:
        """Take up all operations whose undo stopped; return a sentence for each."""
        return tuple(self._recovery.resume_each())

    def dismiss(self, operation: Operation) -> None:
        """End the record of an operation whose undo stopped: a person did the rest. Raises OperationRuns."""
        self._recovery.dismiss(operation)

    def cancel(self, reason: Interrupted) -> None:
        """End the running operation with ``reason``, cleaned up as after any failure. For signal handlers."""
        self._cancelled = reason

    # -- DBOS --------------------------------------------------------------------------------------------------

    def _launch(self, path: Path) -> None:
        try:
            make_private_file(path)
        except OSError as error:
            raise file_error(error, path) from error
        # DBOS logs to the console, and every failed step with a traceback; errors reach the user another way.
        logging.getLogger("dbos").setLevel(logging.CRITICAL + 1)
        _use_write_ahead_log(path)
        make_flow_tables(path)
        refuse_pickle()
        refuse_foreign_rows(path)
        is_noted = has_nothing_to_note(path, _APPLICATION, _APPLICATION_VERSION)
        config: DBOSConfig = {
            "name": _APPLICATION,
            "system_database_url": f"sqlite:///{path}",
            "executor_id": self._executor,
            "application_version": _APPLICATION_VERSION,
            "run_migrations": not is_noted,
            "serializer": FlowSerializer(),
            "log_level": "CRITICAL",
            # Each poll takes the write lock for a moment (BEGIN IMMEDIATE); the end waits for one interval.
            "notification_listener_polling_interval_sec": 0.1,
        }
        DBOS(config=config)
        self._workflows = {
            name: DBOS.workflow(name=name)(
                workflow_of(name, declared_flow, self._services, self._runs, is_recorded=not self._away)
            )
            for name in DECLARED
        }
        with launching(noted=_APPLICATION_VERSION if is_noted else None):
            DBOS.launch()

    def _services(self) -> Services:
        return Services(
            hosts=self._hosts,
            at=THIS_HOST,
            catalog=self._premises.catalog,
            repository=lambda: self._premises.repository,
            stop=self._stop,
            watch=self._tell,
            stalled_after_seconds=self._premises.settings.stalled_after_seconds,
            keep_state_versions=lambda: self._premises.keep_state_versions,
            removed_tpm_days=self._premises.settings.removed_tpm_days,
        )

    def _prepare_to_sign(self, watch: Watch) -> None:
        """Have the key ready for what an operation signs, and say what a person must hear of it."""
        for sentence in self._premises.prepare_to_sign():
            watch(Progress("planning", note=f"warning: {sentence}"))

    def _stop(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled

    def _tell(self, progress: Progress) -> None:
        self._watch(progress)

    def _run(self, declared: Flow[Any, R], request: Any, vm: str | None, watch: Watch) -> R:
        def run(operation: str) -> R:
            with SetWorkflowID(operation):
                result: R = self._workflows[declared.name](request)
            return result

        self._stop()
        if declared.name not in HARMLESS:
            refuse_beside_unsettled(self._premises.catalog, vm, getattr(request, "vm_uuid", ""))
        return self._recorded(declared.name, dataclasses.asdict(request), vm, watch, run)

    def _recorded(
        self, kind: str, request: dict[str, Any], vm: str | None, watch: Watch, work: Callable[[str], R]
    ) -> R:
        """Do work as an operation of the catalogue, by whose id it is called, and record how it ended."""
        operation = uuid.uuid4().hex
        catalog = self._premises.catalog
        self._watch = watch
        catalog.begin_operation(operation, kind, vm, self._executor, request)
        try:
            result = work(operation)
        except VmkeepError as error:
            self._end(operation, OperationState.FAILED, error)
            raise
        except UndoStopped as stopped:
            stopped.error.vm = stopped.error.vm or vm
            self._end(operation, OperationState.NEEDS_OPERATOR, stopped.error)
            raise stopped.error from stopped
        except GivenUp as given:
            given.error.vm = given.error.vm or vm
            if kind == TAKE_POINT and operation in catalog.point_ids():
                given.error.add_note(f"point {operation} is stored and whole; only the end of its job is missing")
            self._end(operation, OperationState.FAILED, given.error)
            raise
        except Exception as error:
            fault = self._fault(error)
            _log.exception("fault", operation=operation, flow=kind)
            self._end(operation, OperationState.FAILED, fault)
            raise fault from error
        finally:
            self._watch = self._unwatched
        self._end(operation, OperationState.DONE, None)
        return result

    def _fault(self, error: Exception) -> VmkeepError:
        """Return the error of our tree for one that DBOS or a fault of ours raised."""
        if isinstance(error, DatabaseError):
            return sqlite_error(error.orig or error, self._premises.settings.flows_path, "the flow database")
        return fault_error(error)

    def _end(self, operation: str, state: OperationState, error: VmkeepError | None) -> None:
        end_operation(self._premises.catalog, self._executor, operation, state, error)


def _refuse_other_name(request: RestoreInPlace, checked: InPlaceChecked) -> None:
    """Raise ChoiceRequired when the point's VM has another name on this host, and nobody is asked about it.

    Of a point that another host made, both the name that a person saw and the VM that it is of are what that host says.
    """
    if request.vm_called in ("", checked.vm_name):
        return
    by_uuid = command_line("vmkeep restore", f"{checked.vm_uuid}@latest", options="--in-place --yes")
    raise ChoiceRequired(
        f"point {request.point} is of a VM that it calls {request.vm_called!r}, and on this host that VM "
        f"({checked.vm_uuid}) is {checked.vm_name!r}",
        vm=checked.vm_name,
        hint=f"Nothing was changed. Without --yes you are asked; or name the VM by its UUID, as in `{by_uuid}`.",
    )


def _safety_point(host: str, checked: InPlaceChecked | RevertChecked, labels: Mapping[str, str]) -> TakePoint:
    """Return the request for the point of a VM as it is before it is written over: it holds whatever will be."""
    demanded = tuple(target for target in checked.disks if target not in checked.missing)
    return TakePoint(checked.vm_name, exclude=checked.missing, labels=labels, demanded=demanded, host=host)


def _use_write_ahead_log(path: Path) -> None:
    """Let SQLite write each step once and sync once; DBOS leaves the file with a rollback journal: three syncs a step.

    The mode is kept in the file. While another process has it open in the old mode it stays, until the next start. A
    file that has it is not opened for this: the last to close it writes the whole log back, which syncs three times.
    """
    if _has_write_ahead_log(path):
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as database:
        database.execute("PRAGMA journal_mode = WAL")


def _has_write_ahead_log(path: Path) -> bool:
    """Tell by the two version numbers in the file's header (https://www.sqlite.org/fileformat2.html, 1.3.3)."""
    try:
        with path.open("rb") as file:
            return file.read(20)[18:] == b"\x02\x02"
    except OSError:
        return False  # whoever uses the file says so


def _unwatched(_progress: Progress) -> None:
    return
