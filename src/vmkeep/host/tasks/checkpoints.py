"""What a host is asked of a VM's checkpoints, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from vmkeep.planning.model import KnownPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """What a host must know to judge the checkpoints of a VM.

    ``repository`` is the id of ours, None when there is none; ``points`` are the VM's, newest first. ``unsure``: a
    checkpoint of ours without a point among them may have one all the same.
    """

    vm: str
    repository: str | None
    points: tuple[KnownPoint, ...]
    unsure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """What a host must know to plan a repair: ``foreign`` names what the user gave leave for, of others.

    ``hopeless`` are bitmaps, by checkpoint and disk, that libvirt refused when their checkpoint was defined again.
    """

    checkpoints: CheckpointRequest
    foreign: frozenset[str] = frozenset()
    hopeless: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class StepDone:
    """What a step did, in words, and the disks whose bitmap libvirt refused."""

    told: str
    refused: tuple[str, ...] = ()
