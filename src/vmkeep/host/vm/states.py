"""The state files of a VM: its TPM and its UEFI variables, found and read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vmkeep.commandline import command_line
from vmkeep.definition import Definition, TpmBackend
from vmkeep.errors import StateUnsupported
from vmkeep.statefiles.capture import CapturedState, capture
from vmkeep.statefiles.location import StateRoots, tpm_file
from vmkeep.values import dataclass

NVRAM_NAME = "nvram.fd"


@dataclass(frozen=True, slots=True)
class StateSource:
    """A state file to be read: its kind, where it is on the host, its name in the point, and its format."""

    kind: str
    path: Path
    file: str
    format: str = "raw"


def state_sources(definition: Definition, roots: StateRoots) -> tuple[StateSource, ...]:
    """Return the state files that belong to the VM.

    Raises StateUnsupported for those that cannot be read as a file: a point without them would not be whole.
    """
    sources = []
    firmware, tpm, vm = definition.firmware, definition.tpm, definition.name
    if firmware.has_variables:
        if firmware.nvram_type != "file":
            raise StateUnsupported(
                "the UEFI variables of the VM are not in a file of this host",
                vm=vm,
                hint="Define the VM with a file as NVRAM; other kinds of storage for it are not supported yet.",
            )
        # libvirt 9.0 leaves the path out of a definition with automatic firmware while the VM is off, and takes
        # the default again at the next start. 11.3 writes the firmware that it chose into the definition.
        nvram = Path(firmware.nvram) if firmware.nvram else roots.nvram_file(vm)
        sources.append(StateSource("nvram", nvram, NVRAM_NAME, firmware.nvram_format))
    if tpm is not None and tpm.backend is TpmBackend.EMULATOR:
        if tpm.source is not None and tpm.source_type != "dir":
            raise StateUnsupported(
                f"the TPM state of the VM is kept in a {tpm.source_type or 'place'} of its own ({tpm.source})",
                vm=vm,
                hint="swtpm writes such a file in place, so what is read of it may be torn. Define the TPM without "
                "<source>, or with <source type='dir'>; a TPM that is moved must be moved while the VM is off.",
            )
        directory = Path(tpm.source) if tpm.source else roots.tpm_directory(definition.uuid or "")
        name = tpm_file(tpm.version or "2.0")
        sources.append(StateSource("tpm", directory / (Path(name).name if tpm.source else name), name))
    return tuple(sources)


def refuse_unwritten_variables(sources: Sequence[StateSource], vm: str) -> None:
    """Raise StateUnsupported for UEFI variables in qcow2 of a VM whose guest suspended it.

    QEMU keeps the tables of a qcow2 image in memory until it flushes it. It does so when it is told to stop the
    virtual processors, and not when the guest does that; and libvirt does not suspend a VM that is suspended.
    """
    for source in sources:
        if source.format == "qcow2":
            raise StateUnsupported(
                "the VM was suspended by its guest, and QEMU may not have written out its UEFI variables",
                vm=vm,
                path=str(source.path),
                hint=f"Wake it (`{command_line('virsh dompmwakeup', vm)}`) or shut it down, and run the command again.",
            )


def read_state(source: StateSource, vm: str) -> CapturedState:
    """Read one state file of a VM that stands still."""
    kind: Literal["tpm", "nvram"] = "tpm" if source.kind == "tpm" else "nvram"
    return capture(kind, source.path, file=source.file, vm=vm, qcow2=source.format == "qcow2")


def state_warnings(live: Definition) -> list[str]:
    """Say what of the TPM a point cannot hold."""
    tpm = live.tpm
    if tpm is None:
        return []
    if tpm.backend is TpmBackend.EMULATOR:
        return []
    what = "a real one of the host" if tpm.backend is TpmBackend.PASSTHROUGH else "one that libvirt does not start"
    return [
        (
            f"The VM's TPM is {what} ({tpm.backend}): its state is no file that libvirt keeps, and is not in the "
            "point. Keep recovery keys of the guest at hand."
        )
    ]


@dataclass(frozen=True, slots=True)
class ChosenState:
    """A state file that goes back. ``place`` is what is replaced: the NVRAM file, or swtpm's directory.

    ``file`` is the path of the TPM's state below its directory.
    """

    kind: str
    place: Path
    file: str = ""


def chosen_state(source: StateSource) -> ChosenState:
    """Return what is replaced: a TPM's directory goes as a whole, because it is renamed."""
    if source.kind != "tpm":
        return ChosenState(source.kind, source.path)
    if source.path.parts[-2:] == Path(source.file).parts:
        return ChosenState(source.kind, source.path.parents[1], source.file)
    return ChosenState(source.kind, source.path.parent, source.path.name)
