"""What a host tells of its VMs: plain values, the same in process and over the wire."""

from __future__ import annotations

from typing import Literal

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class SurveyedDisk:
    """A disk as the definition has it. ``size_bytes`` is None where it cannot be read (VM off, no medium).

    ``problem`` says why a point would leave it out or be refused; None when it would be kept whole. ``read_whole``
    says why each point reads all of it where that can be changed, and how. ``left_out`` is whether the VM's settings
    leave it out of every point.
    """

    target: str
    device: str
    source: str | None
    format: str | None
    size_bytes: int | None
    problem: str | None
    read_whole: str | None = None
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class SurveyedVm:
    """A VM and whether a point of it would be complete; ``problems`` says why not, one sentence each.

    ``skip``: `backup --all` leaves it out, by its settings, and ``reason`` is what they give for it or for the disks
    that they leave out.
    """

    name: str
    uuid: str
    state: Literal["running", "paused", "crashed", "off", "other"]
    disks: tuple[SurveyedDisk, ...]
    firmware: Literal["uefi", "bios"]
    nvram: str | None
    tpm: str | None
    complete: bool
    problems: tuple[str, ...]
    skip: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an operation stands. ``total_bytes`` is 0 until it is known. ``note`` is to be said once, in any case."""

    stage: str
    disk: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    note: str | None = None
