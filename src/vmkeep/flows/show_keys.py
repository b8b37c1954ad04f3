"""What is known of the keys of the repository: who opens it, since when, what is lost without them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmkeep.errors import VmkeepError
from vmkeep.flows.installation import Premises
from vmkeep.flows.secret_holders import versions_without_key
from vmkeep.keys.material import KEY_FILE
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.keys.provider import ProviderKey
    from vmkeep.repository.keyring import Recipient

UNASKED, ANSWERS = "unasked", "answers"


@dataclass(frozen=True, slots=True)
class KeyShown:
    """A key that opens the repository, or that is at hand.

    ``name`` is that of its table in the settings, ``where`` tells where it is; both empty for one that is not at hand.
    ``since`` is when it was added, ``exported`` when it was exported here last; None when that is not known.
    ``state`` is ``answers``, ``unasked``, or the code of the error that it answered with, which ``problem`` tells.
    """

    key: str
    kind: str
    name: str = ""
    where: str = ""
    recipient: bool = False
    in_use: bool = False
    passphrase: bool = False
    since: str | None = None
    exported: str | None = None
    state: str = UNASKED
    problem: str | None = None
    hint: str | None = None

    @property
    def at_hand(self) -> bool:
        return bool(self.where)

    @property
    def is_file(self) -> bool:
        return self.kind == KEY_FILE


@dataclass(frozen=True, slots=True)
class SecretNotKept:
    """Encrypted versions of a VM's TPM state whose secret no envelope holds: how many, and the newest one's number."""

    vm: str
    vm_uuid: str
    versions: int
    newest: int


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """What `vmkeep key status` tells. The numbers are of what no other key than the recipients' opens."""

    repository: str
    location: str
    generation: int
    data_keys: int
    recipients: tuple[KeyShown, ...]
    points: int
    vms: int
    state_versions: int
    secrets_not_kept: tuple[SecretNotKept, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should do something about."""
        if not [each for each in self.recipients if each.exported or not (each.is_file and each.at_hand)]:
            return ("no key was ever exported here, and none is elsewhere: with this host all points would be lost",)
        if len(self.recipients) == 1 and not self.recipients[0].is_file:
            return ("one provider alone opens the repository: without its key all points would be lost",)
        return ()


def shown_keys(premises: Premises, *, ask: bool) -> tuple[KeyShown, ...]:
    """Return the keys at hand, and the recipients that are not, in the order of the keyring, others after them.

    ``ask``: seal and open something with each. Raises what opening the repository raises.
    """
    repository = premises.repository
    since = {each.key_id: added for each, added in repository.recipients_since().items()}
    shown = _shown(premises, repository.keyring.recipients, ask=ask)
    return tuple(
        replace(
            each,
            in_use=each.key == premises.key.key_id,
            since=since[each.key].isoformat(timespec="seconds") if each.recipient and each.key in since else None,
        )
        for each in shown
    )


def keys_at_hand(premises: Premises) -> tuple[KeyShown, ...]:
    """Return the keys at hand and whether each answers, also when none of them opens the repository.

    Whether they are recipients is what the repository says itself; of one that cannot be looked at none is.
    """
    recipients: tuple[Recipient, ...] = ()
    with suppress(VmkeepError):
        recipients = _told_recipients(premises)
    return tuple(each for each in _shown(premises, recipients, ask=True) if each.at_hand)


def recipients_besides(premises: Premises, key: str) -> tuple[str, ...]:
    """Return the keys that open the repository when this is none of them; none where no repository is known."""
    with suppress(VmkeepError):
        recipients = tuple(each.key_id for each in _told_recipients(premises))
        return () if key in recipients else recipients
    return ()


def _told_recipients(premises: Premises) -> tuple[Recipient, ...]:
    from vmkeep.repository import Repository

    location = premises.settings.repository
    return Repository.told_recipients(location, premises.settings.access_to(location))


def _shown(premises: Premises, recipients: Sequence[Recipient], *, ask: bool) -> list[KeyShown]:
    kinds = {each.key_id: each.kind for each in recipients}
    providers = {each.key_id: each for each in premises.keychain.providers}
    files = premises.keychain.file_ids()
    shown = []
    for key_id in dict.fromkeys([*kinds, *files, *providers]):
        exported = premises.keychain.exported(key_id)
        told = KeyShown(key_id, kinds.get(key_id, KEY_FILE), recipient=key_id in kinds, exported=exported)
        shown.append(_held(premises, told, providers.get(key_id), is_file=key_id in files, ask=ask))
    return shown


def key_status(premises: Premises) -> KeyStatus:
    """Return what is known of the repository's keys. Raises what opening the repository raises."""
    repository, catalog = premises.repository, premises.catalog
    points = catalog.points()
    not_kept, unread = [], []
    for vm in catalog.vms():
        try:
            lacking = versions_without_key(catalog, repository, vm.uuid)
        except VmkeepError as error:
            unread.append(f"the TPM state of VM {vm.name} could not be looked at: {error.message}")
            continue
        if lacking:
            not_kept.append(SecretNotKept(vm.name, vm.uuid, len(lacking), lacking[0].generation))
    vms = {point.vm_uuid for point in points}
    versions = {state.id for vm in {*vms, *(each.uuid for each in catalog.vms())} for state in catalog.states_of_vm(vm)}
    return KeyStatus(
        repository.id,
        repository.location,
        repository.keyring.generation,
        len(repository.keyring.default.data_keys),
        tuple(each for each in shown_keys(premises, ask=False) if each.recipient),
        len(points),
        len(vms),
        len(versions),
        tuple(not_kept),
        tuple(unread),
    )


def _held(premises: Premises, told: KeyShown, provider: ProviderKey | None, *, is_file: bool, ask: bool) -> KeyShown:
    """Return what is known of a key with what is known of where it is."""
    from vmkeep.keys import KeyFile

    path = premises.keychain.directory / f"{told.key}.key"
    if provider is not None:
        told = replace(told, kind=provider.kind, name=provider.name, where=provider.where)
    elif is_file:
        told = replace(told, where=str(path))
    if not told.at_hand or not (ask or is_file):
        return told
    try:
        if is_file:
            told = replace(told, passphrase=KeyFile.has_passphrase(path))
        if ask:
            (provider or premises.keychain.file(told.key)).check()
    except VmkeepError as error:
        return replace(told, state=error.code, problem=error.message, hint=error.hint)
    return replace(told, state=ANSWERS) if ask else told
