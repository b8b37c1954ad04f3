"""Certificates added to the databases of Secure Boot; nothing that is there goes. No I/O.

Whoever can write the store need not sign: what PK and KEK sign for is what a guest may change by itself. The firmware
reads db and KEK as they lie there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from vmkeep.custody.certificates import add_certificates, read_signatures
from vmkeep.custody.microsoft import CERTIFICATES, OWNER, known_certificate, successors
from vmkeep.custody.rewriting import NewContent, rewrite
from vmkeep.custody.variables import GLOBAL, KEY_DATABASES, read_variables
from vmkeep.custody.wanted import WantedCertificate
from vmkeep.values import dataclass

OTHERS_OWNER: Final = "2e3a5f3c-7b0e-4f0a-9d52-6a1c0f8d4b17"
"""vmkeep's GUID as the owner of certificates that a person named, which tells who put them there."""
_SIGNED_BY_TIME: Final = 0x27
"""Attributes of KEK and db (UEFI 2.10, 32.4): non-volatile, of boot and runtime, authenticated by time."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The store with the certificates. ``added`` and ``present`` tell which were put there, and which were before."""

    content: bytes
    added: tuple[str, ...]
    present: tuple[str, ...]


def named_certificate(subject: str, content: bytes, database: str) -> WantedCertificate:
    """Return what is wanted for a certificate that a person named; one of Microsoft's goes where it belongs."""
    known = known_certificate(hashlib.sha256(content).hexdigest())
    if known is not None:
        return WantedCertificate(known.database, known.subject, OWNER, content)
    return WantedCertificate(database, subject, OTHERS_OWNER, content)


def held_fingerprints(content: bytes) -> Mapping[str, frozenset[str]]:
    """Return the fingerprints of the certificates in PK, KEK, db and dbx of a store, by the database's name."""
    return {
        each.name: frozenset(found.sha256 for found in read_signatures(each.content).certificates)
        for each in read_variables(content).variables
        if each.holds_signatures
    }


def certificates_of_2023(content: bytes) -> tuple[tuple[WantedCertificate, ...], tuple[str, ...]]:
    """Return Microsoft's certificates of 2023 that a store should have, and sentences about those that are left out.

    Only what follows a certificate that is trusted: a store without Microsoft's certificate for what others sign was
    made so on purpose. Those that are there already are among what is wanted.
    """
    held = held_fingerprints(content)
    lacking = set(successors(held))
    wanted, left = [], []
    for each in CERTIFICATES:
        if not each.follows:
            continue
        if each in lacking or each.sha256 in held.get(each.database, frozenset()):
            wanted.append(WantedCertificate(each.database, each.subject, OWNER, each.content))
        else:
            before = known_certificate(each.follows)
            assert before is not None, "each follows one that is known"
            left.append(f"{each.database}: {each.subject} was left out: {before.subject} is not trusted either")
    return tuple(wanted), tuple(left)


def enrol(content: bytes, wanted: Sequence[WantedCertificate]) -> Enrolled | str:
    """Return the store with the certificates that it lacks, or a sentence about why there can be none.

    ``present`` is what it had. Other variables, and the other contents of KEK and db, are as they were.
    """
    store = read_variables(content)
    if store.problem is not None:
        return store.problem
    held = held_fingerprints(content)
    if "PK" not in held:
        return "it has no platform key (PK), so Secure Boot is not set up and no certificate would count"
    new = [each for each in wanted if each.sha256 not in held.get(each.database, frozenset())]
    changes = []
    for database in sorted({each.database for each in new}):
        before = next(
            (each.content for each in store.variables if each.holds_signatures and each.name == database), b""
        )
        problem = read_signatures(before).problem
        if problem is not None:
            return f"{database} could not be read: {problem}"
        after = add_certificates(before, [(each.owner, each.content) for each in new if each.database == database])
        changes.append(NewContent(database, KEY_DATABASES.get(database, GLOBAL), after, _SIGNED_BY_TIME))
    written = rewrite(content, changes)
    if isinstance(written, str):
        return written
    return Enrolled(
        written,
        tuple(each.told for each in wanted if each in new),
        tuple(each.told for each in wanted if each not in new),
    )
