"""What differs between two contents is told in words of variables, or of ranges of bytes; never the contents."""

from __future__ import annotations

import hashlib
import struct

from tests.unit.custody.stores import IMAGE_SECURITY, SHA256, X509, Made, make_signatures, make_store
from tests.unit.custody.test_variables import certificate
from vmkeep.custody.differences import DifferingRange, compare_states
from vmkeep.custody.encryption import is_encrypted


def tpm(body: bytes, *, flags: int = 0) -> bytes:
    return struct.pack(">BBHHI", 2, 1, 10, flags, 10 + len(body)) + body


def test_variables_that_were_added_removed_and_changed_are_told_with_sizes_and_hashes() -> None:
    before = make_store([Made("Same", b"s"), Made("Gone", b"g"), Made("Boot0000", b"old")])
    after = make_store([Made("Same", b"s"), Made("Boot0000", b"newer"), Made("New", b"secret", attributes=3)])
    found = compare_states("nvram", before, after)
    told = {change.name: (change.before, change.after) for change in found.variables}
    assert told.keys() == {"Gone", "Boot0000", "New"}
    assert told["Gone"][1] is None
    assert told["New"][0] is None
    old, new = told["Boot0000"]
    assert old is not None
    assert new is not None
    assert (old.size_bytes, new.size_bytes, new.sha256) == (3, 5, hashlib.sha256(b"newer").hexdigest())
    assert b"secret" not in repr(found).encode()


def test_attributes_alone_are_a_change() -> None:
    (change,) = compare_states(
        "nvram", make_store([Made("A", b"a")]), make_store([Made("A", b"a", attributes=3)])
    ).variables
    assert change.before is not None
    assert change.before.attributes == ("non-volatile", "boot", "runtime")


def test_certificates_that_came_and_went_are_told() -> None:
    stays, gone, new = certificate("stays"), certificate("gone"), certificate("new")

    def db(*certificates: bytes, hashes: int) -> bytes:
        lists = [make_signatures(X509, [each]) for each in certificates] + [
            make_signatures(SHA256, [b"h" * 32] * hashes)
        ]
        return make_store([Made("db", b"".join(lists), vendor=IMAGE_SECURITY)])

    (change,) = compare_states("nvram", db(stays, gone, hashes=1), db(stays, new, hashes=4)).variables
    assert [each.subject for each in change.certificates_added] == ["new"]
    assert [each.subject for each in change.certificates_removed] == ["gone"]
    assert change.others_added == 3


def test_variables_written_anew_with_the_same_content_are_no_change() -> None:
    before = make_store([Made("A", b"a")])
    after = make_store([Made("A", b"a", state=0x3C), Made("A", b"a")])
    found = compare_states("nvram", before, after)
    assert (found.variables, found.unread) == ((), None)
    assert found.differing_bytes > 0


def test_what_is_no_variable_store_is_compared_by_its_bytes() -> None:
    found = compare_states("nvram", b"QFI\xfb" + bytes(100), make_store([]))
    assert found.variables == ()
    assert "before: it is a qcow2 image" in (found.unread or "")
    assert found.ranges


def test_ranges_of_a_tpm_are_told_and_close_ones_as_one() -> None:
    before = bytearray(6000)
    after = bytearray(before)
    after[100] = after[110] = after[5000] = 1
    found = compare_states("tpm", bytes(before), bytes(after) + b"more")
    assert found.ranges == (DifferingRange(100, 11), DifferingRange(5000, 1), DifferingRange(6000, 4))
    assert (found.differing_bytes, found.more_ranges, found.encrypted) == (16, 0, False)
    assert compare_states("tpm", b"same", b"same").ranges == ()


def test_of_many_ranges_the_first_are_told_and_the_others_counted() -> None:
    after = bytearray(4000)
    after[::40] = b"\1" * 100
    found = compare_states("tpm", bytes(4000), bytes(after))
    assert (len(found.ranges), found.more_ranges, found.differing_bytes) == (20, 80, 100)


def test_encrypted_tpm_state_is_known_by_swtpms_header() -> None:
    assert is_encrypted(tpm(b"x" * 100, flags=9))
    assert not is_encrypted(tpm(b"x" * 100))
    for torn in (b"", tpm(b"x" * 100, flags=9)[:50], b"\xff" * 100):
        assert not is_encrypted(torn)
    assert compare_states("tpm", tpm(b"a", flags=1), tpm(b"b", flags=1)).encrypted
