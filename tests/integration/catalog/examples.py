"""Points and state versions as examples for the tests of the catalogue and of the command line."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from vmkeep.catalog import CatalogPoint, CatalogState, SqlCatalog

WIN11 = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
WEB = "11111111-2222-3333-4444-555555555555"


def number(text: str) -> str:
    """Return 32 hexadecimal digits that belong to a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def example_point(
    name: str,
    *,
    vm: str = WIN11,
    vm_name: str = "win11",
    parent: str | None = None,
    minute: int = 0,
    labels: dict[str, str] | None = None,
    states: tuple[CatalogState, ...] = (),
    point_id: str | None = None,
    sequence: int | None = None,
    host: str = "host1",
) -> CatalogPoint:
    """Return a point of one disk, created at 2026-03-01 10:MM UTC."""
    identity = point_id or number(name)
    kind: Literal["full", "incremental"] = "full" if parent is None else "incremental"
    created = f"2026-03-01T10:{minute:02}:00.000000+00:00"
    document: dict[str, Any] = {
        "id": identity,
        "definition": "<domain/>",
        "disks": [
            {
                "target": "vda",
                "mode": kind,
                "reason": "first point" if parent is None else "base is sound",
                "source": "/images/vda.qcow2",
                "format": "qcow2",
                "bytes_read": 3 * 1024 * 1024,
                "bytes_stored": 1024 * 1024,
                "stored": {"size_bytes": 10 * 1024 * 1024, "block_bytes": 65536},
            }
        ],
        "excluded": [{"target": "sdb", "reason": "excluded by name"}],
        "states": [
            {
                "kind": state.kind,
                "version_id": state.id,
                "generation": state.generation,
                "sha256": state.sha256,
                "size_bytes": state.size_bytes,
                "file": "x",
            }
            for state in states
        ],
        "warnings": [],
    }
    return CatalogPoint(
        id=identity,
        vm_uuid=vm,
        vm_name=vm_name,
        kind=kind,
        parent=parent,
        created=created,
        host=host,
        checkpoint=f"vmkeep-{name}",
        pause_ms=104.2,
        labels=labels or {},
        document=document if sequence is None else {**document, "sequence": sequence},
        sequence=sequence,
    )


def example_state(
    name: str, generation: int, *, vm: str = WIN11, kind: Literal["tpm", "nvram"] = "tpm", created: str = "2026"
) -> CatalogState:
    """Return a state version whose content is the name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return CatalogState(number(name), vm, kind, generation, digest, len(name), created)


def make_tables(url: str) -> None:
    """Make the catalogue's tables in a database of PostgreSQL."""
    SqlCatalog.connect(url).close()
