"""The page of `vmkeep status` as Prometheus' node exporter reads it from a file (its textfile collector).

The form is https://prometheus.io/docs/instrumenting/exposition_formats, the names follow
https://prometheus.io/docs/practices/naming. A time that is not known is left out, so that an alert on its age fires on
its absence and on nothing that was made up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep import __version__
from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import file_errors, replace_file
from vmkeep.paths import open_directory
from vmkeep.planning.protection import Protection
from vmkeep.planning.schedule import Standing
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.flows.show_status import Status

_ENDING = ".prom"
_READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric, with its labels."""

    metric: str
    value: float
    labels: Mapping[str, str]


_HELP: Mapping[str, str] = {
    "vmkeep_build_info": "The version of vmkeep.",
    "vmkeep_status_timestamp_seconds": "When vmkeep looked.",
    "vmkeep_libvirt_up": "Whether libvirt told its VMs.",
    "vmkeep_vms": "VMs by how well they are protected.",
    "vmkeep_vm_protected": "Whether the newest sound point of a VM is as young as it must be.",
    "vmkeep_point_last_success_timestamp_seconds": "When the newest sound point of a VM was taken.",
    "vmkeep_point_objective_seconds": "How old the newest sound point of a VM may be.",
    "vmkeep_job_last_start_timestamp_seconds": "When a job began last.",
    "vmkeep_job_last_end_timestamp_seconds": "When the last run of a job ended.",
    "vmkeep_job_last_exit_status": "How the last run of a job ended; 0 when it did all.",
    "vmkeep_job_overdue": "Whether a job should have run again meanwhile.",
    "vmkeep_job_standing": "How a job stands: 1 for the standing that it has.",
    "vmkeep_gate_up": "Whether the gate stands.",
    "vmkeep_watch_up": "Whether state files are kept as they change.",
    "vmkeep_points": "Points that are known.",
    "vmkeep_points_stored_bytes": "Bytes that were written for all points that are known.",
    "vmkeep_repository_free_bytes": "Room that is left on the repository's file system.",
    "vmkeep_repository_size_bytes": "Size of the repository's file system.",
    "vmkeep_needs_person": "Things that need a person, by what they are.",
    "vmkeep_doctor_problems": "Problems that doctor found when a job asked it last.",
}


def write_exposition(path: str, found: Status) -> None:
    """Write the page to a file that all may read: the old one, or the new one whole.

    Raises InvalidRequest for a name that the node exporter would not read, and NoSpace, PermissionRefused and others.
    """
    place = Path(path).absolute()
    if place.suffix != _ENDING:
        raise InvalidRequest(
            f"{path} does not end in {_ENDING}", path=path, hint="The node exporter reads files of that ending alone."
        )
    with file_errors(place):
        # The folder may be another user's: no link of theirs is followed, and it stays the one that was opened.
        folder = open_directory(place.parent)
        try:
            replace_file(Path(f"/proc/self/fd/{folder}") / place.name, exposition(found).encode(), _READABLE)
        finally:
            os.close(folder)


def exposition(found: Status) -> str:
    """Return the page in the text format."""
    lines: list[str] = []
    samples = list(_samples(found))
    for metric, help_text in _HELP.items():
        mine = [sample for sample in samples if sample.metric == metric]
        if mine:
            lines += [f"# HELP {metric} {help_text}", f"# TYPE {metric} gauge", *map(_line, mine)]
    return "".join(f"{line}\n" for line in lines)


def _samples(found: Status) -> Iterator[Sample]:
    yield Sample("vmkeep_build_info", 1, {"version": __version__})
    yield Sample("vmkeep_status_timestamp_seconds", _seconds(found.at), {})
    yield Sample("vmkeep_libvirt_up", found.libvirt is None, {})
    for protection in Protection:
        yield Sample("vmkeep_vms", found.count(protection), {"protection": str(protection)})
    for vm in found.vms:
        labels = {"vm": vm.name, "uuid": vm.uuid}
        if vm.protection not in (Protection.SKIPPED, Protection.AWAY):
            yield Sample("vmkeep_vm_protected", vm.protection is Protection.GOOD, labels)
        if vm.created is not None:
            yield Sample("vmkeep_point_last_success_timestamp_seconds", _seconds(vm.created), labels)
        if vm.objective_seconds is not None:
            yield Sample("vmkeep_point_objective_seconds", vm.objective_seconds, labels)
    yield from _of_jobs(found)
    yield Sample("vmkeep_gate_up", found.gate == "stands", {})
    yield Sample("vmkeep_watch_up", found.watch == "watching", {})
    if found.space is not None:
        yield Sample("vmkeep_points", found.space.points, {})
        yield Sample("vmkeep_points_stored_bytes", found.space.stored_bytes, {})
        if found.space.free_bytes is not None and found.space.size_bytes is not None:
            yield Sample("vmkeep_repository_free_bytes", found.space.free_bytes, {})
            yield Sample("vmkeep_repository_size_bytes", found.space.size_bytes, {})
    for what in ("operation", "conflict", "tombstone", "state", "host", "job"):
        yield Sample("vmkeep_needs_person", sum(need.what == what for need in found.needs), {"what": what})
    if found.problems is not None:
        yield Sample("vmkeep_doctor_problems", len(found.problems), {})


def _of_jobs(found: Status) -> Iterator[Sample]:
    for job in found.jobs:
        labels = {"job": str(job.job)}
        yield Sample("vmkeep_job_overdue", job.overdue, labels)
        for standing in Standing:
            yield Sample("vmkeep_job_standing", job.standing is standing, {**labels, "standing": str(standing)})
        if job.last is None:
            continue
        yield Sample("vmkeep_job_last_start_timestamp_seconds", _seconds(job.last.started), labels)
        if job.last.ended is not None and job.last.status is not None:
            yield Sample("vmkeep_job_last_end_timestamp_seconds", _seconds(job.last.ended), labels)
            yield Sample("vmkeep_job_last_exit_status", job.last.status, labels)


def _seconds(moment: str) -> float:
    return round(datetime.fromisoformat(moment).timestamp(), 3)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sample.labels.items())
    value = int(sample.value) if float(sample.value).is_integer() else sample.value
    return f"{sample.metric}{{{labels}}} {value}" if labels else f"{sample.metric} {value}"


def _escaped(text: str) -> str:
    """Return a label's value: names of VMs hold quotes, line ends and bytes that are no text."""
    plain = text.encode("utf-8", "replace").decode()
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
