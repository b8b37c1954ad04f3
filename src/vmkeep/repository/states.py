"""State versions: immutable, sealed copies of a state file, each an object of its own."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime

from vmkeep.errors import InvalidRequest, ObjectDamaged, StateTorn
from vmkeep.repository.layout import NAME_BYTES, STATES, FrameKind, canonical, parse_canonical
from vmkeep.repository.record import STATE_LIMITS, StateVersion
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore

_LENGTH = struct.Struct("<I")


def put_state(
    store: ObjectStore,
    sealer: Sealer,
    content: bytes,
    *,
    vm_uuid: str,
    kind: str,
    generation: int,
    file: str,
    owner: str,
    group: str,
    mode: int,
    created: str | None = None,
) -> StateVersion:
    """Store one state file's content durably and return what is known of it.

    Raises StateTorn when the content is empty or larger than its kind may be (TPM 1 MiB, NVRAM 8 MiB): it is
    refused, never cut. Raises InvalidRequest for an unknown kind, and for what a reader would take for damage.
    """
    if kind not in STATE_LIMITS:
        raise InvalidRequest(f"{kind!r} is not a kind of state file")
    if not content or len(content) > STATE_LIMITS[kind]:
        raise StateTorn(
            f"the {kind} state {file} has {len(content)} bytes; 1 to {STATE_LIMITS[kind]} can be right",
            vm=vm_uuid,
            path=file,
        )
    version = StateVersion(
        id=sealer.random(NAME_BYTES).hex(),
        vm_uuid=vm_uuid,
        kind=kind,
        generation=generation,
        file=file,
        owner=owner,
        group=group,
        mode=mode,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        created=created or datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    try:
        StateVersion.from_json(version.as_json(), file)
    except ObjectDamaged as error:
        raise InvalidRequest(f"the {kind} state {error.message}, so nothing could read it again", vm=vm_uuid) from error
    header = canonical(version.as_json())
    plain = _LENGTH.pack(len(header)) + header + content
    store.put(STATES + version.id, sealer.seal_alone(FrameKind.STATE, version.id, plain))
    return version


def get_state(store: ObjectStore, sealer: Sealer, version_id: str) -> tuple[StateVersion, bytes]:
    """Return a state version and its content; raises ObjectMissing or ObjectDamaged."""
    where = STATES + version_id
    frame = store.get(where, most_bytes=frame_bytes_limit(FrameKind.STATE))
    plain = sealer.open_alone(FrameKind.STATE, version_id, frame, where)
    length = _LENGTH.unpack_from(plain)[0] if len(plain) >= _LENGTH.size else len(plain)
    header, content = plain[_LENGTH.size : _LENGTH.size + length], plain[_LENGTH.size + length :]
    version = StateVersion.from_json(parse_canonical(header, where), where)
    if (
        version.id != version_id
        or version.size_bytes != len(content)
        or version.sha256 != hashlib.sha256(content).hexdigest()
    ):
        raise ObjectDamaged(f"{where} holds other content than it says", path=where)
    return version, content
