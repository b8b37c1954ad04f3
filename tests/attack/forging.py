"""What a holder of a repository's key can do: write any record that it likes, sealed as every other one is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.layout import POINTS, FrameKind, canonical
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import FIELD
from vmkeep.repository.store import ObjectStore


def inside(repository: Repository) -> tuple[ObjectStore, Sealer]:
    """Return the writer's own tools, which whoever has the key has too."""
    return repository._store, repository._sealer


def put_point(repository: Repository, value: Mapping[str, Any], *, point_id: str, replace: bool = False) -> str:
    """Store a record under an id, whatever it says; return the id.

    Without a signature: the host's that made the point would be wrong, and is all that `test_forged_points` is about.
    """
    store, sealer = inside(repository)
    unsigned = {name: content for name, content in value.items() if name != FIELD}
    frame = sealer.seal_alone(FrameKind.POINT, point_id, canonical(unsigned))
    store.put(POINTS + point_id, frame, replace=replace)
    return point_id


def forge(repository: Repository, like: PointRecord, **changes: Any) -> str:
    """Store a new point that is like a good one but for these fields; return its id."""
    point_id = secrets.token_hex(16)
    value = {**like.as_json(), "id": point_id, **changes}
    return put_point(repository, value, point_id=point_id)


def replace_point(repository: Repository, like: PointRecord, **changes: Any) -> str:
    """Put another record in the place of a stored one, under the same id."""
    return put_point(repository, {**like.as_json(), **changes}, point_id=like.id, replace=True)
