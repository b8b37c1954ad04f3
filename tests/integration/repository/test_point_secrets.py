"""The secrets of points (format 1.1): pinned bytes, proved by verify, gone with their point, never seen."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

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
from vmkeep.catalog import SqlCatalog
from vmkeep.errors import ObjectDamaged, ObjectMissing, PointNotFound, TargetExists
from vmkeep.flows.installation import catalog_point, catalog_states
from vmkeep.repository import PointRecord, PointSecret, Repository, SecretRef

GOLDEN = Path(__file__).parent / "golden" / "secrets"
VALUE = b"\x00\xffa value that must not be seen"
VTPM = PointSecret("vtpm", "3d5c1f0e-8a64-4f0e-9a0b-6a2f7f1d9c11", "win11", "of the TPM", False, VALUE)
VOLUME = PointSecret("volume", "7b0f9c52-1c1c-4a41-8a56-2f9a3b8f6e22", "/images/a.qcow2", "", True, b"x" * 2000)


@dataclass(frozen=True, slots=True)
class Kept:
    repository: Repository
    location: Path
    point: PointRecord

    @property
    def envelope(self) -> Path:
        return self.location / "envelopes" / self.point.id

    def reopen(self) -> Repository:
        return Repository.open(str(self.location), opener(sample_key()))


def keep(directory: Path, *secrets: PointSecret, seed: int = 7) -> Kept:
    """One point with these secrets, built the same way each time."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    with repository.begin(purpose="one", host="host.example", cache=directory / "cache", workers=1) as writer:
        disk = write_disk(writer, {0: b"\x11" * BLOCK}, size_bytes=2 * BLOCK)
        state = put_state(writer, b"\x22" * 700, "tpm", 1, "tpm2/tpm2-00.permall")
        refs = writer.put_secrets(secrets, vm_uuid=VM)
        point = writer.commit(replace(record_of([disk], states=[state]), secrets=refs))
    return Kept(repository, location, point)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return keep(tmp_path, VTPM, VOLUME)


def test_golden_repository_with_secrets_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    written, golden = files(keep(tmp_path, VTPM, VOLUME).location), files(GOLDEN)
    assert sorted(written) == sorted(golden)
    for name, content in golden.items():
        assert written[name] == content, name


def test_golden_repository_with_secrets_is_readable() -> None:
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    (point,) = repository.points()
    assert repository.secrets(point) == (VTPM, VOLUME)
    assert repository.verify_all().sound


def test_reader_written_from_the_document_reads_the_secrets() -> None:
    reader = Reader(GOLDEN)
    (name,) = (path.name for path in (GOLDEN / "points").iterdir())
    frame = (GOLDEN / "envelopes" / name).read_bytes()
    plain = reader.frame(6, reader.id_of("envelope", name.encode()), frame)
    value = json.loads(plain)
    assert canonical(value) == plain
    assert (value["point"], value["vm_uuid"], set(value["padding"])) == (name, VM, {"0"})
    assert (frame[6], len(plain) % 1024) == (0, 0)  # stored, not compressed
    point = reader.point(name)
    assert point["secrets"] == [{key: secret[key] for key in ("usage", "uuid")} for secret in value["secrets"]]
    assert [base64.b64decode(secret["value"]) for secret in value["secrets"]] == [VTPM.value, VOLUME.value]
    assert [secret["usage_id"] for secret in value["secrets"]] == ["win11", "/images/a.qcow2"]


def test_point_without_secrets_is_written_as_before(tmp_path: Path) -> None:
    kept = keep(tmp_path)
    assert "secrets" not in kept.point.as_json()
    assert not kept.envelope.exists()
    assert kept.repository.secrets(kept.point) == ()
    assert kept.repository.verify_all().sound


def test_reader_of_format_1_0_keeps_what_it_does_not_know(kept: Kept) -> None:
    """What 1.0 did with a top-level field that it does not know: it kept it, and could restore all else."""
    plain = kept.point.as_json()
    older = PointRecord.from_json({name: plain[name] for name in plain if name != "secrets"}, "a point")
    known_by_older = replace(older, extra={**older.extra, "secrets": plain["secrets"]})
    assert known_by_older.as_json() == plain


def test_secrets_are_sealed_and_neither_seen_nor_measured(kept: Kept, tmp_path: Path) -> None:
    forms = (VALUE, base64.b64encode(VALUE), VALUE.hex().encode())
    assert not any(form in content for content in files(kept.location).values() for form in forms)
    for shown in (repr(VTPM), repr(kept.repository.secrets(kept.point)), repr(kept.point)):
        assert "must not be seen" not in shown
    lengths = set()
    for number, size in enumerate((1, 8, 64, 200)):
        other = keep(tmp_path / str(number), replace(VTPM, value=b"p" * size), seed=number)
        lengths.add(other.envelope.stat().st_size)
    assert len(lengths) == 1


