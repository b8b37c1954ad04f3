"""Check up an installation and its host: look without changing anything, then mend what can be mended.

No flow of DBOS: nothing of it has to be finished after a crash, because looking again finds what is left. Two things
make mending safe beside other commands. What operations left is removed only when they have ended, and an operation
that has ended never goes on. What belongs to a VM is judged again, with the catalogue as it is then, under the VM's
lock, under which no operation of this installation begins.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.catalog import Catalog, CatalogPoint, Operation, OperationState, Trust
from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.custody.tombstones import TombstoneKind, told_of_protection
from vmkeep.errors import (
    CatalogDamaged,
    KeyMissing,
    KeyringReplaced,
    NoSpace,
    PermissionRefused,
    RepositoryForeign,
    RepositoryNotFound,
    VmBusy,
    VmkeepError,
    WrongKey,
)
from vmkeep.flows.hosts import undecided
from vmkeep.flows.installation import Premises, known_from_catalogue
from vmkeep.flows.rows import foreign_row, move_aside, told_of
from vmkeep.flows.schedule import schedule_findings
from vmkeep.flows.secret_holders import secret_holders, versions_without_key
from vmkeep.flows.services import held_vm
from vmkeep.flows.vm_states import grounds_of, states_in
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.checkup import (
    CheckupRequest,
    Finding,
    FindingCode,
    ForgetSnapshot,
    KnownOperation,
    Operations,
    RememberedPoint,
    RememberedVm,
    RemoveIntent,
    RemoveStaged,
    Severity,
    VmMend,
)
from vmkeep.locks import FileLock
from vmkeep.logs import get_logger
from vmkeep.planning.rota import GOAL
from vmkeep.repository import Repository
from vmkeep.repository.intents import Writer
from vmkeep.repository.proofs import proofs_path, read_coverage
from vmkeep.sqlite import sqlite_error
from vmkeep.values import dataclass

_log = get_logger(__name__)
_POINT_PURPOSE = "point "  # as vmkeep.host begins a writer
_ENDED = {OperationState.DONE, OperationState.FAILED}
_SEVERITIES = tuple(Severity)
Recovery = Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Mended:
    """One finding that was mended, with what was done, or what stood in the way (then ``done`` is False)."""

    finding: Finding
    told: str
    done: bool


@dataclass(frozen=True, slots=True)
class CheckedUp:
    """What there is to say. ``recovered`` are the recovery's sentences; both are empty where only was looked."""

    findings: tuple[Finding, ...]
    recovered: tuple[str, ...] = ()
    mended: tuple[Mended, ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.PROBLEM)


