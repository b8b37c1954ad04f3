"""What a client says to a server, heard on the wire between them."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PIECE_BYTES = 1 << 16
_OPTION = struct.Struct(">8sII")
_FLAGS_BYTES = 4


@contextmanager
def heard(server: Path, talk: Callable[[socket.socket], object]) -> Iterator[bytes]:
    """Give what a client sends to the server at a socket while ``talk`` runs. It is connected until the block ends."""
    client, ours = socket.socketpair()
    theirs = socket.socket(socket.AF_UNIX)
    said = bytearray()

    def relay() -> None:
        while True:
            for side in select.select([ours, theirs], [], [])[0]:
                piece = side.recv(_PIECE_BYTES)
                if not piece:
                    return
                if side is ours:
                    said.extend(piece)
                (theirs if side is ours else ours).sendall(piece)

    with ours, theirs:
        theirs.connect(str(server))
        relaying = threading.Thread(target=relay, daemon=True)
        relaying.start()
        with client:
            _lives_on = talk(client)
            yield bytes(said)
            client.shutdown(socket.SHUT_RDWR)
        relaying.join(10)


def breaks(handshake: bytes) -> list[int]:
    """Return after how many of its bytes an NBD client's handshake can break off; an option's header is sent whole."""
    found = list(range(_FLAGS_BYTES + 1))
    at = _FLAGS_BYTES
    while at < len(handshake):
        _, _, length = _OPTION.unpack_from(handshake, at)
        at += _OPTION.size
        found += range(at, at + length + 1)
        at += length
    assert at == len(handshake) == found[-1]
    return found
