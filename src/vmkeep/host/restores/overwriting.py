"""A point written over the images of a parked VM: which blocks may be written, and writing them, as often as needed.

What is proved to differ is written unread; where nothing is proved, each block is compared first. An image that was
changed after the safety point is refused, because the safety point is the only way back.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vmkeep.config import Settings
from vmkeep.errors import InvalidRequest, VmBusy
from vmkeep.filesystem import file_errors, make_directory
from vmkeep.host.checkpoints.rebinding import broken_bitmaps
from vmkeep.host.records.restore import JournalDisk
from vmkeep.host.records.sockets import socket_directory
from vmkeep.host.tasks.restores import DisksWritten
from vmkeep.host.tasks.survey import Progress
from vmkeep.hypervisor import Domain
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.repository import PointRecord, Repository, StoredDisk
from vmkeep.transfer.imagefile import describe_image
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.images import LUKS
from vmkeep.transfer.inplace import Overwritten, overwrite, overwrite_differing
from vmkeep.transfer.server import ImageServer, end_abandoned

WITHOUT_BITMAPS = ("raw", LUKS)
_DIRTY = 1
# After kill -9 of vmkeep its qemu-nbd closes the image in order, which takes as long as the storage needs.
_CLOSING_SECONDS = 60.0
_WAIT_SECONDS = 0.1
# At a first attempt nothing of ours has an image open before the first write, so nothing is waited for long.
_BUSY_SECONDS = 1.0


class Overwriting:
    """The images of one restore in place. ``stop`` raises when it was cancelled; ``key`` tells what opens a disk."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        operation: str,
        key: Callable[[JournalDisk], ImageKey | None],
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._directory = socket_directory(settings, operation)
        self._repeated = self._directory.is_dir()
        self._prefix = checkpoint_prefix(repository.id)
        self._key = key

    # -- planning ----------------------------------------------------------------------------------------------

    def plan(
        self, disk: JournalDisk, record: PointRecord, safety: PointRecord, domain: Domain, stop: Callable[[], None]
    ) -> JournalDisk:
        """Return the disk with the blocks that may have to be written to make it the point's.

        Raises VmBusy when the image was changed after the safety point.
        """
        want, have = stored_disk(record, disk.target), stored_disk(safety, disk.target)
        if have is None or want is None:
            raise InvalidRequest(f"the safety point {safety.id} lacks disk {disk.target}", vm=domain.name)
        _refuse_written_image(disk, domain)
        self._wait_until_closed(disk, stop)
        broken = broken_bitmaps(disk, prefix=self._prefix)
        if not self._is_safety_point(disk, safety, have, want, domain):
            return replace(disk, runs=((0, want.blocks),) if want.blocks else (), exact=False, broken=broken)
        runs: list[tuple[int, int]] = []
        for block, _ref in self._repository.difference(have, want):
            if runs and sum(runs[-1]) == block:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                stop()
                runs.append((block, 1))
        return replace(disk, runs=tuple(runs), exact=True, broken=broken)

    def _is_safety_point(
        self, disk: JournalDisk, safety: PointRecord, have: StoredDisk, want: StoredDisk, domain: Domain
    ) -> bool:
        """Return whether the disk is proved to hold what the safety point holds: nothing was written since.

        Raises VmBusy when it is proved to hold something else.
        """
        if disk.format != "qcow2" or not self._repository.comparable(have, want):
            return False
        (top,) = describe_image(disk.path, disk.format, chain=False)
        bitmap = top.bitmap(self._prefix + safety.id)
        if bitmap is None or bitmap.in_use or not bitmap.recording:
            return False
        server = ImageServer(disk.path, disk.format, self._socket(), bitmap=bitmap.name, key=self._key(disk))
        with server:
            if any(flags & _DIRTY for _start, _length, flags in server.source().dirty_map()):
                raise changed_since_safety_point(domain, disk.path)
        return True

    def _wait_until_closed(self, disk: JournalDisk, stop: Callable[[], None]) -> None:
        """Wait for a qemu-nbd of a killed vmkeep; while it has the image open, every bitmap in it is in use."""
        if disk.format == "qcow2":
            (top,) = describe_image(disk.path, disk.format, chain=False)
            if any(bitmap.in_use for bitmap in top.bitmaps):
                with self._served(disk, stop):
                    pass

    def try_open(self, disk: JournalDisk, stop: Callable[[], None]) -> None:
        """Open the image for writing and close it again; raises VmBusy when something else has it open."""
        with self._served(disk, stop, patience_seconds=_CLOSING_SECONDS if self._repeated else _BUSY_SECONDS):
            pass

    # -- writing -----------------------------------------------------------------------------------------------

    def write(
        self,
        disks: Sequence[JournalDisk],
        record: PointRecord,
        *,
        stop: Callable[[], None],
        watch: Callable[[Progress], None],
    ) -> DisksWritten:
        """Write the planned blocks of the point, durably."""
        planned = {disk.target: _planned_bytes(disk, record) for disk in disks}
        total, done, written = sum(planned.values()), 0, Overwritten()
        for disk in disks:

            def progress(settled: int, target: str = disk.target) -> None:
                nonlocal done
                done += settled
                watch(Progress("writing", target, done, total))

            if disk.runs:
                written += self._write_disk(disk, record, stop, progress)
        return DisksWritten(written.written_bytes, total, written.zeroed_bytes)

    def _write_disk(
        self, disk: JournalDisk, record: PointRecord, stop: Callable[[], None], progress: Callable[[int], None]
    ) -> Overwritten:
        stored = stored_disk(record, disk.target)
        assert stored is not None
        assert disk.runs is not None
        with self._served(disk, stop) as server:
            connection = server.connect()
            pieces = self._repository.read_runs(stored, disk.runs, workers=self._settings.workers)
            if disk.exact:
                written = overwrite(connection, pieces, stop=stop, progress=progress)
            else:
                zero_map = server.source().zero_map()  # all of it is read before anything is written
                written = overwrite_differing(
                    connection, pieces, zero_map, block_bytes=stored.block_bytes, stop=stop, progress=progress
                )
            connection.flush()
        return written

    # -- the images' server ------------------------------------------------------------------------------------

    @contextmanager
    def _served(
        self, disk: JournalDisk, stop: Callable[[], None], *, patience_seconds: float = _CLOSING_SECONDS
    ) -> Iterator[ImageServer]:
        """Serve the image for writing; a qemu-nbd of a killed vmkeep that still closes it is waited for."""
        deadline = time.monotonic() + patience_seconds
        while True:
            # Also where nothing is in its way: two servers may share a raw image, and the VM could not start then.
            end_abandoned(self._directory, but=self._socket())
            server = ImageServer(disk.path, disk.format, self._socket(), writable=True, key=self._key(disk))
            try:
                server.__enter__()
                break
            except VmBusy:
                if time.monotonic() > deadline:
                    raise
                stop()
                time.sleep(_WAIT_SECONDS)
        try:
            yield server
        except BaseException as error:
            server.__exit__(type(error), error, error.__traceback__)
            raise
        server.__exit__(None, None, None)

    def _socket(self) -> Path:
        with file_errors(self._directory):
            make_directory(self._directory.parent, 0o711)
            make_directory(self._directory)
        # Not the name of a killed vmkeep's, whose qemu-nbd may still listen there while it closes the image.
        return self._directory / f"nbd.{os.getpid()}"

    def end(self) -> None:
        """Remove the directory of the sockets, with those that killed processes left."""
        end_abandoned(self._directory, but=self._directory / f"nbd.{os.getpid()}")
        shutil.rmtree(self._directory, ignore_errors=True)


