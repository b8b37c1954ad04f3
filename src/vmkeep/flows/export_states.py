"""Write kept state of a VM into a bundle: a file for the safe or for another home, sealed, and proved by reading it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmkeep.catalog import Catalog
from vmkeep.custody.encryption import is_encrypted
from vmkeep.errors import HostFileMissing, IntegrityError, StoreError, TargetExists
from vmkeep.filesystem import file_error, file_errors, write_new_file
from vmkeep.flows.secret_holders import values_in
from vmkeep.flows.show_state import kept_secret
from vmkeep.flows.vm_states import VersionKept, chosen_of, versions_asked_for
from vmkeep.keys import KeyMaterial
from vmkeep.repository import PointSecret, Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.repository.statebundle import BUNDLE_BYTES_LIMIT, BundledState, StateBundle, open_bundle, seal_bundle
from vmkeep.values import dataclass

_UNOPENED: Final = (
    "The TPM state is encrypted with a secret of libvirt that is kept with no version and no point, so it is not in "
    "the bundle. Keep its value safe."
)


@dataclass(frozen=True, slots=True)
class StatesExported:
    """What was written. ``secrets`` are the UUIDs of the libvirt secrets in it; ``warnings`` say what it lacks."""

    vm: str
    vm_uuid: str
    path: str
    size_bytes: int
    versions: tuple[VersionKept, ...]
    secrets: tuple[str, ...]
    warnings: tuple[str, ...]


def export_states(
    catalog: Catalog,
    repository: Callable[[], Repository],
    vm: str,
    kind: str | None,
    version: str | None,
    path: Path,
    key: Callable[[], KeyMaterial],
) -> StatesExported:
    """Write the newest version of each kind of state of a VM, or the one that is named, sealed to a key.

    What opens an encrypted TPM state goes along, if it is kept. ``key`` is asked for when all that is written was
    read. Raises VmNotFound, InvalidRequest, TargetExists for a file that is there, and what reading and writing raise.
    """
    refuse_unwritable(path)
    versions = versions_asked_for(catalog, vm, kind, version)
    opened = repository()
    states = tuple(
        BundledState(*read_chosen(opened, each.version.vm_uuid, chosen_of(each.version))) for each in versions
    )
    uuid = versions[0].version.vm_uuid
    secrets: tuple[PointSecret, ...] = ()
    warnings: tuple[str, ...] = ()
    for each, state in zip(versions, states, strict=True):
        if each.version.kind == "tpm" and is_encrypted(state.content):
            secrets = _secrets(catalog, opened, each)
            if not secrets:
                warnings = (_UNOPENED,)
    known = catalog.vm(uuid)
    name = known.name if known is not None else vm
    bundle = StateBundle(uuid, name, datetime.now(UTC).isoformat(timespec="microseconds"), states, secrets)
    size = _write(path, bundle, key())
    return StatesExported(name, uuid, str(path), size, versions, tuple(secret.uuid for secret in secrets), warnings)


def refuse_unwritable(path: Path) -> None:
    """Raise TargetExists for a file that is there, HostFileMissing where its directory is not."""
    if os.path.lexists(path):
        raise TargetExists(f"{path} is there already", path=str(path), hint="Choose another file.")
    if not path.parent.is_dir():
        raise HostFileMissing(
            f"the directory {path.parent} does not exist", path=str(path), hint="Make it, or choose another one."
        )


def _secrets(catalog: Catalog, repository: Repository, version: VersionKept) -> tuple[PointSecret, ...]:
    kept = kept_secret(catalog, version)
    if kept is None:
        return ()
    return tuple(secret for secret in values_in(repository, kept) if secret.uuid == kept.uuid)


def _write(path: Path, bundle: StateBundle, key: KeyMaterial) -> int:
    """Write the file, read it back from the disk, and open it as an import would; return its size in bytes."""
    content = seal_bundle(bundle, key)
    try:
        write_new_file(path, content)
    except FileExistsError as error:
        raise TargetExists(f"{path} is there already", path=str(path), hint="Choose another file.") from error
    except OSError as error:
        raise file_error(error, path) from error
    try:
        if open_bundle(_read_from_disk(path), key, str(path)) != bundle:
            raise IntegrityError(f"{path} does not hold what was written to it", path=str(path))
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, Exception):
            raise StoreError(
                f"{path} could not be read back as it was written, and was removed: {error}", path=str(path)
            ) from error
        raise
    return len(content)


def _read_from_disk(path: Path) -> bytes:
    """Return what the disk has of a file that was synced, not what memory has."""
    with file_errors(path, "read"), path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return stream.read(BUNDLE_BYTES_LIMIT + 1)
