"""Certificates: what of a request comes into one, who they are good for, and how one authority vouches for the next."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from vmkeep.errors import HostRefused, InvalidRequest
from vmkeep.identity.certificates import (
    HOST_URI,
    SERVER_NAME,
    Authority,
    draw_key,
    host_of,
    is_signed_by,
    key_of_request,
    make_request,
    read_certificate,
    read_key,
)

NOW = dt.datetime(2027, 1, 10, tzinfo=dt.UTC)
AUTHORITY = Authority.draw(NOW)


def requested(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    *extensions: x509.ExtensionType,
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another-host")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def test_only_the_key_of_a_request_comes_into_the_certificate() -> None:
    key = draw_key()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{HOST_URI}other"), x509.DNSName("evil")])
    hostile = requested(key, names, x509.BasicConstraints(ca=True, path_length=None))
    made = read_certificate(AUTHORITY.for_host(key_of_request(hostile), "1" * 32, NOW, 30).pem)
    assert host_of(made) == "1" * 32
    assert "another-host" not in made.subject.rfc4514_string()
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert made.public_key() == key.public_key()


def test_request_that_its_key_has_not_signed_is_refused() -> None:
    ours, theirs = draw_key(), draw_key()
    request = x509.load_pem_x509_csr(requested(ours)).public_bytes(serialization.Encoding.DER)
    point = serialization.PublicFormat.UncompressedPoint
    swapped = request.replace(
        ours.public_key().public_bytes(serialization.Encoding.X962, point),
        theirs.public_key().public_bytes(serialization.Encoding.X962, point),
    )
    assert swapped != request
    pem = x509.load_der_x509_csr(swapped).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(HostRefused, match="has not signed it"):
        key_of_request(pem)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_key_of_another_kind_is_refused(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    with pytest.raises(HostRefused, match="another kind"):
        key_of_request(requested(key))


@pytest.mark.parametrize("request_", [b"", b"\0" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 9000])
def test_what_is_no_request_is_refused(request_: bytes) -> None:
    with pytest.raises(HostRefused, match="is none"):
        key_of_request(request_)


def test_certificate_begins_a_day_before_it_is_made_and_ends_with_its_term() -> None:
    made = read_certificate(AUTHORITY.for_host(draw_key().public_key(), "1" * 32, NOW, 30).pem)
    assert made.not_valid_before_utc == NOW - dt.timedelta(days=1)
    assert made.not_valid_after_utc == NOW + dt.timedelta(days=30)


def test_server_is_verified_by_its_one_name_also_through_the_authority_before() -> None:
    former, present = AUTHORITY, Authority.draw(NOW)
    server = present.for_server(draw_key().public_key(), ["vmkeep.example", "192.0.2.1"], NOW, 30)
    across = former.vouch_for(present.certificate, NOW)
    for trusted, between in ((present, []), (present, [across]), (former, [across])):
        verifier = PolicyBuilder().store(Store([trusted.certificate])).time(NOW)
        chain = verifier.build_server_verifier(x509.DNSName(SERVER_NAME)).verify(server, between)
        assert chain[-1] == trusted.certificate
    assert is_signed_by(server, present.certificate)
    assert not is_signed_by(server, former.certificate)


def test_certificate_of_a_host_is_none_of_a_server() -> None:
    made = read_certificate(AUTHORITY.for_host(draw_key().public_key(), "1" * 32, NOW, 30).pem)
    policy = PolicyBuilder().store(Store([AUTHORITY.certificate])).time(NOW)
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.DNSName(SERVER_NAME)).verify(made, [])


@pytest.mark.parametrize("text", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é"])
def test_damaged_texts_are_refused_without_telling_them(text: str) -> None:
    for read in (read_certificate, read_key):
        with pytest.raises(InvalidRequest):
            read(text)


def test_request_that_is_made_here_has_no_name() -> None:
    key = draw_key()
    assert key_of_request(make_request(key)) == key.public_key()
