"""Whose vmkeep's home is: what others own or may write there is not used, as ssh does it (StrictModes).

Who may change the settings, the catalogue, the flow database or a record of an operation decides what vmkeep does as
root; who may put another folder in the place of the home does so as well. So all of it, and each folder on the way
there, belongs to root or to the user who runs vmkeep, and is written by nobody else. A key that others may read is
refused too.

Looked at from the root down, nothing can be exchanged behind the back of the look: what was found to be in order can be
changed by root and this user alone. A folder that all may write and that is sticky (/tmp) lets nobody rename what is
another's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import HomeExposed
from vmkeep.values import dataclass

_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MOST_LINKS: Final = 40
_SECRET_FILES: Final = ("host.key", "authority.key", "server.key", "agent.key")
_FILES: Final = ("vmkeep.toml", "catalog.sqlite", "flows.sqlite", "authorities.pem", *_SECRET_FILES)
"""By how they begin: journals of databases, and keys that were put aside, count as well."""
_KEYS: Final = "keys"
_OF_HOME: Final = "vmkeep's home is reached"
_FOLDERS: Final = (
    *(_KEYS, "cache", "deletions", "guards", "locks", "logs", "owners", "restores", "run", "schedule", "snapshots"),
)


@dataclass(frozen=True, slots=True)
class Exposure:
    """Something of a home that others have in hand. ``remedy`` is a command, ``only_read``: they cannot change it."""

    path: str
    message: str
    remedy: str
    only_read: bool = False


def refuse_exposed(home: Path, *, keys_too: bool = True) -> None:
    """Raise HomeExposed, with all that is wrong, when others own or may write something there.

    ``keys_too``: or when they may read a key.
    """
    found = [exposure for exposure in exposures(home) if keys_too or not exposure.only_read]
    if not found:
        return
    first, *more = found
    error = HomeExposed(
        first.message,
        path=first.path,
        hint=f"Nothing was used of it. Look at what is there, as others may have changed it; then: {first.remedy}",
    )
    for exposure in more:
        error.add_note(f"{exposure.message}: {exposure.remedy}")
    raise error


def refuse_exposed_file(path: Path, what: str, *, secret: bool) -> None:
    """Raise HomeExposed when others own or may write a file that the settings name, or a folder on the way to it.

    ``secret``: or when they may read it. A file that is not there is for who opens it.
    """
    user = os.geteuid()
    found = list(_on_the_way(path, user))
    with suppress(OSError):
        about = path.stat()
        if not found and secret and about.st_mode & _OTHERS:
            message = f"others than its owner may read it (mode {stat.S_IMODE(about.st_mode):04o})"
            found = [Exposure(str(path), message, command_line("chmod go-rwx --", str(path)))]
    if found:
        message = f"{path}, {what}, is exposed: {found[0].message.replace(_OF_HOME, 'it is reached')}"
        raise HomeExposed(message, path=found[0].path, hint=f"Nothing was used of it. {found[0].remedy}")


def exposures(home: Path) -> tuple[Exposure, ...]:
    """Return what others own or may write of a home and of the way to it, and keys that they may read.

    Nothing for a home that is not there yet, but for the way to it. What this user may not look at is left out: it
    cannot be used either.
    """
    user = os.geteuid()
    return (*_on_the_way(home, user), *_inside(home, user))


def _on_the_way(path: Path, user: int) -> Iterator[Exposure]:
    """Yield what is wrong with a file or folder, with the folders above it and with the links that lead there."""
    pending = list(reversed(path.parts[1:]))
    here, links = "/", 0
    yield from _judged(here, os.lstat(here), user, above=path)
    while pending:
        part = pending.pop()
        if part == "..":
            here = here.rpartition("/")[0] or "/"
            continue
        there = f"{here.rstrip('/')}/{part}"
        try:
            about = os.lstat(there)
        except OSError:
            return
        if not stat.S_ISLNK(about.st_mode):
            here = there
            yield from _judged(there, about, user, above=path if pending else None)
            continue
        links += 1
        if about.st_uid not in (0, user):
            message = f"{_OF_HOME} through {there}, a link that {_user(about.st_uid)} made"
            yield Exposure(there, message, command_line("chown -h", _name(user), there))
            return
        if links > _MOST_LINKS:
            return  # whoever opens it is told
        target = str(Path(there).readlink())
        if target.startswith("/"):
            here = "/"
        pending += [word for word in reversed(target.split("/")) if word not in ("", ".")]


def _judged(
    path: str, about: os.stat_result, user: int, *, above: Path | None = None, secret: bool = False
) -> Iterator[Exposure]:
    what = path if above is None else f"the folder {path}, in which {above} is,"
    if about.st_uid not in (0, user):
        if above is None:
            remedy = command_line("chown", _name(user), path)
        else:  # to take a folder from its owner would be none
            as_owner = command_line("sudo -u", _name(about.st_uid, "#"), "vmkeep")
            remedy = f"Run vmkeep as that user (`{as_owner}`), or keep its home where root's folders lead (VMKEEP_HOME)"
        yield Exposure(path, f"{what} belongs to {_user(about.st_uid)}", remedy)
    elif about.st_mode & _WRITE and not (above is not None and about.st_mode & stat.S_ISVTX):
        message = f"{what} may be written by others than its owner (mode {stat.S_IMODE(about.st_mode):04o})"
        yield Exposure(path, message, command_line("chmod go-rwx --" if secret else "chmod go-w --", path))


def _inside(home: Path, user: int) -> Iterator[Exposure]:
    for entry in _entries(home):
        if entry.name.startswith(_FILES) or entry.name in _FOLDERS:
            yield from _of_entry(entry, user, secret=entry.name.startswith(_SECRET_FILES))
    for entry in _entries(home / _KEYS):
        yield from _of_entry(entry, user, secret=entry.name.endswith(".key"))


def _of_entry(entry: os.DirEntry[str], user: int, *, secret: bool) -> Iterator[Exposure]:
    try:
        about = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(about.st_mode):
            found = list(_on_the_way(Path(entry.path), user))
            about = entry.stat()
        else:
            found = list(_judged(entry.path, about, user, secret=secret))
    except OSError:
        return  # gone, or not to be looked at
    yield from found
    if not found and secret and about.st_mode & _OTHERS:
        message = (
            f"{entry.path} is a key, and others than its owner may read it (mode {stat.S_IMODE(about.st_mode):04o})"
        )
        yield Exposure(entry.path, message, command_line("chmod go-rwx --", entry.path), only_read=True)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def _name(user: int, mark: str = "") -> str:
    """Return the name of a user, else the number with a mark before it."""
    import pwd  # only for what is told: commands begin without it

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"{mark}{user}"


def _user(user: int) -> str:
    name = _name(user)
    return f"user {name}" if name == str(user) else f"user {name} ({user})"
