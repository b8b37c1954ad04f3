"""The NBD server of a QEMU that its guest took over: who asks it something has an answer, or none, in time."""

from __future__ import annotations

import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vmkeep.transfer.nbd import answers_handshakes, export_names

_GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
_REPLY = struct.Struct(">QIII")
_LIST_REPLY_MAGIC, _LIST, _SERVER = 0x3E889045565A9, 3, 2


@contextmanager
def serving(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def accept() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield str(path)


def flood(connection: socket.socket) -> None:
    """Greet, and say more and more."""
    connection.sendall(_GREETING)
    while True:
        connection.sendall(bytes(1 << 16))


def list_for_ever(connection: socket.socket) -> None:
    """Answer the question for the exports with more and more of them."""
    connection.sendall(_GREETING)
    connection.recv(4 + 16)
    number = 0
    while True:
        replies = bytearray()
        for _ in range(64):
            number += 1
            name = str(number).encode().rjust(4000, b"x")
            replies += _REPLY.pack(_LIST_REPLY_MAGIC, _LIST, _SERVER, 4 + len(name))
            replies += struct.pack(">I", len(name)) + name
        connection.sendall(replies)


def drip(connection: socket.socket) -> None:
    """Say a byte now and then."""
    for byte in _GREETING * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("serve", [flood, drip, lambda _connection: time.sleep(60)], ids=["flood", "drip", "silence"])
def test_handshake_with_a_server_that_does_not_come_to_an_end(
    tmp_path: Path, serve: Callable[[socket.socket], None]
) -> None:
    """The end of a backup job waits for it. Seen before: a server that went on talking kept it for ever."""
    with serving(tmp_path / "s", serve) as path:
        begun = time.monotonic()
        assert not answers_handshakes(path, 0.4)
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("serve", [flood, drip, list_for_ever], ids=["flood", "drip", "exports"])
def test_exports_of_a_server_that_does_not_come_to_an_end(
    tmp_path: Path, serve: Callable[[socket.socket], None]
) -> None:
    tracemalloc.start()
    try:
        with serving(tmp_path / "s", serve) as path:
            begun = time.monotonic()
            assert export_names(path, 0.6) is None
            assert time.monotonic() - begun < 2
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