class CheckUp:
    """Looks at one installation and the host it works on."""

    def __init__(self, premises: Premises, host: Host, vms: Sequence[str] = ()) -> None:
        """``vms`` limits the VMs that are looked at, by name or UUID; none means all."""
        self._premises = premises
        self._settings: Settings = premises.settings
        self._host = host
        self._vms = tuple(vms)

    def look(self) -> CheckedUp:
        """Change nothing, and return what was found, the worst first. Raises VmNotFound for a VM asked for."""
        catalog, findings = self._open_catalog()
        known = None if self._has_catalog() else ()
        request = CheckupRequest(vms=self._vms, remembered=known, operations=known)
        if catalog is not None:
            try:
                request = self._request(catalog)
            except VmkeepError as error:
                findings.append(self._catalogue_unusable(error))
                catalog = None
        found = [*self._host.ask(request), *findings]
        found += self._installation(catalog, request)
        found += schedule_findings(self._settings)
        return CheckedUp(tuple(sorted(found, key=_order)))

    def mend(self, recover: Recovery) -> CheckedUp:
        """Recover what dead processes left, mend what is left of it, and return both with what was found afterwards.

        ``recover`` starts the engine, which begins with the recovery, and returns its sentences.
        """
        mended: list[Mended] = []
        recovered: Sequence[str] = ()
        failed: Finding | None = None
        if self._has_catalog():
            try:
                recovered = recover()
            except VmkeepError as error:
                message = f"what dead processes left could not be put right: {error}"
                failed = Finding(FindingCode.RECOVERY_FAILED, message, remedy=error.hint)
        vms: dict[str, None] = {}
        for finding in self.look().findings:
            if isinstance(finding.mend, VmMend):
                vms[finding.mend.vm_uuid] = None
            elif finding.mend is not None:
                mended.append(self._mend(finding))
        for vm_uuid in vms:
            mended += self._mend_vm(vm_uuid)
        left = self.look().findings
        if failed is not None:
            left = tuple(sorted((failed, *left), key=_order))
        return CheckedUp(left, tuple(recovered), tuple(mended))

    # -- mending -----------------------------------------------------------------------------------------------

    def _mend(self, finding: Finding) -> Mended:
        assert finding.mend is not None
        try:
            if isinstance(finding.mend, RemoveIntent):
                self._premises.repository.forget_writer(finding.mend.writer)
                told = f"removed the intent {finding.mend.writer} from the repository"
            elif isinstance(finding.mend, RemoveStaged):
                is_gone = self._is_gone(self._request(self._premises.catalog))
                self._premises.repository.remove_staged(Path(finding.mend.path), is_gone)
                told = f"removed {finding.mend.path}"
            elif isinstance(finding.mend, ForgetSnapshot):
                self._premises.catalog.forget_snapshot(finding.mend.snapshot)
                told = f"forgot what was kept with the snapshot {finding.mend.name} of {finding.vm}"
            else:
                told = self._host.ask(finding.mend)
        except VmkeepError as error:
            _log.info("not mended", code=str(finding.code), error=error.message)
            return Mended(finding, error.message, done=False)
        return Mended(finding, told, done=True)

    def _mend_vm(self, vm_uuid: str) -> Iterator[Mended]:
        """Judge the VM again under its lock and mend what is found then; a VM that is in use is left for later."""
        with contextlib.suppress(VmBusy), held_vm(self._host, vm_uuid, vm_uuid, "doctor", wait=False):
            request = replace(self._request(self._premises.catalog), vms=(vm_uuid,), vms_only=True)
            for finding in self._host.ask(replace(request, held=frozenset({vm_uuid}))):
                if finding.mend is not None:
                    yield self._mend(finding)

    # -- the catalogue -----------------------------------------------------------------------------------------

    @staticmethod
    def _is_gone(request: CheckupRequest) -> Callable[[Writer], bool]:
        """Return what tells of a writer of the repository that its process is dead: of an operation of ours."""
        states = {operation.id: operation.state for operation in request.operations or ()}
        return lambda writer: states.get(writer.purpose.removeprefix(_POINT_PURPOSE), "living") != "living"

    def _has_catalog(self) -> bool:
        return os.access(self._settings.catalog_path, os.F_OK)  # False also in a home that may not be read

    def _open_catalog(self) -> tuple[Catalog | None, list[Finding]]:
        """Return the catalogue, and what is wrong with it. One that is not there is not made."""
        if not self._has_catalog():
            return None, []
        try:
            catalog = self._premises.catalog
            faults = catalog.faults()
        except VmkeepError as error:
            return None, [self._catalogue_unusable(error)]
        if faults:
            return None, [self._catalogue_unusable(CatalogDamaged(f"the catalogue is damaged: {faults[0]}"))]
        return catalog, []

    def _catalogue_unusable(self, error: VmkeepError) -> Finding:
        path = self._settings.catalog_path
        remedy = error.hint
        if isinstance(error, CatalogDamaged):
            remedy = f"{move_aside(path)} && vmkeep init --adopt"
        return Finding(FindingCode.CATALOGUE_UNUSABLE, error.message, remedy=remedy, path=str(path))

    def _request(self, catalog: Catalog) -> CheckupRequest:
        """Return what the host must know. Operations are read last: see the head of this module."""
        known = catalog.repository()
        remembered = tuple(_remembered(catalog, vm.uuid) for vm in catalog.vms())
        operations = catalog.operations()
        return CheckupRequest(
            vms=self._vms,
            repository=None if known is None else known.id,
            remembered=remembered,
            operations=tuple(self._known(operation) for operation in operations),
            directories=tuple(sorted(_directories(operations))),
            others=frozenset() if known is None else self._points_of_others(catalog),
        )

    def _points_of_others(self, catalog: Catalog) -> frozenset[str]:
        """Return the points that the repository alone knows; none when it cannot be asked, which is told elsewhere."""
        try:
            stored = self._premises.repository.point_ids()
        except VmkeepError:
            return frozenset()
        return frozenset(stored) - set(catalog.point_ids())

    def _known(self, operation: Operation) -> KnownOperation:
        if operation.state in _ENDED:
            return KnownOperation(operation.id, "done" if operation.state is OperationState.DONE else "failed")
        return KnownOperation(operation.id, "living" if owner_lives(self._settings, operation.owner) else "interrupted")

    # -- the installation --------------------------------------------------------------------------------------

    def _installation(self, catalog: Catalog | None, request: CheckupRequest) -> Iterator[Finding]:
        if catalog is None:
            if not self._has_catalog():
                message = "this installation has no repository yet; the first backup makes one"
                path = self._settings.repository
                yield Finding(FindingCode.REPOSITORY_NONE, message, remedy="vmkeep init", path=path)
            return
        yield from self._interrupted(catalog)
        yield from self._flows(catalog)
        yield from _alerts(catalog)
        yield from _tombstones(catalog)
        if catalog.repository() is None:
            message = "this installation has no repository yet; the first backup makes one"
            yield Finding(FindingCode.REPOSITORY_NONE, message, remedy="vmkeep init", path=self._settings.repository)
            return
        yield from self._hosts(catalog)
        yield from self._repository(catalog, request)
        yield from self._keys(catalog)

    def _hosts(self, catalog: Catalog) -> Iterator[Finding]:
        """Tell what nobody has decided about the hosts that sign points, as far as the catalogue has met them."""
        points = catalog.points_of_host_keys()
        for host in undecided(catalog):
            about = f"host {host.host} signs points ({points.get(host.fingerprint, 0)} known here) with key"
            remedy = command_line("vmkeep host trust", host.fingerprint)
            if host.former is None:
                message = f"{about} {host.fingerprint}, which nobody has trusted here"
                yield Finding(FindingCode.HOST_UNDECIDED, message, remedy=remedy)
            else:
                message = f"{about} {host.fingerprint} in place of {host.former}; ask there whether its key was lost"
                yield Finding(FindingCode.HOST_KEY_CHANGED, message, remedy=remedy)
        own = [key for key in catalog.host_keys() if key.trust is Trust.OWN]
        for key in own:
            if key.copied_to is not None:
                gone = command_line("vmkeep host trust", key.fingerprint)
                message = (
                    f"a copy of this home was at work on host {key.copied_to}, and signed points with the same key; "
                    f"when it is gone, or has a key of its own, `{gone}` says so"
                )
                yield Finding(FindingCode.HOME_COPIED, message, remedy="vmkeep host renew")
        path = self._settings.signing_key_path
        if own and not os.path.lexists(path):
            message = f"the key {own[-1].fingerprint} with which this installation signed its points is gone"
            yield Finding(FindingCode.SIGNING_KEY_GONE, message, path=str(path))

    def _keys(self, catalog: Catalog) -> Iterator[Finding]:
        """Tell of encrypted TPM states that are kept without what opens them."""
        for vm in catalog.vms():
            if self._vms and not {vm.uuid, vm.name} & set(self._vms):
                continue
            with contextlib.suppress(VmkeepError):  # a repository that cannot be read is told already
                lacking = versions_without_key(catalog, self._premises.repository, vm.uuid)
                if lacking:
                    many = "a version" if len(lacking) == 1 else f"{len(lacking)} versions"
                    message = (
                        f"{many} of its TPM state, the newest is {lacking[0].generation}, cannot be opened without a "
                        "secret of libvirt that is kept with none of them and in no point"
                    )
                    remedy = command_line("vmkeep state capture", vm.name)
                    yield Finding(FindingCode.TPM_KEY_NOT_KEPT, message, vm=vm.name, remedy=remedy)

    def _interrupted(self, catalog: Catalog) -> Iterator[Finding]:
        for operation in catalog.unfinished_operations():
            if operation.state is OperationState.NEEDS_OPERATOR:
                why = (operation.error or {}).get("message") or "it could not be undone"
                message = f"the operation {operation.kind} ({operation.id}) needs a person: {why}"
                remedy = command_line("vmkeep ops show", operation.id)
                yield Finding(FindingCode.OPERATION_NEEDS_OPERATOR, message, remedy=remedy, vm=operation.vm)
            elif not owner_lives(self._settings, operation.owner):
                about = "" if operation.vm is None else f" of VM {operation.vm!r}"
                message = f"the operation {operation.kind}{about} ({operation.id}) was killed; it is undone or finished"
                yield Finding(FindingCode.OPERATION_INTERRUPTED, message, vm=operation.vm, recovered=True)

    def _flows(self, catalog: Catalog) -> Iterator[Finding]:
        """Look into the flow database without the engine, which would begin to recover."""
        path = self._settings.flows_path
        if not path.exists():
            return
        query = "SELECT workflow_uuid, name, executor_id FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
        try:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                fault = database.execute("PRAGMA quick_check").fetchone()
                if fault is None or fault[0] != "ok":
                    raise CatalogDamaged(f"the flow database {path} is damaged: {fault}")
                has_table = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'workflow_status'").fetchone()
                pending = database.execute(query).fetchall() if has_table else []
                foreign = foreign_row(database)
        except (sqlite3.Error, CatalogDamaged) as raised:
            error = raised if isinstance(raised, VmkeepError) else sqlite_error(raised, path, "the flow database")
            damaged = isinstance(error, CatalogDamaged)
            if isinstance(error, NoSpace | PermissionRefused):
                return  # it is read only where something can be written beside it; what stands in the way is told
            message = f"the database of operations under way cannot be read: {error.message}"
            remedy = f"When no vmkeep runs: {move_aside(path)}" if damaged else error.hint
            yield Finding(FindingCode.FLOWS_UNUSABLE, message, remedy=remedy, path=str(path))
            return
        if foreign is not None:
            remedy = f"Find out who may write to vmkeep's home. When no vmkeep runs: {move_aside(path)}"
            yield Finding(FindingCode.FLOWS_UNUSABLE, told_of(path, foreign), remedy=remedy, path=str(path))
        told = {operation.id for operation in catalog.unfinished_operations()}
        for operation, name, owner in pending:
            if operation not in told and not owner_lives(self._settings, str(owner)):
                message = f"the operation {name} ({operation}) was killed; it is undone or finished"
                yield Finding(FindingCode.OPERATION_INTERRUPTED, message, recovered=True)

    def _repository(self, catalog: Catalog, request: CheckupRequest) -> Iterator[Finding]:
        path = self._settings.repository
        known_before = set(catalog.point_ids())
        try:
            repository = self._premises.repository
            stored = set(repository.point_ids())
            writers = repository.writers()
            staged = repository.staged(self._is_gone(request))
            unfinished = repository.unfinished_prunes()
        except VmkeepError as error:
            code = next((code for kind, code in _REPOSITORY_ERRORS if isinstance(error, kind)), None)
            yield Finding(code or FindingCode.REPOSITORY_UNUSABLE, error.message, remedy=error.hint, path=path)
            return
        yield self._key_place()
        yield from self._bucket(repository)
        # A point that was deleted meanwhile left the catalogue too; one that was begun meanwhile is a living operation.
        known = set(catalog.point_ids())
        for point_id in sorted((known & known_before) - stored):
            message = f"the repository does not hold the point {point_id}: it cannot be restored; is all of it mounted?"
            remedy = command_line("vmkeep point delete", point_id, options="--yes")
            yield Finding(FindingCode.POINT_NOT_STORED, message, remedy=remedy, path=f"{path}/points/{point_id}")
        under_way = {operation.id for operation in catalog.unfinished_operations()}
        of_other_vms = {point.id for point in catalog.passed_points()}
        from vmkeep.flows.catch_up import hidden_points

        hidden = hidden_points(catalog)
        for point_id in sorted(stored - known - under_way - of_other_vms - hidden):
            if point_id in catalog.point_ids():
                continue
            message = f"the catalogue does not know the point {point_id}, which the repository holds"
            yield Finding(
                FindingCode.POINT_NOT_KNOWN, message, remedy="vmkeep init --adopt", path=f"{path}/points/{point_id}"
            )
        for name in unfinished:
            message = "a prune was killed: what it had condemned is used by no backup, and not yet deleted"
            yield Finding(FindingCode.PRUNE_UNFINISHED, message, remedy="vmkeep prune", path=f"{path}/{name}")
        yield from self._verification(repository)
        for left in staged:
            message = "a half-written object, of a process that was killed"
            yield Finding(FindingCode.LEFT_FILE, message, path=str(left), mend=RemoveStaged(str(left)))
        operations = Operations.of(request.operations or ())
        for writer in writers:
            point_id = writer.purpose.removeprefix(_POINT_PURPOSE)
            if (ended := operations.ended(point_id)) is not None and ended.id == point_id:
                message = f"the repository still names the writer of the operation {point_id}, which has ended"
                where = f"{path}/intents/{writer.id}"
                yield Finding(FindingCode.LEFT_INTENT, message, path=where, mend=RemoveIntent(writer.id))

    def _verification(self, repository: Repository) -> Iterator[Finding]:
        """Tell when something was not read for too long; nothing where nobody verifies."""
        coverage = None
        with contextlib.suppress(VmkeepError):  # it only says what is read first
            coverage = read_coverage(proofs_path(self._settings.cache_dir, repository.id))
        if coverage is not None and coverage.is_late(datetime.now(UTC)):
            since = coverage.at if coverage.oldest is None else coverage.oldest
            message = (
                f"not everything in the repository was read within {GOAL.days} days: the oldest proof is of "
                f"{since.isoformat(timespec='minutes')}"
            )
            yield Finding(
                FindingCode.VERIFY_LATE, message, remedy="vmkeep verify --all", path=self._settings.repository
            )

    def _bucket(self, repository: Repository) -> Iterator[Finding]:
        """Try out what the server of a bucket does; nothing for a directory."""
        path = self._settings.repository
        try:
            report = repository.probe_bucket()
        except PermissionRefused as error:
            message = f"these credentials may not write to the bucket, so its server was not tried out: {error.message}"
            yield Finding(FindingCode.BUCKET_FOUND, message, path=path)
            return
        except VmkeepError as error:
            message = f"it could not be tried out what the bucket's server does: {error.message}"
            yield Finding(FindingCode.REPOSITORY_UNUSABLE, message, remedy=error.hint, path=path)
            return
        if report is None:
            return
        from vmkeep.repository.probe import described, weaknesses

        for weakness, told in weaknesses(report):
            yield Finding(FindingCode(f"bucket-{weakness}"), f"of the bucket's server: {told}", path=path)
        yield Finding(FindingCode.BUCKET_FOUND, f"the bucket's server: {described(report)}", path=path)

    def _key_place(self) -> Finding:
        from vmkeep.keys import KeyFile

        key = self._premises.key
        if isinstance(key, KeyFile):
            exported = self._premises.keychain.exported(key.key_id)
            when = "it was never exported here" if exported is None else f"it was exported here on {exported[:10]}"
            message = f"this is the key; without a copy of it elsewhere all points are lost with this host; {when}"
            return Finding(FindingCode.KEY_PLACE, message, remedy="vmkeep key export", path=str(key.path))
        message = f"the repository is opened with {key.where}; without that key, or another recipient's, all is lost"
        return Finding(FindingCode.KEY_PLACE, message, remedy="vmkeep key recipients list")


