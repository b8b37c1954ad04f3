"""Decides, from plain values, what a point will read of each disk and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.deferral import shown

if TYPE_CHECKING:
    from vmkeep.planning.admission import MOST_CLIENTS
    from vmkeep.planning.bitmaps import StoredBitmap, judge_bitmap
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
        hint_of,
    )
    from vmkeep.planning.points import plan_disk, plan_point
else:
    __getattr__ = shown(
        __name__,
        {
            "admission": "MOST_CLIENTS",
            "bitmaps": "StoredBitmap judge_bitmap",
            "codes": "BitmapHealth ExclusionReason KeyState Mode Reason RefusalCode WarningCode",
            "model": "Base BaseDisk DiskPlan Exclusion PlannableDisk "
            "PointPlan PointRequest Refusal Refused Warned hint_of",
            "points": "plan_disk plan_point",
        },
    )

__all__ = [
    "MOST_CLIENTS",
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
    "StoredBitmap",
    "Warned",
    "WarningCode",
    "hint_of",
    "judge_bitmap",
    "plan_disk",
    "plan_point",
]
