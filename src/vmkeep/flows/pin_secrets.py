"""What opens the TPM states that pins keep: taken from envelopes that have it, and sealed into those of new pins.

A value goes from one envelope into another within this process, and is nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from vmkeep.catalog import Catalog, CatalogPin, CatalogState
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import SealedSecret
from vmkeep.errors import VmkeepError
from vmkeep.flows.secret_holders import VTPM, SecretHolder, secret_holders, values_in
from vmkeep.logs import get_logger
from vmkeep.repository import PointSecret, Repository

_log = get_logger(__name__)


class PinSecrets:
    """The secrets for the pins of one VM. ``sealed`` were sealed by a host just now, for pins that are to be put.

    ``lost`` are points that are not stored any more, ``going`` one that is about to be deleted: its envelope can still
    be read, and keeps nothing.
    """

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        vm_uuid: str,
        sealed: Sequence[SealedSecret],
        *,
        lost: Collection[str],
        going: Collection[str | None],
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._vm_uuid = vm_uuid
        self._sealed = list(sealed)
        self._lost = lost
        self._going = going

    def for_version(self, state: CatalogState) -> SealedSecret | None:
        """Return what was sealed for a pin of this version; None for one in plain, and where nothing has its secret.

        What names the version itself has its secret. Of versions that were kept before pins had envelopes the VM's
        secret is taken if it only ever had one.
        """
        if state.kind != "tpm":
            return None
        fresh = self._taken(state.id)
        if fresh is not None:
            return fresh
        holders = self._holders()
        own = [holder for holder in holders if state.id in holder.versions]
        if not own and len({holder.uuid for holder in holders}) == 1 and self._is_encrypted(state):
            own = list(holders)
        return self._copied(own, state.id)

    def for_held(self, state: CatalogState) -> SealedSecret | None:
        """Return the same of a version that a point or a snapshot holds, and whose secret none of these has."""
        if state.kind != "tpm" or state.id in self.kept_elsewhere():
            return None
        fresh = self._taken(state.id)
        if fresh is not None:
            return fresh
        return self._copied([holder for holder in self._holders() if state.id in holder.versions], state.id)

    def for_snapshot(self, states: Sequence[CatalogState]) -> SealedSecret | None:
        """Return what was sealed for the pin of a snapshot with these versions."""
        return next((sealed for state in states if (sealed := self.for_version(state)) is not None), None)

    def without_version(self, until: str | None) -> Iterator[SealedSecret]:
        """Yield what was sealed for pins that name no version: of TPMs that were never started.

        Also the last of a point that goes and has no TPM state, and those whose pin has another term.
        """
        for sealed in [each for each in self._sealed if not each.version_id]:
            self._sealed.remove(sealed)
            yield sealed
        staying = [holder for holder in self._holders() if holder.id not in self._going]
        terms = {pin.id: pin.until for pin in self._catalog.pins_of_vm(self._vm_uuid)}
        here = {holder.uuid for holder in staying if holder.point or holder.versions or terms.get(holder.id) == until}
        for holder in self._holders():
            ends = holder.id in self._going and not self._tpm_versions(holder)
            moves = holder.pin and not holder.versions and terms.get(holder.id) != until
            if holder.uuid not in here and (ends or moves):
                copied = self._copied([holder], "")
                if copied is not None:
                    here.add(holder.uuid)
                    yield copied

    def kept_elsewhere(self) -> frozenset[str]:
        """Return the versions whose secret is in what stays of points and pins of snapshots that name them."""
        of_snapshots = {pin.id for pin in self._catalog.pins_of_vm(self._vm_uuid) if pin.snapshot_id is not None}
        return frozenset(
            version
            for holder in self._holders()
            if holder.id not in self._going and (holder.point or holder.id in of_snapshots)
            for version in holder.versions
        )

    def is_superfluous(self, pin: CatalogPin) -> bool:
        """Return whether the secrets of a pin without versions are, with their values, in something else that stays."""
        mine = {secret.uuid for secret in pin.secrets}
        others = [
            holder
            for holder in self._holders()
            if holder.uuid in mine and holder.id != pin.id and holder.id not in self._going
        ]
        terms = {each.id: each.until for each in self._catalog.pins_of_vm(self._vm_uuid)}
        others = [
            holder
            for holder in others
            if holder.point or holder.versions or (holder.id < pin.id and terms.get(holder.id) == pin.until)
        ]
        if mine - {holder.uuid for holder in others}:
            return False
        try:
            values = self._repository.secrets(self._repository.pins.get(pin.id))
            elsewhere = {(each.uuid, each.value) for holder in others for each in values_in(self._repository, holder)}
        except VmkeepError as error:
            _log.warning("an envelope cannot be read", pin=pin.id, error=error.message)
            return False
        return all((each.uuid, each.value) in elsewhere for each in values)

    def drop_unused(self) -> None:
        """Delete the envelopes that no pin was put for."""
        known = self._catalog.pin_ids() if self._sealed else frozenset()
        for sealed in self._sealed:
            if sealed.pin_id not in known:  # an attempt that was killed put its pin
                self._repository.pins.delete(sealed.pin_id)
        self._sealed.clear()

    def _holders(self) -> list[SecretHolder]:
        return [each for each in secret_holders(self._catalog, self._vm_uuid) if each.id not in self._lost]

    def _tpm_versions(self, holder: SecretHolder) -> set[str]:
        tpm = {state.id for state in self._catalog.states_of_vm(self._vm_uuid) if state.kind == "tpm"}
        return tpm & set(holder.versions)

    def _taken(self, version_id: str) -> SealedSecret | None:
        for sealed in self._sealed:
            if sealed.version_id == version_id:
                self._sealed.remove(sealed)
                return sealed
        return None

    def _copied(self, holders: Sequence[SecretHolder], version_id: str) -> SealedSecret | None:
        """Seal the secret of the first holder that can be read anew."""
        for holder in holders:
            try:
                secret = _only(values_in(self._repository, holder), holder.uuid)
                if secret is None:
                    continue
                pin_id, _ = self._repository.pins.seal(self._vm_uuid, (secret,))
            except VmkeepError as error:
                _log.warning("a secret cannot be kept with a version", holder=holder.told, error=error.message)
                continue
            return SealedSecret(pin_id, version_id, VTPM, secret.uuid)
        return None

    def _is_encrypted(self, state: CatalogState) -> bool:
        try:
            return is_encrypted(self._repository.state(state.id)[1])
        except VmkeepError:
            return False


def _only(secrets: Sequence[PointSecret], uuid: str) -> PointSecret | None:
    return next((secret for secret in secrets if secret.uuid == uuid), None)
