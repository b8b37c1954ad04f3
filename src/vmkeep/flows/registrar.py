"""Who lets hosts into a fleet, and shuts them out: invites, certificates, and the answer to who speaks.

No flow: each of these is one change of the catalogue. Two servers, or a server and a command, may do them at once; the
second reads again. What hosts send is hostile: all of it is checked here, whoever passed it on.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable
from typing import Final

from vmkeep.catalog import Catalog
from vmkeep.config import Settings, prepare_home
from vmkeep.errors import CatalogError, HostNotFound, HostRefused, InvalidRequest
from vmkeep.identity.certificates import certificate_pem, key_hash, key_of_request, public_key_of, read_certificate
from vmkeep.identity.hosts import HostCertificate, HostEvent, HostIdentity, HostStatus, host_name, new_host
from vmkeep.identity.proofs import check_nonce, check_return, make_nonce
from vmkeep.identity.tokens import Token, invite_hash
from vmkeep.keys.authority import Authorities
from vmkeep.logs import get_logger
from vmkeep.values import dataclass

_MOST_TRIES: Final = 8
_REFUSALS_APART: Final = dt.timedelta(hours=1)
_ID_DIGITS: Final = frozenset("0123456789abcdef")
_log = get_logger(__name__)
Change = Callable[[HostIdentity, str], HostIdentity]


@dataclass(frozen=True, slots=True)
class Certified:
    """What a host is answered: its certificate, and the authorities that it shall trust from now on, in PEM."""

    host: HostIdentity
    certificate: HostCertificate
    authorities: tuple[str, ...]
    server_time: str


class Registrar:
    """The one way to change who is a host. ``who``, everywhere, is whom the record names for it."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog

    def authorities(self) -> Authorities:
        """Return the authorities of this server; they are made at the first use, and may be rotated at any time."""
        prepare_home(self._settings)
        return Authorities.load_or_draw(self._settings.authority_path, dt.datetime.now(dt.UTC))

    def now(self) -> str:
        """Return the present instant by the clock that all servers of a fleet have in common."""
        return self._catalog.clock()

    # -- for people --------------------------------------------------------------------------------------------

    def invite(self, name: str, server: str, seconds: float, who: str) -> tuple[HostIdentity, Token]:
        """Let a host enrol under a name, once, for so long. Raises InvalidRequest for one that is enrolled already."""
        token = Token.draw(server, self.authorities().present.fingerprint)
        now = self.now()
        until = (dt.datetime.fromisoformat(now) + dt.timedelta(seconds=seconds)).isoformat(timespec="microseconds")
        event = HostEvent("invited", who)
        known = self._listed(name)
        if known is None:
            host = new_host(secrets.token_hex(16), name, token.hash, until, now)
            self._catalog.move_host_identity(None, host, event)
        else:
            host = self._change(known.id, lambda each, at: each.invited(token.hash, until, at), event)
        return host, token

    def revoke(self, text: str, who: str) -> HostIdentity:
        """Shut a host out: at its next request, and within a second where one is open. Raises InvalidRequest."""
        return self._change(self.named(text).id, lambda host, at: host.revoked(at), HostEvent("revoked", who))

    def forget(self, text: str, who: str) -> HostIdentity:
        """List a host no more, and free its name. Raises InvalidRequest for an enrolled one."""
        return self._change(self.named(text).id, lambda host, at: host.forgotten(at), HostEvent("forgotten", who))

    def rename(self, text: str, name: str, who: str) -> HostIdentity:
        """Give a host another name. Raises InvalidRequest for one that another host has."""
        host = self.named(text)
        if self._listed(host_name(name)) is not None:
            raise InvalidRequest(f"There is a host {name} already", hint="Choose another name, or forget that host.")
        return self._change(host.id, lambda each, at: each.renamed(name, at), HostEvent("renamed", who))

    def hosts(self) -> tuple[HostIdentity, ...]:
        """Return all hosts that are not forgotten, by name."""
        return self._catalog.host_identities()

    def events(self, host: HostIdentity) -> tuple[HostEvent, ...]:
        return self._catalog.host_events(host.id)

    def named(self, text: str) -> HostIdentity:
        """Return the host of a name or an id. Raises HostNotFound."""
        found = self._listed(text)
        if found is None:
            raise HostNotFound(f"There is no host {text[:80]!r} in this fleet")
        return found

    # -- for hosts ---------------------------------------------------------------------------------------------

    def enrol(self, secret: bytes, request: bytes, who: str) -> Certified:
        """Let a host in by the secret of its token and a request for a certificate. Raises HostRefused."""
        key = key_of_request(request)
        host = self._catalog.invited_host(invite_hash(secret))
        if host is None:
            _log.warning("invite unknown", who=who)
            raise HostRefused("The invite is not known", hint="Ask for a new one: `vmkeep host invite`.")
        authorities = self.authorities()
        days = self._settings.host_certificate_days

        def change(known: HostIdentity, at: str) -> HostIdentity:
            made = authorities.present.for_host(key, known.id, dt.datetime.fromisoformat(at), days)
            return known.enrolled(invite_hash(secret), made, at)

        changed = self._change(host.id, change, HostEvent("enrolled", who))
        return self._certified(changed, changed.invite_serial, authorities)

    def admit(self, host_id: str, serial: str, who: str) -> HostIdentity:
        """Return the host that a certificate admits, whose key was proved. Raises HostRefused.

        The first use of a certificate supersedes the one before it.
        """
        host = self._known(host_id)
        try:
            host.admitted(serial, self.now())
            return self._change(host.id, lambda each, at: each.used(serial, at), HostEvent("used", who, serial))
        except HostRefused:
            self._note_refusal(host, serial, who)
            raise

    def renew(self, host_id: str, serial: str, request: bytes, who: str) -> Certified:
        """Give a host its next certificate, by the present one, whose key was proved. Raises HostRefused.

        Before half of the term is over it gets the one that it has: its clock may be wrong.
        """
        return self._renewed(self.admit(host_id, serial, who), serial, request, HostEvent("renewed", who))

    def nonce(self) -> str:
        """Return what a host signs that comes back after its certificate has ended."""
        return make_nonce(self.authorities().secret, self.now())

    def come_back(self, host_id: str, serial: str, nonce: str, request: bytes, signature: bytes, who: str) -> Certified:
        """Give a host its next certificate by the key of the last one, whatever its term. Raises HostRefused."""
        check_nonce(self.authorities().secret, nonce, self.now())
        host = self._known(host_id)
        certificate = host.certificate(serial)
        if certificate is None:
            raise HostRefused(f"The certificate {serial[:16]!r} of host {host.name} is not known")
        check_return(public_key_of(read_certificate(certificate.pem)), host_id, serial, nonce, request, signature)
        try:
            return self._renewed(host, serial, request, HostEvent("returned", who))
        except HostRefused:
            self._note_refusal(host, serial, who)
            raise

    # -- within ------------------------------------------------------------------------------------------------

    def _renewed(self, host: HostIdentity, serial: str, request: bytes, event: HostEvent) -> Certified:
        key = key_of_request(request)
        authorities = self.authorities()
        days = self._settings.host_certificate_days

        def change(known: HostIdentity, at: str) -> HostIdentity:
            used = known.used(serial, at)
            held, waiting = used.proving(serial), used.waiting
            due = held.is_half_over(at) or held.authority != authorities.present.fingerprint
            if not due and (waiting is None or waiting.key != key_hash(key)):
                return used
            made = authorities.present.for_host(key, known.id, dt.datetime.fromisoformat(at), days)
            return known.renewed(serial, made, at)

        changed = self._change(host.id, change, event)
        waiting = changed.waiting
        given = waiting.serial if waiting is not None and waiting.key == key_hash(key) else serial
        return self._certified(changed, given, authorities)

    def _certified(self, host: HostIdentity, serial: str, authorities: Authorities) -> Certified:
        certificate = host.certificate(serial)
        if certificate is None:
            raise HostRefused(f"Host {host.name} was changed meanwhile", hint="Try it again.")
        return Certified(host, certificate, tuple(map(certificate_pem, authorities.trusted)), self.now())

    def _change(self, host_id: str, change: Change, event: HostEvent) -> HostIdentity:
        """Change a host by compare-and-set, again while others change it too. What changes nothing is not recorded."""
        for left in reversed(range(_MOST_TRIES)):
            known = self._known(host_id)
            changed = change(known, self.now())
            if changed is known:
                return known
            try:
                self._catalog.move_host_identity(known, changed, event)
            except CatalogError:
                if not left or self._known(host_id) == known:
                    raise
                continue
            _log.info("host changed", host=changed.name, what=event.what, who=event.who)
            return changed
        raise AssertionError("the last try returns or raises")

    def _note_refusal(self, host: HostIdentity, serial: str, who: str) -> None:
        """Record that somebody who has a key of the host was refused; once an hour is enough."""
        _log.warning("host refused", host=host.name, serial=serial, who=who)
        if host.certificate(serial) is None or host.status is HostStatus.FORGOTTEN:
            return
        last = self._catalog.host_events(host.id)[-1]
        now = dt.datetime.fromisoformat(self.now())
        if last.what == "refused" and now - dt.datetime.fromisoformat(last.at) < _REFUSALS_APART:
            return
        self._change(host.id, lambda each, at: each.noted(at), HostEvent("refused", who, serial))

    def _known(self, host_id: str) -> HostIdentity:
        fits = len(host_id) == 32 and _ID_DIGITS.issuperset(host_id)
        host = self._catalog.host_identity(host_id) if fits else None
        if host is None:
            raise HostRefused("The certificate names no host of this fleet")
        return host

    def _listed(self, text: str) -> HostIdentity | None:
        return next((each for each in self.hosts() if text in (each.name, each.id)), None)
