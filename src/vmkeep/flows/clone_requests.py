"""What flows of clones and names are asked for, and what they answer: as in ``vmkeep.flows.requests``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vmkeep.custody.states import ChosenVersion
from vmkeep.flows.requests import FlowRequest
from vmkeep.values import dataclass


class ClonedTpm(StrEnum):
    """Whose TPM a clone gets: a copy of the original's, a blank one, or none."""

    COPY = "copy"
    NEW = "new"
    NONE = "none"


class ClonedVariables(StrEnum):
    """Which UEFI variables a clone gets: a copy of the original's, or new ones at its first start."""

    COPY = "copy"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class CloneVm(FlowRequest):
    """Make a second VM called ``name`` of ``source``, a name or a UUID. ``disks_dir`` None: beside the original's.

    ``tpm`` None: nobody chose, which a VM with a TPM needs.
    """

    source: str
    name: str
    tpm: ClonedTpm | None = None
    nvram: ClonedVariables = ClonedVariables.COPY
    disks_dir: str | None = None


@dataclass(frozen=True, slots=True)
class VmCloned:
    """The clone. ``disks`` has for each ``target``, ``path``, ``shared`` (its blocks, with the original's image) and
    ``bytes_written``; ``secret`` is the UUID of the secret that its TPM got, ``files`` all that was made.
    """

    source: str
    source_uuid: str
    name: str
    uuid: str
    tpm: str
    nvram: str
    secret: str
    disks: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenameVm(FlowRequest):
    """Give the VM ``vm``, a name or a UUID, the name ``name``."""

    vm: str
    name: str


@dataclass(frozen=True, slots=True)
class VmRenamed:
    """The VM that was called ``before``."""

    before: str
    name: str
    uuid: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CloneTpm(FlowRequest):
    """Give VM ``vm``, which is off and has none, that of ``source``: a copy (``version`` of its state) or a blank one.

    Both are UUIDs. ``model`` and ``tpm_version`` are the original's. ``secret`` is the UUID of the secret that the new
    TPM is encrypted with, empty where the original's is plain, and ``value_of`` that of the secret whose value it gets.
    A blank one has its value in the envelope of ``secret_pin``. ``like`` is the element of the original's TPM.
    """

    vm: str
    source: str
    source_name: str
    model: str
    tpm_version: str
    version: ChosenVersion | None = None
    secret: str = ""
    value_of: str = ""
    secret_pin: str = ""
    like: str = ""


@dataclass(frozen=True, slots=True)
class TpmCloned:
    """The TPM that VM ``name`` got. ``sha256`` is the state's that was copied; empty for a blank one."""

    source: str
    source_uuid: str
    name: str
    uuid: str
    model: str
    version: str
    sha256: str = ""
    secret: str = ""
    warnings: tuple[str, ...] = ()
