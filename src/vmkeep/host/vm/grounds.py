"""What libvirt says of the images of this host, for the decision whether a name in an image's header is followed.

Asked only when a header names a file, and kept for a moment: one look at a chain asks several times.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from vmkeep.errors import VmkeepError
from vmkeep.hypervisor import Domain, Hypervisor, snapshots_of
from vmkeep.logs import get_logger
from vmkeep.transfer.imagegrounds import ask
from vmkeep.transfer.qemuuser import QemuUser
from vmkeep.xmltext import XmlRefused, element_text, parse_xml

_log = get_logger(__name__)
_KEPT_SECONDS: Final = 1.0
_PATHS: Final = ("file", "dev")
# The elements of disks by the UUIDs of their VMs, as the journals of restores hold them.
_parked: dict[str, str] = {}


@dataclass(slots=True)
class _Files:
    """The files of one VM by its definitions and snapshots, by real path, and the user that it asks for."""

    name: str
    own: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    formats: dict[str, str] = field(default_factory=dict)
    user: QemuUser | None = None

    @property
    def all(self) -> set[str]:
        return self.own | self.below


class LibvirtGrounds:
    """The answers of one libvirt; where it does not answer, the answer is the careful one."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._reading = threading.Lock()
        self._files: tuple[_Files, ...] = ()
        self._read_at = float("-inf")
        self._user: QemuUser | None = None
        self._user_asked = False

    def user(self, image: str) -> QemuUser | None:
        own = next((files.user for files in self._of(image) if files.user is not None), None)
        return own or self._default_user()

    def listed(self, image: str, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real in files.all for files in self._of(image))

    def listed_format(self, image: str, path: str) -> str | None:
        real = os.path.realpath(path)
        return next((found for files in self._of(image) if (found := files.formats.get(real)) is not None), None)

    def used_by(self, image: str, path: str, *, chains: bool) -> str | None:
        real, mine = os.path.realpath(path), self._of(image)
        for files in self._all():
            if files not in mine and real in (files.all if chains else files.own):
                return files.name
        return None

    def in_pool(self, path: str) -> bool:
        folder = os.path.realpath(os.path.dirname(path))  # noqa: PTH120
        return any(os.path.realpath(pool) == folder for pool in self._hypervisor.pool_folders())

    def _of(self, image: str) -> list[_Files]:
        real = os.path.realpath(image)
        return [files for files in self._all() if real in files.all]

    def _default_user(self) -> QemuUser | None:
        if not self._user_asked:
            label = self._hypervisor.qemu_label()
            self._user = (None if label is None else _user_of(label)) or QemuUser.default()
            self._user_asked = True
        return self._user

    def _all(self) -> tuple[_Files, ...]:
        with self._reading:
            if time.monotonic() - self._read_at > _KEPT_SECONDS:
                self._files = tuple(_files_of(domain, self._hypervisor) for domain in self._hypervisor.domains())
                self._read_at = time.monotonic()
            return self._files


def stand_on(hypervisor: Hypervisor) -> Hypervisor:
    """Let this libvirt be asked before a name in an image's header is followed, and return it."""
    ask(LibvirtGrounds(hypervisor))
    return hypervisor


def remember_parked(vm_uuid: str, element: str) -> None:
    """Count a disk of a VM that is kept from starting among its disks: libvirt's definition has another one there."""
    if element:
        _parked[vm_uuid] = element


def forget_parked(vm_uuid: str) -> None:
    """The VM has its definition again."""
    _parked.pop(vm_uuid, None)


def _files_of(domain: Domain, hypervisor: Hypervisor) -> _Files:
    files = _Files(domain.name)
    if (parked := _parked.get(domain.uuid)) is not None:
        with suppress(XmlRefused):  # the journal that it is from is judged elsewhere
            _note(files, parse_xml(parked), hypervisor)
    for root in _texts(domain):
        for disk in root.iter("disk"):
            _note(files, disk, hypervisor)
        label = next((each for each in root.findall("seclabel") if each.get("model") == "dac"), None)
        named = None if label is None else label.find("label")
        words = None if named is None else element_text(named).strip()
        if files.user is None and words:
            files.user = _user_of(words)
    return files


def _texts(domain: Domain) -> Iterator[etree._Element]:
    """Yield a VM's definitions, that of its next start first, and its snapshots, each of which holds definitions."""
    readers: tuple[Callable[[], list[str]], ...] = (
        lambda: [domain.definition_xml(inactive=True)],
        lambda: [domain.definition_xml()],
        lambda: list(snapshots_of(domain).definitions(secure=True).values()),
    )
    for reader in readers:
        try:
            texts = reader()
        except VmkeepError as error:
            _log.info("grounds not told", vm=domain.name, error=error.message)
            continue  # gone, or transient
        for text in texts:
            try:
                yield parse_xml(text)
            except XmlRefused:
                continue


def _note(files: _Files, disk: etree._Element, hypervisor: Hypervisor) -> None:
    own = disk.find("source")
    for source in disk.iter("source"):
        path = next((found for name in _PATHS if (found := source.get(name))), None)
        if path is None and source.get("volume"):
            place = hypervisor.volume_path(source.get("pool", ""), source.get("volume", ""))
            path = None if place is None else place[0]
        if not path:
            continue
        real, parent = os.path.realpath(path), source.getparent()
        (files.own if source is own else files.below).add(real)
        stated = None if parent is None else parent.find("driver" if source is own else "format")
        if stated is not None and (image_format := stated.get("type")):
            files.formats.setdefault(real, image_format)


def _user_of(label: str) -> QemuUser | None:
    user, _, group = label.partition(":")
    return QemuUser.named(user, group or None)
