"""Proofs of deletion in a repository (format 1.6): put, read, proved; and what becomes of those that were changed."""

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
from vmkeep.catalog import MemoryCatalog, Trust
from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing, TargetExists
from vmkeep.flows.catch_up_on_deletions import catch_up_on_deletions
from vmkeep.flows.own_key import known_key
from vmkeep.flows.removals import as_row, last_removal, store_deletions, tpm_kept_until
from vmkeep.flows.show_removals import show_removals
from vmkeep.keys.signing import SigningKey
from vmkeep.repository import (
    DeletedFile,
    DeletedSecret,
    DeletionEvent,
    DeletionRecord,
    KeptVersion,
    Renewal,
    Repository,
    SecretHolder,
)
from vmkeep.repository.deletions import as_line, as_path
from vmkeep.repository.layout import FrameKind

GOLDEN = Path(__file__).parent / "golden" / "deleted"
CREATED = "2026-03-02T10:00:00.000000+00:00"
LATER = "2026-03-03T10:00:00.000000+00:00"
UNTIL = "2026-05-31T10:00:00.000000+00:00"
DIRECTORY = f"/var/lib/libvirt/swtpm/{VM}"
REMOVAL = DeletionRecord(
    id="1a" * 16,
    of=None,
    event=DeletionEvent.REMOVAL,
    vm_uuid=VM,
    vm_name="win11",
    host="alpha",
    host_uuid="9f0e5c1a-0000-4000-8000-000000000001",
    created=CREATED,
    files=(
        DeletedFile(f"{DIRECTORY}/tpm2/.lock", None, 0, None, "deleted", CREATED),
        DeletedFile(f"{DIRECTORY}/tpm2/tpm2-00.permall", "cc" * 32, 6179, "0d" * 16, "failed", None, "read-only"),
    ),
    secret=DeletedSecret(
        "7a0a4c2e-1d0b-4b3c-9a55-2f1f6f3a7d10", "undefined", CREATED, "", (SecretHolder("point", "2b" * 16),)
    ),
    versions=(KeptVersion("0d" * 16, 3, "cc" * 32, 6179, (), UNTIL),),
    kept_until=UNTIL,
    tombstones=("3c" * 16,),
)
FACT = replace(
    REMOVAL,
    id="4d" * 16,
    of=REMOVAL.id,
    event=DeletionEvent.SETTLED,
    created=LATER,
    files=(replace(REMOVAL.files[1], outcome="deleted", at=LATER, why=""),),
    secret=None,
    versions=(),
    kept_until=None,
)


@dataclass(frozen=True, slots=True)
class Place:
    repository: Repository
    location: Path
    catalog: MemoryCatalog

    def findings(self) -> Mapping[str, str]:
        report = Repository.open(str(self.location), opener(sample_key())).verify_all()
        return {finding.object: finding.what for finding in report.findings}

    def seal_again(self, changes: Mapping[str, object], *, by: SigningKey | None = None) -> None:
        """Write another proof in the place of the removal's, as whoever has the repository's key can."""
        where = self.location / "deletions" / REMOVAL.id
        sealer = self.repository.deletions.sealer
        value = json.loads(sealer.open_alone(FrameKind.DELETION, REMOVAL.id, where.read_bytes(), "x"))
        if by is None:
            where.write_bytes(sealer.seal_alone(FrameKind.DELETION, REMOVAL.id, canonical({**value, **changes})))
            return
        where.unlink()
        self.repository.sign_with(lambda: by)
        self.repository.deletions.put(replace(REMOVAL, **changes))  # type: ignore[arg-type]


