"""A libvirtd that lets anybody in and says nothing, as one that hangs does: a socket whose connections wait."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MuteLibvirtd:
    """Where it is, and whether somebody waits for its answer."""

    uri: str
    listening: socket.socket

    def wait_for_client(self) -> None:
        ready, _, _ = select.select([self.listening], [], [], 20)
        assert ready, "nobody connects"


@contextmanager
def mute_libvirtd(directory: Path) -> Iterator[MuteLibvirtd]:
    path = directory / "mute"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(50)
        yield MuteLibvirtd(f"qemu+unix:///system?socket={path}", listening)
