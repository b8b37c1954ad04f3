"""Small objects that are sealed each by itself and signed: pins, proofs of deletion, removals and protections.

Here is what they have in common: read and proved, signed and stored, listed and deleted. What one of them says, and
what must be so before it is put, is of the module of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing
from vmkeep.repository.layout import NAME_BYTES, FrameKind, canonical, is_name, parse_canonical
from vmkeep.repository.record import StateVersion
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.signatures import FIELD, Signature, Signed, Signer, put_host_key
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class SignedKind:
    """A kind of these objects: where they lie, how they are sealed and signed, and what one is called."""

    prefix: str
    frame: FrameKind
    signed: Signed
    called: str


class SignedObjects:
    """The objects of one kind in a repository. ``signer`` signs those that are put; without one they stay unsigned."""

    def __init__(
        self, kind: SignedKind, store: ObjectStore, sealer: Sealer, repository: str, signer: Callable[[], Signer] | None
    ) -> None:
        self.store = store
        self.sealer = sealer
        self._kind = kind
        self._repository = repository
        self._signer = signer

    def ids(self) -> list[str]:
        """Return the ids of all, sorted, without opening them."""
        return sorted(self.stored())

    def stored(self) -> dict[str, datetime]:
        """Return when the store got each, by its id, without opening them."""
        prefix = self._kind.prefix
        items = ((item.name.removeprefix(prefix), item.modified) for item in self.store.list(prefix))
        return {name: modified for name, modified in items if is_name(name)}

    def stored_at(self, object_id: str) -> datetime | None:
        """Return when the store got one; None when it is not there."""
        try:
            return self.store.stat(self._kind.prefix + object_id).modified
        except ObjectMissing:
            return None

    def delete(self, object_id: str) -> bool:
        """Delete one; False when it is not there."""
        try:
            self.store.delete(self._kind.prefix + object_id)
        except ObjectMissing:
            return False
        return True

    def _where(self, object_id: str) -> str:
        """Return the name of an object. Raises ObjectMissing for an id that none can have."""
        if not is_name(object_id):
            raise ObjectMissing(f"{object_id!r} is not the id of a {self._kind.called}")
        return self._kind.prefix + object_id

    def _read(self, object_id: str) -> tuple[dict[str, Any], Signature | None]:
        """Return what an object says, and its signature, proved, if it has one; raises ObjectMissing, ObjectDamaged."""
        where = self._where(object_id)
        frame = self.store.get(where, most_bytes=frame_bytes_limit(self._kind.frame))
        value = parse_canonical(self.sealer.open_alone(self._kind.frame, object_id, frame, where), where)
        signature = self._kind.signed.prove(value, self._repository, object_id, where)
        if value.get("id") != object_id:
            raise ObjectDamaged(f"{where} holds another {self._kind.called}", path=where)
        return value, signature

    def _drawn(self) -> str:
        """Return an id that no other object has."""
        return self.sealer.random(NAME_BYTES).hex()

    def _put(
        self,
        value: Mapping[str, Any],
        *,
        states: Sequence[StateVersion] = (),
        envelope: bytes | None = None,
        replace: bool = False,
    ) -> Signature | None:
        """Sign what is to be said, and store it durably under its ``id``; return the signature.

        ``states`` and ``envelope`` are what it names. Raises TargetExists when one is there, unless ``replace``.
        """
        object_id = str(value["id"])
        where = self._where(object_id)
        if self._signer is not None:
            signer = self._signer()
            put_host_key(self.store, self.sealer, self._repository, signer, str(value["created"]))
            signature = self._kind.signed.sign(value, self._repository, signer, states, envelope)
            value = {**value, FIELD: signature}
        sealed = self.sealer.seal_alone(self._kind.frame, object_id, canonical(value))
        self.store.put(where, sealed, replace=replace)
        return self._kind.signed.prove(value, self._repository, object_id, where)


def require_readable(parse: Callable[[str], object], what: str, vm: str | None) -> None:
    """Raise InvalidRequest for what a reader would take for damage; ``parse`` is given how to call it."""
    try:
        parse(what)
    except ObjectDamaged as error:
        raise InvalidRequest(f"{error.message}, so nothing could read it again", vm=vm) from error
