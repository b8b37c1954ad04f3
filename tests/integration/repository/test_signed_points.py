"""Signed points in a repository (format 1.3): pinned bytes, a reader of its own, and what verify says of changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.integration.repository.samples import (
    BLOCK,
    VM,
    SeededKey,
    opener,
    put_state,
    record_of,
    run_lengths,
    sample_key,
    seeded,
    write_disk,
)
from tests.integration.repository.test_repository_golden import files
from tests.integration.repository.test_repository_specification import Reader, canonical
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.errors import ObjectDamaged
from vmkeep.keys.signing import SigningKey
from vmkeep.repository import PointRecord, PointSecret, Repository
from vmkeep.repository.layout import FrameKind
from vmkeep.repository.signatures import signature_of

GOLDEN = Path(__file__).parent / "golden" / "signed"
SECRET = PointSecret("vtpm", "3d5c1f0e-8a64-4f0e-9a0b-6a2f7f1d9c11", "win11", "of the TPM", False, b"\x00a secret")


@dataclass(frozen=True, slots=True)
class Signed:
    """A repository with two points of one VM: the second has the state version of the first."""

    repository: Repository
    location: Path
    points: tuple[PointRecord, PointRecord]

    def reopen(self) -> Repository:
        return Repository.open(str(self.location), opener(sample_key()))

    def findings(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        report = self.reopen().verify_all()
        return {finding.object: (finding.what, finding.harms) for finding in report.findings}


def make_signed(directory: Path, *, by: SigningKey = SIGNER, seed: int = 11) -> Signed:
    """Built the same way each time: a secret, a TPM state, and both points signed."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    repository.sign_with(lambda: by)
    points: list[PointRecord] = []
    state = None
    for number in (1, 2):
        with repository.begin(purpose="x", host="alpha", cache=directory / "cache", workers=1) as writer:
            disk = write_disk(writer, {0: bytes([number]) * BLOCK}, size_bytes=2 * BLOCK)
            state = state or put_state(writer, b"\x22" * 700, "tpm", 1, "tpm2/tpm2-00.permall")
            secrets = writer.put_secrets([SECRET], vm_uuid=VM)
            record = replace(record_of([disk], states=[state]), secrets=secrets, sequence=number)
            points.append(writer.commit(record))
    return Signed(repository, location, (points[0], points[1]))


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return make_signed(tmp_path)


def seal_again(signed: Signed, kind: FrameKind, folder: str, name: str, plain: bytes) -> None:
    """Put an object in the place of another, as whoever has the repository's key can."""
    frame = signed.repository._sealer.seal_alone(kind, name, plain, compressed=False)
    (signed.location / folder / name).write_bytes(frame)


def test_golden_repository_with_signatures_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    written, golden = files(make_signed(tmp_path).location), files(GOLDEN)
    assert sorted(written) == sorted(golden)
    for name, content in golden.items():
        assert written[name] == content, name


def test_golden_repository_with_signatures_is_readable_and_sound() -> None:
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    (key,) = repository.host_keys()
    assert (key.fingerprint, key.installation, key.host) == (SIGNER.fingerprint, SIGNER.installation, "alpha")
    assert all(repository.secrets(point) == (SECRET,) for point in repository.points())
    assert repository.verify_all().sound


def test_reader_written_from_the_document_proves_the_signatures() -> None:
    reader = Reader(GOLDEN)
    repository = json.loads(reader.format)["repository"]
    for path in (GOLDEN / "points").iterdir():
        value = reader.point(path.name)
        signature = value["signature"]
        proof = bytes.fromhex(signature.pop("value"))
        text = {
            "format": "vmkeep repository 1",
            "point": path.name,
            "record": hashlib.sha256(canonical(value)).hexdigest(),
            "repository": repository,
        }
        public = bytes.fromhex(signature["key"])
        Ed25519PublicKey.from_public_bytes(public).verify(proof, b"vmkeep point signature v1\n" + canonical(text))
        for version, digest in signature["states"].items():
            header, _ = reader.state(version)
            assert hashlib.sha256(canonical(header)).hexdigest() == digest
        envelope = (GOLDEN / "envelopes" / path.name).read_bytes()
        assert hashlib.sha256(envelope).hexdigest() == signature["envelope"]
        name = blake3(public, derive_key_context="vmkeep 2026 host key fingerprint").hexdigest()[:32]
        plain = reader.frame(7, reader.id_of("host", name.encode()), (GOLDEN / "hosts" / name).read_bytes())
        host = json.loads(plain)
        assert canonical(host) == plain
        proof = bytes.fromhex(host.pop("signature"))
        text = {**host, "format": "vmkeep repository 1", "repository": repository}
        Ed25519PublicKey.from_public_bytes(public).verify(proof, b"vmkeep host key v1\n" + canonical(text))
        assert (host["key"], host["installation"]) == (public.hex(), signature["installation"])


