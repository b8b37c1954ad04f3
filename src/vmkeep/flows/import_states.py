"""Bring the state versions of a bundle into this repository and catalogue, or lay them down as files.

No flow of DBOS: contents are put into the repository, then they are accepted in one transaction, and then pinned. A
kill between the first two leaves contents that nothing knows, and the next import puts them there again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.commandline import command_line
from vmkeep.definition import secret_definition
from vmkeep.errors import InvalidRequest, TargetExists, VmNotFound
from vmkeep.filesystem import file_error, file_errors, write_new_file
from vmkeep.flows.gate import tell_gate
from vmkeep.flows.installation import Premises
from vmkeep.flows.services import held_vm
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import LookAtStates
from vmkeep.repository import Repository
from vmkeep.repository.statebundle import BUNDLE_BYTES_LIMIT, BundledState, StateBundle
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class StatesImported:
    """What became of a bundle's versions. ``new`` were kept; ``known`` were here with their content."""

    vm: str
    vm_uuid: str
    new: tuple[CatalogState, ...]
    known: tuple[CatalogState, ...]


def read_bundle_file(path: Path) -> bytes:
    """Return the bytes of a bundle's file, no more than one can have and a byte. Raises what reading it raises."""
    with file_errors(path, "read"), path.open("rb") as stream:
        return stream.read(BUNDLE_BYTES_LIMIT + 1)


def import_states(premises: Premises, host: Host, bundle: StateBundle, vm: str | None) -> StatesImported:
    """Keep the versions of a bundle as versions of its VM, or of another one, given by name or UUID.

    A content that is known here is found again. Of a kind of which nothing is known, it becomes the first. Any other is
    refused (InvalidRequest): a version above the newest would be what the VM must have, and a number below it is taken.
    """
    catalog = premises.catalog
    uuid, name = _vm_of(catalog, host, bundle, vm)
    with held_vm(host, uuid, name, "import of its state"):
        versions = catalog.states_of_vm(uuid)
        known = tuple(each for state in bundle.states for each in versions if _is_content(each, state))
        unknown = [state for state in bundle.states if not any(_is_content(each, state) for each in versions)]
        unknown.sort(key=lambda state: state.version.generation)
        taken = {each.kind: each.generation for each in reversed(versions)}
        for state in unknown:
            if state.version.kind in taken:
                raise _refusal(name, state.version.kind, taken[state.version.kind])
        new = tuple(_put(premises.repository, unknown, uuid))
        if new:
            catalog.see_vm(uuid, name)
            catalog.accept_states(new)
            tell_gate(catalog, host, uuid)
        settle_pins(catalog, premises.repository, uuid, premises.keep_state_versions)
    return StatesImported(name, uuid, new, tuple(dict.fromkeys(known)))


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


def _refusal(vm: str, kind: str, newest: int) -> InvalidRequest:
    return InvalidRequest(
        f"versions of the {kind} state of VM {vm!r} are kept here, the newest is {newest}, and that in the bundle is "
        "none of them: it cannot be kept as an older one",
        vm=vm,
        hint="Nothing was changed. `vmkeep state import FILE --output DIR` writes it to files; put it where "
        f"`{command_line('vmkeep state list', vm)}` shows the file, and `{command_line('vmkeep state capture', vm)}` "
        "keeps it as the newest.",
    )


def _put(repository: Repository, states: Sequence[BundledState], vm_uuid: str) -> Iterator[CatalogState]:
    numbers: dict[str, int] = {}
    for state in states:
        made = state.version
        numbers[made.kind] = numbers.get(made.kind, 0) + 1
        put = repository.put_state(
            state.content,
            vm_uuid=vm_uuid,
            kind=made.kind,
            generation=numbers[made.kind],
            file=made.file,
            owner=made.owner,
            group=made.group,
            mode=made.mode,
        )
        kind: Literal["tpm", "nvram"] = "tpm" if made.kind == "tpm" else "nvram"
        yield CatalogState(put.id, vm_uuid, kind, put.generation, put.sha256, put.size_bytes, put.created)


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
