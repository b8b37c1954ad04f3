"""What the catalogue takes and gives: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from enum import StrEnum
from typing import Any, Final, Literal

from vmkeep.errors import CatalogError, InvalidRequest
from vmkeep.values import dataclass

HIGHEST_GENERATION: Final = 1 << 62
"""What no VM comes to: a state version that claims more is never the current one."""
SAFETY_LABEL: Final = "vmkeep.safety"
"""The label of a point that a restore in place or a revert took first: of the state that was left."""


class Trust(StrEnum):
    """What a catalogue thinks of who made a point."""

    OWN = "own"
    """This installation."""
    TRUSTED = "trusted"
    """An installation whose key somebody here has trusted."""
    UNKNOWN = "unknown"
    """An installation whose key nobody here has decided about."""
    DISTRUSTED = "distrusted"
    """An installation that somebody here has shut out."""
    UNSIGNED = "unsigned"
    """Nobody can tell: the point has no signature."""

    @property
    def is_proved(self) -> bool:
        """Whether the point is one of this installation's, or of one that is trusted."""
        return self in (Trust.OWN, Trust.TRUSTED)


@dataclass(frozen=True, slots=True)
class KnownHostKey:
    """The key of an installation that signs points, as it was met first. ``host`` is the name of its host then.

    ``key`` is the public key in hexadecimal digits. Of a key of one's own ``machine`` is where it is used, as points
    say it, and ``copied_to`` the host on which a copy of this home was seen at work.
    """

    fingerprint: str
    key: str
    installation: str
    host: str
    trust: Trust = Trust.UNKNOWN
    seen_at: str = ""
    machine: str = ""
    copied_to: str | None = None

    def is_known_as(self, known: KnownHostKey | None) -> bool:
        """Return whether there is nothing to record of this key, which is met: only one's own is brought up to date."""
        if known is None or self.trust is not Trust.OWN:
            return known is not None
        return (known.trust, known.machine) == (self.trust, self.machine)

    def trusted_as(self, trust: Trust) -> KnownHostKey:
        """Return the key as it is when somebody has decided so about it; raises InvalidRequest for one's own.

        To trust one's own, of which a copy was seen at work, says that the copy is gone.
        """
        if self.trust is not Trust.OWN:
            return replace(self, trust=trust)
        if trust is Trust.TRUSTED and self.copied_to is not None:
            return replace(self, copied_to=None)
        raise InvalidRequest(
            f"{self.fingerprint} is the key of this installation itself",
            hint="`vmkeep host renew` gives this installation another key.",
        )


