"""What a server knows of a host's identity: its status, its invite and its certificates, and how they change. No I/O.

All of a host's identity is one value, and each change makes the next one: whoever keeps it (the catalogue) puts it in
the place of the one that was read, by compare-and-set of ``revision``, or refuses. So of two who use one invite, or who
renew at once, the second sees what the first has done. Times are ISO 8601 in UTC, by the clock of the catalogue.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import HostRefused, InvalidRequest
from vmkeep.values import dataclass

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


class HostStatus(StrEnum):
    """Where a host stands."""

    INVITED = "invited"
    """It has a token, and no certificate of it counts."""
    ENROLLED = "enrolled"
    """It may speak, by a certificate that is issued or current."""
    REVOKED = "revoked"
    """None of its certificates counts any more."""
    FORGOTTEN = "forgotten"
    """Nobody lists it any more, and its name is free."""


class CertificateState(StrEnum):
    """Where a certificate stands. That its term is over is no state: time says it."""

    ISSUED = "issued"
    """It was given out, and nobody has used it yet."""
    CURRENT = "current"
    """It is what the host uses."""
    SUPERSEDED = "superseded"
    """A later one was used."""
    REVOKED = "revoked"


STATUSES: Final[Mapping[HostStatus, frozenset[HostStatus]]] = MappingProxyType(
    {
        HostStatus.INVITED: frozenset(HostStatus),
        HostStatus.ENROLLED: frozenset({HostStatus.ENROLLED, HostStatus.REVOKED}),
        HostStatus.REVOKED: frozenset({HostStatus.REVOKED, HostStatus.INVITED, HostStatus.FORGOTTEN}),
        HostStatus.FORGOTTEN: frozenset(),
    }
)
"""From each status of a host, those that may follow."""

STATES: Final[Mapping[CertificateState, frozenset[CertificateState]]] = MappingProxyType(
    {
        CertificateState.ISSUED: frozenset(CertificateState),
        CertificateState.CURRENT: frozenset(
            {CertificateState.CURRENT, CertificateState.SUPERSEDED, CertificateState.REVOKED}
        ),
        CertificateState.SUPERSEDED: frozenset({CertificateState.SUPERSEDED, CertificateState.REVOKED}),
        CertificateState.REVOKED: frozenset({CertificateState.REVOKED}),
    }
)
"""From each state of a certificate, those that may follow."""
_COUNTING: Final = frozenset({CertificateState.ISSUED, CertificateState.CURRENT})


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """A certificate of a host. ``serial`` is hexadecimal; ``key`` the SHA-256 of its public key (DER) in hexadecimal.

    ``authority`` is the fingerprint of the authority that signed it, ``pem`` the certificate itself, no secret.
    """

    serial: str
    state: CertificateState
    key: str
    begins: str
    ends: str
    authority: str
    pem: str

    def standing(self, at: str) -> str:
        """Return its state for people: ``expired`` for one that would count, and whose term is over."""
        return "expired" if self.state in _COUNTING and at >= self.ends else str(self.state)

    def is_half_over(self, at: str) -> bool:
        """Return whether it is time for another one: less than half of its term is left."""
        begins, ends, now = (datetime.fromisoformat(each) for each in (self.begins, self.ends, at))
        return now - begins >= (ends - begins) / 2


@dataclass(frozen=True, slots=True)
class HostEvent:
    """What was done about a host, for whoever asks later. ``who`` is a user, or where the request came from.

    ``revision`` and ``at`` are those of the identity that came of it.
    """

    what: str
    who: str
    serial: str = ""
    revision: int = 0
    at: str = ""


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """A host as the server knows it. ``invite`` is the SHA-256 of its token's secret, "" for none.

    ``invite_serial`` is the certificate that the invite was used for, "" while it was not.
    """

    id: str
    name: str
    status: HostStatus
    revision: int
    changed_at: str
    invite: str = ""
    invite_until: str = ""
    invite_serial: str = ""
    certificates: tuple[HostCertificate, ...] = ()

    # -- what people do ----------------------------------------------------------------------------------------

    def invited(self, invite: str, until: str, at: str) -> HostIdentity:
        """Return it with a new invite, in place of any other. Raises InvalidRequest for an enrolled host."""
        if self.status is HostStatus.ENROLLED:
            raise InvalidRequest(
                f"Host {self.name} is enrolled already",
                hint=f"If its key is lost or stolen, `{command_line('vmkeep host revoke', self.name)}` first.",
            )
        return self._next(
            at, status=HostStatus.INVITED, invite=invite, invite_until=until, invite_serial="", certificates=()
        )

    def revoked(self, at: str) -> HostIdentity:
        """Return it with nothing that counts: no certificate and no invite. Raises InvalidRequest when it is so."""
        if self.status is HostStatus.REVOKED:
            raise InvalidRequest(f"Host {self.name} is revoked already", hint="Nothing of it counts any more.")
        ended = tuple(replace(each, state=CertificateState.REVOKED) for each in self.certificates)
        return self._next(at, status=HostStatus.REVOKED, invite="", invite_until="", certificates=ended)

    def forgotten(self, at: str) -> HostIdentity:
        """Return it as one that nobody lists. Raises InvalidRequest for an enrolled host."""
        if self.status is HostStatus.ENROLLED:
            raise InvalidRequest(
                f"Host {self.name} is enrolled",
                hint=f"Shut it out first: `{command_line('vmkeep host revoke', self.name)}`.",
            )
        ended = tuple(replace(each, state=CertificateState.REVOKED) for each in self.certificates)
        return self._next(at, status=HostStatus.FORGOTTEN, invite="", invite_until="", certificates=ended)

    def renamed(self, name: str, at: str) -> HostIdentity:
        """Return it with another name; its certificates stay as they are. Raises InvalidRequest for what is no name."""
        return self._next(at, name=host_name(name))

    def noted(self, at: str) -> HostIdentity:
        """Return it as it is, so that something can be told of it."""
        return self._next(at)

    # -- what hosts do -----------------------------------------------------------------------------------------

    def enrolled(self, invite: str, certificate: HostCertificate, at: str) -> HostIdentity:
        """Return it with its first certificate, by an invite. Raises HostRefused.

        Whoever asks again with the key of the certificate that was made gets that one, until it was used: the answer
        may have been lost. Then this identity itself is returned.
        """
        if not self.invite or not hmac.compare_digest(self.invite, invite):
            raise HostRefused("The invite is not known", hint="Ask for a new one: `vmkeep host invite`.")
        if self.invite_serial:
            made = self.certificate(self.invite_serial)
            if made is not None and made.state is CertificateState.ISSUED and made.key == certificate.key:
                return self
            raise HostRefused(
                f"The invite of host {self.name} was used already",
                hint="If it was not this host that used it, revoke the host at once, and invite it anew.",
            )
        if self.status is not HostStatus.INVITED or at >= self.invite_until:
            raise HostRefused(
                f"The invite of host {self.name} ended at {self.invite_until[:19]}Z",
                hint="Ask for a new one: `vmkeep host invite`.",
            )
        return self._next(
            at, status=HostStatus.ENROLLED, invite_serial=certificate.serial, certificates=(_issued(certificate),)
        )

    def admitted(self, serial: str, at: str) -> HostCertificate:
        """Return the certificate by which a host may speak now. Raises HostRefused."""
        found = self.proving(serial)
        if at >= found.ends:
            raise HostRefused(
                f"The certificate of host {self.name} ended at {found.ends[:19]}Z",
                hint="`vmkeep agent renew` on the host gets another one, by the key of this one.",
            )
        return found

    def proving(self, serial: str) -> HostCertificate:
        """Return the certificate whose key proves that a host is this one, whatever its term. Raises HostRefused."""
        found = self.certificate(serial)
        if self.status is not HostStatus.ENROLLED:
            raise HostRefused(f"Host {self.name} is {self.status}", hint="Whoever runs the server can invite it anew.")
        if found is None or found.state not in _COUNTING:
            state = "not known" if found is None else str(found.state)
            raise HostRefused(
                f"The certificate {serial[:16]} of host {self.name} is {state}",
                hint="A later one was used. If that was not on this host, its key was stolen: revoke the host.",
            )
        return found

    def used(self, serial: str, at: str) -> HostIdentity:
        """Return it when a certificate is used: by the first use the others are superseded. Raises as ``proving``."""
        if self.proving(serial).state is CertificateState.CURRENT:
            return self
        return self._next(at, certificates=tuple(_after_use(each, serial) for each in self.certificates))

    def renewed(self, serial: str, certificate: HostCertificate, at: str) -> HostIdentity:
        """Return it with another certificate, got by the key of ``serial``. Raises as ``proving``.

        To renew by a certificate is to use it. It counts until the new one is used. One that nobody used is superseded,
        unless it is of the same key and will do: then this identity itself is returned, since the answer may have been
        lost. What counts for nothing and is refused by its term already is left out.
        """
        present = self.used(serial, at)
        waiting = present.waiting
        if waiting is not None and waiting.key == certificate.key and at < waiting.ends:
            return self
        kept = (
            replace(each, state=CertificateState.SUPERSEDED) if each.state is CertificateState.ISSUED else each
            for each in present.certificates
            if each.state in _COUNTING or at < each.ends
        )
        return self._next(at, certificates=(*kept, _issued(certificate)))

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    def counting(self) -> tuple[HostCertificate, ...]:
        """The certificates by which it may speak, as far as their terms go."""
        return tuple(each for each in self.certificates if each.state in _COUNTING)

    @property
    def waiting(self) -> HostCertificate | None:
        """The newest certificate that was given out and not used yet."""
        return next((each for each in reversed(self.certificates) if each.state is CertificateState.ISSUED), None)

    def certificate(self, serial: str) -> HostCertificate | None:
        return next((each for each in self.certificates if each.serial == serial), None)

    def follows(self, known: HostIdentity | None) -> bool:
        """Return whether this may take the place of ``known``, as it was when it was read; None: of nothing."""
        counting = self.counting
        if counting and (
            self.status is not HostStatus.ENROLLED or len({each.state for each in counting}) < len(counting)
        ):
            return False
        if known is None:
            return (self.revision, self.status, self.certificates) == (1, HostStatus.INVITED, ())
        if self.id != known.id or self.revision != known.revision + 1 or self.status not in STATUSES[known.status]:
            return False
        before = {each.serial: each for each in known.certificates}
        return all(
            each.state in STATES[before[each.serial].state]
            if each.serial in before
            else each.state is CertificateState.ISSUED
            for each in self.certificates
        )

    def _next(self, at: str, **changes: object) -> HostIdentity:
        if self.status is HostStatus.FORGOTTEN:
            raise InvalidRequest(f"Host {self.name} was forgotten", hint="Its name is free: invite it as a new host.")
        return replace(self, revision=self.revision + 1, changed_at=at, **changes)  # type: ignore[arg-type]  # by callers


def new_host(host_id: str, name: str, invite: str, until: str, at: str) -> HostIdentity:
    """Return the identity of a host that is invited for the first time. Raises InvalidRequest for what is no name."""
    return HostIdentity(host_id, host_name(name), HostStatus.INVITED, 1, at, invite, until)


def host_name(text: str) -> str:
    """Return a name that a host may have. Raises InvalidRequest."""
    if _NAME.fullmatch(text) is None:
        raise InvalidRequest(
            f"{text[:80]!r} is no name for a host",
            hint="Use up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or a digit.",
        )
    return text


def _issued(certificate: HostCertificate) -> HostCertificate:
    return replace(certificate, state=CertificateState.ISSUED)


def _after_use(certificate: HostCertificate, serial: str) -> HostCertificate:
    if certificate.serial == serial:
        return replace(certificate, state=CertificateState.CURRENT)
    return replace(certificate, state=CertificateState.SUPERSEDED) if certificate.state in _COUNTING else certificate