_REPOSITORY_ERRORS: tuple[tuple[type[VmkeepError], FindingCode], ...] = (
    (RepositoryNotFound, FindingCode.REPOSITORY_MISSING),
    (RepositoryForeign, FindingCode.REPOSITORY_FOREIGN),
    (KeyringReplaced, FindingCode.KEYRING_REPLACED),
    (KeyMissing, FindingCode.KEY_MISSING),
    (WrongKey, FindingCode.KEY_MISSING),
)


def owner_lives(settings: Settings, owner: str) -> bool:
    """Return whether the process that carries an operation out lives; it holds its lock for as long."""
    return FileLock.is_held(settings.owners_dir / f"{owner}.lock")


def _order(finding: Finding) -> tuple[int, bool, str, str, str]:
    """The worst first; of one severity the host before the VMs, by name."""
    return (
        _SEVERITIES.index(finding.severity),
        finding.vm is not None,
        finding.vm or "",
        str(finding.code),
        finding.message,
    )


def _remembered(catalog: Catalog, vm_uuid: str) -> RememberedVm:
    vm = catalog.vm(vm_uuid)
    current = None if vm is None else vm.current_point
    points = catalog.points_of_vm(vm_uuid)
    return RememberedVm(
        uuid=vm_uuid,
        points=tuple(_remembered_point(point, current) for point in points),
        bases=tuple(known_from_catalogue(point) for point in points),
        grounds=grounds_of(catalog, vm_uuid),
        snapshots=tuple((snapshot.id, snapshot.name) for snapshot in catalog.snapshots_of_vm(vm_uuid)),
        secret_pins={holder.uuid: holder.pin for holder in secret_holders(catalog, vm_uuid) if holder.pin},
    )


