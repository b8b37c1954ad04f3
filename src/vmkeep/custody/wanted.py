"""A certificate that a store of UEFI variables is to have. No I/O."""

from __future__ import annotations

import hashlib

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class WantedCertificate:
    """A certificate in DER that a database (KEK, db) is to have, with the GUID of its owner.

    ``subject`` can be shown.
    """

    database: str
    subject: str
    owner: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Its fingerprint."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def told(self) -> str:
        """Where it is to be and whose it is, for people."""
        return f"{self.database}: {self.subject}"