@dataclass(frozen=True, slots=True)
class KnownKeyring:
    """A keyring as it was met: its generation, the SHA-256 of its bytes, and the ids of its data keys.

    ``active`` is the data key that seals what is written, ``data_keys`` are all, sorted.
    """

    generation: int
    sha256: str
    active: str
    data_keys: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the catalogue."""
        return {name: getattr(self, name) for name in ("generation", "sha256", "active", "data_keys")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KnownKeyring:
        """Return one of ``as_json``."""
        return cls(value["generation"], value["sha256"], value["active"], tuple(value["data_keys"]))

    def fault_of(self, found: KnownKeyring) -> str:
        """Return why a keyring that is met after this one cannot be the one in force; empty for one that can.

        A generation is written once, a later one has a higher number, and no rotation takes a data key away, or one
        that was replaced into use again (docs/internals/repository-format.md, section 3).
        """
        if found.generation < self.generation:
            return f"it is generation {found.generation}, and generation {self.generation} was in force"
        if found.generation == self.generation:
            return "" if found.sha256 == self.sha256 else f"its generation {found.generation} was another one"
        if set(self.data_keys) - set(found.data_keys):
            return f"generation {found.generation} lacks a data key that generation {self.generation} had"
        if found.active != self.active and found.active in self.data_keys:
            return f"generation {found.generation} takes a data key into use again that had been replaced"
        return ""


@dataclass(frozen=True, slots=True)
class KnownRepository:
    """The repository this catalogue belongs to. ``since`` is when it was first used from here.

    ``keyring`` is the one that was in force when it was met last; None where none was.
    """

    id: str
    location: str
    since: str
    keyring: KnownKeyring | None = None


@dataclass(frozen=True, slots=True)
class CatalogVm:
    """A VM the catalogue knows. ``adopted``: known only from a repository taken over, never seen on this host.

    ``current_point`` is the point that the VM's state descends from, where that is known. ``before_first``: it descends
    from none, because it went back to a time before its first one. ``forgotten_until``: somebody said that the VM is
    gone for good, and it was not seen since; versions of its state files are kept until then.
    """

    uuid: str
    name: str
    host_uuid: str | None
    seen_at: str
    adopted: bool
    current_point: str | None = None
    before_first: bool = False
    forgotten_until: str | None = None

    @property
    def is_tracked(self) -> bool:
        """Whether it is known which point its state descends from, if any."""
        return self.current_point is not None or self.before_first


@dataclass(frozen=True, slots=True)
class CatalogPoint:
    """A point. ``document`` is the whole record of the repository as JSON; ``created`` is ISO 8601 in UTC.

    ``sequence`` is its order number, None for one of an older release. ``created`` is shown and orders nothing.
    ``digest`` is the SHA-256 of the record in the repository, None as long as it is not known.
    ``signed_by`` is the fingerprint of the key that signed it; None for none, and empty for none when it was known here
    before points were signed. ``trust`` and ``installation`` are what the catalogue thinks of that key.
    """

    id: str
    vm_uuid: str
    vm_name: str
    kind: Literal["full", "incremental"]
    parent: str | None
    created: str
    host: str
    checkpoint: str | None
    pause_ms: float
    labels: Mapping[str, str]
    document: Mapping[str, Any]
    sequence: int | None = None
    digest: str | None = field(default=None, compare=False)
    signed_by: str | None = None
    trust: Trust = field(default=Trust.UNSIGNED, compare=False)
    installation: str | None = field(default=None, compare=False)

    @property
    def is_vouched_for(self) -> bool:
        """Whether it may be built on and be meant without its id: it is proved, or was known before there was proof."""
        return self.trust.is_proved or self.signed_by == ""

    @property
    def is_own(self) -> bool:
        """Whether this installation made it: its key signed it, or it was known here before points were signed."""
        return self.trust is Trust.OWN or self.signed_by == ""

    @property
    def is_safety(self) -> bool:
        """Whether it holds the state that a restore in place or a revert left, and nobody asked for it."""
        return SAFETY_LABEL in self.labels

    def repeats(self, known: CatalogPoint) -> bool:
        """Return whether a point of the same id is this one; not by who signed it: an older release did not look."""
        same_record = None in (known.digest, self.digest) or known.digest == self.digest
        return same_record and replace(known, signed_by=self.signed_by) == self

    def summary(self) -> dict[str, Any]:
        """Return the point as `vmkeep backup --json` and `vmkeep points --json` print it."""
        disks = [_disk_summary(disk) for disk in self.document.get("disks", ())]
        return {
            "id": self.id,
            "vm": self.vm_name,
            "vm_uuid": self.vm_uuid,
            "kind": self.kind,
            "parent": self.parent,
            "created": self.created,
            "sequence": self.sequence,
            "host": self.host,
            "made_by": made_by(self.signed_by, self.installation, self.trust),
            "checkpoint": self.checkpoint,
            "pause_ms": self.pause_ms,
            "labels": dict(self.labels),
            "disks": disks,
            "excluded": [dict(disk) for disk in self.document.get("excluded", ())],
            "state": {kind: _state_summary(self.document, kind) for kind in ("tpm", "nvram")},
            "secrets": [dict(secret) for secret in self.document.get("secrets", ())],
            "warnings": list(self.document.get("warnings", ())),
        }


@dataclass(frozen=True, slots=True)
class PointOutline:
    """A point as far as its place in a list needs it, without its document."""

    id: str
    created: str


@dataclass(frozen=True, slots=True)
class CatalogState:
    """A state version that a point or a snapshot holds: an immutable sealed copy of a VM's TPM state or NVRAM.

    ``conflict``: another version claimed its generation first, so it is kept and never counts as the current one.
    ``because`` is why it was given its generation (``Because``), empty where nobody said; ``made_here``: by this
    installation. ``epoch`` is that of the lease under which it was read, None for a VM without one; it decides whether
    the version counts, and is not kept.
    """

    id: str
    vm_uuid: str
    kind: Literal["tpm", "nvram"]
    generation: int
    sha256: str
    size_bytes: int
    created: str
    conflict: bool = False
    because: str = field(default="", compare=False)
    made_here: bool = field(default=True, compare=False)
    epoch: int | None = field(default=None, compare=False)

    def is_known_as(self, known: CatalogState | None) -> bool:
        """Return whether it is known. Raises CatalogError when ``known``, of its id, has other content.

        A point names the versions it holds without saying when each was made, or whether one came late.
        """
        if known is not None and replace(known, created=self.created, conflict=self.conflict) != self:
            raise CatalogError(f"State version {self.id} is known with other content", vm=self.vm_uuid)
        return known is not None

    def refuse_late(self, newest: CatalogState | None) -> None:
        """Raise CatalogError unless its generation is above that of the newest one accepted for the VM and kind."""
        if newest is not None and self.generation <= newest.generation:
            raise CatalogError(
                f"{self.kind} state of generation {self.generation} came late: "
                f"generation {newest.generation} is accepted already",
                vm=self.vm_uuid,
                hint="Another operation recorded this VM's state meanwhile; run the command again.",
            )


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """A libvirt snapshot that was made here: what is kept with it besides the disks.

    ``name`` and ``creation_time`` (seconds since 1970) are libvirt's, and tell it from a later one of the same name.
    ``current_point`` is the point that the VM's state descended from then; ``states`` are its state files of the
    snapshot's instant; ``created`` is that instant, ISO 8601 in UTC.
    """

    id: str
    vm_uuid: str
    name: str
    creation_time: int
    current_point: str | None
    created: str
    states: tuple[CatalogState, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldSecret:
    """A secret of libvirt's whose value is in the envelope of a point or a pin: what it is for, and its UUID."""

    usage: str
    uuid: str


