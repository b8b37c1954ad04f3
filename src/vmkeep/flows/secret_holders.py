"""Where the values of the secrets are that open TPM states: in the envelopes of points and pins that are vouched for.

Everybody who needs such a value asks here which envelope has it. Envelopes of hosts that nobody trusts are left out:
they could name any secret. No value is in what is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

from vmkeep.catalog import Catalog, CatalogPin, CatalogPoint, CatalogState
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import KeptSecret, SecretSource
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.repository import PointSecret, Repository

VTPM: Final = "vtpm"
"""libvirt's word for secrets that encrypt TPM states."""


@dataclass(frozen=True, slots=True)
class SecretHolder:
    """A point or a pin that holds the value of a secret for TPMs, and the state versions that it names."""

    kind: Literal["point", "pin"]
    id: str
    uuid: str
    versions: tuple[str, ...]

    @property
    def point(self) -> str:
        """The id of the point; empty for a pin."""
        return self.id if self.kind == "point" else ""

    @property
    def pin(self) -> str:
        """The id of the pin; empty for a point."""
        return self.id if self.kind == "pin" else ""

    @property
    def told(self) -> str:
        """What it is called in a sentence."""
        return told_of_holder(self.point, self.pin)


def told_of_holder(point: str, pin: str) -> str:
    """Return what a holder is called in a sentence."""
    return f"point {point}" if point else f"pin {pin}"


def secret_holders(catalog: Catalog, vm_uuid: str) -> tuple[SecretHolder, ...]:
    """Return what holds secrets for a VM's TPM: its points, then its pins, the newest of each first."""
    return (
        *_of_points(catalog.points_of_vm(vm_uuid)),
        *_of_pins(sorted(catalog.pins_of_vm(vm_uuid), key=lambda pin: pin.created, reverse=True)),
    )


def holder_for(
    holders: Iterable[SecretHolder], version: str | None, secret: str | None = None, *, first: Collection[str] = ()
) -> SecretHolder | None:
    """Return what holds the secret of a version: what names the version itself, else the newest; None for nothing.

    ``secret`` is the UUID if it is known; ``version`` None asks for that alone. What ``first`` names is taken before
    others.
    """
    fit = [holder for holder in holders if secret in (None, holder.uuid)]
    fit.sort(key=lambda holder: (holder.id not in first, version is not None and version not in holder.versions))
    return fit[0] if fit else None


def names_version(holders: Iterable[SecretHolder], version: str) -> bool:
    """Return whether the value of the secret of a version is kept with the version itself."""
    return any(version in holder.versions for holder in holders)


def versions_without_key(catalog: Catalog, repository: Repository, vm_uuid: str) -> tuple[CatalogState, ...]:
    """Return the encrypted versions of a VM's TPM state that something keeps, and whose secret nothing keeps.

    Those before a version in plain are not looked at, as long as nothing keeps a secret with them: a state that is
    encrypted was so from its beginning. Where a VM only ever had one secret, that opens them all. Raises what reading
    versions raises.
    """
    holders = secret_holders(catalog, vm_uuid)
    if len({holder.uuid for holder in holders}) == 1:
        return ()
    kept = {version for pin in catalog.pins_of_vm(vm_uuid) if pin.is_vouched_for for version in pin.versions}
    kept |= catalog.holders(vm_uuid).keys()
    found = []
    for state in catalog.states_of_vm(vm_uuid):
        if state.kind == "tpm" and state.id in kept and not names_version(holders, state.id):
            if not is_encrypted(repository.state(state.id)[1]):
                break
            found.append(state)
    return tuple(found)


def kept_secrets(catalog: Catalog, vm_uuid: str) -> tuple[KeptSecret, ...]:
    """Return which secrets are kept with which versions of a VM, as a host is told."""
    found = {(version, holder.uuid) for holder in secret_holders(catalog, vm_uuid) for version in holder.versions}
    return tuple(KeptSecret(version, uuid) for version, uuid in sorted(found))


def secret_of_versions(
    catalog: Catalog, repository: Callable[[], Repository], versions: Iterable[CatalogState]
) -> SecretSource | None:
    """Return the secret that opens the TPM's among versions that go back, and what holds it; None where none is needed,
    or nothing holds it. Raises what reading the version raises.
    """
    for version in versions:
        if version.kind != "tpm" or not is_encrypted(repository().state(version.id)[1]):
            continue
        holder = holder_for(secret_holders(catalog, version.vm_uuid), version.id)
        if holder is not None:
            return SecretSource(holder.uuid, holder.point, holder.pin)
    return None


def values_in(repository: Repository, holder: SecretHolder) -> tuple[PointSecret, ...]:
    """Return the secrets for TPMs in an envelope, with their values. Raises what reading it raises."""
    record = repository.holder(holder.point, holder.pin)
    return tuple(secret for secret in repository.secrets(record) if secret.usage == VTPM)


def _of_points(points: Sequence[CatalogPoint]) -> Iterator[SecretHolder]:
    for point in points:
        if not point.is_vouched_for:
            continue
        versions = tuple(str(state["version_id"]) for state in point.document.get("states", ()))
        for secret in point.document.get("secrets", ()):
            if secret.get("usage") == VTPM:
                yield SecretHolder("point", point.id, str(secret["uuid"]), versions)


def _of_pins(pins: Sequence[CatalogPin]) -> Iterator[SecretHolder]:
    for pin in pins:
        if not pin.is_vouched_for:
            continue
        for secret in pin.secrets:
            if secret.usage == VTPM:
                yield SecretHolder("pin", pin.id, secret.uuid, pin.versions)
