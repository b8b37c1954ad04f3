"""One run of a job: the command is started, what comes of it is recorded, and who wants to hear of it is told.

The command is a process of its own. So a run is recorded whatever becomes of that, and a storage that hangs in it keeps
nobody from being told.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from vmkeep.config import Settings, prepare_home
from vmkeep.errors import IntegrityError, OperationFailed, OperationRuns, VmkeepError
from vmkeep.filesystem import OF_STORAGE, file_errors, make_directory
from vmkeep.flows.schedule import lock_path, record_run, shortened
from vmkeep.flows.telling import Teller
from vmkeep.locks import FileLock
from vmkeep.planning.schedule import Job, Run, VmFailure, command_of, moment_text
from vmkeep.values import dataclass

_ISOLATED: Final = "-I" if sys.flags.isolated else "-P"
_PR_SET_PDEATHSIG: Final = 1
_LOOK_SECONDS: Final = 600
_KILLED: Final = 128
_MOST_PROBLEMS: Final = 50
# A doctor that repeats what is recorded of the jobs would call each failure twice, and the last one for ever.
_OF_SCHEDULE: Final = ("run-failed", "run-missed", "schedule-broken")


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run that has ended, and the error of its command; None when that did all."""

    run: Run
    error: VmkeepError | None


Stop = Callable[[], None]
Handed = Callable[[Stop], Any]
"""What gives a function that stops the command to whoever handles signals, for as long as a block lasts."""


def run_job(settings: Settings, job: Job, *, uri: str | None, handed: Handed, warn: Callable[[str], None]) -> RunEnded:
    """Run a job once, and return how it ended. ``warn`` is told of what could not be recorded or told.

    Raises OperationRuns while another process runs the same job, and what a home that cannot be written raises before
    anything was begun.
    """
    run = Run(uuid.uuid4().hex, job, moment_text(datetime.now(UTC)))
    teller = Teller(settings, job)
    try:
        lock = _begun(settings, run)
    except OperationRuns:
        raise
    except VmkeepError as refused:  # a home that is full or gone: nothing of it will be found in a record
        failed = replace(run, ended=run.started, status=refused.exit_status, code=refused.code, message=refused.message)
        for untold in teller.end(failed):
            warn(untold.sentence)
        raise
    with lock:
        command = [*command_of(job, settings.verify_budget), "--json", *(("--connect", uri) if uri else ())]
        status, out, err = _carried_out(command, handed, teller.begin)
        run, error = ended_run(run, status, out, err, moment_text(datetime.now(UTC)))
        with _recorded(warn):
            record_run(settings, run)  # whatever is done from here on, it is known how it ended
        run = replace(run, problems=_problems(settings, uri))
        run = replace(run, untold=tuple(teller.end(run)))
        for untold in run.untold:
            warn(untold.sentence)
        with _recorded(warn):
            record_run(settings, run)
    return RunEnded(run, error)


def _begun(settings: Settings, run: Run) -> FileLock:
    """Take the lock of a job, and record that it runs."""
    prepare_home(settings)
    path = lock_path(settings, run.job)
    with file_errors(path.parent):
        make_directory(path.parent)
    lock = FileLock.try_acquire(path, note=f"run of {run.job} (process {os.getpid()})")
    if lock is None:
        holder = FileLock.holder(path) or "another process"
        raise OperationRuns(f"{run.job} runs already: {holder}", hint="Wait for its end: `vmkeep schedule show`.")
    try:
        record_run(settings, run)
    except BaseException:
        lock.release()
        raise
    return lock


def ended_run(run: Run, status: int, out: str, err: str, ended: str) -> tuple[Run, VmkeepError | None]:
    """Return a run with what its command printed, and the command's error.

    A negative status is the signal that killed it. What is no JSON of vmkeep's is told as the failure that it is.
    """
    document, said = _object(out), _object(err)
    error: VmkeepError | None = None
    if status < 0:
        error = OperationFailed(
            f"{run.job} was killed by {_signal_name(-status)}",
            hint="The next command puts right what it left. `dmesg` says whether the host had no memory for it.",
        )
    elif status != 0:
        error = VmkeepError.from_dict(said["error"]) if isinstance(said.get("error"), dict) else None
        last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")
        error = error or OperationFailed(f"{run.job} ended with status {status}: {last or 'it said nothing'}")
    done, failures, harmed = _by_vm(document)
    ended_run = replace(
        run,
        ended=ended,
        status=status if status >= 0 else _KILLED - status,
        code="" if error is None else error.code,
        message="" if error is None else error.message,
        vms=done,
        failures=failures,
        harmed=harmed,
    )
    return shortened(ended_run), error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those for real-time processes
        return f"signal {number}"


def _by_vm(document: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[VmFailure, ...], tuple[str, ...]]:
    """Return VMs that something was done for, those that it failed with, and points that were found damaged."""
    done = [str(point["vm"]) for point in _objects(document, "points") if "vm" in point]
    failures = [_failure(each) for each in _objects(document, "failed")]
    harmed: list[str] = []
    for point in _objects(document, "verified"):
        vm = str(point.get("vm") or point.get("point"))
        if point.get("ok") is True:
            done.append(vm)
            continue
        harmed.append(str(point.get("point")))
        failures.append(VmFailure(vm, IntegrityError.code, f"point {point.get('point')} is not sound"))
    return tuple(dict.fromkeys(done)), tuple(failures), tuple(harmed)


def _failure(each: Mapping[str, Any]) -> VmFailure:
    error = each.get("error")
    said = error if isinstance(error, dict) else {}
    return VmFailure(str(each.get("vm")), str(said.get("code") or ""), str(said.get("message") or ""))


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def _recorded(warn: Callable[[str], None]) -> Iterator[None]:
    """A home that became full while the job ran does not make its result another one."""
    try:
        yield
    except OF_STORAGE as error:
        warn(f"what came of the run could not be recorded: {error.message}")


def _carried_out(command: Sequence[str], handed: Handed, begun: Callable[[], None]) -> tuple[int, str, str]:
    """Run a command of vmkeep's to its end; return its exit status and what it printed."""
    words = [sys.executable, _ISOLATED, "-m", "vmkeep.cli.main", *command]
    running: list[subprocess.Popen[str]] = []
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        for process in running:
            with suppress(OSError):
                process.send_signal(signal.SIGTERM)

    with (
        handed(stop),
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            preexec_fn=_end_with_parent,  # there are no threads yet in this process
        ) as process,
    ):
        running.append(process)
        if asked:
            stop()
        begun()
        out, err = process.communicate()
    return process.returncode, out, err


def _end_with_parent() -> None:
    """Have the command stop, and undo what it began, when the process that started it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _problems(settings: Settings, uri: str | None) -> tuple[str, ...] | None:
    """Return what `vmkeep doctor` calls problems now, but for those of the schedule; None when it does not answer."""
    words = [sys.executable, _ISOLATED, "-m", "vmkeep.cli.main", "doctor", "--json", *(("-c", uri) if uri else ())]
    try:
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=max(_LOOK_SECONDS, 2 * settings.stalled_after_seconds),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = _object(ended.stdout).get("doctor")
    if not isinstance(told, dict):
        return None
    return tuple(
        ": ".join(str(text) for text in (each.get("vm"), each.get("message")) if text)
        for each in _objects(told, "findings")
        if each.get("severity") == "problem" and each.get("code") not in _OF_SCHEDULE
    )[:_MOST_PROBLEMS]
