"""The content of a disk as it was written, in blocks that copies share."""

from __future__ import annotations

from pathlib import Path

from tests.rig import KiB

BLOCK_BYTES = 64 * KiB
_ZERO = bytes(BLOCK_BYTES)


class Image:
    """What a guest reads from a disk. Copies are cheap: 8 bytes for each block of 64 KiB."""

    __slots__ = ("_blocks", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._blocks = [_ZERO] * _block_count(size_bytes)

    def copy(self) -> Image:
        other = Image(0)
        other.size_bytes = self.size_bytes
        other._blocks = list(self._blocks)
        return other

    def write(self, start: int, content: bytes) -> None:
        """Put bytes at a place within the image."""
        if start + len(content) > self.size_bytes:
            raise ValueError(f"{start}+{len(content)} is beyond {self.size_bytes}")
        done = 0
        while done < len(content):
            number, offset = divmod(start + done, BLOCK_BYTES)
            piece = content[done : done + BLOCK_BYTES - offset]
            old = self._blocks[number]
            block = old[:offset] + piece + old[offset + len(piece) :]
            self._blocks[number] = _ZERO if block == _ZERO else block
            done += len(piece)

    def fill(self, start: int, length: int, byte: int) -> None:
        self.write(start, bytes([byte]) * length)

    def read(self, start: int, length: int) -> bytes:
        first, last = start // BLOCK_BYTES, (start + length - 1) // BLOCK_BYTES
        joined = b"".join(self._blocks[first : last + 1])
        offset = start - first * BLOCK_BYTES
        return joined[offset : offset + length]

    def grow(self, size_bytes: int) -> None:
        """Make it larger; what is new reads zero."""
        self._blocks += [_ZERO] * (_block_count(size_bytes) - len(self._blocks))
        self.size_bytes = size_bytes

    def difference(self, raw: Path) -> str | None:
        """Say where a raw file is not this content; None when it is, to the last byte."""
        size = raw.stat().st_size
        if size != self.size_bytes:
            return f"{size} bytes in place of {self.size_bytes}"
        wrong = []
        with raw.open("rb") as file:
            for number, block in enumerate(self._blocks):
                found = file.read(BLOCK_BYTES)
                if found != block and found != block[: len(found)]:
                    wrong.append((number, _first_difference(found, block)))
        if not wrong:
            return None
        number, told = wrong[0]
        return f"{len(wrong)} blocks differ, the first at {number * BLOCK_BYTES} ({told})"


def _block_count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def _first_difference(found: bytes, expected: bytes) -> str:
    place = next(i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other)
    return f"+{place}: {found[place : place + 4].hex(' ')} in place of {expected[place : place + 4].hex(' ')}"
