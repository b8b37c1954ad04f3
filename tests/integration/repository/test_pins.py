"""Pins in a repository (format 1.4): put, read, proved, deleted; and what verify says of those that were changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.integration.repository.samples import VM, SeededKey, opener, run_lengths, sample_key, seeded
from tests.integration.repository.test_repository_golden import files
from tests.integration.repository.test_repository_specification import Reader, canonical
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing, TargetExists
from vmkeep.keys.signing import SigningKey
from vmkeep.repository import PinnedSnapshot, PinRecord, Repository
from vmkeep.repository.layout import FrameKind

GOLDEN = Path(__file__).parent / "golden" / "pinned"
CREATED = "2026-03-02T10:00:00.000000+00:00"
SNAPSHOT = PinnedSnapshot("5" * 32, "before the\tupgrade", 1_772_445_600, None)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A repository with a pin of a captured version, and one of a snapshot."""

    repository: Repository
    location: Path
    captured: PinRecord
    snapshot: PinRecord

    def findings(self) -> Mapping[str, str]:
        report = Repository.open(str(self.location), opener(sample_key())).verify_all()
        return {finding.object: finding.what for finding in report.findings}


def make_pinned(directory: Path, *, by: SigningKey | None = SIGNER, seed: int = 17) -> Pinned:
    """Built the same way each time."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    if by is not None:
        repository.sign_with(lambda: by)
    versions = [
        repository.put_state(
            content,
            vm_uuid=VM,
            kind=kind,
            generation=3,
            file=file,
            owner="tss",
            group="tss",
            mode=0o600,
            created=CREATED,
        )
        for content, kind, file in (
            (b"\x22" * 700, "tpm", "tpm2/tpm2-00.permall"),
            (b"\x33" * 5000, "nvram", "nvram.fd"),
        )
    ]
    refs = tuple(version.ref() for version in versions)
    record = PinRecord("", VM, "win11", "alpha", CREATED, "kept", refs[:1])
    captured = repository.pins.put(record)
    snapshot = repository.pins.put(replace(record, why="snapshot", states=refs, snapshot=SNAPSHOT))
    return Pinned(repository, location, captured, snapshot)


@pytest.fixture
def pinned(tmp_path: Path) -> Pinned:
    return make_pinned(tmp_path)


def test_pins_come_back_as_they_were_put(pinned: Pinned) -> None:
    pins = Repository.open(str(pinned.location), opener(sample_key())).pins
    assert pins.ids() == sorted([pinned.captured.id, pinned.snapshot.id])
    assert [pins.get(each.id) for each in (pinned.captured, pinned.snapshot)] == [pinned.captured, pinned.snapshot]
    signature = pins.get(pinned.snapshot.id).signature
    assert signature is not None
    assert signature.fingerprint == SIGNER.fingerprint
    assert pinned.findings() == {}


def test_pin_is_deleted_and_its_version_stays(pinned: Pinned) -> None:
    assert pinned.repository.pins.delete(pinned.captured.id)
    assert not pinned.repository.pins.delete(pinned.captured.id)
    assert pinned.repository.pins.ids() == [pinned.snapshot.id]
    assert pinned.repository.state(pinned.captured.states[0].version_id)[1] == b"\x22" * 700


def test_bytes_are_those_of_the_golden_files_and_those_are_read(tmp_path: Path) -> None:
    made = make_pinned(tmp_path)
    assert files(made.location) == files(GOLDEN)
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    assert repository.pins.get(made.snapshot.id) == made.snapshot


def test_pins_open_with_nothing_but_the_specification() -> None:
    reader = Reader(GOLDEN)
    repository = json.loads((GOLDEN / "format").read_bytes())["repository"]
    for path in sorted((GOLDEN / "pins").iterdir()):
        plain = reader.frame(8, reader.id_of("pin", path.name.encode()), path.read_bytes())
        pin = json.loads(plain)
        assert plain == canonical(pin)
        signature = pin["signature"]
        unsigned = {name: content for name, content in signature.items() if name != "value"}
        record = hashlib.sha256(canonical({**pin, "signature": unsigned})).hexdigest()
        text = {"format": "vmkeep repository 1", "pin": path.name, "record": record, "repository": repository}
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
        key.verify(bytes.fromhex(signature["value"]), b"vmkeep pin signature v1\n" + canonical(text))
        for state in pin["states"]:
            header, content = reader.state(state["version_id"])
            assert hashlib.sha256(canonical(header)).hexdigest() == signature["states"][state["version_id"]]
            assert hashlib.sha256(content).hexdigest() == state["sha256"]


def seal_again(pinned: Pinned, pin_id: str, changes: Mapping[str, object]) -> None:
    """Write another pin under the name of one, as whoever has the repository's key can."""
    where = pinned.location / "pins" / pin_id
    sealer = pinned.repository.pins.sealer
    value = json.loads(sealer.open_alone(FrameKind.PIN, pin_id, where.read_bytes(), "x"))
    where.write_bytes(sealer.seal_alone(FrameKind.PIN, pin_id, canonical({**value, **changes})))


