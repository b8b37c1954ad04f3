"""Putting state files in place: beside, synced, owned as the hypervisor expects, then renamed.

Nothing that was there is lost: an existing file is only replaced when asked, and then it is renamed aside until
all else is done.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vmkeep.errors import HostFileMissing, TargetExists
from vmkeep.filesystem import file_error, file_errors, make_directory, sync_directory


def stage_file(
    staged: Path, content: bytes, *, owner: str | None = None, group: str | None = None, mode: int = 0o600
) -> None:
    """Write a new file durably at ``staged``, with owner and mode, to be published later.

    ``owner`` and ``group`` None keep those of this process. What an earlier attempt left there is removed.
    Raises NoSpace, PermissionRefused, HostFileMissing when the directory is not there.
    """
    try:
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            if owner is not None:
                shutil.chown(staged, owner, group)
            os.fchmod(descriptor, mode)
            stream.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise file_error(error, staged) from error


def stage_tpm(staged: Path, file: str, content: bytes, *, owner: tuple[str, str] | None) -> None:
    """Build swtpm's directory of a VM at ``staged``; ``file`` is the path of the permanent state below it.

    libvirt makes the VM's directory 0711 and the version's 0700 of swtpm's user; with ``owner`` so does this. A
    directory that a definition names for itself holds the file with nothing in between, and is 0700.
    """
    try:
        if staged.exists():
            shutil.rmtree(staged)
        # libvirt's own mode of the directory that holds them all
        make_directory(staged.parent, 0o711)
        inner = staged / Path(file).parent
        make_directory(inner)
        if inner != staged:
            staged.chmod(0o711 if owner else 0o700)
        if owner is not None:
            shutil.chown(inner, *owner)
        stage_file(staged / file, content, owner=owner[0] if owner else None, group=owner[1] if owner else None)
        sync_directory(inner)
        sync_directory(staged)
    except OSError as error:
        raise file_error(error, staged) from error


def publish(staged: Path, final: Path, *, aside: Path, marker: Path, force: bool) -> None:
    """Rename a staged file or directory into place; can be repeated after a crash.

    ``marker`` is made first: with it ``withdraw`` knows that a missing staged name means a published one. With
    ``force`` what is at ``final`` is first renamed to ``aside``; without, it raises TargetExists.
    """
    try:
        if not os.path.lexists(staged):
            if os.path.lexists(final) and marker.exists():
                return  # published by an attempt that did not live to say so
            raise HostFileMissing(f"{staged} is gone before it was put in place", path=str(staged))
        if os.path.lexists(final):
            if not force:
                raise TargetExists(f"{final} exists already", path=str(final))
            final.rename(aside)
        marker.touch(mode=0o600)
        sync_directory(final.parent)
        staged.rename(final)
        sync_directory(final.parent)
    except OSError as error:
        raise file_error(error, final) from error


def withdraw(staged: Path, final: Path, *, aside: Path, marker: Path) -> None:
    """Undo ``stage_file``, ``stage_tpm`` and ``publish``; what was replaced comes back."""
    with file_errors(final):
        # With the staged name still there nothing was published: what is at the final name is somebody else's.
        published = marker.exists() and not os.path.lexists(staged)
        remove(staged)
        if published:
            remove(final)
        if os.path.lexists(aside) and not os.path.lexists(final):
            aside.rename(final)
        marker.unlink(missing_ok=True)
        if final.parent.is_dir():
            sync_directory(final.parent)


def remove(path: Path) -> None:
    """Remove a file or a directory; one that is gone is fine."""
    with file_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
