"""Certificates of a fleet: the server's authority, its servers and its hosts (X.509, RFC 5280). No I/O.

Keys are of P-256 and signatures ECDSA with SHA-256: every TLS 1.3 takes them, and browsers, which people use on the
same listener, know no Ed25519 (docs/adr/0065-the-servers-own-authority.md).

A host is named by one URI, never by a common name. A server is known by one name that all servers have
(``SERVER_NAME``), whatever address it is reached at: only servers get a certificate for it, and none of a host's is
good for a server, nor the other way round (extended key usage). Certificates begin a day before they are made, for
hosts whose clocks are behind.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import field
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmkeep.errors import HostRefused, InvalidRequest
from vmkeep.identity.hosts import CertificateState, HostCertificate
from vmkeep.values import dataclass

SERVER_NAME: Final = "server.vmkeep.internal"
HOST_URI: Final = "urn:vmkeep:host:"
BACKDATED: Final = dt.timedelta(days=1)
AUTHORITY_TERM: Final = dt.timedelta(days=3650)
LONGEST_REQUEST: Final = 8192
_UNFIT: Final = (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound)
_PEM: Final = serialization.Encoding.PEM
_DER: Final = serialization.Encoding.DER

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """What signs certificates: its key and its own certificate."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def draw(cls, at: dt.datetime) -> Authority:
        """Make a new one. Its name has random digits, so that two of them are never taken for one another."""
        key = draw_key()
        digits = key_hash(key.public_key())[:12]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Authority {digits} of vmkeep")])
        made = _signed_by(key, name, key.public_key(), name, key.public_key(), at, at + AUTHORITY_TERM, authority=True)
        return cls(key, made)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def for_host(self, key: PublicKey, host_id: str, at: dt.datetime, days: float) -> HostCertificate:
        """Return a certificate for a host. Of what the host sent only the public key is in it."""
        names = [x509.UniformResourceIdentifier(f"{HOST_URI}{host_id}")]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vmkeep host")])
        made = self._sign(key, name, names, at, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        return described(made, self.fingerprint)

    def for_server(self, key: PublicKey, names: Sequence[str], at: dt.datetime, days: float) -> x509.Certificate:
        """Return a certificate for a server; ``names`` are those by which people reach it, addresses among them."""
        told: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME), *map(_general_name, names)]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vmkeep server")])
        return self._sign(key, name, told, at, days, ExtendedKeyUsageOID.SERVER_AUTH)

    def vouch_for(self, other: x509.Certificate, at: dt.datetime) -> x509.Certificate:
        """Return a certificate of another authority that this one signs: who trusts this one can verify that one's."""
        ends = min(self.certificate.not_valid_after_utc, other.not_valid_after_utc)
        return _signed_by(
            self.key, self.certificate.subject, _public(self.certificate), other.subject, _public(other), at, ends,
            authority=True,
        )  # fmt: skip

    def _sign(
        self,
        key: PublicKey,
        name: x509.Name,
        names: Sequence[x509.GeneralName],
        at: dt.datetime,
        days: float,
        usage: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        issuer = self.certificate
        ends = min(at + dt.timedelta(days=days), issuer.not_valid_after_utc)
        return _signed_by(self.key, issuer.subject, _public(issuer), name, key, at, ends, names=names, usage=usage)


def draw_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_request(key: PrivateKey) -> bytes:
    """Return a request for a certificate (PKCS #10, PEM). It proves that who asks has the key, and says no more."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(_PEM)


def key_of_request(request: bytes) -> PublicKey:
    """Return the public key of a request for a certificate, and nothing else of it.

    Raises HostRefused for what is no request, one that its key has not signed, and a key of another kind than P-256.
    """
    refusal = HostRefused("The request for a certificate is none, or its key has not signed it")
    if len(request) > LONGEST_REQUEST:
        raise refusal
    try:
        read = x509.load_pem_x509_csr(request)
        sound = read.is_signature_valid
        key = read.public_key()
    except _UNFIT as error:
        raise refusal from error
    if not sound:
        raise refusal
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise HostRefused("The request for a certificate has a key of another kind than P-256")
    return key


def read_certificate(pem: str) -> x509.Certificate:
    """Return the one certificate of a text, with a key of P-256. Raises InvalidRequest."""
    try:
        (read,) = x509.load_pem_x509_certificates(pem.encode("ascii"))
        _public(read)
    except (*_UNFIT, UnicodeError) as error:
        raise InvalidRequest("This is no certificate of a fleet", hint="See what wrote it.") from error
    return read


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether an authority has signed a certificate. Terms are not looked at."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except _UNFIT:
        return False
    return True


def described(certificate: x509.Certificate, authority: str) -> HostCertificate:
    """Return a certificate of a host as it is kept, not used yet."""
    return HostCertificate(
        f"{certificate.serial_number:x}",
        CertificateState.ISSUED,
        key_hash(_public(certificate)),
        _text(certificate.not_valid_before_utc + BACKDATED),
        _text(certificate.not_valid_after_utc),
        authority,
        certificate_pem(certificate),
    )


def host_of(certificate: x509.Certificate) -> str:
    """Return the id of the host that a certificate names. Raises HostRefused for one that does not name one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNFIT:
        uris = []
    if len(uris) != 1:
        raise HostRefused("The certificate does not name one host")
    return host_id_of(uris[0])


def host_id_of(uri: str) -> str:
    """Return the id of the host that a URI names. Raises HostRefused."""
    if not uri.startswith(HOST_URI):
        raise HostRefused("The certificate names something else than a host of this fleet")
    return uri.removeprefix(HOST_URI)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return what a person compares of a certificate: its SHA-256 in hexadecimal, as other tools show it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_hash(key: PublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER) in hexadecimal."""
    return hashlib.sha256(key.public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    return _public(certificate)


def certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(_PEM).decode("ascii")


def key_pem(key: PrivateKey) -> str:
    """Return a private key as text, which is a secret."""
    plain = serialization.NoEncryption()
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain).decode("ascii")


def read_key(pem: str) -> PrivateKey:
    """Return the private key of a text. Raises InvalidRequest, which tells nothing of it."""
    try:
        key = serialization.load_pem_private_key(pem.encode("ascii"), None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    except (*_UNFIT, UnicodeError):
        pass  # a parser's exception may quote what it could not parse
    raise InvalidRequest("This is no key of P-256", hint="The file was damaged.")


def _signed_by(
    signer: PrivateKey,
    issuer: x509.Name,
    issuer_key: PublicKey,
    subject: x509.Name,
    key: PublicKey,
    at: dt.datetime,
    ends: dt.datetime,
    *,
    names: Sequence[x509.GeneralName] = (),
    usage: x509.ObjectIdentifier | None = None,
    authority: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=1 if authority else None), critical=True)
        .add_extension(_key_usage(authority=authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _public(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a key of another kind")
    return key


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{text!r} is no name for a server", hint="Name it as people write it in an address."
        ) from error


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
