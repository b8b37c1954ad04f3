"""How an installation stands, on one page: its VMs, what runs by itself, the gate, the watch, and what needs a person.

It is asked often, so libvirt is only asked for its list, and no disk and nothing of the repository is read. What is
older than it may be is told as unknown, late or missed, and never as good.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from vmkeep.catalog import SAFETY_LABEL, Catalog, OperationState, Trust
from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.custody.standing import LOOK_SECONDS
from vmkeep.errors import VmkeepError
from vmkeep.flows.schedule import JobStanding, jobs_standing, told_of_failure
from vmkeep.flows.state_conflicts import state_conflicts
from vmkeep.flows.watch_mark import watch_mark
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.gate import LookAtGate
from vmkeep.host.tasks.survey import ListedVm, ListVms
from vmkeep.locks import FileLock
from vmkeep.planning.protection import ProtectedVm, Protection, newest_sound, protection_of
from vmkeep.planning.rota import Coverage
from vmkeep.planning.schedule import Job, Standing, age_seconds, moment_text
from vmkeep.repository.proofs import proofs_path, read_coverage
from vmkeep.values import dataclass

_SPACE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Need:
    """Something that needs a person: what it is in one word, what to say, and the command that shows or mends it."""

    what: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Space:
    """Where points are kept. ``stored_bytes`` is what was written for all points that are known.

    The other two are of its file system; None for a store that has none, or that did not answer.
    """

    location: str
    points: int
    stored_bytes: int
    free_bytes: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """How all stands. ``gate`` and ``watch`` are words; ``libvirt`` is why it could not be asked, None when it was.

    ``verified`` says how far verification has come; None where nobody verifies here.
    ``problems`` are what doctor said at ``problems_at``, None when it was never asked by a job, or too long ago.
    """

    at: str
    vms: tuple[ProtectedVm, ...]
    jobs: tuple[JobStanding, ...]
    gate: str
    watch: str
    space: Space | None
    verified: Coverage | None
    needs: tuple[Need, ...]
    problems: tuple[str, ...] | None
    problems_at: str | None
    libvirt: str | None = None

    def count(self, protection: Protection) -> int:
        return sum(vm.protection is protection for vm in self.vms)


def look_at_status(
    settings: Settings,
    catalog: Catalog,
    summaries: Iterable[Mapping[str, Any]],
    host: Host,
    now: datetime | None = None,
) -> Status:
    """Return how all stands. ``summaries`` are those of all points, the oldest first.

    Raises what a catalogue that cannot be read raises; a libvirt and a record of jobs that say nothing are told.
    """
    now = now or datetime.now(UTC)
    listed: tuple[ListedVm, ...] | None = None
    silent = None
    gate = "unknown"
    try:
        listed = host.ask(ListVms())
        found = host.ask(LookAtGate())
        gate = "none" if found.hook is None else "stands" if found.problem is None else f"broken: {found.problem}"
    except VmkeepError as error:
        silent = error.message
    points = tuple(summaries)
    needs = list(_needs(settings, catalog))
    jobs: tuple[JobStanding, ...] = ()
    try:
        jobs = jobs_standing(settings)
    except VmkeepError as error:
        needs.append(Need("job", error.message, error.hint))
    needs += _of_jobs(jobs)
    problems_at, problems = _problems(jobs, now)
    return Status(
        at=moment_text(now),
        vms=tuple(_vms(settings, catalog, points, listed, jobs, now)),
        jobs=jobs,
        gate=gate,
        watch=_watch(settings),
        space=_space(settings, catalog, points),
        verified=_verified(settings, catalog),
        needs=tuple(needs),
        problems=problems,
        problems_at=problems_at,
        libvirt=silent,
    )


def _vms(
    settings: Settings,
    catalog: Catalog,
    points: Iterable[Mapping[str, Any]],
    listed: tuple[ListedVm, ...] | None,
    jobs: tuple[JobStanding, ...],
    now: datetime,
) -> Iterator[ProtectedVm]:
    of_vm: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for point in points:
        of_vm[str(point["vm_uuid"])].append(point)
    here = {vm.uuid: vm for vm in listed or ()}
    names = {vm.uuid: vm.name for vm in catalog.vms() if vm.forgotten_until is None}
    names.update({vm.uuid: vm.name for vm in here.values()})
    harmed = _harmed(jobs) | catalog.harmed_points().keys()
    scheduled = next((each.scheduled for each in jobs if each.job is Job.BACKUP), None)
    of_schedule = None if scheduled is None else scheduled.patience_seconds
    for uuid, name in sorted(names.items(), key=lambda each: (listed is not None and each[0] not in here, each[1])):
        if uuid not in here and not of_vm[uuid]:
            continue  # of which nothing is kept but versions of its state
        newest, passed = newest_sound(of_vm[uuid], harmed, SAFETY_LABEL)
        created = None if newest is None else str(newest["created"])
        lasting = settings.of_vm(name, uuid)
        objective = lasting.objective_seconds or settings.objective_seconds or of_schedule
        away = listed is not None and uuid not in here
        yield ProtectedVm(
            name,
            uuid,
            here[uuid].state if uuid in here else None,
            Protection.AWAY if away else protection_of(created, objective, now, skip=lasting.skip),
            None if newest is None else str(newest["id"]),
            created,
            None if created is None else age_seconds(created, now),
            objective,
            passed,
        )


def _harmed(jobs: Iterable[JobStanding]) -> frozenset[str]:
    """Return the points that the last verification of all which came to its end found damaged."""
    runs = (run for each in jobs if each.job is Job.VERIFY for run in each.runs)
    return frozenset(next((run.harmed for run in runs if run.succeeded or run.harmed), ()))


def _problems(jobs: Iterable[JobStanding], now: datetime) -> tuple[str | None, tuple[str, ...] | None]:
    """Return what doctor said when a job asked it last, and when; no words when that is too long ago."""
    told = [(run.ended, run.problems) for job in jobs for run in job.runs if run.ended and run.problems is not None]
    if not told:
        return None, None
    at, problems = max(told)
    patience = max((job.scheduled.patience_seconds or 0 for job in jobs if job.scheduled is not None), default=0)
    age = age_seconds(at, now)
    return at, problems if age is not None and age <= patience else None


def _watch(settings: Settings) -> str:
    """Return whether state files are kept as they change: watching, off, or unknown for a watch that does not look."""
    mark = watch_mark(settings)
    if not FileLock.is_held(mark):
        return "off"
    with suppress(OSError):
        age = time.time() - mark.stat().st_mtime
        if -LOOK_SECONDS <= age <= 3 * LOOK_SECONDS:
            return "watching"
    return "unknown"


def _space(settings: Settings, catalog: Catalog, points: tuple[Mapping[str, Any], ...]) -> Space | None:
    known = catalog.repository()
    if known is None:
        return None
    stored = sum(int(disk["bytes_stored"] or 0) for point in points for disk in point["disks"])
    about = None
    if "://" not in settings.repository:
        # A share that hangs would hold the page for ever.
        about = _file_system(settings.repository)
    free, size = (None, None) if about is None else (about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize)
    return Space(settings.repository, len(points), stored, free, size)


def _verified(settings: Settings, catalog: Catalog) -> Coverage | None:
    known = catalog.repository()
    if known is None:
        return None
    with suppress(VmkeepError):  # it only says what is read first
        return read_coverage(proofs_path(settings.cache_dir, known.id))
    return None


def _file_system(path: str) -> os.statvfs_result | None:
    """Return what the file system of a folder says of its room; None when it is not there or does not answer."""
    found: list[os.statvfs_result] = []

    def ask() -> None:
        with suppress(OSError):
            found.append(os.statvfs(path))

    asking = threading.Thread(target=ask, name="space", daemon=True)
    asking.start()
    asking.join(_SPACE_SECONDS)
    return found[0] if found else None


def _needs(settings: Settings, catalog: Catalog) -> Iterator[Need]:
    for operation in catalog.unfinished_operations():
        about = f"{operation.kind}" + (f" of {operation.vm}" if operation.vm else "")
        show = command_line("vmkeep ops show", operation.id)
        if operation.state is OperationState.NEEDS_OPERATOR:
            yield Need("operation", f"{about} could not be undone, and waits for a person", show)
        elif not FileLock.is_held(settings.owners_dir / f"{operation.owner}.lock"):
            yield Need("operation", f"{about} was interrupted; the next command settles it", show)
    for conflict in state_conflicts(catalog):
        message = f"{conflict.vm}: {conflict.kind} version {conflict.conflict.version.generation} is a conflict"
        yield Need("conflict", message, command_line("vmkeep state conflicts", conflict.vm_uuid))
    for tombstone in catalog.open_tombstones():
        message = f"{tombstone.vm_name}: something of a TPM that was removed is still on {tombstone.host_name}"
        yield Need("tombstone", message, command_line("vmkeep tombstones retry", tombstone.id))
    for alert in catalog.alerts():
        vm = catalog.vm(alert.vm_uuid)
        name = alert.vm_uuid if vm is None else vm.name
        message = f"{name}: its state could not be captured: {alert.message}"
        yield Need("state", message, command_line("vmkeep state capture", name))
    for met in (key for key in catalog.host_keys() if key.trust is Trust.UNKNOWN):
        message = f"host {met.host} signs points, and nobody has decided about its key"
        yield Need("host", message, command_line("vmkeep host trust", met.fingerprint))


def _of_jobs(jobs: Iterable[JobStanding]) -> Iterator[Need]:
    for each in jobs:
        again = command_line("vmkeep schedule run", each.job)
        if each.problem is not None:
            yield Need("job", f"{each.job} will not run by itself: {each.problem}", "vmkeep schedule show")
        if each.overdue:
            yield Need("job", f"{each.job} should have run by itself meanwhile", again)
        if each.last is None:
            continue
        if each.standing is Standing.INTERRUPTED:
            yield Need("job", f"the last run of {each.job} was killed", again)
        elif each.last.ended is not None and not each.last.succeeded:
            yield Need("job", f"the last run of {each.job} failed: {told_of_failure(each.last)}", again)
        for untold in each.last.untold:
            yield Need("job", f"{each.job}: {untold.sentence}", "vmkeep schedule tell")
