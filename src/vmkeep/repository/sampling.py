"""A share of what is stored, chosen by bytes and in pieces that lie together, so that no more than it is read."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

# Stores read what lies between near ranges as well, and frames may be a few hundred bytes: single ones, chosen at
# random, would make everything be read.
PIECE_BYTES: Final = 256 * 1024


class Share:
    """Chooses pieces of what goes by; ``share`` is between 0 and 1. Any thread may ask.

    Every piece is as likely as any other to be chosen, and the share is kept to: with 0.1 one in ten is, not each with
    the chance of one in ten. Where that begins is left to chance.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._passed = random.random()  # noqa: S311  (a sample, no secret)
        self._lock = threading.Lock()

    def takes_next(self) -> bool:
        """Return whether the next piece is read."""
        with self._lock:
            self._passed += self._share
            if self._passed < 1.0:
                return False
            self._passed -= 1.0
            return True

    def of(self, frames: Sequence[T], place: Callable[[T], tuple[bytes, int, int]]) -> list[T]:
        """Return the frames that are read, in the order in which they are stored."""
        return [frame for piece in pieces(frames, place) if self.takes_next() for frame in piece]


def pieces(frames: Sequence[T], place: Callable[[T], tuple[bytes, int, int]]) -> Iterator[list[T]]:
    """Cut frames into pieces of neighbours, by (pack, offset, length) of each."""
    piece: list[T] = []
    size, pack, end = 0, b"", 0
    for frame in sorted(frames, key=place):
        its_pack, offset, length = place(frame)
        if piece and (its_pack != pack or offset != end or size >= PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(frame)
        size, pack, end = size + length, its_pack, offset + length
    if piece:
        yield piece
