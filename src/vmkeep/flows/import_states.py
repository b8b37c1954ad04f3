"""Bring the state versions of a bundle into this repository and catalogue, or lay them down as files.

No flow of DBOS: contents are put into the repository, then they are accepted, and then pinned. A kill in between leaves
contents that nothing knows, and the next import puts them there again; a pin that is missing is put by whatever settles
the VM's pins next.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import SealedSecret
from vmkeep.definition import secret_definition
from vmkeep.errors import TargetExists, VmNotFound
from vmkeep.filesystem import file_error, file_errors, write_new_file
from vmkeep.flows.gate import tell_gate
from vmkeep.flows.installation import Premises
from vmkeep.flows.secret_holders import VTPM
from vmkeep.flows.services import held_vm
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import LookAtStates
from vmkeep.repository import Repository
from vmkeep.repository.statebundle import BUNDLE_BYTES_LIMIT, BundledState, StateBundle
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class StatesImported:
    """What became of a bundle's versions. ``known`` were here with their content. ``new`` were kept and count.

    ``late`` were kept beside versions that count, and do not: they go back by their hash.
    """

    vm: str
    vm_uuid: str
    new: tuple[CatalogState, ...]
    late: tuple[CatalogState, ...]
    known: tuple[CatalogState, ...]


def read_bundle_file(path: Path) -> bytes:
    """Return the bytes of a bundle's file, no more than one can have and a byte. Raises what reading it raises."""
    with file_errors(path, "read"), path.open("rb") as stream:
        return stream.read(BUNDLE_BYTES_LIMIT + 1)


def import_states(premises: Premises, host: Host, bundle: StateBundle, vm: str | None) -> StatesImported:
    """Keep the versions of a bundle as versions of its VM, or of another one, given by name or UUID.

    A content that is known here is found again. Of a kind of which no version counts, it becomes the first. Any other
    is kept as one that never counts: above the newest it would be what the VM must have, and the numbers below are
    taken. The secret that opens an encrypted TPM state is kept with it.
    """
    catalog = premises.catalog
    uuid, name = _vm_of(catalog, host, bundle, vm)
    with held_vm(host, uuid, name, "import of its state"):
        versions = catalog.states_of_vm(uuid)
        known = tuple(each for state in bundle.states for each in versions if _is_content(each, state))
        unknown = [state for state in bundle.states if not any(_is_content(each, state) for each in versions)]
        unknown.sort(key=lambda state: state.version.generation)
        newest: dict[str, int] = {each.kind: each.generation for each in reversed(versions) if not each.conflict}
        put = tuple(_put(premises.repository, unknown, uuid, newest))
        new = tuple(each for each in put if each.kind not in newest)
        late = tuple(replace(each, conflict=True) for each in put if each.kind in newest)
        if put:
            catalog.see_vm(uuid, name)
            catalog.accept_states(new)
            catalog.keep_late(late)
            tell_gate(catalog, host, uuid)
        sealed = tuple(_sealed(premises.repository, bundle, unknown, put, uuid))
        settle_pins(catalog, premises.repository, uuid, premises.keep_state_versions, sealed=sealed)
    return StatesImported(name, uuid, new, late, tuple(dict.fromkeys(known)))


def _vm_of(catalog: Catalog, host: Host, bundle: StateBundle, vm: str | None) -> tuple[str, str]:
    """Return UUID and name of the VM whose versions they become."""
    try:
        for found in host.ask(LookAtStates((bundle.vm_uuid if vm is None else vm,))):
            return found.uuid, found.name
    except VmNotFound:
        pass
    uuid = bundle.vm_uuid
    if vm is not None:
        uuids = catalog.vms_named(vm)
        if len(uuids) != 1:
            raise VmNotFound(
                f"no VM {vm!r} is on this host or known here" if not uuids else f"several VMs were called {vm!r}",
                vm=vm,
                hint="Name it by its UUID, or leave --vm out: the versions become those of the VM that they are of.",
            )
        uuid = uuids[0]
    known = catalog.vm(uuid)
    return uuid, known.name if known is not None else bundle.vm_name


def _is_content(version: CatalogState, state: BundledState) -> bool:
    return (version.kind, version.sha256) == (state.version.kind, state.version.sha256)


def _put(
    repository: Repository, states: Sequence[BundledState], vm_uuid: str, newest: Mapping[str, int]
) -> Iterator[CatalogState]:
    """Put contents into the repository. Those beside versions that count keep their number, if it is not above them."""
    numbers: dict[str, int] = {}
    for state in states:
        made = state.version
        numbers[made.kind] = numbers.get(made.kind, 0) + 1
        late = min(made.generation, newest.get(made.kind, 0))
        put = repository.put_state(
            state.content,
            vm_uuid=vm_uuid,
            kind=made.kind,
            generation=late or numbers[made.kind],
            file=made.file,
            owner=made.owner,
            group=made.group,
            mode=made.mode,
        )
        kind: Literal["tpm", "nvram"] = "tpm" if made.kind == "tpm" else "nvram"
        yield CatalogState(put.id, vm_uuid, kind, put.generation, put.sha256, put.size_bytes, put.created)


def _sealed(
    repository: Repository,
    bundle: StateBundle,
    states: Sequence[BundledState],
    put: Sequence[CatalogState],
    vm_uuid: str,
) -> Iterator[SealedSecret]:
    """Seal the secret of a bundle for each encrypted TPM state of it that was put."""
    secret = next((each for each in bundle.secrets if each.usage == VTPM), None)
    for state, kept in zip(states, put, strict=True):
        if secret is not None and kept.kind == "tpm" and is_encrypted(state.content):
            pin_id, _ = repository.pins.seal(vm_uuid, (secret,))
            yield SealedSecret(pin_id, kept.id, secret.usage, secret.uuid)


# -- to files ----------------------------------------------------------------------------------------------------


def lay_down(bundle: StateBundle, output: Path, *, secrets: bool) -> tuple[str, ...]:
    """Write the newest version of each kind, and the secrets if that is asked for, as files (0600); return their paths.

    The directory must not be there. Raises TargetExists, and what writing raises.
    """
    newest = {state.version.kind: state for state in sorted(bundle.states, key=lambda each: each.version.generation)}
    files = {Path(state.version.file).name: state.content for state in newest.values()}
    for secret in bundle.secrets if secrets else ():
        files[f"secret-{secret.uuid}.xml"] = secret_definition(
            secret.uuid, secret.usage, secret.usage_id, secret.description
        ).encode()
        files[f"secret-{secret.uuid}.base64"] = base64.b64encode(secret.value) + b"\n"
    try:
        output.mkdir(mode=0o700)
    except FileExistsError as error:
        raise TargetExists(f"{output} is there already", path=str(output), hint="Choose another directory.") from error
    except OSError as error:
        raise file_error(error, output) from error
    for name, content in files.items():
        try:
            write_new_file(output / name, content)
        except OSError as error:
            raise file_error(error, output / name) from error
    return tuple(str(output / name) for name in files)