def _remembered_point(point: CatalogPoint, current: str | None) -> RememberedPoint:
    return RememberedPoint(
        id=point.id,
        created=point.created,
        states=states_in(point),
        current=point.id == current,
        # Of whoever else has the key, nobody is asked before doctor takes them.
        secrets=tuple(str(secret["uuid"]) for secret in point.document.get("secrets", ()) if point.is_vouched_for),
        safety=point.is_safety,
    )


def _directories(operations: Sequence[Operation]) -> set[str]:
    """Return where restores wrote to, as their requests say."""
    named = (operation.request.get(field) for operation in operations for field in ("output", "disks_dir"))
    return {place for place in named if isinstance(place, str) and place.startswith("/")}


def _alerts(catalog: Catalog) -> Iterator[Finding]:
    """Tell of state files that could not be captured since, until one of their VM was."""
    for alert in catalog.alerts():
        vm = catalog.vm(alert.vm_uuid)
        name = alert.vm_uuid if vm is None else vm.name
        often = "once" if alert.times == 1 else f"{alert.times} times"
        message = f"its state could not be captured, {often} since {alert.first_at[:19]}Z: {alert.message}"
        remedy = command_line("vmkeep state capture", name)
        yield Finding(FindingCode.STATE_NOT_CAPTURED, message, vm=name, remedy=remedy)


def _tombstones(catalog: Catalog) -> Iterator[Finding]:
    """Tell of what must still be deleted on hosts, until it is or somebody lets it be."""
    for each in catalog.open_tombstones():
        since = f"since {each.since[:19]}Z, tried {each.tries} times again"
        about = "a secret of libvirt's" if each.kind is TombstoneKind.SECRET else "state of a TPM that was removed"
        message = (
            f"{about} is on host {each.host_name} still, {since}: {'; '.join(each.paths)} "
            f"({told_of_protection(each.protection)})" + (f"; {each.last_error}" if each.last_error else "")
        )
        remedy = command_line("vmkeep tombstones retry", each.id)
        path = each.paths[0] if each.kind is TombstoneKind.STATE else None
        yield Finding(FindingCode.TOMBSTONE_OPEN, message, vm=each.vm_name, remedy=remedy, path=path)
