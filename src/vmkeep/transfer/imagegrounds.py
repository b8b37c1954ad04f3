"""What the host knows of images beside what stands in them: asked before a name in a header is followed.

``vmkeep.planning.imagetrust`` decides on it. Whoever connects to libvirt tells where to ask (``ask``); before that,
only the file system and the settings of libvirt answer.
"""

from __future__ import annotations

from typing import Protocol

from vmkeep.transfer.qemuuser import QemuUser


class Grounds(Protocol):
    """What libvirt says. ``image`` is always the image at the top of a chain; paths are absolute."""

    def user(self, image: str, /) -> QemuUser | None:
        """Return the user that QEMU runs as for the VM of the image."""
        ...

    def listed(self, image: str, path: str, /) -> bool:
        """Return whether a definition or snapshot of the VM of the image names the path too."""
        ...

    def listed_format(self, image: str, path: str, /) -> str | None:
        """Return the format that a definition or snapshot of the VM of the image gives the path."""
        ...

    def used_by(self, image: str, path: str, /, *, chains: bool) -> str | None:
        """Return another VM that has the path as a disk of its own; with ``chains``, anywhere below one."""
        ...

    def in_pool(self, path: str, /) -> bool:
        """Return whether the path lies in a storage pool of the host."""
        ...


class Unasked:
    """No libvirt was asked."""

    def user(self, _image: str) -> QemuUser | None:
        return QemuUser.default()

    def listed(self, _image: str, _path: str) -> bool:
        return False

    def listed_format(self, _image: str, _path: str) -> str | None:
        return None

    def used_by(self, _image: str, _path: str, *, chains: bool) -> str | None:  # noqa: ARG002  named by who asks
        return None

    def in_pool(self, _path: str) -> bool:
        return False


# One process works on one host, whose libvirt many threads ask of; a read needs it wherever an image is opened.
_grounds: Grounds = Unasked()


def ask(grounds: Grounds) -> None:
    """Take what is asked from here on from these grounds."""
    global _grounds
    _grounds = grounds


def grounds() -> Grounds:
    """Return what is asked."""
    return _grounds