def image_mark(path: str) -> str:
    """Return what changes when anybody writes to an image file: file system, file, size, times. Empty for a device.

    It is compared with itself only, never with a clock: a clock that was ahead when the guest last wrote left a time
    that lies after the safety point.
    """
    with file_errors(Path(path), "read"):
        about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode):
        return ""
    return f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"


def _refuse_written_image(disk: JournalDisk, domain: Domain) -> None:
    """Refuse an image without bitmaps that was written since before the safety point: its marks are all that tells."""
    if disk.seen and image_mark(disk.path) != disk.seen:
        raise changed_since_safety_point(domain, disk.path)


def changed_since_safety_point(domain: Domain, path: str) -> VmBusy:
    """Return the error for a file of the VM that is not as the safety point holds it."""
    return VmBusy(
        f"VM {domain.name!r} was changed after its safety point was taken; it was started meanwhile, or something else "
        f"wrote to {path}",
        vm=domain.name,
        path=path,
        hint="Nothing was restored. Run the command again while the VM stays off.",
    )


def stored_disk(record: PointRecord, target: str) -> StoredDisk | None:
    """Return what the point holds of a disk; None when the disk is not in it."""
    return next((disk.stored for disk in record.disks if disk.target == target), None)


def _planned_bytes(disk: JournalDisk, record: PointRecord) -> int:
    stored = stored_disk(record, disk.target)
    if stored is None:
        return 0
    return sum(
        min(count * stored.block_bytes, stored.size_bytes - first * stored.block_bytes)
        for first, count in disk.runs or ()
    )
