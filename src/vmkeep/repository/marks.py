"""Marks of points: a *removal*, which hides a point until it is carried out, and a *protection*, which forbids that.

Each is one sealed object with the name of its point, signed as a point is. Anybody who has the repository's key can put
one, so a removal that nobody who is trusted has signed is no more than a wish: who reads marks decides that. Sections
9e and 9f of docs/internals/repository-format.md specify them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from datetime import datetime
from typing import Any, Final

from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import PROTECTIONS, REMOVALS, FrameKind, canonical, is_name, parse_canonical
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.signatures import FIELD, Signature, Signer, prove_mark, put_host_key, sign_mark
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

MOST_GRACE_SECONDS: Final = 10 * 365 * 24 * 3600
_WHY_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """What is said of the point ``id``: of which VM it is, when it was made (``taken``), who says so and why.

    VM and time are None of a point that nobody could read. ``grace_seconds`` is of a removal: how long after the store
    got the mark the point is only hidden. ``until`` is of a protection: None is for good. ``extra`` holds fields that a
    later minor version added.
    """

    id: str
    host: str
    created: str
    why: str
    vm_uuid: str | None = None
    vm_name: str | None = None
    taken: str | None = None
    grace_seconds: int = 0
    until: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class MarkKind:
    """Removals or protections: where they lie, how they are sealed and signed, and what they say besides."""

    prefix: str
    frame: FrameKind
    noun: str
    own: str
    parse: Callable[[Any], Any]


REMOVAL: Final = MarkKind(
    REMOVALS, FrameKind.REMOVAL, "removal", "grace_seconds", fields.numbered(most=MOST_GRACE_SECONDS)
)
PROTECTION: Final = MarkKind(PROTECTIONS, FrameKind.PROTECTION, "protection", "until", fields.optional(fields.instant))
_PLAIN_FIELDS: Final = ("id", "host", "created", "why", "vm_uuid", "vm_name", "taken")


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one kind in a repository. ``signer`` signs those that are put; without one they stay unsigned."""

    kind: MarkKind
    store: ObjectStore
    sealer: Sealer
    repository: str
    signer: Callable[[], Signer] | None

    def stored(self) -> dict[str, datetime]:
        """Return when the store got each, by the id of its point, without opening them."""
        items = (
            (item.name.removeprefix(self.kind.prefix), item.modified) for item in self.store.list(self.kind.prefix)
        )
        return {name: modified for name, modified in items if is_name(name)}

    def stored_at(self, point_id: str) -> datetime | None:
        """Return when the store got a point's; None when it has none."""
        try:
            return self.store.stat(self.kind.prefix + point_id).modified
        except ObjectMissing:
            return None

    def get(self, point_id: str) -> Mark:
        """Return a point's, with its signature proved, if it has one; raises ObjectMissing or ObjectDamaged."""
        where = self.kind.prefix + point_id
        if not is_name(point_id):
            raise ObjectMissing(f"{point_id!r} is not the id of a point")
        frame = self.store.get(where, most_bytes=frame_bytes_limit(self.kind.frame))
        value = parse_canonical(self.sealer.open_alone(self.kind.frame, point_id, frame, where), where)
        return self._parsed(value, point_id, where, prove_mark(self.kind.noun, value, self.repository, point_id, where))

    def put(self, mark: Mark) -> Mark:
        """Store a mark durably in place of the one that its point may have, and return it signed.

        Raises InvalidRequest for what a reader would take for damage.
        """
        where = self.kind.prefix + mark.id
        value = {**mark.extra, **{name: getattr(mark, name) for name in (*_PLAIN_FIELDS, self.kind.own)}}
        try:
            self._parsed(value, mark.id, f"the {self.kind.noun} of point {mark.id}", None)
        except ObjectDamaged as error:
            raise InvalidRequest(f"{error.message}, so nothing could read it again", vm=mark.vm_name) from error
        if self.signer is not None:
            signer = self.signer()
            put_host_key(self.store, self.sealer, self.repository, signer, mark.created)
            value[FIELD] = sign_mark(self.kind.noun, value, self.repository, signer)
        sealed = self.sealer.seal_alone(self.kind.frame, mark.id, canonical(value))
        self.store.put(where, sealed, replace=True)
        return replace(mark, signature=prove_mark(self.kind.noun, value, self.repository, mark.id, where))

    def delete(self, point_id: str) -> bool:
        """Delete a point's; False when it has none."""
        try:
            self.store.delete(self.kind.prefix + point_id)
        except ObjectMissing:
            return False
        return True

    def _parsed(self, value: Mapping[str, Any], point_id: str, where: str, signature: Signature | None) -> Mark:
        known = {*_PLAIN_FIELDS, self.kind.own, FIELD}
        taken = Fields(value)
        try:
            mark = Mark(
                id=taken.take("id", fields.name),
                host=taken.take("host", fields.line),
                created=taken.take("created", fields.instant),
                why=taken.take("why", _sentence),
                vm_uuid=taken.take("vm_uuid", fields.optional(fields.uuid)),
                vm_name=taken.take("vm_name", fields.optional(fields.vm_name)),
                taken=taken.take("taken", fields.optional(fields.instant)),
                extra=fields.later({name: each for name, each in value.items() if name not in known}),
                signature=signature,
                **{self.kind.own: taken.take(self.kind.own, self.kind.parse)},
            )
        except WrongField as error:
            raise ObjectDamaged(f"{where} {error}", path=where) from error
        if mark.id != point_id:
            raise ObjectDamaged(f"{where} holds the mark of another point", path=where)
        return mark


def _sentence(value: Any) -> str:
    return fields.line(value, most_bytes=_WHY_BYTES)
