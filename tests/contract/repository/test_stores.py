"""What every store promises to those above it, whatever it is made of."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import ObjectDamaged, ObjectMissing, TargetExists
from vmkeep.filesystem import aligned_buffer
from vmkeep.repository.directory import LARGE_BYTES
from vmkeep.repository.store import ObjectStore

# A server keeps times in whole seconds, and its clock is this machine's here.
_CLOCK = timedelta(seconds=5)


def test_object_comes_back_and_is_never_written_over(store: ObjectStore) -> None:
    store.put("points/x", [b"ab", memoryview(b"cd")])
    with pytest.raises(TargetExists):
        store.put("points/x", b"other")
    assert store.get("points/x") == b"abcd"
    assert store.is_kept("points/x", b"abcd")
    assert not store.is_kept("points/x", b"abce")
    store.put("points/x", b"other", replace=True)
    assert [(item.name, item.size_bytes) for item in store.list("points/")] == [("points/x", 5)]
    store.delete("points/x")
    for call in (store.get, store.stat, store.delete):
        with pytest.raises(ObjectMissing):
            call("points/x")
    with pytest.raises(ObjectMissing):
        store.ranges("points/x", [(0, 1)])


def test_range_beyond_the_end_is_damage_not_less_data(store: ObjectStore) -> None:
    store.put("x", b"abcd")
    assert [bytes(piece) for piece in store.ranges("x", [(3, 1), (0, 2)])] == [b"d", b"ab"]
    for wanted in ((0, 5), (4, 1), (5, 1), (100, 100)):
        with pytest.raises(ObjectDamaged, match="cut short"):
            store.ranges("x", [wanted])


def test_object_that_is_larger_than_asked_for_is_not_read(store: ObjectStore) -> None:
    store.put("x", bytes(2000))
    with pytest.raises(ObjectDamaged, match="2000 bytes"):
        store.get("x", most_bytes=1999)


def test_pack_is_what_was_put(store: ObjectStore) -> None:
    content, tail = random.Random(5).randbytes(3 * LARGE_BYTES - 511), b"tail"
    buffer = aligned_buffer(len(content))
    buffer[: len(content)] = content
    store.put_pack("packs/ab/x", [memoryview(buffer)[: len(content)], tail])
    store.make_durable("packs/ab/x")
    assert store.get("packs/ab/x", most_bytes=1 << 24) == content + tail
    with pytest.raises(TargetExists):
        store.put_pack("packs/ab/x", [memoryview(buffer)[: len(content)], tail])


def test_list_names_all_below_a_prefix_and_nothing_else(store: ObjectStore) -> None:
    names = {f"packs/{number % 3:02x}/{number:032x}" for number in range(7)}
    for name in (*names, "points/x", "packsx"):
        store.put(name, name.encode())
    assert {item.name for item in store.list("packs/")} == names
    assert {item.size_bytes for item in store.list("packs/")} == {41}
    assert list(store.list("condemned/")) == []
    assert store.names() == {"packs", "points", "packsx"}
    assert not store.unfinished()


def test_place_with_a_keyring_alone_is_one_that_was_begun(store: ObjectStore) -> None:
    assert store.names() == set()
    assert store.unfinished()
    store.put("keyring/0000000001", b"{}")
    assert store.unfinished()
    store.put("format", b"{}")
    assert not store.unfinished()


def test_many_objects_go_at_once_and_those_that_are_gone_are_fine(store: ObjectStore) -> None:
    names = [f"packs/ab/{number:032x}" for number in range(5)]
    for name in names[:4]:
        store.put(name, b"x")
    store.put("packs/ab/stays", b"x")
    store.delete_all(names)
    assert [item.name for item in store.list("packs/")] == ["packs/ab/stays"]


def test_time_is_the_stores_and_rises_with_a_renewal(store: ObjectStore) -> None:
    store.put("intents/x", b"1")
    first = store.stat("intents/x").modified
    second = store.renew("intents/x", b"2")
    assert store.stat("intents/x").modified == second >= first
    assert abs(store.now() - datetime.now(UTC)) < _CLOCK
    assert [item.name for item in store.list("intents/")] == ["intents/x"]


def test_many_threads_put_and_get_at_once(store: ObjectStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                name = f"points/{number}-{turn}"
                store.put(name, name.encode() * 100)
                assert store.get(name) == name.encode() * 100
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