def test_points_of_an_older_release_stay_valid_beside_signed_ones(signed: Signed) -> None:
    old = signed.reopen()
    with old.begin(purpose="x", host="alpha", cache=signed.location.parent / "cache", workers=1) as writer:
        disk = write_disk(writer, {0: b"\x09" * BLOCK}, size_bytes=2 * BLOCK)
        unsigned = writer.commit(record_of([disk]))
    assert "signature" not in unsigned.as_json()
    assert old.point(unsigned.id) == unsigned
    assert signed.findings() == {}


def test_point_made_of_a_signed_one_has_not_its_signature(signed: Signed) -> None:
    cache = signed.location.parent / "cache"
    for repository, by in ((signed.reopen(), None), (signed.repository, SIGNER.fingerprint)):
        with repository.begin(purpose="x", host="alpha", cache=cache, workers=1) as writer:
            again = writer.commit(replace(signed.points[0], id="", vm_name="other", secrets=()))
        signature = signature_of(signed.reopen().point(again.id))
        assert (None if signature is None else signature.fingerprint) == by


def _is_damaged(signed: Signed, point: str) -> None:
    with pytest.raises(ObjectDamaged) as caught:
        signed.reopen().point(point)
    assert point in caught.value.message
    report = signed.reopen().verify_point(point)
    assert not report.sound
    assert any(point in finding.what for finding in report.findings)
    assert signed.findings()[f"points/{point}"][1] == (point,)


def test_altered_point_is_damaged_and_told_with_its_id(signed: Signed) -> None:
    point = signed.points[0]
    value = {**point.as_json(), "definition": "<domain><evil/></domain>"}
    seal_again(signed, FrameKind.POINT, "points", point.id, canonical(value))
    _is_damaged(signed, point.id)


def test_state_version_with_another_owner_harms_the_points_that_have_it(signed: Signed) -> None:
    """The record names only the content's hash; who will own the file stands in the state version's header."""
    state = signed.points[0].states[0]
    version, content = signed.repository.state(state.version_id)
    header = canonical({**version.as_json(), "owner": "root", "mode": 0o4755})
    plain = len(header).to_bytes(4, "little") + header + content
    seal_again(signed, FrameKind.STATE, "states", state.version_id, plain)
    repository = signed.reopen()
    assert repository.state(state.version_id)[1] == content
    with pytest.raises(ObjectDamaged, match="was signed"):
        repository.state_of(signed.points[0], state.version_id)
    assert all(not repository.verify_point(point.id).sound for point in signed.points)


def test_envelope_sealed_again_harms_its_point(signed: Signed) -> None:
    point = signed.points[0]
    where = signed.location / "envelopes" / point.id
    plain = signed.repository._sealer.open_alone(FrameKind.ENVELOPE, point.id, where.read_bytes(), "x")
    other = json.loads(plain)
    other["secrets"][0]["value"] = "QUJDREVGRw=="
    seal_again(signed, FrameKind.ENVELOPE, "envelopes", point.id, canonical(other))
    with pytest.raises(ObjectDamaged, match="was signed"):
        signed.reopen().secrets(point)
    assert signed.findings()[f"envelopes/{point.id}"][1] == (point.id,)


def _other_key(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "key": ROGUE.public_key.hex()}


@pytest.mark.parametrize(
    "change", [_other_key, lambda value: {**value, "host": "beta"}, lambda value: {**value, "installation": "0" * 32}]
)
def test_changed_public_key_object_is_told_and_harms_no_point(
    signed: Signed, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    where = signed.location / "hosts" / SIGNER.fingerprint
    plain = signed.repository._sealer.open_alone(FrameKind.HOST, SIGNER.fingerprint, where.read_bytes(), "x")
    changed = change(json.loads(plain))
    seal_again(signed, FrameKind.HOST, "hosts", SIGNER.fingerprint, canonical(changed))
    assert signed.reopen().host_keys() == ()
    harmed = {name: harms for name, (_, harms) in signed.findings().items()}
    assert harmed == {f"hosts/{SIGNER.fingerprint}": ()}


def test_public_key_that_is_gone_is_put_again_by_the_next_point(signed: Signed) -> None:
    (signed.location / "hosts" / SIGNER.fingerprint).unlink()
    assert signed.findings() == {}
    with signed.repository.begin(purpose="x", host="alpha", cache=signed.location.parent / "c", workers=1) as writer:
        writer.commit(record_of([]))
    assert [key.fingerprint for key in signed.reopen().host_keys()] == [SIGNER.fingerprint]


def test_no_key_is_asked_for_before_a_point_is_begun(signed: Signed) -> None:
    repository = signed.reopen()

    def none() -> SigningKey:
        raise ObjectDamaged("no key")

    repository.sign_with(none)
    assert repository.point(signed.points[0].id)
    with pytest.raises(ObjectDamaged, match="no key"):
        repository.begin(purpose="x", host="alpha", cache=signed.location.parent / "c")
    assert repository.writers() == ()
