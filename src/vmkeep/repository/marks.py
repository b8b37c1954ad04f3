"""Marks of points: a *removal*, which hides a point until it is carried out, and a *protection*, which forbids that.

Each is one sealed object with the name of its point, signed as a point is. Anybody who has the repository's key can put
one, so a removal that nobody who is trusted has signed is no more than a wish: who reads marks decides that. Sections
9e and 9f of docs/internals/repository-format.md specify them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, Final

from vmkeep.errors import ObjectDamaged
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import PROTECTIONS, REMOVALS, FrameKind
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import FIELD, Signature, Signed, Signer
from vmkeep.repository.signed import SignedKind, SignedObjects, require_readable
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
class MarkKind(SignedKind):
    """Removals or protections, and the field that only they have."""

    own: str
    parse: Callable[[Any], Any]


REMOVAL: Final = MarkKind(
    REMOVALS,
    FrameKind.REMOVAL,
    Signed("removal"),
    "removal",
    own="grace_seconds",
    parse=fields.numbered(most=MOST_GRACE_SECONDS),
)
PROTECTION: Final = MarkKind(
    PROTECTIONS,
    FrameKind.PROTECTION,
    Signed("protection"),
    "protection",
    own="until",
    parse=fields.optional(fields.instant),
)
_PLAIN_FIELDS: Final = ("id", "host", "created", "why", "vm_uuid", "vm_name", "taken")


class Marks(SignedObjects):
    """The marks of one kind in a repository, by the ids of their points."""

    def __init__(
        self, kind: MarkKind, store: ObjectStore, sealer: Sealer, repository: str, signer: Callable[[], Signer] | None
    ) -> None:
        super().__init__(kind, store, sealer, repository, signer)
        self.kind = kind

    def get(self, point_id: str) -> Mark:
        """Return a point's, with its signature proved, if it has one; raises ObjectMissing or ObjectDamaged."""
        value, signature = self._read(point_id)
        return self._parsed(value, self._where(point_id), signature)

    def put(self, mark: Mark) -> Mark:
        """Store a mark durably in place of the one that its point may have, and return it signed.

        Raises InvalidRequest for what a reader would take for damage.
        """
        value = {**mark.extra, **{name: getattr(mark, name) for name in (*_PLAIN_FIELDS, self.kind.own)}}
        called = f"the {self.kind.called} of point {mark.id}"
        require_readable(lambda what: self._parsed(value, what, None), called, mark.vm_name)
        return replace(mark, signature=self._put(value, replace=True))

    def _parsed(self, value: Mapping[str, Any], where: str, signature: Signature | None) -> Mark:
        known = {*_PLAIN_FIELDS, self.kind.own, FIELD}
        taken = Fields(value)
        try:
            return Mark(
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


def _sentence(value: Any) -> str:
    return fields.line(value, most_bytes=_WHY_BYTES)
