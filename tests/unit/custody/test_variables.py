"""UEFI variables are read as the firmware reads them: from OVMF's own templates, and from stores made by hand."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.unit.custody import stores
from tests.unit.custody.stores import IMAGE_SECURITY, SECURE_BOOT_ENABLE, X509, Made, make_signatures, make_store
from vmkeep.custody.certificates import read_signatures
from vmkeep.custody.variables import SecureBoot, read_variables, store_fault

TEMPLATES = Path("/usr/share/OVMF")


def certificate(name: str = "A firmware's owner", *, days: int = 1) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 1, 1, tzinfo=UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=99)).not_valid_after(now + timedelta(days=days))
    return made.sign(key, SHA256()).public_bytes(Encoding.DER)


def test_template_with_microsofts_keys_says_secure_boot_and_its_certificates() -> None:
    store = read_variables((TEMPLATES / "OVMF_VARS_4M.ms.fd").read_bytes())
    assert (store.problem, store.secure_boot) == (None, SecureBoot.ON)
    by_name = {each.name: each for each in store.variables}
    assert len(by_name) == len(store.variables) >= 20
    assert by_name["SecureBootEnable"].sha256 == hashlib.sha256(b"\1").hexdigest()
    assert by_name["PK"].vendor_name == "EFI global"
    assert by_name["PK"].attribute_words == ("non-volatile", "boot", "runtime", "authenticated by time")
    held = {name: read_signatures(by_name[name].content) for name in ("PK", "KEK", "db", "dbx")}
    assert all(each.problem is None for each in held.values())
    subjects = {certificate.subject: certificate for each in held.values() for certificate in each.certificates}
    old = subjects["Microsoft Corporation UEFI CA 2011"]
    assert old.expires is not None
    assert old.expires.startswith("2026-06-27")
    assert old.has_expired(datetime(2026, 11, 30, tzinfo=UTC))
    assert not old.has_expired(datetime(2026, 6, 1, tzinfo=UTC))
    assert held["dbx"].others >= 1


# Debian 13 has no firmware of 2 MiB any more.
@pytest.mark.parametrize(
    "template", [name for name in ("OVMF_VARS_4M.fd", "OVMF_VARS.fd") if (TEMPLATES / name).exists()]
)
def test_template_without_keys_is_not_set_up(template: str) -> None:
    store = read_variables((TEMPLATES / template).read_bytes())
    assert (store.problem, store.secure_boot) == (None, SecureBoot.NOT_SET_UP)


@pytest.mark.parametrize("plain", [False, True])
def test_only_what_counts_is_told(plain: bool) -> None:
    store = read_variables(
        make_store(
            [
                Made("Boot0000", b"first", state=0x3C),  # replaced
                Made("Gone", b"deleted", state=0x3D),
                Made("Half", b"its data was never written", state=0x7F),
                Made("BootOrder", b"\0\0", state=0x3E),  # being replaced, and the new one is there
                Made("BootOrder", b"\1\0"),
                Made("Alone", b"being replaced", state=0x3E),  # and the new one is not
                Made("Boot0000", b"second"),
                Made("Boot0000", b"of another vendor", vendor=IMAGE_SECURITY),
            ],
            plain=plain,
        )
    )
    assert store.problem is None
    told = [(each.name, each.content, each.vendor_name) for each in store.variables]
    assert told == [
        ("Alone", b"being replaced", "EFI global"),
        ("Boot0000", b"second", "EFI global"),
        ("BootOrder", b"\1\0", "EFI global"),
        ("Boot0000", b"of another vendor", "EFI image security"),
    ]


def test_secure_boot_is_what_the_firmware_makes_of_key_and_switch() -> None:
    key, switch = Made("PK", b"x"), Made("SecureBootEnable", b"\0", vendor=SECURE_BOOT_ENABLE)
    assert read_variables(make_store([switch])).secure_boot is SecureBoot.NOT_SET_UP
    assert read_variables(make_store([key, switch])).secure_boot is SecureBoot.OFF
    assert read_variables(make_store([key])).secure_boot is SecureBoot.ON
    stranger = Made("SecureBootEnable", b"\0")  # of another vendor: nobody looks at it
    assert read_variables(make_store([key, stranger])).secure_boot is SecureBoot.ON


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "too short"),
        (b"QFI\xfb" + bytes(1000), "qcow2"),
        (bytes(4096), "no firmware volume"),
        (make_store([])[:0x8000], "cut off"),
        (make_store([])[:90], "wrong length"),
        (make_store([])[:50] + b"\0\0" + make_store([])[52:], "checksum"),
        (make_store([])[:72] + bytes(16) + make_store([])[88:], "another kind"),
        (make_store([])[:92] + b"\0" + make_store([])[93:], "not formatted"),
        (make_store([])[:88] + b"\xff\xff\xff\x0f" + make_store([])[92:], "larger"),
    ],
)
def test_what_is_no_store_is_told_as_such(content: bytes, problem: str) -> None:
    store = read_variables(content)
    assert store.variables == ()
    assert store.secure_boot is None
    assert problem in (store.problem or "")


def test_variable_that_reaches_beyond_the_store_ends_the_reading() -> None:
    content = bytearray(make_store([Made("First", b"1"), Made("Second", b"2")]))
    struct.pack_into("<I", content, content.index(b"F\0i\0") + 12 + 1 + 3 + 40, 0x7FFFFFFF)  # bytes of its data
    store = read_variables(bytes(content))
    assert [each.name for each in store.variables] == ["First"]
    assert "reaches beyond the store" in (store.problem or "")
    assert store.secure_boot is None


def test_what_lies_behind_the_last_variable_is_told() -> None:
    content = make_store([Made("First", b"1")])
    store = read_variables(content[:0x4000] + b"\0" + content[0x4001:])
    assert len(store.variables) == 1
    assert "is not blank" in (store.problem or "")


def test_name_that_would_steer_a_terminal_is_escaped_and_a_long_one_cut() -> None:
    made = [Made("\x1b[2J\u202e\\", b""), Made("x" * 500, b"")]
    first, second = read_variables(make_store(made)).variables
    assert first.name == "\\x1b[2J\\u202e\\\\"
    assert second.name == "x" * 128 + "…"


def test_certificates_are_told_and_one_that_does_not_parse_is_none() -> None:
    good, bad = certificate("Somebody\nelse"), b"\x30\x03nothing"
    content = make_signatures(X509, [good]) + make_signatures(X509, [bad]) + make_signatures(stores.SHA256, [b"h" * 32])
    found = read_signatures(content)
    assert (found.others, found.problem) == (1, None)
    assert [each.subject for each in found.certificates] == ["Somebody\\nelse", ""]
    assert found.certificates[0].expires == "2026-01-02T00:00:00+00:00"
    assert found.certificates[1].expires is None
    assert found.certificates[1].sha256 == hashlib.sha256(bad).hexdigest()
    assert not found.certificates[1].has_expired(datetime.now(UTC))


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_list_of_signatures_that_is_cut_off_is_told(cut: int) -> None:
    good = make_signatures(stores.SHA256, [b"h" * 32])
    found = read_signatures(good + good[:cut])
    assert found.others == 1
    assert found.problem is not None


def test_more_certificates_than_any_firmware_has_are_counted_only() -> None:
    found = read_signatures(make_signatures(X509, [b"x"] * 100_000))
    assert (len(found.certificates), found.others) == (200, 99_800)
    assert "more than 200" in (found.problem or "")


def test_store_that_is_cut_or_overwritten_is_a_fault_and_another_firmwares_content_is_none() -> None:
    whole = make_store([Made("BootOrder", b"\1\0")])
    assert store_fault(whole) is None
    assert store_fault(whole, b"something else before") is None
    assert "cut off" in str(store_fault(whole[:-1]))
    harmed = bytearray(whole)
    harmed[50] ^= 1
    assert "checksum" in str(store_fault(bytes(harmed)))
    foreign = b"U-Boot's environment" + bytes(8192)
    assert store_fault(foreign) is None
    assert store_fault(foreign, foreign) is None
    assert "no firmware volume" in str(store_fault(foreign, whole))
    assert store_fault(b"QFI\xfb" + bytes(4096), whole) is None
