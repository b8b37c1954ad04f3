"""A signed point as JSON, and the keys of two installations, the same in every run."""

from __future__ import annotations

from typing import Any

from tests.integration.repository.samples import CREATED, VM
from vmkeep.keys.signing import SigningKey
from vmkeep.repository import PointDisk, PointRecord, StateVersion, StoredDisk
from vmkeep.repository.record import BlockRef
from vmkeep.repository.signatures import FIELD, sign_point

REPOSITORY = "0f" * 16
MACHINE = "1" * 32
SIGNER = SigningKey("11" * 16, b"a" * 32, MACHINE, "alpha")
ROGUE = SigningKey("22" * 16, b"b" * 32, MACHINE, "beta")
STATE = StateVersion(
    "33" * 16, VM, "tpm", 1, "tpm2/tpm2-00.permall", "tss", "tss", 0o600, "4" * 64, 700, "2026-01-02T03:04:05+00:00"
)


def signed_point(
    point_id: str, *, by: SigningKey = SIGNER, repository: str = REPOSITORY, **extra: object
) -> dict[str, Any]:
    """Return the JSON of a point with one disk, one state and a signature that covers an envelope too."""
    root = BlockRef(b"\x55" * 32, b"\x66" * 16, 64, 200)
    record = PointRecord(
        id=point_id,
        vm_uuid=VM,
        vm_name="demo",
        kind="full",
        parent=None,
        created=CREATED,
        host="alpha",
        checkpoint="vmkeep-1",
        pause_ms=92.5,
        labels={"why": "test", "who": "we"},
        disks=(PointDisk("vda", "full", "why", "/a", "qcow2", 9, 5, StoredDisk(8192, 4096, 32, "77" * 16, root)),),
        excluded=(),
        states=(STATE.ref(),),
        definition="<domain/>",
        warnings=("a warning",),
        sequence=3,
        extra=extra,
    )
    value = record.as_json()
    return {**value, FIELD: sign_point(value, repository, by, states=[STATE], envelope=b"sealed")}
