"""What the UEFI variables of a VM are to be: made, held against its firmware, and put into the repository."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.custody.enrolment import certificates_of_2023, enrol
from vmkeep.custody.states import Because, ChosenVersion, KnownState
from vmkeep.custody.variables import QCOW2, StoreLayout, read_layout
from vmkeep.errors import HostFileMissing, InvalidRequest, StateUnsupported
from vmkeep.filesystem import file_error, file_errors
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.nvram import CheckNvram, EnrolNvram, NvramHeld, NvramMade, ResetNvram
from vmkeep.host.vm.found_states import read_state_file
from vmkeep.host.vm.states import NVRAM_NAME
from vmkeep.host.vm.versions import store_states
from vmkeep.paths import ForeignLink, open_place, reopen
from vmkeep.repository.chosen import read_chosen
from vmkeep.statefiles.capture import LIMIT_BYTES, CapturedState
from vmkeep.statefiles.installation import foreign_link


def reset_nvram(operation: Operation, task: ResetNvram) -> NvramMade:
    """Put the variables of the VM's template into the repository; see the task."""
    held = task.held
    content = _template(held)
    if held.whole:
        _require_shape(content, _present(held), held, f"its template {held.template}")
    return _stored(operation, held, task.known, content)


def enrol_nvram(operation: Operation, task: EnrolNvram) -> NvramMade:
    """Put the VM's variables with more certificates into the repository; see the task."""
    held = task.held
    content = _present(held)
    wanted, left = certificates_of_2023(content) if task.of_2023 else ((), ())
    enrolled = enrol(content, (*wanted, *task.certificates))
    if isinstance(enrolled, str):
        raise StateUnsupported(
            f"the UEFI variables of VM {held.vm_name!r} get no certificates: {enrolled}",
            vm=held.vm_name,
            path=held.path,
            hint=f"`{command_line('vmkeep nvram show', held.vm_name)}` tells what is in them. Where the firmware was "
            "stopped while it wrote, start the VM once and shut it down.",
        )
    made = _stored(operation, held, task.known, enrolled.content)
    return NvramMade(made.version, made.new, enrolled.added, enrolled.present, left)


def check_nvram(operation: Operation, task: CheckNvram) -> None:
    """Hold a version against the VM's firmware; see the task."""
    held = task.held
    _, content = read_chosen(operation.repository(), held.vm_uuid, task.version)
    what = "what is to be put in place"
    if content.startswith(QCOW2):
        raise _unfit(held, f"{what} is a qcow2 image, and the VM takes its variables raw")
    if held.whole:
        present = _present(held)
        if read_layout(present).problem is None:
            _require_shape(content, present, held, what)
            return
    if held.template:
        _require_shape(content, _template(held), held, what)
        return
    problem = read_layout(content).problem
    if problem is not None:
        raise _unfit(held, f"{what} is no store of UEFI variables: {problem}")


def _present(held: NvramHeld) -> bytes:
    """Return what lies there. Raises InvalidRequest when it is not what it was."""
    path = Path(held.path)
    with file_errors(path, "read"):
        content = read_state_file(path, "nvram")
    if content is None:
        raise HostFileMissing(
            f"VM {held.vm_name!r} has no UEFI variables yet: libvirt makes them at its first start",
            vm=held.vm_name,
            path=held.path,
            hint=f"`{command_line('vmkeep nvram reset', held.vm_name)}` makes them now.",
        )
    if hashlib.sha256(content).hexdigest() != held.sha256:
        raise refuse_changed(held)
    return content


def _template(held: NvramHeld) -> bytes:
    """Return the content of the template: a file that the host's packages or its administrator put there."""
    if not held.template:
        raise StateUnsupported(
            f"it is not known of which template libvirt makes the UEFI variables of VM {held.vm_name!r}",
            vm=held.vm_name,
            hint="Name it in the definition (<nvram template='...'>), or put a store in place: `vmkeep nvram import`.",
        )
    path = Path(held.template)
    try:
        content = _read_template(path)
    except FileNotFoundError as error:
        raise HostFileMissing(
            f"the template of the UEFI variables of VM {held.vm_name!r} is not there: {path}",
            vm=held.vm_name,
            path=str(path),
            hint="Install the firmware (Debian's package ovmf), or correct <nvram template='...'> in the definition.",
        ) from error
    except ForeignLink as error:
        raise foreign_link(path, error) from error
    except OSError as error:
        raise file_error(error, path, "read") from error
    if content.startswith(QCOW2):
        raise _unfit(held, f"its template {path} is a qcow2 image, and the VM takes its variables raw")
    problem = read_layout(content).problem
    if problem is not None:
        raise _unfit(held, f"its template {path} is no store of UEFI variables: {problem}")
    return content


def _read_template(path: Path) -> bytes:
    """Return the content, through links of root's: distributions name templates by those. Raises OSError."""
    place = open_place(path)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with os.fdopen(reopen(place, os.O_RDONLY), "rb") as stream:
            return stream.read(LIMIT_BYTES["nvram"] + 1)
    finally:
        os.close(place)


def _require_shape(content: bytes, pattern: bytes, held: NvramHeld, what: str) -> None:
    """Refuse a store in which the VM's firmware would not find its way; ``pattern`` is one in which it does."""
    one, other = read_layout(content), read_layout(pattern)
    if one.problem is not None:
        raise _unfit(held, f"{what} is no store of UEFI variables: {one.problem}")
    if other.problem is None and (len(content) != len(pattern) or not one.has_shape_of(other)):
        raise _unfit(
            held,
            f"{what} is made for another firmware: {_shape(content, one)}, and that of the VM has "
            f"{_shape(pattern, other)}",
        )


def _shape(content: bytes, layout: StoreLayout) -> str:
    kind = "authenticated" if layout.authenticated else "plain"
    return f"{len(content)} bytes with {layout.end - layout.first} for {kind} variables"


def _unfit(held: NvramHeld, what: str) -> StateUnsupported:
    return StateUnsupported(
        f"the UEFI variables of VM {held.vm_name!r} were left alone: {what}",
        vm=held.vm_name,
        path=held.path,
        hint="Name one that is made for the VM's firmware: builds of 2 MiB take 128 KiB, those of 4 MiB 528 KiB.",
    )


def _stored(operation: Operation, held: NvramHeld, known: tuple[KnownState, ...], content: bytes) -> NvramMade:
    """Put a content into the repository, unless a version has it already."""
    state = CapturedState("nvram", NVRAM_NAME, content, "root", "root", 0o600, held.path)
    repository = operation.repository()
    stored = store_states(repository, repository, (state,), known, held.vm_uuid)
    (ref,) = stored.refs
    new = next((replace(each, because=str(Because.PLACED)) for each in stored.new_versions()), None)
    return NvramMade(ChosenVersion("nvram", ref.version_id, ref.sha256), new)


def refuse_changed(held: NvramHeld) -> InvalidRequest:
    """Return the error for variables that somebody changed while the operation held the VM."""
    return InvalidRequest(
        f"the UEFI variables of VM {held.vm_name!r} are others by now than at the beginning",
        vm=held.vm_name,
        path=held.path,
        hint="Nothing was replaced. Was the VM started meanwhile? Run the command again.",
    )