@dataclass(frozen=True, slots=True)
class CatalogPin:
    """A pin of the repository: what keeps versions that no point names.

    ``why`` is a word for people. It counts until a time (ISO 8601 in UTC) or, with None, until it is deleted.
    ``signed_by`` and ``trust`` are as those of a point. ``snapshot_id`` and ``snapshot_name`` are of the snapshot that
    it belongs to, as the pin has them; without a name when that was forgotten here. ``secrets`` are in its envelope.
    """

    id: str
    vm_uuid: str
    vm_name: str
    host: str
    created: str
    why: str
    versions: tuple[str, ...]
    until: str | None = None
    signed_by: str | None = None
    snapshot_id: str | None = None
    snapshot_name: str | None = None
    secrets: tuple[HeldSecret, ...] = ()
    trust: Trust = field(default=Trust.UNSIGNED, compare=False)

    @property
    def is_vouched_for(self) -> bool:
        """Whether its versions may be referred to and be held against what lies on a host."""
        return self.trust.is_proved


@dataclass(frozen=True, slots=True)
class FoundPin:
    """A pin as the repository holds it, with the versions that it names, and what is kept with its snapshot."""

    pin: CatalogPin
    states: tuple[CatalogState, ...]
    snapshot: CatalogSnapshot | None = None


@dataclass(frozen=True, slots=True)
class StateFile:
    """A state file as it was found on a host, and how it stood then. ``sha256`` is None where there was no file.

    ``since`` is when it was first seen like that, ``seen_at`` when last (ISO 8601 in UTC); the catalogue gives both.
    """

    vm_uuid: str
    host_uuid: str
    kind: Literal["tpm", "nvram"]
    path: str
    sha256: str | None
    size_bytes: int | None
    standing: str
    since: str = ""
    seen_at: str = ""

    def is_as(self, known: StateFile | None) -> bool:
        """Return whether it is what was found before, at whatever time."""
        return known is not None and replace(known, since=self.since, seen_at=self.seen_at) == self


