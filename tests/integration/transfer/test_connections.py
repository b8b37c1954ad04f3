"""Connections to a real NBD server: few, used again, and none of them ends before all do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.transfer.images import Image, dirty_ranges, make_qcow2, read_whole, write_pattern
from vmkeep.errors import JobAborted, TransferError
from vmkeep.transfer.connections import Connections, PooledExport
from vmkeep.transfer.imagefile import add_bitmap
from vmkeep.transfer.nbd import NbdSource
from vmkeep.transfer.server import ImageServer

_BITMAP = "qemu:dirty-bitmap:since"
_DIRTY = [(1 << 20, 1 << 16)]


class _Kept:
    """Keeps a duplicate of each socket, as the guardian does; the number of them is that of all connections."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.made = 0

    def take(self, client: socket.socket) -> Callable[[], None]:
        # qemu-nbd greets at once: what it said is still there, so the handshake has not begun.
        assert client.recv(8, socket.MSG_PEEK) == b"NBDMAGIC"
        self.sockets.append(client.dup())
        return self._count

    def close(self) -> None:
        for client in self.sockets:
            client.close()

    def _count(self) -> None:
        self.made += 1


@pytest.fixture
def image(tmp_path: Path) -> Image:
    image = make_qcow2(tmp_path / "disk.qcow2")
    add_bitmap(image.path, "qcow2", "since")
    write_pattern(image.path, 0x5A, *_DIRTY[0])
    content = bytearray(image.content)
    content[_DIRTY[0][0] : sum(_DIRTY[0])] = b"\x5a" * _DIRTY[0][1]
    return Image(image.path, "qcow2", bytes(content))


@pytest.fixture
def server(image: Image, tmp_path: Path) -> Iterator[Path]:
    with ImageServer(image.path, "qcow2", tmp_path / "nbd", bitmap="since"):
        yield tmp_path / "nbd"


def _export(connections: Connections, kept: _Kept, most: int) -> PooledExport:
    return connections.export("", bitmap=_BITMAP, most=most, label="vda", keeper=kept)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_few_connections_serve_many_readers_and_both_maps(image: Image, server: Path, most: int) -> None:
    connections, kept = Connections(str(server)), _Kept()
    source = NbdSource(_export(connections, kept, most), _BITMAP)

    def read(_number: int) -> bytes:
        assert dirty_ranges(source) == _DIRTY
        assert sum(length for _start, length, _flags in source.zero_map()) == len(image.content)
        return read_whole(source)

    with ThreadPoolExecutor(8) as readers:
        for content in readers.map(read, range(16)):
            assert content == image.content
    assert len(kept.sockets) == kept.made <= most
    # Another source of the same export, as a disk that is read a second time, needs none of its own.
    before = len(kept.sockets)
    assert read_whole(NbdSource(_export(connections, kept, most), None)) == image.content
    assert len(kept.sockets) == before
    connections.close()
    kept.close()


def test_a_map_that_is_not_read_to_its_end_holds_no_connection(server: Path) -> None:
    connections, kept = Connections(str(server)), _Kept()
    source = NbdSource(_export(connections, kept, 1), _BITMAP)
    for _ in range(5):
        next(source.zero_map())
        next(source.dirty_map())
    assert len(kept.sockets) == 1
    connections.close()
    kept.close()


def test_the_server_learns_nothing_of_the_end_as_long_as_somebody_keeps_the_socket(server: Path) -> None:
    connections, kept = Connections(str(server)), _Kept()
    source = NbdSource(_export(connections, kept, 3), _BITMAP)
    assert dirty_ranges(source) == _DIRTY
    source.connect().read(0, 512)
    connections.close()
    del source
    assert len(kept.sockets) == 3
    assert all(answers(client) for client in kept.sockets)
    kept.close()


def test_a_server_that_is_gone_and_a_keeper_that_is_dead_are_clear_failures(tmp_path: Path, server: Path) -> None:
    class Dead:
        def take(self, _client: socket.socket) -> Callable[[], None]:
            raise JobAborted("the guardian has ended")

    with closing(Connections(str(server))) as connections:
        export = connections.export("", most=2, keeper=Dead())
        for _ in range(3):  # and what failed takes no room
            with pytest.raises(JobAborted):
                NbdSource(export, None)
    with closing(Connections(str(tmp_path / "nowhere"))) as connections, pytest.raises(TransferError, match="vda"):
        NbdSource(connections.export("vda", most=2), None)
    missing = "qemu:dirty-bitmap:other"
    with closing(Connections(str(server))) as connections, pytest.raises(TransferError, match=f"offers no {missing}"):
        NbdSource(connections.export("", bitmap=missing, most=1), None)


def answers(client: socket.socket) -> bool:
    """Send a read of one sector over a connection that is past its handshake, and return whether it is answered."""
    client.setblocking(True)
    client.settimeout(10)
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 512))
    return bool(client.recv(4096))
