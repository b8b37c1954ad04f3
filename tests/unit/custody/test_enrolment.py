"""Certificates are added to a store as the firmware would have them, and nothing else in it changes."""

from __future__ import annotations

import hashlib
import struct
import uuid
from pathlib import Path

import pytest

from tests.unit.custody.stores import GLOBAL, IMAGE_SECURITY, X509, Made, make_signatures, make_store
from tests.unit.custody.test_variables import certificate
from vmkeep.custody.certificates import parse_certificates, read_signatures
from vmkeep.custody.enrolment import OTHERS_OWNER, Enrolled, certificates_of_2023, enrol, named_certificate
from vmkeep.custody.microsoft import CERTIFICATES, OWNER, Generation, microsoft_keys
from vmkeep.custody.nvram import tell_of_nvram
from vmkeep.custody.rewriting import NewContent, has_unfinished_write, rewrite
from vmkeep.custody.variables import read_layout, read_variables

TEMPLATE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd").read_bytes()
OF_2023 = {each.subject: each for each in CERTIFICATES if each.year == 2023}
OWN = certificate("An owner's own")
# As Microsoft, Google Cloud and others publish them: SHA-1, by which Windows names certificates.
PUBLISHED = {
    "Microsoft Corporation KEK 2K CA 2023": "459ab6fb5e284d272d5e3e6abc8ed663829d632b",
    "Windows UEFI CA 2023": "45a0fa32604773c82433c3b7d59e7466b3ac0c67",
    "Microsoft UEFI CA 2023": "b5eeb4a6706048073f0ed296e7f580a790b59eaa",
    "Microsoft Option ROM UEFI CA 2023": "3fb39e2b8bd183bf9e4594e72183ca60afcd4277",
}


def enrolled(content: bytes, *certificates: bytes) -> Enrolled:
    wanted = certificates_of_2023(content)[0] if not certificates else ()
    named = tuple(named_certificate(parsed_subject(der), der, "db") for der in certificates)
    made = enrol(content, (*wanted, *named))
    assert isinstance(made, Enrolled), made
    return made


def parsed_subject(der: bytes) -> str:
    parsed = parse_certificates(der)
    assert not isinstance(parsed, str), parsed
    return parsed[0][0]


def store_with(*held: tuple[str, str], size_bytes: int = 0x10000) -> bytes:
    """Return a store with a platform key and, in a database each, certificates of these subjects."""
    made = [Made("PK", make_signatures(X509, [OWN]))]
    for database, subject in held:
        vendor = GLOBAL if database == "KEK" else IMAGE_SECURITY
        made.append(Made(database, make_signatures(X509, [OF_2023[subject].content]), vendor))
    return make_store(made, size_bytes=size_bytes)


@pytest.mark.parametrize("subject", sorted(PUBLISHED))
def test_certificates_of_2023_are_those_that_microsoft_publishes(subject: str) -> None:
    content = OF_2023[subject].content
    assert hashlib.sha256(content).hexdigest() == OF_2023[subject].sha256
    assert hashlib.sha1(content, usedforsecurity=False).hexdigest() == PUBLISHED[subject]
    assert parsed_subject(content) == subject
    assert OF_2023.keys() == PUBLISHED.keys()


def test_certificates_of_2023_come_beside_those_of_2011_and_nothing_else_changes() -> None:
    made = enrolled(TEMPLATE)
    assert {each.partition(": ")[2] for each in made.added} == set(OF_2023)
    before, after = read_variables(TEMPLATE), read_variables(made.content)
    assert (after.problem, after.secure_boot) == (None, before.secure_boot)
    old, new = ({each.key: each for each in store.variables} for store in (before, after))
    assert old.keys() == new.keys()
    changed = {old[key].name for key in old if old[key].content != new[key].content}
    assert changed == {"KEK", "db"}
    for key, variable in old.items():
        assert new[key].attributes == variable.attributes
        assert new[key].content.startswith(variable.content)
    # Each lies in a list of its own, with Microsoft's GUID as its owner.
    (db,) = (each for each in after.variables if each.name == "db")
    entry = uuid.UUID(OWNER).bytes_le + OF_2023["Windows UEFI CA 2023"].content
    assert uuid.UUID(X509).bytes_le + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry in db.content
    # Outside of what was written, only the state of the two that were replaced is another.
    layout = read_layout(TEMPLATE)
    differing = [place for place in range(len(TEMPLATE)) if TEMPLATE[place] != made.content[place]]
    assert len([place for place in differing if place < layout.blank]) == 2
    assert max(differing) < layout.end
    assert len(made.content) == len(TEMPLATE)


def test_counter_and_time_of_a_database_stay_so_that_a_guest_can_go_on_updating_it() -> None:
    after = enrolled(TEMPLATE).content
    old, new = (
        {record.variable.key: content[record.start + 8 : record.start + 36] for record in read_layout(content).counting}
        for content in (TEMPLATE, after)
    )
    assert old == new


