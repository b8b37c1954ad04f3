"""The record of a point as JSON, with the fields that every release has written and nothing else."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, Any] = {
    "id": "a" * 32,
    "vm_uuid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
    "vm_name": "win11",
    "kind": "full",
    "parent": None,
    "created": "2026-03-01T10:00:00.000000+00:00",
    "host": "alpha",
    "checkpoint": None,
    "pause_ms": 0,
    "labels": {},
    "definition": "<domain/>",
    "warnings": [],
    "excluded": [],
    "states": [],
    "disks": [],
}
