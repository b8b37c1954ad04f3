"""All that is known of one VM's state: its files on the host, the versions, and what the newest ones hold, in words.

Nothing is changed. What cannot be asked (a host, a repository) is told, and the rest is shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from vmkeep.catalog import Catalog
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.nvram import KeyDatabase, key_databases
from vmkeep.custody.standing import LOOK_SECONDS, Standing, standing_after
from vmkeep.custody.variables import SecureBoot, VariableStore, read_variables
from vmkeep.errors import HypervisorError, VmkeepError, VmNotFound
from vmkeep.flows.secret_holders import SecretHolder, holder_for, secret_holders
from vmkeep.flows.vm_states import (
    KINDS,
    Standings,
    StandingState,
    VersionKept,
    chosen_of,
    look_at_standings,
    remedy,
    versions_kept,
)
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import FindVm
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class KeptVariables:
    """What a version of UEFI variables holds. ``problem`` says why not all of it could be read."""

    secure_boot: SecureBoot | None
    variables: int
    databases: tuple[KeyDatabase, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A state file as it was found on a host some time ago. ``standing`` is how it stands by that now."""

    host: str
    path: str
    standing: Standing
    sha256: str | None
    since: str
    seen_at: str


@dataclass(frozen=True, slots=True)
class KindShown:
    """A kind of state of a VM. ``versions`` are those known, the newest first; ``newest`` the newest that counts.

    ``found`` and ``remedy`` are None for a VM that is not on the host. ``encrypted`` says so of the newest TPM state
    that is kept, and ``secret`` what opens it; ``variables`` is of the newest UEFI variables. ``unread`` says why the
    content of the newest version could not be read. ``seen`` is where such a file lay when hosts were looked at last,
    without what ``found`` says of the host at hand.
    """

    kind: str
    found: StandingState | None
    remedy: str | None
    versions: tuple[VersionKept, ...]
    newest: VersionKept | None
    encrypted: bool | None = None
    secret: SecretHolder | None = None
    variables: KeptVariables | None = None
    unread: str | None = None
    seen: tuple[SeenFile, ...] = ()


@dataclass(frozen=True, slots=True)
class StateShown:
    """The state of a VM. ``on_host`` is None when the host could not be asked; ``problems`` are sentences."""

    vm: str
    vm_uuid: str
    on_host: bool | None
    running: bool
    kinds: tuple[KindShown, ...]
    problems: tuple[str, ...]


def show_state(catalog: Catalog, repository: Callable[[], Repository], host: Host, vm: str) -> StateShown:
    """Return what is known of the state of a VM, given by name or UUID; also of one that is gone from the host.

    Raises VmNotFound for one that neither the host nor the catalogue knows, InvalidRequest for a name of several.
    """
    on_host, uuid, standings = _standings(catalog, host, vm)
    try:
        kept = versions_kept(catalog, uuid or vm)
    except VmNotFound as error:
        if uuid is None:
            error.message += "".join(f"; {problem}" for problem in standings.problems)
            raise
        kept = ()
    uuid = uuid or catalog.vms_named(vm)[0]
    known = catalog.vm(uuid)
    kinds = []
    for kind in KINDS:
        found = next((state for state in standings.states if state.found.kind == kind), None)
        versions = tuple(each for each in kept if each.version.kind == kind)
        seen = tuple(_seen(catalog, uuid, kind, found))
        if found is not None or versions or seen:
            kinds.append(replace(_shown(catalog, repository, kind, found, versions), seen=seen))
    return StateShown(
        standings.states[0].vm if standings.states else known.name if known is not None else vm,
        uuid,
        on_host,
        any(state.running for state in standings.states),
        tuple(kinds),
        standings.problems,
    )


def _standings(catalog: Catalog, host: Host, vm: str) -> tuple[bool | None, str | None, Standings]:
    """Return whether the VM is on the host (None: nobody knows), its UUID there, and how its files stand."""
    try:
        uuid = host.ask(FindVm(vm))
        return True, uuid, look_at_standings(catalog, host, (uuid,))
    except VmNotFound:
        return False, None, Standings((), ())
    except HypervisorError as error:
        return None, None, Standings((), (f"the host could not be asked: {error.message}",))


def _seen(catalog: Catalog, vm_uuid: str, kind: str, found: StandingState | None) -> Iterator[SeenFile]:
    """Yield where files of a kind lay when they were looked at last; the one that was found just now is left out."""
    names = catalog.host_names()
    now = datetime.now(UTC)
    for file in catalog.state_files(vm_uuid):
        age = (now - datetime.fromisoformat(file.seen_at)).total_seconds()
        if file.kind != kind or (found is not None and file.path == found.found.path and age < LOOK_SECONDS):
            continue
        standing = standing_after(Standing(file.standing), age)
        yield SeenFile(names[file.host_uuid], file.path, standing, file.sha256, file.since, file.seen_at)


def _shown(
    catalog: Catalog,
    repository: Callable[[], Repository],
    kind: str,
    found: StandingState | None,
    versions: tuple[VersionKept, ...],
) -> KindShown:
    newest = next((each for each in versions if each.current), None)
    told = KindShown(kind, found, None if found is None else remedy(found), versions, newest)
    if newest is None:
        return told
    secret = kept_secret(catalog, newest) if kind == "tpm" else None
    try:
        _, content = read_chosen(repository(), newest.version.vm_uuid, chosen_of(newest.version))
    except VmkeepError as error:
        return replace(told, secret=secret, unread=error.message)
    if kind == "tpm":
        return replace(told, encrypted=is_encrypted(content), secret=secret)
    return replace(told, variables=kept_variables(read_variables(content)))


def kept_variables(store: VariableStore) -> KeptVariables:
    """Return what a store holds, in words."""
    return KeptVariables(store.secure_boot, len(store.variables), key_databases(store), store.problem)


def kept_secret(catalog: Catalog, version: VersionKept) -> SecretHolder | None:
    """Return what keeps the libvirt secret for a TPM state: what holds the version, else the VM's newest with one."""
    holders = secret_holders(catalog, version.version.vm_uuid)
    return holder_for(holders, version.version.id, first=version.held_by)
