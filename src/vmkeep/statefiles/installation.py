"""Putting state files in place: beside, synced, owned as the hypervisor expects, then renamed.

Nothing that was there is lost: an existing file is only replaced when asked, and then it is renamed aside until
all else is done.

The folders may belong to QEMU's or swtpm's user, who can put anything in the way at any time. So each is opened once,
through no link of theirs, and all else is done by its descriptor and single names. A file or folder gets its owner on
its descriptor, as the last thing that is done to it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vmkeep.errors import HostFileMissing, PermissionRefused, TargetExists, VmkeepError
from vmkeep.filesystem import file_error
from vmkeep.paths import ForeignLink, make_directories, open_directory

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_folder(path: Path, mode: int) -> None:
    """Make a folder and those above it, as far as they are missing. Raises as ``stage_file``."""
    with _translated(path):
        make_directories(path, mode)


def stage_file(
    staged: Path, content: bytes, *, owner: str | None = None, group: str | None = None, mode: int = 0o600
) -> None:
    """Write a new file durably at ``staged``, with owner and mode, to be published later.

    ``owner`` and ``group`` None keep those of this process. What an earlier attempt left there is removed.
    Raises NoSpace, PermissionRefused, HostFileMissing when the directory is not there.
    """
    with _folder_of(staged) as folder:
        _write(folder, staged.name, content, _ids(owner, group), mode)


def stage_tpm(staged: Path, file: str, content: bytes, *, owner: tuple[str, str] | None) -> None:
    """Build swtpm's directory of a VM at ``staged``; ``file`` is the path of the permanent state below it.

    libvirt makes the VM's directory 0711 and the version's 0700 of swtpm's user; with ``owner`` so does this. A
    directory that a definition names for itself holds the file with nothing in between, and is 0700.
    """
    ids = _ids(*owner) if owner is not None else None
    *between, name = Path(file).parts
    # libvirt's own mode of the directory that holds them all
    make_folder(staged.parent, 0o711)
    with _folder_of(staged) as folder:
        _remove(folder, staged.name)
        opened = [_made_folder(folder, staged.name)]
        try:
            for part in between:
                opened.append(_made_folder(opened[-1], part))
            _write(opened[-1], name, content, ids, 0o600)
            for descriptor in reversed(opened):
                os.fsync(descriptor)
            # Given away from within: as long as the outermost is root's alone, nobody else comes to what is below.
            if ids is not None:
                os.fchown(opened[-1], *ids)
            if between and ids is not None:
                os.fchmod(opened[0], 0o711)
        finally:
            for descriptor in opened:
                os.close(descriptor)


def publish(staged: Path, final: Path, *, aside: Path, marker: Path, force: bool) -> None:
    """Rename a staged file or directory into place, all names in one folder; can be repeated after a crash.

    ``marker`` is made first: with it ``withdraw`` knows that a missing staged name means a published one. With
    ``force`` what is at ``final`` is first renamed to ``aside``; without, it raises TargetExists.
    """
    with _folder_of(final) as folder:
        if not _is_there(folder, staged.name):
            if _is_there(folder, final.name) and _is_marked(folder, marker.name):
                return  # published by an attempt that did not live to say so
            raise HostFileMissing(f"{staged} is gone before it was put in place", path=str(staged))
        if _is_there(folder, final.name):
            if not force:
                raise TargetExists(f"{final} exists already", path=str(final))
            os.rename(final.name, aside.name, src_dir_fd=folder, dst_dir_fd=folder)
        if not _is_marked(folder, marker.name):
            os.close(os.open(marker.name, _NEW_FILE, 0o600, dir_fd=folder))
        _sync(folder)
        os.rename(staged.name, final.name, src_dir_fd=folder, dst_dir_fd=folder)
        _sync(folder)


def withdraw(staged: Path, final: Path, *, aside: Path, marker: Path) -> None:
    """Undo ``stage_file``, ``stage_tpm`` and ``publish``; what was replaced comes back.

    Where nothing was begun nothing is tried: a folder that cannot be written is the reason for many an undo.
    """
    with suppress(HostFileMissing), _folder_of(final) as folder:
        if not any(_is_there(folder, each.name) for each in (staged, aside, marker)):
            return
        # With the staged name still there nothing was published: what is at the final name is somebody else's.
        published = _is_marked(folder, marker.name) and not _is_there(folder, staged.name)
        _remove(folder, staged.name)
        if published:
            _remove(folder, final.name)
        if _is_there(folder, aside.name) and not _is_there(folder, final.name):
            os.rename(aside.name, final.name, src_dir_fd=folder, dst_dir_fd=folder)
        with suppress(FileNotFoundError):
            os.unlink(marker.name, dir_fd=folder)
        _sync(folder)


def keep_aside(aside: Path, lasting: Path) -> bool:
    """Give what was renamed aside a lasting name in the same folder; return whether it is there under that one."""
    with _folder_of(lasting) as folder:
        if _is_there(folder, aside.name):
            os.rename(aside.name, lasting.name, src_dir_fd=folder, dst_dir_fd=folder)
            _sync(folder)
        return _is_there(folder, lasting.name)


def remove(path: Path) -> None:
    """Remove a file or a directory; one that is gone is fine."""
    with suppress(HostFileMissing), _folder_of(path) as folder:
        _remove(folder, path.name)


# -- by descriptors ------------------------------------------------------------------------------------------------


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """Open the folder of a file, and translate what goes wrong in it."""
    with _translated(path):
        folder = open_directory(path.parent)
        try:
            yield folder
        finally:
            os.close(folder)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except ForeignLink as error:
        raise foreign_link(path, error) from error
    except OSError as error:
        raise file_error(error, path) from error


def foreign_link(path: Path, error: ForeignLink) -> VmkeepError:
    """Return our error for a link of another user on the way to a file that is to be read or written."""
    return PermissionRefused(
        f"{path} is reached through {error.filename}, a link that a user other than root made",
        path=str(path),
        hint="Nothing was written through it. Put a folder in the place of the link, or make the link as root.",
    )


def _sync(folder: int) -> None:
    """Make the names in a folder durable."""
    os.fsync(folder)


def _write(folder: int, name: str, content: bytes, ids: tuple[int, int] | None, mode: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(descriptor, mode)
        if ids is not None:
            os.fchown(descriptor, *ids)
        os.fsync(descriptor)


def _ids(owner: str | None, group: str | None) -> tuple[int, int] | None:
    """Return the numbers of a user and a group, -1 where there is no change."""
    if owner is None:
        return None
    try:
        return pwd.getpwnam(owner).pw_uid, -1 if group is None else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise PermissionRefused(
            f"the user {owner} or the group {group}, whose the state file should be, is not on this host",
            hint="Correct swtpm_user and swtpm_group in /etc/libvirt/qemu.conf.",
        ) from error


def _made_folder(folder: int, name: str) -> int:
    os.mkdir(name, 0o700, dir_fd=folder)
    made = os.open(name, _FOLDER, dir_fd=folder)
    os.fchmod(made, 0o700)  # whatever the umask is
    return made


def _about(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_there(folder: int, name: str) -> bool:
    return _about(folder, name) is not None


def _is_marked(folder: int, marker: str) -> bool:
    """Return whether a marker is there, and is one of ours: others can put a link or a file of theirs in its place."""
    about = _about(folder, marker)
    return about is not None and stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()


def _remove(folder: int, name: str) -> None:
    about = _about(folder, name)
    if about is None:
        return
    if stat.S_ISDIR(about.st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)
