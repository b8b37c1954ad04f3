"""The store's errors, each translated into the one that says what to do."""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from vmkeep.errors import (
    NoSpace,
    ObjectDamaged,
    ObjectMissing,
    PermissionRefused,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.filesystem import aligned_buffer
from vmkeep.repository.directory import LARGE_BYTES
from vmkeep.repository.store import ObjectStore, _translation, create_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return create_store(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GenericError("Generic LocalFileSystem error: No space left on device (os error 28)"), NoSpace),
        (GenericError("Disk quota exceeded (os error 122)"), NoSpace),
        (OSError(28, "No space left on device"), NoSpace),
        (GenericError("Read-only file system (os error 30)"), PermissionRefused),
        (PermissionError(13, "Permission denied"), PermissionRefused),
        (FileNotFoundError(2, "No such file or directory"), ObjectMissing),
        (GenericError("Input/output error (os error 5)"), StoreError),
        (GenericError("connection reset"), StoreError),
    ],
)
def test_error_of_the_store_is_translated_once(error: Exception, expected: type[VmkeepError]) -> None:
    translated = _translation(error, "/repository", "points/x")
    assert type(translated) is expected
    assert translated.path == "/repository/points/x"


def test_object_comes_back_and_is_never_written_over(store: ObjectStore) -> None:
    store.put("points/x", [b"ab", memoryview(b"cd")])
    assert store.get("points/x") == b"abcd"
    with pytest.raises(TargetExists):
        store.put("points/x", b"other")
    assert store.get("points/x") == b"abcd"
    store.put("points/x", b"other", replace=True)
    assert [(item.name, item.size_bytes) for item in store.list("points/")] == [("points/x", 5)]
    store.delete("points/x")
    for call in (store.get, store.stat, store.delete):
        with pytest.raises(ObjectMissing):
            call("points/x")
    with pytest.raises(ObjectMissing):
        store.ranges("points/x", [(0, 1)])


@pytest.mark.parametrize("wanted", [(0, 5), (4, 1), (5, 1), (100, 100)])
def test_range_beyond_the_end_is_damage_not_less_data(store: ObjectStore, wanted: tuple[int, int]) -> None:
    store.put("x", b"abcd")
    assert [bytes(piece) for piece in store.ranges("x", [(3, 1), (0, 2)])] == [b"d", b"ab"]
    with pytest.raises(ObjectDamaged, match="cut short"):
        store.ranges("x", [wanted])


def test_listing_what_does_not_exist_is_empty(store: ObjectStore) -> None:
    assert list(store.list("condemned/")) == []


def test_store_where_nothing_may_be_written_says_so() -> None:
    with pytest.raises((PermissionRefused, StoreError, ObjectMissing)):
        create_store("/proc/vmkeep-test")


def _aligned(content: bytes) -> memoryview:
    buffer = aligned_buffer(max(1, len(content)))
    buffer[: len(content)] = content
    return memoryview(buffer)[: len(content)]


@pytest.mark.parametrize("size", [LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES - 511, 5 * LARGE_BYTES + 4096])
@pytest.mark.parametrize("tail", [0, 1, 24, 5000, 2 * LARGE_BYTES + 7])
def test_pack_past_the_page_cache_is_what_was_put(store: ObjectStore, size: int, tail: int) -> None:
    content, rest = random.Random(size).randbytes(size), random.Random(tail).randbytes(tail)
    store.put_pack("packs/ab/x", [_aligned(content), rest])
    store.make_durable("packs/ab/x")
    assert store.get("packs/ab/x", most_bytes=1 << 24) == content + rest
    assert [(item.name, item.size_bytes) for item in store.list("packs/")] == [("packs/ab/x", size + tail)]
    (file,) = (Path(store.location) / "packs/ab").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_pack_is_never_written_over_and_leaves_nothing_when_it_cannot_be(store: ObjectStore) -> None:
    store.put_pack("packs/ab/x", [_aligned(bytes(LARGE_BYTES))])
    with pytest.raises(TargetExists):
        store.put_pack("packs/ab/x", [_aligned(b"y" * LARGE_BYTES)])
    assert store.get("packs/ab/x", most_bytes=1 << 24) == bytes(LARGE_BYTES)
    assert [file.name for file in (Path(store.location) / "packs/ab").iterdir()] == ["x"]


def test_pack_goes_through_the_page_cache_where_that_cannot_be_passed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older tmpfs and some FUSE file systems refuse O_DIRECT; which ones, and whether at open or at write, varies."""
    real = os.pwrite

    def refused(handle: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", refused)
    content = random.Random(5).randbytes(2 * LARGE_BYTES)
    store.put_pack("packs/ab/x", [_aligned(content), b"tail"])
    assert store.get("packs/ab/x", most_bytes=1 << 24) == content + b"tail"
    assert [file.name for file in (Path(store.location) / "packs/ab").iterdir()] == ["x"]
