"""What a clone is made of, written beside its places while the original is off."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from vmkeep.errors import NoSpace, TransferError, VmkeepError
from vmkeep.filesystem import file_errors, make_directory, require_descriptors, size_text, sync_directory
from vmkeep.host.clones.clone import original_of
from vmkeep.host.clones.original import Original, look_at, started
from vmkeep.host.operation import Operation
from vmkeep.host.records.sockets import socket_directory
from vmkeep.host.restores.items import RESTORE_DESCRIPTORS, withdraw_items
from vmkeep.host.tasks.clones import CloneCopied, ClonedDisk, ClonedState, ClonePrepared
from vmkeep.host.tasks.restores import DeliveredItem, WithdrawItems
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.vm.keys import key_of
from vmkeep.host.vm.states import read_state
from vmkeep.paths import remove_file
from vmkeep.statefiles.installation import make_folder, stage_file, stage_tpm
from vmkeep.statefiles.location import swtpm_owner
from vmkeep.transfer.duplicate import copy_disk, is_whole, share_image
from vmkeep.transfer.server import ImageServer

_LOOK_SECONDS = 0.3


def copy_for_clone(operation: Operation, prepared: ClonePrepared) -> CloneCopied:
    """Write disks and state files beside their places; see the task."""
    settings = operation.settings
    require_descriptors(RESTORE_DESCRIPTORS + 4 * settings.workers, f"the clone {prepared.name}")
    original = look_at(operation, original_of(operation.connected(), prepared))
    if original.digest != prepared.read:
        raise started(prepared.source)
    before = original.traits()
    try:
        disks = _Disks(operation, original, prepared).made()
        states = tuple(_state(original, item) for item in prepared.items if item.role != "disk")
        original.require_off()
        if original.traits() != before:
            raise started(prepared.source)
    except BaseException as error:
        withdraw_items(WithdrawItems(prepared.items))
        if isinstance(error, TransferError):
            _explain(original, error)
        raise
    return CloneCopied(disks, states)


def _explain(original: Original, error: TransferError) -> None:
    """Raise why an image could not be read when that is the VM's start."""
    with suppress(VmkeepError):
        if original.domain.state().run.value == "off":
            return
        raise started(original.domain.name) from error


class _Disks:
    """The disks of a clone: first those that share blocks, which takes no room; then, if there is room, the others."""

    def __init__(self, operation: Operation, original: Original, prepared: ClonePrepared) -> None:
        self._operation = operation
        self._original = original
        self._items = [item for item in prepared.items if item.role == "disk"]
        self._total = sum(self._size(item) for item in self._items)
        self._done = 0
        self._looked = 0.0

    def made(self) -> tuple[ClonedDisk, ...]:
        made: dict[str, ClonedDisk] = {}
        for item in self._items:
            self._stop()
            remove_file(Path(item.staged))
            if self._shared(item):
                made[item.name] = ClonedDisk(item.name, item.final, shared=True, bytes_written=0)
                self._done += self._size(item)
        copied = [item for item in self._items if item.name not in made]
        self._require_room(copied)
        for item in copied:
            written = self._copied(item)
            made[item.name] = ClonedDisk(item.name, item.final, shared=False, bytes_written=written)
            self._done += self._size(item)
        for folder in {Path(item.staged).parent for item in self._items}:
            sync_directory(folder)
        return tuple(made[item.name] for item in self._items)

    def _size(self, item: DeliveredItem) -> int:
        return self._original.chains[item.name][0].size_bytes

    def _shared(self, item: DeliveredItem) -> bool:
        chain = self._original.chains[item.name]
        return not item.secret and is_whole(chain) and share_image(chain[0], Path(item.staged))

    def _require_room(self, items: list[DeliveredItem]) -> None:
        needed: dict[int, int] = {}
        for item in items:
            folder = Path(item.staged).parent
            with file_errors(folder):
                device, about = folder.stat().st_dev, os.statvfs(folder)
            needed[device] = needed.get(device, 0) + self._needed_bytes(item)
            free = about.f_bavail * about.f_frsize
            if free < needed[device]:
                raise NoSpace(
                    f"the file system of {folder} has {size_text(free)} left, and the disks of the clone may need "
                    f"{size_text(needed[device])}",
                    vm=self._original.domain.name,
                    path=str(folder),
                    hint="Nothing was copied. Make room, or choose another directory with --disks-dir.",
                )

    def _needed_bytes(self, item: DeliveredItem) -> int:
        """Return what a copy takes at most: what the images of the disk take, and no more than the disk has."""
        size = self._size(item)
        if item.secret and item.format == "raw":
            return size  # LUKS alone has no holes
        layers = self._original.chains[item.name]
        paths = [path for layer in layers for path in (layer.path, layer.data_file) if path is not None]
        return min(size, sum(_allocated_bytes(path, size) for path in paths))

    def _copied(self, item: DeliveredItem) -> int:
        disk = self._original.definition.disk(item.name)
        assert disk is not None
        assert disk.source is not None
        operation, base = self._operation, self._done
        key = key_of(operation.connected(), item.secret, vm=self._original.domain.name, disk=item.name)

        def progress(position: int) -> None:
            operation.watch(Progress("copying", item.name, base + position, self._total))

        directory = socket_directory(operation.settings, operation.id)
        make_directory(directory)
        try:
            with ImageServer(disk.source, disk.image_format, directory / "nbd", key=key) as server:
                return copy_disk(
                    server.source(item.name),
                    Path(item.staged),
                    item.format,
                    key=key,
                    workers=operation.settings.workers,
                    stop=self._stop,
                    progress=progress,
                )
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _stop(self) -> None:
        self._operation.stop()
        # A VM needs longer than this to start and stop again, so none can do so unseen.
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._original.require_off()
            self._looked = time.monotonic()


def _allocated_bytes(path: str, size_bytes: int) -> int:
    try:
        about = Path(path).stat()
    except OSError:
        return size_bytes
    return about.st_blocks * 512 or size_bytes


def _state(original: Original, item: DeliveredItem) -> ClonedState:
    source = next(each for each in original.states if each.kind == item.role)
    state = read_state(source, original.domain.name)
    staged = Path(item.staged)
    if item.role == "tpm":
        stage_tpm(staged, item.file, state.content, owner=swtpm_owner(state.owner))
    else:
        make_folder(staged.parent, 0o755)
        stage_file(staged, state.content)
    return ClonedState(item.role, state.sha256)
