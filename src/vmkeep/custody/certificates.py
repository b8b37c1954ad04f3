"""What lies in PK, KEK, db and dbx: certificates and hashes, in lists of the UEFI specification. No I/O.

EFI_SIGNATURE_LIST (UEFI 2.10, 32.4.1): the GUID of a type, three sizes, and entries of one size, each the GUID of its
owner and what is signed with or forbidden. A guest writes it, so nothing of it is believed before it was held against
the bytes that are there.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import warnings
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from vmkeep.custody.variables import shown
from vmkeep.values import dataclass

_LIST: Final = struct.Struct("<16sIII")  # type, bytes of the list, bytes of a header of its own, bytes of an entry
_OWNER_BYTES: Final = 16
_X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
# A firmware has less than ten; reading one takes some 50 µs.
_MOST_CERTIFICATES: Final = 200
_SUBJECT_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. ``expires`` is ISO 8601 in UTC, None for one that cannot be read, whose ``subject`` is empty.

    ``sha256`` is that of its bytes, by which firmware and vendors name it.
    """

    subject: str
    expires: str | None
    sha256: str

    def has_expired(self, now: datetime) -> bool:
        """Return whether its time is over. Firmware does not look at that."""
        return self.expires is not None and datetime.fromisoformat(self.expires) < now


@dataclass(frozen=True, slots=True)
class Signatures:
    """What lists hold. ``others`` counts hashes and all that is no certificate; ``problem`` says why it is not all."""

    certificates: tuple[Certificate, ...] = ()
    others: int = 0
    problem: str | None = None


def read_signatures(content: bytes) -> Signatures:
    """Return what is in the content of PK, KEK, db or dbx."""
    certificates: list[Certificate] = []
    others, place, problem = 0, 0, None
    while place < len(content):
        entries = _entries(content, place)
        if isinstance(entries, str):
            problem = entries
            break
        kind, first, size, end = entries
        count = (end - first) // size
        taken = min(count, _MOST_CERTIFICATES - len(certificates)) if kind == _X509 else 0
        starts = range(first, first + taken * size, size)
        certificates += [_certificate(content[start + _OWNER_BYTES : start + size]) for start in starts]
        if kind == _X509 and taken < count:
            problem = f"it has more than {_MOST_CERTIFICATES} certificates"
        others += count - taken
        place = end
    return Signatures(tuple(certificates), others, problem)


def add_certificates(content: bytes, certificates: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the content of KEK or db with more certificates, each an owner's GUID and DER, in a list of its own.

    Entries of one list have one size, so firmware and vendors put each certificate into its own.
    """
    for owner, der in certificates:
        entry_bytes = _OWNER_BYTES + len(der)
        content += _LIST.pack(_X509, _LIST.size + entry_bytes, 0, entry_bytes) + uuid.UUID(owner).bytes_le + der
    return content


def parse_certificates(content: bytes) -> tuple[tuple[str, bytes], ...] | str:
    """Return subject and DER of each certificate in a file, PEM or DER, or a sentence about why it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as below
            if b"-----BEGIN" in content:
                parsed = x509.load_pem_x509_certificates(content)
            else:
                parsed = [x509.load_der_x509_certificate(content)]
            made = tuple(each.public_bytes(Encoding.DER) for each in parsed)
    except (ValueError, TypeError, OverflowError):
        return "it holds no X.509 certificate, neither in PEM nor in DER"
    told = tuple((_certificate(each).subject, each) for each in made)
    return told if all(subject for subject, _ in told) else "it holds a certificate that cannot be read"


def _entries(content: bytes, place: int) -> tuple[bytes, int, int, int] | str:
    """Return type, place of the first entry, bytes of an entry and end of the list at a place; or what is wrong."""
    if len(content) - place < _LIST.size:
        return f"the list at byte {place} is cut off"
    kind, list_bytes, header_bytes, entry_bytes = _LIST.unpack_from(content, place)
    body = list_bytes - _LIST.size - header_bytes
    if body < 0 or place + list_bytes > len(content) or entry_bytes <= _OWNER_BYTES or body % entry_bytes:
        return f"the list at byte {place} has sizes that do not fit together"
    return kind, place + _LIST.size + header_bytes, entry_bytes, place + list_bytes


def _certificate(content: bytes) -> Certificate:
    digest = hashlib.sha256(content).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of serial numbers and encodings that are out of use
            parsed = x509.load_der_x509_certificate(content)
            names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            subject = str(names[0].value) if names else parsed.subject.rfc4514_string()
            expires = parsed.not_valid_after_utc.isoformat()
    except (ValueError, TypeError, OverflowError, x509.UnsupportedGeneralNameType):
        return Certificate("", None, digest)
    return Certificate(shown(subject, _SUBJECT_CHARACTERS), expires, digest)