def test_what_is_there_is_not_added_again() -> None:
    made = enrolled(TEMPLATE)
    again = enrolled(made.content)
    assert (again.content, again.added) == (made.content, ())
    assert set(again.present) == set(made.added)
    assert tell_of_nvram(again.content).microsoft == microsoft_keys(
        {"KEK": frozenset({each.sha256 for each in CERTIFICATES}), "db": frozenset(c.sha256 for c in CERTIFICATES)}
    )


def test_what_follows_no_certificate_that_is_trusted_is_left_out() -> None:
    content = store_with(("db", "Windows UEFI CA 2023"))
    wanted, left = certificates_of_2023(content)
    assert [each.subject for each in wanted] == ["Windows UEFI CA 2023"]
    assert len(left) == 3
    assert any("Microsoft Option ROM UEFI CA 2023 was left out" in each for each in left)
    told = tell_of_nvram(content).microsoft
    assert told is not None
    assert (told.generation, told.lacking) == (Generation.OF_2023, ())


def test_certificate_of_a_person_goes_where_it_was_sent_and_microsofts_where_it_belongs() -> None:
    content = store_with()
    made = enrolled(content, OWN, OF_2023["Microsoft Corporation KEK 2K CA 2023"].content)
    assert made.added == ("db: An owner's own", "KEK: Microsoft Corporation KEK 2K CA 2023")
    held = {each.name: each for each in read_variables(made.content).variables}
    assert uuid.UUID(OTHERS_OWNER).bytes_le in held["db"].content
    assert (held["db"].vendor, held["KEK"].vendor) == (IMAGE_SECURITY, GLOBAL)
    assert held["db"].attributes == 0x27
    assert [each.sha256 for each in read_signatures(held["KEK"].content).certificates] == [
        OF_2023["Microsoft Corporation KEK 2K CA 2023"].sha256
    ]


def test_store_without_a_platform_key_or_with_torn_databases_gets_none() -> None:
    without = enrol(make_store([Made("Boot0000", b"x")]), (named_certificate("own", OWN, "db"),))
    assert isinstance(without, str)
    assert "no platform key" in without
    torn = make_store([Made("PK", make_signatures(X509, [OWN])), Made("db", b"torn", IMAGE_SECURITY)])
    assert enrol(torn, (named_certificate("own", OWN, "db"),)) == "db could not be read: the list at byte 0 is cut off"


def test_what_does_not_count_makes_room_when_there_is_none_left() -> None:
    new = NewContent("New", GLOBAL, b"n" * 940, 7)
    gone, kept = Made("Gone", b"g" * 700, state=0x3C), Made("Kept", b"k" * 100)
    replaced = Made("Twice", b"old", state=0x3E), Made("Twice", b"new")
    content = make_store([gone, kept, *replaced], size_bytes=0x1000)
    assert read_variables(content).blank_bytes < 940
    made = rewrite(content, [new])
    assert isinstance(made, bytes)
    assert {each.name: each.content for each in read_variables(made).variables} == {
        "Kept": b"k" * 100,
        "New": b"n" * 940,
        "Twice": b"new",
    }
    assert rewrite(content, [NewContent("New", GLOBAL, b"n" * 1900, 7)]) == (
        "its variables would need more room than the store has"
    )


def working_block(state: int, write: int) -> bytes:
    """Return the block of EDK2's fault tolerant write with one record, as OVMF 2022.11 was seen to leave it."""
    guid = uuid.UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
    header = guid + struct.pack("<IIQ", 0x642CAF2C, 0xFFFFFFFE, 0xFE0)
    caller = uuid.UUID("0a0cb248-e8ac-473c-bb4f-81069a1fe6fd").bytes_le
    first = struct.pack("<B3s16s4sQQ", state, b"\xff" * 3, caller, b"\xff" * 4, 1, 0)
    record = struct.pack("<B7sQQQq", write, b"\xff" * 7, 0, 0x48, 0x3FFB8, -0x420)
    return (header + first + record).ljust(0x1000, b"\xff")


@pytest.mark.parametrize(
    ("state", "write", "unfinished"),
    [(0xFC, 0xFD, True), (0xF8, 0xF9, False), (0xFC, 0xFF, False), (0xFF, 0xFF, False)],
    ids=["cut-off", "ended", "spare-not-whole", "none"],
)
def test_store_over_which_the_firmware_would_go_on_writing_is_left_alone(
    state: int, write: int, unfinished: bool
) -> None:
    content = bytearray(store_with())
    content[0x9000:0xA000] = working_block(state, write)
    assert has_unfinished_write(bytes(content)) is unfinished
    made = rewrite(bytes(content), [NewContent("New", GLOBAL, b"n", 7)])
    assert isinstance(made, str) is unfinished
