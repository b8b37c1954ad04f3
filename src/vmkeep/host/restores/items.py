"""The files of a restore, which appear whole or not at all.

Everything is written beside its place (``.NAME.ID.partial`` in the same directory), synced, and renamed only when all
of it is there. Each task can be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

from vmkeep.config import Settings
from vmkeep.errors import IntegrityError, StateUnsupported, TargetExists, VmkeepError
from vmkeep.filesystem import file_errors, require_descriptors, sync_directory
from vmkeep.host.tasks.restores import (
    DeliveredItem,
    DeliverItems,
    DiscardReplaced,
    ItemsDelivered,
    PublishItems,
    WithdrawItems,
)
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.vm.keys import RestoredKeys
from vmkeep.host.vm.secrets import secret_file
from vmkeep.hypervisor import Hypervisor
from vmkeep.paths import remove_file
from vmkeep.planning import ExclusionReason
from vmkeep.repository import PointRecord, Repository, StateRef
from vmkeep.statefiles.capture import needs_another_file
from vmkeep.statefiles.installation import make_folder, publish, remove, stage_file, stage_tpm, withdraw
from vmkeep.statefiles.location import swtpm_owner
from vmkeep.transfer.delivery import deliver_disk
from vmkeep.transfer.tools import require_tools

DEFINITION_FILE = "domain.xml"


# The image, its directory, sockets and pipes of qemu-nbd, and as much again for what the libraries open for a moment.
RESTORE_DESCRIPTORS = 48


def require_tools_for(items: Sequence[DeliveredItem]) -> None:
    """Raise ToolMissing for an image that QEMU's tools encrypt; all others are written without them."""
    for item in items:
        if item.secret:
            require_tools("qemu-img", "qemu-nbd", "setpriv", doing=f"write {item.final}, which is encrypted")


def deliver_items(
    connect: Callable[[], Hypervisor],
    repository: Repository,
    settings: Settings,
    request: DeliverItems,
    *,
    stop: Callable[[], None],
    watch: Callable[[Progress], None],
) -> ItemsDelivered:
    """Write every item at its staged path; on failure none of them stays."""
    record = repository.point(request.point_id)
    require_descriptors(RESTORE_DESCRIPTORS + 4 * settings.workers, f"the restore of point {record.id}")
    sizes = {disk.target: disk.stored.size_bytes for disk in record.disks}
    total = sum(sizes[item.name] for item in request.items if item.role == "disk")
    done = written = 0
    try:
        for item in request.items:
            stop()
            if item.role == "disk":
                before = done

                def progress(position: int, target: str = item.name, base: int = before) -> None:
                    watch(Progress("writing", target, base + position, total))

                keys = RestoredKeys(connect, record.vm_name)
                written += _deliver_disk(repository, record, item, settings, keys, stop, progress)
                done += sizes[item.name]
            else:
                written += _deliver_small(repository, record, item, for_hypervisor=request.for_hypervisor)
    except BaseException:
        withdraw_items(WithdrawItems(request.items))
        raise
    return ItemsDelivered(written)


def publish_items(request: PublishItems) -> tuple[str, ...]:
    """Rename all items into place and return their paths."""
    for item in request.items:
        publish(Path(item.staged), Path(item.final), aside=_aside(item), marker=_marker(item), force=request.force)
    return tuple(item.final for item in request.items)


def withdraw_items(request: WithdrawItems) -> None:
    """Remove what was staged and, of what was published, only what came from our staging."""
    for item in request.items:
        withdraw(Path(item.staged), Path(item.final), aside=_aside(item), marker=_marker(item))
    if request.directory:
        with contextlib.suppress(OSError):  # somebody put something into it
            Path(request.directory).rmdir()


def discard_replaced(request: DiscardReplaced) -> tuple[str, ...]:
    """Remove what was kept aside, now that all else is done; return a sentence for each file that stays.

    A file that cannot be removed ends nothing: some of what was replaced is gone by then, so there is no way back.
    """
    left = []
    for item in request.items:
        for path in (_aside(item), _marker(item)):
            try:
                remove(path)
            except VmkeepError as error:
                left.append(f"{path} is left over, because it could not be removed: {error}")
    return tuple(left)


