"""Removals and protections of points in a repository (format 1.10): put, read, proved; and what others make of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.integration.repository.samples import VM, SeededKey, opener, run_lengths, sample_key, seeded
from tests.integration.repository.test_repository_golden import files
from tests.integration.repository.test_repository_specification import Reader, canonical
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.catalog import MemoryCatalog, Trust
from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing
from vmkeep.flows.catch_up_on_marks import catch_up_on_marks
from vmkeep.flows.own_key import known_key
from vmkeep.flows.point_marks import goes_at
from vmkeep.repository import Repository
from vmkeep.repository.marks import PROTECTION, REMOVAL, Mark, Marks

GOLDEN = Path(__file__).parent / "golden" / "marked"
CREATED = "2026-03-02T10:00:00.000000+00:00"
UNTIL = "2027-03-02T10:00:00.000000+00:00"
DAY = 24 * 3600
GOING = Mark("1a" * 16, "alpha", CREATED, "retention", VM, "win11", CREATED, grace_seconds=7 * DAY)
UNREAD = Mark("2b" * 16, "alpha", CREATED, "", grace_seconds=0)
KEPT = Mark("3c" * 16, "alpha", CREATED, "audit of 2026", VM, "win11", CREATED, until=UNTIL)


@dataclass(frozen=True, slots=True)
class Place:
    repository: Repository
    location: Path

    def seal_again(self, name: str, **changes: object) -> None:
        """Write another removal in the place of one, with its signature, as whoever has the repository's key can."""
        where = self.location / "removals" / name
        marks = self.repository.removals
        value = json.loads(marks.sealer.open_alone(REMOVAL.frame, name, where.read_bytes(), "x"))
        where.write_bytes(marks.sealer.seal_alone(REMOVAL.frame, name, canonical({**value, **changes})))


def make_place(directory: Path, seed: int = 23) -> Place:
    """Built the same way each time: two removals and a protection."""
    source = seeded(seed)
    location = directory / "repository"
    repository = Repository.create(str(location), SeededKey(sample_key(), source), random=source, compress=run_lengths)
    repository.sign_with(lambda: SIGNER)
    assert repository.removals.put(GOING) == GOING
    repository.removals.put(UNREAD)
    repository.protections.put(KEPT)
    return Place(repository, location)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def test_marks_come_back_as_they_were_put_and_signed(place: Place) -> None:
    repository = Repository.open(str(place.location), opener(sample_key()))
    assert repository.marked() == {f"removals/{GOING.id}", f"removals/{UNREAD.id}", f"protections/{KEPT.id}"}
    assert [repository.removals.get(each.id) for each in (GOING, UNREAD)] == [GOING, UNREAD]
    kept = repository.protections.get(KEPT.id)
    assert (kept, kept.signature and kept.signature.fingerprint) == (KEPT, SIGNER.fingerprint)
    assert repository.removals.stored().keys() == {GOING.id, UNREAD.id}
    assert repository.removals.stored_at(GOING.id) == repository.removals.stored()[GOING.id]
    assert repository.is_to_be_removed(GOING.id)
    assert not repository.is_to_be_removed(KEPT.id)
    assert repository.verify_all().findings == ()


def test_bytes_are_those_of_the_golden_files_and_those_are_read(tmp_path: Path) -> None:
    assert files(make_place(tmp_path).location) == files(GOLDEN)
    assert Repository.open(str(GOLDEN), opener(sample_key())).removals.get(GOING.id) == GOING


def test_marks_open_with_nothing_but_the_specification() -> None:
    reader = Reader(GOLDEN)
    repository = json.loads((GOLDEN / "format").read_bytes())["repository"]
    for noun, number in (("removal", 11), ("protection", 12)):
        for path in sorted((GOLDEN / f"{noun}s").iterdir()):
            plain = reader.frame(number, reader.id_of(noun, path.name.encode()), path.read_bytes())
            mark = json.loads(plain)
            assert (plain, mark["id"]) == (canonical(mark), path.name)
            signature = mark["signature"]
            unsigned = {name: content for name, content in signature.items() if name != "value"}
            record = hashlib.sha256(canonical({**mark, "signature": unsigned})).hexdigest()
            text = {noun: path.name, "format": "vmkeep repository 1", "record": record, "repository": repository}
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
            key.verify(bytes.fromhex(signature["value"]), f"vmkeep {noun} signature v1\n".encode() + canonical(text))