def make_place(directory: Path, *, by: SigningKey | None = SIGNER, seed: int = 19) -> Place:
    """Built the same way each time: a removal that left a file, and the fact that it went."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    catalog = MemoryCatalog()
    if by is not None:
        repository.sign_with(lambda: by)
        catalog.see_host_key(known_key(by))
    for record in (REMOVAL, FACT):
        catalog.record_deletion(as_row(record))
    store_deletions(catalog, repository, lambda told: pytest.fail(told))
    return Place(repository, location, catalog)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def test_proofs_come_back_as_they_were_put_and_signed(place: Place) -> None:
    deletions = Repository.open(str(place.location), opener(sample_key())).deletions
    assert deletions.ids() == [REMOVAL.id, FACT.id]
    assert [deletions.get(name) for name in deletions.ids()] == [REMOVAL, FACT]
    (shown,) = show_removals(place.catalog, lambda: place.repository, "win11")
    assert (shown.removal.record, shown.removal.signed_by, shown.removal.trust) == (REMOVAL, SIGNER.fingerprint, "own")
    assert [fact.record for fact in shown.facts] == [FACT]
    assert place.findings() == {}


def test_bytes_are_those_of_the_golden_files_and_those_are_read(tmp_path: Path) -> None:
    assert files(make_place(tmp_path).location) == files(GOLDEN)
    assert Repository.open(str(GOLDEN), opener(sample_key())).deletions.get(FACT.id) == FACT


def test_proofs_open_with_nothing_but_the_specification() -> None:
    reader = Reader(GOLDEN)
    repository = json.loads((GOLDEN / "format").read_bytes())["repository"]
    for path in sorted((GOLDEN / "deletions").iterdir()):
        plain = reader.frame(10, reader.id_of("deletion", path.name.encode()), path.read_bytes())
        proof = json.loads(plain)
        assert plain == canonical(proof)
        signature = proof["signature"]
        unsigned = {name: content for name, content in signature.items() if name != "value"}
        record = hashlib.sha256(canonical({**proof, "signature": unsigned})).hexdigest()
        text = {"deletion": path.name, "format": "vmkeep repository 1", "record": record, "repository": repository}
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
        key.verify(bytes.fromhex(signature["value"]), b"vmkeep deletion signature v1\n" + canonical(text))


def test_one_proof_is_stored_of_a_removal_whoever_was_killed_in_between(place: Place) -> None:
    again = MemoryCatalog()
    for record in (REMOVAL, FACT):
        again.record_deletion(as_row(record))
    store_deletions(again, place.repository, lambda told: pytest.fail(told))
    assert [(each.stored, each.signed_by) for each in again.deletions()] == [(True, SIGNER.fingerprint)] * 2
    assert place.repository.deletions.ids() == [REMOVAL.id, FACT.id]
    other = MemoryCatalog()
    other.record_deletion(as_row(replace(REMOVAL, vm_name="other")))
    told: list[str] = []
    store_deletions(other, place.repository, told.append)
    assert "another proof" in told[0]
    assert not other.deletions()[0].stored
    with pytest.raises(TargetExists):
        place.repository.deletions.put(REMOVAL)


def test_proof_that_another_has_changed_is_no_proof_any_more(place: Place) -> None:
    place.seal_again({"files": []})
    with pytest.raises(ObjectDamaged, match="not as its host has signed it"):
        show_removals(place.catalog, lambda: place.repository, VM)
    assert list(place.findings()) == [f"deletions/{REMOVAL.id}"]


def test_proof_that_another_key_has_signed_is_not_the_one_that_was_known(place: Place) -> None:
    place.seal_again({"tombstones": ()}, by=ROGUE)
    with pytest.raises(ObjectDamaged, match="another one than was known here"):
        show_removals(place.catalog, lambda: place.repository, REMOVAL.id[:8])


def test_proof_that_somebody_has_deleted_is_missed_by_its_facts(place: Place) -> None:
    (place.location / "deletions" / REMOVAL.id).unlink()
    with pytest.raises(ObjectMissing, match="somebody deleted it"):
        show_removals(place.catalog, lambda: place.repository, VM)
    assert list(place.findings()) == [f"deletions/{REMOVAL.id}"]


def test_lost_catalogue_finds_proofs_again_and_believes_those_that_are_trusted(place: Place) -> None:
    catalog = MemoryCatalog()
    assert catch_up_on_deletions(catalog, place.repository) == ()
    assert catch_up_on_deletions(catalog, place.repository) == ()
    assert [(each.id, each.trust) for each in catalog.deletions()] == [(REMOVAL.id, "unknown"), (FACT.id, "unknown")]
    assert tpm_kept_until(catalog, VM) is None  # an unknown host lets no version go
    catalog.trust_host(SIGNER.fingerprint, Trust.TRUSTED)
    assert tpm_kept_until(catalog, VM) == UNTIL
    (shown,) = show_removals(catalog, lambda: place.repository, VM)
    assert (shown.removal.trust, shown.removal.record) == ("trusted", REMOVAL)
    place.seal_again({"files": []})
    assert "could not be taken over" in catch_up_on_deletions(MemoryCatalog(), place.repository)[0]


def test_proof_of_a_writer_without_a_key_is_unsigned_and_says_so(tmp_path: Path) -> None:
    place = make_place(tmp_path, by=None)
    (shown,) = show_removals(place.catalog, lambda: place.repository, VM)
    assert (shown.removal.signed_by, shown.removal.trust) == (None, "unsigned")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"of": "5e" * 16}, "names another"),
        ({"event": DeletionEvent.SETTLED}, "fact about none"),
        ({"vm_name": "a/b"}, "vm_name"),
        ({"who": "two\nlines"}, "who"),
        ({"files": REMOVAL.files * 40}, "more than 64 files"),
        ({"files": (replace(REMOVAL.files[0], outcome="perhaps"),)}, "outcome"),
        ({"kept_until": "soon"}, "kept_until"),
        ({"of": "5e" * 16, "event": DeletionEvent.SETTLED, "renewal": Renewal.RESET}, "took the place"),
        ({"renewal": "other"}, "renewal"),
    ],
)
def test_proof_that_nothing_could_read_is_not_written(place: Place, changes: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        place.repository.deletions.put(replace(REMOVAL, id="", **changes))  # type: ignore[arg-type]
    assert len(place.repository.deletions.ids()) == 2


@pytest.mark.parametrize("renewal", [*Renewal])
def test_state_that_gave_way_to_another_is_proved_and_gives_versions_no_term(place: Place, renewal: Renewal) -> None:
    reset = replace(REMOVAL, id="5e" * 16, created=LATER, kept_until=None, renewal=renewal)
    assert "renewal" not in REMOVAL.as_json()  # as it was before there were others
    assert tpm_kept_until(place.catalog, VM) == UNTIL
    place.catalog.record_deletion(as_row(reset))
    assert tpm_kept_until(place.catalog, VM) is None  # the VM had a TPM, so it was given one
    assert last_removal(place.catalog, VM) is None
    store_deletions(place.catalog, place.repository, lambda told: pytest.fail(told))
    _, shown = show_removals(place.catalog, lambda: place.repository, "win11")
    assert (shown.removal.record, shown.removal.signed_by) == (reset, SIGNER.fingerprint)
    assert place.findings() == {}


def test_names_that_steer_a_terminal_are_written_as_text() -> None:
    hostile = "/x/\x1b[2J\n\u202e\udcff"
    record = replace(REMOVAL, files=(replace(REMOVAL.files[0], path=as_path(hostile), why=as_line(hostile * 999)),))
    assert DeletionRecord.from_json(record.as_json(), "x") == record