@dataclass(frozen=True, slots=True)
class StateAlert:
    """What keeps a VM's state files from being captured: an error's code and words, since when and how often."""

    vm_uuid: str
    code: str
    message: str
    first_at: str
    last_at: str
    times: int


@dataclass(frozen=True, slots=True)
class CatalogDeletion:
    """A proof that a TPM was removed, or, with ``of``, a later fact about that one. ``event`` says which.

    ``document`` is the record of the repository as JSON, without its signature; ``stored`` whether the repository has
    it. ``kept_until`` is, of a removal, until when the versions are kept that no point holds. ``signed_by`` and
    ``trust`` are as those of a point.
    """

    id: str
    of: str | None
    event: str
    vm_uuid: str
    created: str
    document: Mapping[str, Any]
    kept_until: str | None = None
    stored: bool = False
    signed_by: str | None = None
    trust: Trust = field(default=Trust.UNSIGNED, compare=False)

    @property
    def is_vouched_for(self) -> bool:
        """Whether what it says may decide something here: it is this installation's, or of one that is trusted."""
        return self.trust.is_proved or not self.stored


@dataclass(frozen=True, slots=True)
class PointRemoval:
    """A removal of the repository: what hides a point until it is carried out, ``grace_seconds`` after ``stored_at``.

    That is the store's time. VM and ``taken`` (the time of the point) are None of a point that nobody could read.
    """

    point_id: str
    host: str
    created: str
    stored_at: str
    grace_seconds: int
    why: str
    vm_uuid: str | None = None
    vm_name: str | None = None
    taken: str | None = None
    signed_by: str | None = None
    trust: Trust = field(default=Trust.UNSIGNED, compare=False)

    @property
    def hides(self) -> bool:
        """Whether it hides its point. One that nobody who is trusted has signed is a wish of somebody."""
        return self.trust.is_proved


@dataclass(frozen=True, slots=True)
class PointProtection:
    """A protection of the repository: it keeps a point from being removed, until a time or (None) for good.

    Whoever signed it: it deletes nothing.
    """

    point_id: str
    host: str
    created: str
    stored_at: str
    why: str
    until: str | None = None
    signed_by: str | None = None

    def holds(self, now: str) -> bool:
        """Return whether it holds at a time (ISO 8601 in UTC)."""
        return self.until is None or self.until > now


@dataclass(frozen=True, slots=True)
class Policy:
    """Which points are kept of what ``subject`` names: "all", "vm:UUID", "label:NAME" or "label:NAME=VALUE".

    ``keep`` is a rule as people write it, ``zone`` that of its periods, ``grace_seconds`` how long what goes is only
    hidden. ``changed_at`` is given by the catalogue.
    """

    subject: str
    keep: str
    within_seconds: int
    zone: str
    grace_seconds: int
    changed_at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class PassedPoint:
    """A point of the repository that was read, and is of a VM which this installation has nothing to do with."""

    id: str
    vm_uuid: str
    vm_name: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """What `adopt` added. ``conflicts`` are sentences about state versions that contradict known ones.

    They are said once: what came late is kept for its point from then on.
    """

    points: int
    vms: int
    states: int
    conflicts: tuple[str, ...]


def trust_of(signed_by: str | None, found: str | None) -> Trust:
    """Return what is thought of a point by who signed it and by what the catalogue has of that key."""
    if not signed_by:
        return Trust.UNSIGNED
    return Trust.UNKNOWN if found is None else Trust(found)


def made_by(signed_by: str | None, installation: str | None, trust: Trust) -> dict[str, str | None]:
    """Return who made a point, as JSON has it: ``proved`` is told by ``trust``."""
    return {"key": signed_by or None, "installation": installation, "trust": str(trust)}


def _disk_summary(disk: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: disk.get(key) for key in ("target", "mode", "reason", "bytes_read", "bytes_stored")}
    stored = disk.get("stored") or {}
    return {**shown, "size_bytes": stored.get("size_bytes")}


def _state_summary(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    for state in document.get("states", ()):
        if state.get("kind") == kind:
            return {"present": True, "sha256": state.get("sha256"), "bytes": state.get("size_bytes")}
    return {"present": False, "sha256": None, "bytes": None}