def test_mark_is_replaced_and_deleted_but_never_believed_when_another_has_changed_it(place: Place) -> None:
    removals = place.repository.removals
    removals.put(replace(GOING, grace_seconds=0))
    assert removals.get(GOING.id).grace_seconds == 0
    place.seal_again(GOING.id, grace_seconds=1)
    with pytest.raises(ObjectDamaged, match="not as its host has signed it"):
        removals.get(GOING.id)
    assert [finding.object for finding in place.repository.verify_all().findings] == [f"removals/{GOING.id}"]
    assert (removals.delete(GOING.id), removals.delete(GOING.id)) == (True, False)
    with pytest.raises(ObjectMissing):
        removals.get(GOING.id)
    assert removals.stored_at(GOING.id) is None


def test_mark_of_one_point_or_kind_is_none_of_another(place: Place) -> None:
    going = place.location / "removals" / GOING.id
    (place.location / "removals" / ("4d" * 16)).write_bytes(going.read_bytes())
    (place.location / "protections" / GOING.id).write_bytes(going.read_bytes())
    for marks, name in ((place.repository.removals, "4d" * 16), (place.repository.protections, GOING.id)):
        with pytest.raises(ObjectDamaged):
            marks.get(name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"grace_seconds": 1 << 40}, "grace_seconds"),
        ({"vm_name": "a/b"}, "vm_name"),
        ({"why": "two\nlines"}, "why"),
        ({"taken": "soon"}, "taken"),
    ],
)
def test_mark_that_nothing_could_read_is_not_written(place: Place, changes: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        place.repository.removals.put(replace(GOING, **changes))  # type: ignore[arg-type]
    assert place.repository.removals.get(GOING.id) == GOING


def test_other_installation_learns_of_marks_and_heeds_those_of_hosts_that_it_trusts(place: Place) -> None:
    catalog = MemoryCatalog()
    told = catch_up_on_marks(catalog, place.repository)
    assert [GOING.id in told[0], UNREAD.id in told[1], len(told)] == [True, True, 2]
    assert "nobody has trusted its key" in told[0]
    assert not any(removal.hides for removal in catalog.removals())
    assert catalog.protections()[KEPT.id].until == UNTIL
    assert catch_up_on_marks(catalog, place.repository) == (), "it is told once"
    catalog.trust_host(SIGNER.fingerprint, Trust.TRUSTED)
    assert all(removal.hides for removal in catalog.removals())
    going = next(removal for removal in catalog.removals() if removal.point_id == UNREAD.id)
    assert (goes_at(going) - place.repository.removals.stored()[UNREAD.id]).days == 7, "whatever grace it says"
    place.repository.removals.delete(UNREAD.id)
    place.repository.protections.delete(KEPT.id)
    catch_up_on_marks(catalog, place.repository)
    assert [removal.point_id for removal in catalog.removals()] == [GOING.id]
    assert catalog.protections() == {}


def test_own_removal_has_the_grace_that_it_says(place: Place) -> None:
    catalog = MemoryCatalog()
    catalog.see_host_key(known_key(SIGNER))
    assert catch_up_on_marks(catalog, place.repository) == ()
    removal = next(each for each in catalog.removals() if each.point_id == UNREAD.id)
    assert goes_at(removal) == place.repository.removals.stored()[UNREAD.id]


def test_removal_that_cannot_be_read_hides_nothing_and_one_of_a_rogue_neither(place: Place) -> None:
    (place.location / "removals" / UNREAD.id).write_bytes(b"noise")
    place.repository.removals.delete(GOING.id)
    place.repository.sign_with(lambda: ROGUE)
    place.repository.removals.put(GOING)
    catalog = MemoryCatalog()
    catalog.see_host_key(known_key(SIGNER))
    told = catch_up_on_marks(catalog, place.repository)
    assert any("cannot be read" in sentence for sentence in told)
    assert not any(removal.hides for removal in catalog.removals())


def test_marks_of_a_writer_without_a_key_are_unsigned(place: Place) -> None:
    marks = Marks(PROTECTION, place.repository.removals.store, place.repository.removals.sealer, "ab" * 16, None)
    assert marks.put(replace(KEPT, id="5e" * 16)).signature is None
