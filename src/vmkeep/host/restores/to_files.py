"""A restore to files: which ones, and where. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vmkeep.errors import InvalidRequest, TargetExists
from vmkeep.filesystem import file_error
from vmkeep.host.restores.items import DEFINITION_FILE, absences, item_at, refuse_existing, require_tools_for
from vmkeep.host.restores.landing import below
from vmkeep.host.restores.selection import asked_disks, asked_states
from vmkeep.host.tasks.restores import DeliveredItem, FilesPrepared, PrepareFiles
from vmkeep.host.vm.keys import secrets_of_point, told_of_encryption
from vmkeep.hypervisor import Hypervisor
from vmkeep.repository import PointRecord, Repository
from vmkeep.transfer.images import LUKS


def prepare_files(connect: Callable[[], Hypervisor], repository: Repository, request: PrepareFiles) -> FilesPrepared:
    """Choose the paths below the output directory, which is made when its parent is there.

    Raises SecretMissing or SecretPrivate for a disk that was encrypted and cannot be encrypted again: what was no
    plain data on the host does not become so unasked.
    """
    record = _asked(repository.point(request.point_id), request.only)
    secrets = secrets_of_point(record, connect) if not request.decrypt else {}
    output = Path(request.output)
    disks: list[DeliveredItem] = []
    for disk in record.disks:
        secret = secrets.get(disk.target, "")
        # What is nothing but LUKS is no raw image, although a VM's definition calls it so.
        extension = LUKS if secret and request.image_format == "raw" else request.image_format
        place = below(output, f"{disk.target}.{extension}")
        disks.append(replace(item_at("disk", disk.target, place, request.operation, extension), secret=secret))
    states = [
        item_at("nvram", "nvram", output / "nvram.fd", request.operation)
        if state.kind == "nvram"
        else item_at("tpm", "tpm", output / "tpm", request.operation)
        for state in record.states
    ]
    definition = item_at("definition", "definition", output / DEFINITION_FILE, request.operation)
    items = (*disks, *states, *(() if request.only else (definition,)), *_secret_items(record, output, request))
    require_tools_for(items)
    refuse_existing(items, force=request.force)
    warnings = (*absences(record), *told_of_encryption(record, secrets), *_told_of_secrets(record, request))
    return FilesPrepared(items, warnings, str(output) if _make_directory(output) else "")


def _asked(record: PointRecord, only: Sequence[str]) -> PointRecord:
    """Return the point with no more than the parts that were asked for. Raises InvalidRequest."""
    if not only:
        return record
    targets = asked_disks(record, only)
    asked = replace(
        record,
        disks=tuple(disk for disk in record.disks if disk.target in targets),
        states=tuple(state for state in record.states if state.kind in asked_states(only)),
    )
    if not asked.disks and not asked.states:
        raise InvalidRequest(f"point {record.id} holds nothing of what was asked for", vm=record.vm_name)
    return asked


def _make_directory(output: Path) -> bool:
    """Make the directory; False when it is there already."""
    try:
        output.mkdir(mode=0o700)
    except FileExistsError as error:
        if not output.is_dir():
            raise TargetExists(f"{output} is not a directory", path=str(output)) from error
        return False
    except OSError as error:
        raise file_error(error, output) from error
    return True


def _secret_items(record: PointRecord, output: Path, request: PrepareFiles) -> list[DeliveredItem]:
    """Return the two files of each secret, for virsh secret-define and virsh secret-set-value."""
    if not request.secrets:
        return []
    return [
        item_at("secret", secret.uuid, below(output, f"secret-{secret.uuid}.{extension}"), request.operation, extension)
        for secret in record.secrets
        for extension in ("xml", "base64")
    ]


def _told_of_secrets(record: PointRecord, request: PrepareFiles) -> list[str]:
    if request.secrets or not record.secrets:
        return []
    uuids = ", ".join(secret.uuid for secret in record.secrets)
    return [f"What is encrypted with libvirt's secret {uuids} needs it: --secrets writes it too, in plain text."]