def test_catalogue_knows_which_secrets_there_are_and_no_value(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    with SqlCatalog.open(path) as catalog:
        catalog.record_point(catalog_point(kept.point), catalog_states(kept.point))
        assert catalog.find_point(kept.point.id).summary()["secrets"] == [
            {"usage": "vtpm", "uuid": VTPM.uuid},
            {"usage": "volume", "uuid": VOLUME.uuid},
        ]
    assert b"must not be seen" not in b"".join(each.read_bytes() for each in tmp_path.glob("catalog.sqlite*"))


@pytest.mark.parametrize("how", ["deleted", "cut", "flipped", "another point's"])
def test_damage_to_an_envelope_is_found_and_never_returned(kept: Kept, tmp_path: Path, how: str) -> None:
    content = kept.envelope.read_bytes()
    match how:
        case "deleted":
            kept.envelope.unlink()
        case "cut":
            kept.envelope.write_bytes(content[:-1])
        case "flipped":
            kept.envelope.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case _:
            # Sealed with the same keys, in the same place of another point.
            with kept.repository.begin(purpose="two", host="h", cache=tmp_path / "cache", workers=1) as writer:
                refs = writer.put_secrets([VTPM, VOLUME], vm_uuid=VM)
                other = writer.commit(replace(record_of([]), secrets=refs))
            kept.envelope.write_bytes((kept.location / "envelopes" / other.id).read_bytes())
    with pytest.raises((ObjectDamaged, ObjectMissing)):
        kept.reopen().secrets(kept.point)
    name = f"envelopes/{kept.point.id}"
    for report in (kept.reopen().verify_point(kept.point.id), kept.reopen().verify_all()):
        assert not report.sound
        assert (name, (kept.point.id,)) in [(finding.object, finding.harms) for finding in report.findings]


def test_envelope_with_other_secrets_than_the_point_says_is_damage(kept: Kept) -> None:
    for secrets in ((SecretRef("vtpm", VTPM.uuid),), (SecretRef("volume", VTPM.uuid), VOLUME.ref())):
        with pytest.raises(ObjectDamaged):
            kept.repository.secrets(replace(kept.point, secrets=secrets))
    with pytest.raises(ObjectDamaged):
        kept.repository.secrets(replace(kept.point, vm_uuid="another"))


def test_foreign_name_among_the_envelopes_is_reported_and_harms_nothing(kept: Kept) -> None:
    (kept.location / "envelopes" / "note.txt").write_text("hello")
    report = kept.repository.verify_all()
    assert [finding.object for finding in report.findings] == ["envelopes/note.txt"]
    assert report.harmed == ()


def test_deleted_point_takes_its_secrets_along_and_no_others(kept: Kept, tmp_path: Path) -> None:
    with kept.repository.begin(purpose="two", host="h", cache=tmp_path / "cache", workers=1) as writer:
        other = writer.commit(replace(record_of([]), secrets=writer.put_secrets([VTPM], vm_uuid=VM)))
    kept.repository.delete_point(kept.point.id)
    assert not kept.envelope.exists()
    assert kept.repository.secrets(other) == (VTPM,)
    assert kept.repository.verify_all().sound
    # A deletion that was killed between the two, carried out again.
    (kept.location / "points" / other.id).unlink()
    with pytest.raises(PointNotFound):
        kept.repository.delete_point(other.id)
    assert list((kept.location / "envelopes").iterdir()) == []


def test_point_that_cannot_be_deleted_keeps_its_secrets(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(name)

    monkeypatch.setattr(kept.repository._store, "delete", refuse)
    with pytest.raises(PermissionError):
        kept.repository.delete_point(kept.point.id)
    assert kept.envelope.exists()


def test_point_that_is_given_up_leaves_no_envelope(kept: Kept, tmp_path: Path) -> None:
    with kept.repository.begin(purpose="two", host="h", cache=tmp_path / "cache", workers=1) as writer:
        writer.put_secrets([VTPM], vm_uuid=VM)
        assert len(list(kept.envelope.parent.iterdir())) == 2
    assert list(kept.envelope.parent.iterdir()) == [kept.envelope]


def test_writer_never_touches_the_envelope_of_another_point(kept: Kept, tmp_path: Path) -> None:
    content = kept.envelope.read_bytes()
    with (
        kept.repository.begin(
            purpose="again", host="h", cache=tmp_path / "cache", workers=1, point_id=kept.point.id
        ) as writer,
        pytest.raises(TargetExists),
    ):
        writer.put_secrets([VTPM], vm_uuid=VM)
    assert kept.envelope.read_bytes() == content


def test_point_that_names_secrets_without_an_envelope_is_refused(kept: Kept, tmp_path: Path) -> None:
    with (
        kept.repository.begin(purpose="two", host="h", cache=tmp_path / "cache", workers=1) as writer,
        pytest.raises(ObjectMissing),
    ):
        writer.commit(replace(record_of([]), secrets=(VTPM.ref(),)))
    assert kept.repository.point_ids() == [kept.point.id]


def test_rotation_keeps_the_secrets_of_older_points(kept: Kept, tmp_path: Path) -> None:
    kept.repository.add_data_key()
    with kept.repository.begin(purpose="two", host="h", cache=tmp_path / "cache", workers=1) as writer:
        newer = writer.commit(replace(record_of([]), secrets=writer.put_secrets([VOLUME], vm_uuid=VM)))
    again = kept.reopen()
    assert again.secrets(kept.point) == (VTPM, VOLUME)
    assert again.secrets(newer) == (VOLUME,)
    keys = {struct.unpack_from("16s", path.read_bytes(), 8) for path in kept.envelope.parent.iterdir()}
    assert len(keys) == 2