def _deliver_disk(
    repository: Repository,
    record: PointRecord,
    item: DeliveredItem,
    settings: Settings,
    keys: RestoredKeys,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    disk = next(disk for disk in record.disks if disk.target == item.name)
    staged = Path(item.staged)
    with file_errors(staged):
        remove_file(staged)  # of an attempt that was killed
    written = deliver_disk(
        repository,
        disk.stored,
        staged,
        item.format,
        key=keys.key(item.secret, item.name),
        workers=settings.workers,
        stop=stop,
        progress=progress,
    )
    with file_errors(staged):
        sync_directory(staged.parent)
    return written


def _deliver_small(repository: Repository, record: PointRecord, item: DeliveredItem, *, for_hypervisor: bool) -> int:
    staged = Path(item.staged)
    if item.role == "definition":
        content = record.definition.encode()
        stage_file(staged, content)
        return len(content)
    if item.role == "secret":
        content = secret_file(repository, record, item.name, item.format)
        stage_file(staged, content)
        return len(content)
    ref = next(state for state in record.states if state.kind == item.role)
    version, content = repository.state_of(record, ref.version_id)
    check_state(ref, content, record)
    if item.role == "tpm":
        stage_tpm(staged, ref.file, content, owner=swtpm_owner(version.owner) if for_hypervisor else None)
    else:
        # libvirt gives NVRAM its owner when the VM starts; it made the directory for itself.
        if for_hypervisor:
            make_folder(staged.parent, 0o755)
        stage_file(staged, content)
    return len(content)


def check_state(ref: StateRef, content: bytes, record: PointRecord) -> None:
    """Raise IntegrityError unless the content is that of the point, StateUnsupported when it leads to other files.

    A point holds no such variables; one that somebody forged would have QEMU open a file of this host.
    """
    if hashlib.sha256(content).hexdigest() != ref.sha256 or len(content) != ref.size_bytes:
        raise IntegrityError(
            f"the {ref.kind} state in the repository is not the one that point {record.id} was taken with",
            vm=record.vm_name,
        )
    if ref.kind == "nvram" and needs_another_file(content):
        raise StateUnsupported(
            f"the UEFI variables in point {record.id} are a qcow2 image that names another file of the host",
            vm=record.vm_name,
            hint="vmkeep keeps none like that: the point was made by something else. Restore its disks without them: "
            "--output DIR --only disks.",
        )


def item_at(role: str, name: str, final: Path, operation: str, image_format: str = "") -> DeliveredItem:
    """Return the item that ends up at ``final``; its staged name is the operation's own."""
    staged = final.with_name(f".{final.name}.{operation[:12]}.partial")
    kind = cast("Literal['disk', 'nvram', 'tpm', 'definition', 'secret']", role)
    return DeliveredItem(kind, name, str(staged), str(final), image_format)


def _aside(item: DeliveredItem) -> Path:
    return Path(item.staged).with_suffix(".replaced")


def _marker(item: DeliveredItem) -> Path:
    return Path(item.staged).with_suffix(".published")


def refuse_existing(items: tuple[DeliveredItem, ...] | list[DeliveredItem], *, force: bool) -> None:
    existing = [item.final for item in items if os.path.lexists(item.final)]
    if existing and not force:
        raise TargetExists(f"{', '.join(existing)} exist{'s' if len(existing) == 1 else ''} already", path=existing[0])


def absences(record: PointRecord) -> tuple[str, ...]:
    """Say what the point does not hold, so that nobody takes the restored VM for more than it is."""
    told = [
        f"Disk {disk.target} is not in the point ({disk.reason}), so the restored VM lacks it."
        for disk in record.excluded
        if disk.reason in (ExclusionReason.REQUESTED, ExclusionReason.SETTINGS)
    ]
    return (*told, *record.warnings)
