"""The scratch files of a backup job: where QEMU keeps what the guest writes over while its disks are read.

They are made here, before the guest stands still, and libvirt is told that they are there. When libvirt makes them, it
does so in backupBegin, and QEMU 7.2 may die when the VM is resumed just then, as the guardian does after a kill
(``blk_ref: Assertion `blk->refcnt > 0' failed``: seen in 11 of 700 such resumes with 7.2.22, and in none of 700 with
files that were there). The likely cause: the coroutine that makes an image gives its BlockBackend up in the middle of a
drain, and `cont` goes through all BlockBackends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vmkeep.config import Settings
from vmkeep.errors import HostFileMissing, PermissionRefused
from vmkeep.filesystem import file_error
from vmkeep.host.guard.rescue import JobRecord
from vmkeep.host.points.exposure import Subject
from vmkeep.host.vm.disks import scratch_directory
from vmkeep.paths import give_away
from vmkeep.pool import Pool
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.images import create_image
from vmkeep.transfer.qcow2 import Qcow2File

_MAKERS = 4
# Of 255 bytes that a name may have, ours takes 30 and a target's name.
_STEM_BYTES = 200


def scratch_files(subject: Subject, settings: Settings) -> dict[str, Path]:
    """Return the scratch file of each disk that goes into the job; libvirt takes a transient disk into none.

    Raises HostFileMissing for a directory that is not there.
    """
    scratch = {}
    for planned in subject.plan.disks:
        disk = subject.definition.disk(planned.target)
        assert disk is not None
        if planned.from_image:
            continue
        directory = scratch_directory(disk, settings)
        if not directory.is_dir():
            raise HostFileMissing(
                f"the directory {directory} for the scratch of disk {disk.target} is not there",
                vm=subject.domain.name,
                disk=disk.target,
                path=str(directory),
                hint="Make it, or set scratch_dir in vmkeep.toml to one that QEMU can write to.",
            )
        stem = os.fsencode(Path(disk.source or "disk").name)[:_STEM_BYTES].decode(errors="ignore")
        scratch[disk.target] = directory / f".{stem}.{disk.target}.{subject.operation[:12]}.scratch"
    return scratch


def encrypted_targets(subject: Subject, scratch: Collection[str]) -> Sequence[str]:
    """Return the disks whose scratch must be encrypted, because they are."""
    disks = ((target, subject.definition.disk(target)) for target in scratch)
    return [target for target, disk in disks if disk is not None and disk.encryption is not None]


def make_scratch(
    subject: Subject,
    record: JobRecord,
    scratch: Mapping[str, Path],
    encrypted: Collection[str],
    stop: Callable[[], None],
) -> bool:
    """Make the files, those of encrypted disks with a key of our own, which nobody keeps; return whether they are made.

    libvirt makes all or none. It makes them where we may not (a file system that mistrusts root), unless one must be
    encrypted: QEMU needs some 6 s to make and open one with a key derivation as strong as its default, and the guest
    would stand still meanwhile (two disks: 13 s). Raises NoSpace, PermissionRefused and others with the file's path.
    """
    key = None
    if encrypted:
        key = ImageKey.random()
        text = f"Scratch of a backup of {subject.domain.name}, made by vmkeep; removed when the backup has begun"
        subject.hypervisor.secrets.keep_in_memory(record.secret, text, key.reveal())
    owner = subject.definition.dac_owner

    def make(target: str) -> None:
        path, size_bytes = scratch[target], subject.domain.disk_capacity_bytes(target)
        if target in encrypted:
            create_image(path, "qcow2", size_bytes, key, strong=False)
        else:
            _make_plain(path, size_bytes)
        if owner is not None and os.geteuid() == 0:
            give_away(path, *owner)  # where libvirt leaves owners alone, QEMU must be able to open it all the same

    # Even with a weak derivation qemu-img takes 2 s for each, in which it measures the processor.
    with Pool(_MAKERS, thread_name_prefix="vmkeep-scratch") as makers:
        try:
            for _ in makers.map(make, scratch):
                stop()
        except (PermissionError, PermissionRefused):
            if encrypted:
                raise
        else:
            return bool(scratch)
    for path in scratch.values():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return False


def _make_plain(path: Path, size_bytes: int) -> None:
    try:
        with Qcow2File(path, size_bytes) as image:
            image.finish()
    except OSError as error:
        raise file_error(error, path) from error
