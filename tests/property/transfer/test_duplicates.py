"""What is read of a disk that is cloned: all that is no zero, each byte once, on the borders of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.extents import Reply
from vmkeep.planning.images import ImageBitmap, ImageLayer, ImageSnapshot
from vmkeep.transfer.duplicate import copy_disk, data_windows, is_whole, share_image
from vmkeep.transfer.source import MemorySource

_BLOCK = 64 << 10
_WINDOW = 1 << 20


class _Mapped(MemorySource):
    """A disk with a map of its own making: what it calls a hole is one."""

    def __init__(self, pieces: list[tuple[int, bool]]) -> None:
        self._pieces = pieces
        super().__init__(b"".join((bytes(length) if hole else b"\x5a" * length) for length, hole in pieces))

    def zero_map(self) -> Iterator[Reply]:
        place = 0
        for length, hole in self._pieces:
            yield place, length, 3 if hole else 0
            place += length


pieces = st.lists(st.tuples(st.integers(1, 2000).map(lambda number: number * 512), st.booleans()), max_size=8)


@given(pieces)
def test_windows_hold_all_data_once_and_stand_on_borders_of_blocks(drawn: list[tuple[int, bool]]) -> None:
    source = _Mapped(drawn)
    windows = list(data_windows(source))
    end = 0
    for start, length in windows:
        assert start >= end
        assert start % _BLOCK == 0
        assert 0 < length <= _WINDOW
        end = start + length
        assert end % _BLOCK == 0 or end == source.size_bytes
    covered = bytearray(source.size_bytes)
    for start, length in windows:
        covered[start : start + length] = source.read(start, length)
    assert bytes(covered) == source.read(0, source.size_bytes)


@given(pieces.filter(bool))
def test_copy_reads_as_the_disk_does(drawn: list[tuple[int, bool]]) -> None:
    source = _Mapped(drawn)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "copy"
        written = copy_disk(source, path, "raw", workers=2, stop=lambda: None, progress=lambda _: None)
        assert path.read_bytes() == source.read(0, source.size_bytes)
    assert written <= source.size_bytes
    assert (written == 0) is all(hole for _, hole in drawn)


@given(
    st.sampled_from(["raw", "qcow2", "vmdk", "luks"]),
    st.booleans(),
    st.none() | st.just("/below"),
    st.none() | st.just("/data"),
    st.booleans(),
)
def test_only_what_is_all_of_its_disk_is_shared(
    image_format: str, encrypted: bool, backing: str | None, data_file: str | None, with_snapshot: bool
) -> None:
    bitmaps = (ImageBitmap("of a checkpoint", 65536, in_use=False, recording=True),)
    snapshots = (ImageSnapshot("s", 0),) if with_snapshot else ()
    top = ImageLayer("/top", image_format, 1 << 20, bitmaps, encrypted, data_file, backing, snapshots=snapshots)
    chain = (top,) if backing is None else (top, ImageLayer("/below", "raw", 1 << 20, (), False, None, None))
    whole = image_format in ("raw", "qcow2") and not (encrypted or backing or data_file or with_snapshot)
    assert is_whole(chain) is whole


def test_file_system_that_shares_nothing_is_no_error_and_leaves_nothing(tmp_path: Path) -> None:
    image, staged = tmp_path / "image", Path("/dev/shm") / f"vmkeep-shared-{tmp_path.name}"  # noqa: S108  another one
    image.write_bytes(b"x" * 4096)
    layer = ImageLayer(str(image), "raw", 4096, (), False, None, None)
    assert share_image(layer, staged) is False
    assert not staged.exists()
