"""The secrets of pins (format 1.5): pinned bytes, bound to their pin and covered by its signature, gone with it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.repository.samples import VM, SeededKey, opener, run_lengths, sample_key, seeded
from tests.integration.repository.test_pins import CREATED
from tests.integration.repository.test_point_secrets import VALUE, VTPM
from tests.integration.repository.test_repository_golden import files
from tests.integration.repository.test_repository_specification import Reader, canonical
from tests.unit.repository.signed import SIGNER
from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing
from vmkeep.repository import PinRecord, PointSecret, Repository, SecretRef
from vmkeep.repository.envelopes import put_envelope
from vmkeep.repository.layout import FrameKind

GOLDEN = Path(__file__).parent / "golden" / "sealed"
OTHER = replace(VTPM, uuid="11111111-aaaa-4000-8000-000000000001", value=b"another value")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A repository with the pin of an encrypted version, and one of a TPM that was never started."""

    repository: Repository
    location: Path
    version: PinRecord
    key: PinRecord

    def envelope(self, pin: PinRecord) -> Path:
        return self.location / "envelopes" / pin.id

    def findings(self) -> Mapping[str, str]:
        report = Repository.open(str(self.location), opener(sample_key())).verify_all()
        return {finding.object: finding.what for finding in report.findings}

    def seal_again(self, pin: PinRecord, changes: Mapping[str, object]) -> None:
        """Write another pin under the name of one, as whoever has the repository's key can."""
        where = self.location / "pins" / pin.id
        sealer = self.repository.pins.sealer
        value = json.loads(sealer.open_alone(FrameKind.PIN, pin.id, where.read_bytes(), "x"))
        where.write_bytes(sealer.seal_alone(FrameKind.PIN, pin.id, canonical({**value, **changes})))

    def put_other_envelope(self, pin: PinRecord, *secrets: PointSecret, vm: str = VM) -> None:
        self.envelope(pin).unlink()
        put_envelope(self.repository.pins.store, self.repository.pins.sealer, pin.id, vm, secrets, holder="pin")