def test_pin_that_another_has_changed_is_no_pin_any_more(pinned: Pinned) -> None:
    seal_again(pinned, pinned.captured.id, {"vm_uuid": "11111111-2222-3333-4444-555555555555"})
    with pytest.raises(ObjectDamaged, match="not as its host has signed it"):
        pinned.repository.pins.get(pinned.captured.id)
    assert list(pinned.findings()) == [f"pins/{pinned.captured.id}"]


def test_pin_under_the_name_of_another_does_not_open(pinned: Pinned) -> None:
    folder = pinned.location / "pins"
    (folder / pinned.captured.id).write_bytes((folder / pinned.snapshot.id).read_bytes())
    with pytest.raises(ObjectDamaged):
        pinned.repository.pins.get(pinned.captured.id)


def test_signature_of_another_repository_counts_for_nothing_here(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make_pinned(tmp_path / "one"), make_pinned(tmp_path / "two", seed=18, by=ROGUE)
    value = one.repository.pins.sealer.open_alone(
        FrameKind.PIN, one.captured.id, (one.location / "pins" / one.captured.id).read_bytes(), "x"
    )
    moved = json.loads(value)
    seal_again(two, two.captured.id, {**moved, "id": two.captured.id})
    with pytest.raises(ObjectDamaged, match="not as its host has signed it"):
        two.repository.pins.get(two.captured.id)


def test_lost_version_of_a_pin_is_found(pinned: Pinned) -> None:
    lost = pinned.captured.states[0].version_id
    (pinned.location / "states" / lost).unlink()
    assert list(pinned.findings()) == [f"states/{lost}"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"states": ()}, "1 to 100 states"),
        ({"why": "Because!"}, "why"),
        ({"vm_name": "a/b"}, "vm_name"),
        ({"until": "soon"}, "until"),
        ({"snapshot": replace(SNAPSHOT, name="x" * 256)}, "snapshot.name"),
    ],
)
def test_pin_that_nothing_could_read_is_not_written(pinned: Pinned, changes: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        pinned.repository.pins.put(replace(pinned.captured, id="", **changes))  # type: ignore[arg-type]
    assert len(pinned.repository.pins.ids()) == 2


def test_pin_of_a_version_that_is_gone_or_another_is_not_written(pinned: Pinned) -> None:
    state = pinned.captured.states[0]
    other = replace(pinned.captured, id="", states=(replace(state, generation=4),))
    with pytest.raises(ObjectDamaged, match="another version"):
        pinned.repository.pins.put(other)
    (pinned.location / "states" / state.version_id).unlink()
    with pytest.raises(ObjectMissing):
        pinned.repository.pins.put(replace(pinned.captured, id=""))
    assert len(pinned.repository.pins.ids()) == 2


def test_two_of_one_id_are_not_written(pinned: Pinned) -> None:
    with pytest.raises(TargetExists):
        pinned.repository.pins.put(pinned.captured)


def test_pin_of_a_writer_without_a_key_is_unsigned(tmp_path: Path) -> None:
    assert make_pinned(tmp_path, by=None).captured.signature is None
