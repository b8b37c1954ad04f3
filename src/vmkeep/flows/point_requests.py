"""What flows about which points are kept are asked for, and what they answer."""

from __future__ import annotations

from typing import Any

from vmkeep.flows.requests import FlowRequest
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class DeletePoint(FlowRequest):
    """Hide a point, and remove it ``grace_seconds`` later; at once with 0. ``vm_uuid`` is empty for a damaged one."""

    point: str
    grace_seconds: int
    why: str = ""
    vm_uuid: str = ""


@dataclass(frozen=True, slots=True)
class PointDeleted:
    """``until`` is the store's time at which it may go (ISO 8601 in UTC); None for one that is gone already."""

    point: str
    until: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UndeletePoint(FlowRequest):
    """Bring a hidden point back."""

    point: str


@dataclass(frozen=True, slots=True)
class PointUndeleted:
    """The point as the JSON object that `vmkeep points --json` prints."""

    point: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeProtection(FlowRequest):
    """Protect a point until a time or (None) for good, or, without ``protected``, no longer."""

    point: str
    protected: bool
    until: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ProtectionChanged:
    """``known``: whether it was protected before."""

    point: str
    protected: bool
    until: str | None
    known: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointsOfVm:
    """Points of one VM that are to go, and how long they are only hidden."""

    vm: str
    vm_uuid: str
    points: tuple[str, ...]
    grace_seconds: int


@dataclass(frozen=True, slots=True)
class RetainPoints(FlowRequest):
    """Hide what no policy keeps, and remove what was hidden for long enough (``due``)."""

    going: tuple[PointsOfVm, ...]
    due: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PointsRetained:
    """Which points were hidden, and which are gone; ``warnings`` say why others stayed."""

    hidden: tuple[str, ...]
    gone: tuple[str, ...]
    warnings: tuple[str, ...] = ()
