"""Whatever a guest writes into its UEFI variables or its TPM state, looking at it gives data, and soon."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import damaged
from tests.unit.custody.stores import Made, make_signatures, make_store
from tests.unit.custody.test_variables import certificate
from vmkeep.custody.certificates import read_signatures
from vmkeep.custody.differences import compare_states
from vmkeep.custody.variables import read_variables

CERTIFICATE = certificate()
SIGNATURES = make_signatures("a5c059a1-94e4-4aa7-87b5-ab155c2bf072", [CERTIFICATE])
STORE = make_store(
    [Made("Boot0000", b"content" * 3, state=0x3C), Made("Boot0000", b"new"), Made("PK", SIGNATURES)], size_bytes=0x2000
)
TEMPLATE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd").read_bytes()[:0x6000]


def read(content: bytes) -> None:
    store = read_variables(content)
    assert sum(each.size_bytes for each in store.variables) <= len(content)
    for each in store.variables:
        assert each.name.isprintable()
        assert each.content in content
        read_signatures(each.content)
    if store.problem is not None:
        assert store.secure_boot is None


@given(st.binary(max_size=300) | damaged(STORE) | damaged(TEMPLATE))
def test_any_bytes_are_data_or_a_reason(content: bytes) -> None:
    read(content)


@given(damaged(STORE[72:]))
def test_any_store_behind_a_good_volume_is_data_or_a_reason(content: bytes) -> None:
    read((STORE[:72] + content)[: len(STORE)].ljust(len(STORE), b"\xff"))


@given(st.binary(max_size=200) | damaged(SIGNATURES))
def test_any_list_of_signatures_is_data_or_a_reason(content: bytes) -> None:
    found = read_signatures(content)
    assert all(each.subject.isprintable() for each in found.certificates)


@given(damaged(CERTIFICATE).filter(bool))
def test_any_certificate_is_read_or_told_as_unreadable(content: bytes) -> None:
    (found,) = read_signatures(make_signatures("a5c059a1-94e4-4aa7-87b5-ab155c2bf072", [content])).certificates
    assert (found.expires is None) <= (found.subject == "")


@given(st.sampled_from(["tpm", "nvram"]), damaged(STORE), damaged(STORE))
def test_difference_of_any_two_contents_is_that_of_their_bytes(kind: str, before: bytes, after: bytes) -> None:
    found = compare_states(kind, before, after)
    assert (found.differing_bytes == 0) == (before == after)
    assert sum(each.length for each in found.ranges) <= max(len(before), len(after))
    for changed in found.ranges:
        place, end = changed.start, changed.start + changed.length
        assert before[place:end] != after[place:end]


def test_the_most_that_is_kept_is_read_in_a_moment() -> None:
    """8 MiB of the smallest variables, of certificates that are none, and of bytes that all differ."""
    began = time.monotonic()
    header = make_store([Made("", b"")], plain=True, size_bytes=0x2000)[100:134] + b"\xff\xff"
    volume = bytearray(make_store([], plain=True, size_bytes=8 << 20))
    volume[100 : 100 + 36 * 116_000] = header * 116_000
    assert len(read_variables(bytes(volume)).variables) == 1
    read_signatures(make_signatures("a5c059a1-94e4-4aa7-87b5-ab155c2bf072", [b"x"] * 480_000))
    compare_states("nvram", bytes(8 << 20), b"\1" * (8 << 20))
    compare_states("nvram", bytes(8 << 20), (bytes(17) + b"\1") * ((8 << 20) // 18))
    assert time.monotonic() - began < 20
