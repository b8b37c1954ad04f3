"""Hosts and certificates for tests of what is decided by values alone."""

from __future__ import annotations

from vmkeep.identity.hosts import CertificateState, HostCertificate, HostIdentity, new_host

INVITE = "a" * 64
OTHER = "b" * 64


def at(day: int) -> str:
    """Return midnight of a day of January 2027; day 40 is after all terms."""
    month, of_month = (1, day) if day <= 31 else (2, day - 31)
    return f"2027-{month:02}-{of_month:02}T00:00:00.000000+00:00"


def certificate(serial: str, key: str = "", ends: int = 30) -> HostCertificate:
    return HostCertificate(serial, CertificateState.ISSUED, key or f"key of {serial}", at(1), at(ends), "authority", "")


def invited() -> HostIdentity:
    return new_host("1" * 32, "alpha", INVITE, at(2), at(1))


def enrolled() -> HostIdentity:
    return invited().enrolled(INVITE, certificate("c1"), at(1)).used("c1", at(1))