def make_sealed(directory: Path, seed: int = 23) -> Sealed:
    """Built the same way each time."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    repository.sign_with(lambda: SIGNER)
    state = repository.put_state(
        b"\x22" * 700,
        vm_uuid=VM,
        kind="tpm",
        generation=3,
        file="tpm2/tpm2-00.permall",
        owner="tss",
        group="tss",
        mode=0o600,
        created=CREATED,
    )
    pins = repository.pins
    pin_id, refs = pins.seal(VM, (VTPM,))
    version = pins.put(PinRecord(pin_id, VM, "win11", "alpha", CREATED, "kept", (state.ref(),), secrets=refs))
    key_id, refs = pins.seal(VM, (VTPM,))
    key = pins.put(PinRecord(key_id, VM, "win11", "alpha", CREATED, "key", (), secrets=refs))
    return Sealed(repository, location, version, key)


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    return make_sealed(tmp_path)


def test_bytes_are_those_of_the_golden_files_and_those_are_read(tmp_path: Path) -> None:
    made = make_sealed(tmp_path)
    assert files(made.location) == files(GOLDEN)
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    for pin in (made.version, made.key):
        assert repository.pins.get(pin.id) == pin
        assert repository.secrets(repository.pins.get(pin.id)) == (VTPM,)
    assert repository.verify_all().sound


def test_reader_written_from_the_document_reads_the_secrets_of_pins() -> None:
    reader = Reader(GOLDEN)
    for path in (GOLDEN / "pins").iterdir():
        pin = json.loads(reader.frame(8, reader.id_of("pin", path.name.encode()), path.read_bytes()))
        frame = (GOLDEN / "envelopes" / path.name).read_bytes()
        plain = reader.frame(6, reader.id_of("envelope", path.name.encode()), frame)
        value = json.loads(plain)
        assert (canonical(value), len(plain) % 1024) == (plain, 0)
        assert (value["pin"], value["vm_uuid"], "point" in value) == (path.name, VM, False)
        assert pin["secrets"] == [{key: secret[key] for key in ("usage", "uuid")} for secret in value["secrets"]]
        assert [base64.b64decode(secret["value"]) for secret in value["secrets"]] == [VALUE]
        assert pin["signature"]["envelope"] == hashlib.sha256(frame).hexdigest()


def test_pin_without_secrets_is_written_as_before(sealed: Sealed) -> None:
    record = replace(sealed.version, id="", secrets=())
    assert "secrets" not in record.as_json()
    kept = sealed.repository.pins.put(record)
    assert sealed.repository.secrets(kept) == ()
    assert not sealed.envelope(kept).exists()


def test_reader_of_format_1_4_keeps_what_it_does_not_know(sealed: Sealed) -> None:
    plain = sealed.version.as_json()
    older = PinRecord.from_json({name: plain[name] for name in plain if name != "secrets"}, "a pin")
    assert replace(older, extra={"secrets": plain["secrets"]}).as_json() == plain


def test_secrets_go_with_their_pin_and_no_other(sealed: Sealed) -> None:
    assert sealed.repository.pins.delete(sealed.version.id)
    assert [path.name for path in (sealed.location / "envelopes").iterdir()] == [sealed.key.id]
    assert sealed.repository.secrets(sealed.key) == (VTPM,)
    # One that a killed deletion left goes with the next.
    put_envelope(sealed.repository.pins.store, sealed.repository.pins.sealer, sealed.version.id, VM, (VTPM,))
    assert not sealed.repository.pins.delete(sealed.version.id)
    assert not sealed.envelope(sealed.version).exists()


def test_point_that_takes_the_name_of_a_pin_takes_no_secrets_with_it(sealed: Sealed) -> None:
    (sealed.location / "points").mkdir(exist_ok=True)
    (sealed.location / "points" / sealed.version.id).write_bytes(b"a stranger's")
    sealed.repository.delete_point(sealed.version.id)
    assert sealed.repository.secrets(sealed.version) == (VTPM,)


@pytest.mark.parametrize("how", ["deleted", "flipped", "another pin's", "other secrets", "another VM's", "a point's"])
def test_damage_to_the_envelope_of_a_pin_is_found_and_never_returned(sealed: Sealed, how: str) -> None:
    envelope = sealed.envelope(sealed.version)
    content = envelope.read_bytes()
    match how:
        case "deleted":
            envelope.unlink()
        case "flipped":
            envelope.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "another pin's":
            envelope.write_bytes(sealed.envelope(sealed.key).read_bytes())
        case "other secrets":
            sealed.put_other_envelope(sealed.version, replace(VTPM, value=b"of somebody else"))
        case "another VM's":
            sealed.put_other_envelope(sealed.version, VTPM, vm="99999999-aaaa-4000-8000-000000000001")
        case _:
            envelope.unlink()
            put_envelope(sealed.repository.pins.store, sealed.repository.pins.sealer, sealed.version.id, VM, (VTPM,))
    with pytest.raises(ObjectMissing if how == "deleted" else ObjectDamaged):
        sealed.repository.secrets(sealed.version)
    assert list(sealed.findings()) == [f"envelopes/{sealed.version.id}"]


def test_pin_that_another_gave_secrets_is_no_pin_any_more(sealed: Sealed) -> None:
    sealed.seal_again(sealed.version, {"secrets": [{"usage": "vtpm", "uuid": OTHER.uuid}]})
    with pytest.raises(ObjectDamaged, match="not as its host has signed it"):
        sealed.repository.pins.get(sealed.version.id)


def test_pin_whose_envelope_is_missing_or_another_is_not_written(sealed: Sealed) -> None:
    pins = sealed.repository.pins
    named = (SecretRef("vtpm", OTHER.uuid),)
    with pytest.raises(ObjectMissing):
        pins.put(replace(sealed.version, id="", secrets=named))
    pin_id, _ = pins.seal(VM, (VTPM,))
    with pytest.raises(ObjectDamaged, match="other secrets"):
        pins.put(replace(sealed.version, id=pin_id, secrets=named))
    assert len(pins.ids()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"states": (), "secrets": ()},
        {"secrets": (SecretRef("vtpm", "no uuid"),)},
        {"secrets": (SecretRef("vtpm", VTPM.uuid), SecretRef("vtpm", VTPM.uuid))},
    ],
)
def test_pin_with_secrets_that_nothing_could_read_is_not_written(sealed: Sealed, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        sealed.repository.pins.put(replace(sealed.version, id="", **changes))  # type: ignore[arg-type]
