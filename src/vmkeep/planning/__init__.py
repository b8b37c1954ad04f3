"""Decides, from plain values, what a point will read of each disk and why."""

from __future__ import annotations

from vmkeep.planning.codes import BitmapHealth, ExclusionReason, KeyState, Mode, Reason, RefusalCode, WarningCode
from vmkeep.planning.model import (
    Base,
    BaseDisk,
    DiskPlan,
    Exclusion,
    PlannableDisk,
    PointPlan,
    PointRequest,
    Refusal,
    Refused,
    Warned,
)
from vmkeep.planning.points import plan_point

__all__ = [
    "Base",
    "BaseDisk",
    "BitmapHealth",
    "DiskPlan",
    "Exclusion",
    "ExclusionReason",
    "KeyState",
    "Mode",
    "PlannableDisk",
    "PointPlan",
    "PointRequest",
    "Reason",
    "Refusal",
    "RefusalCode",
    "Refused",
    "Warned",
    "WarningCode",
    "plan_point",
]
