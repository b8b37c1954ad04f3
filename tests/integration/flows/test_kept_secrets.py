"""What opens an encrypted TPM state goes with the version: into the pin that keeps it, and away with that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.catalog.examples import example_point
from tests.integration.flows.test_kept_versions import RULE, VM, Place, place_at, snapshot_of
from tests.integration.repository.samples import record_of
from tests.unit.custody.test_differences import tpm
from tests.unit.repository.signed import SIGNER
from vmkeep.catalog import CatalogPoint, CatalogState, HeldSecret, MemoryCatalog, SqlCatalog, Trust
from vmkeep.custody.states import KeptSecret, SealedSecret
from vmkeep.flows.catch_up_on_pins import catch_up_on_pins
from vmkeep.flows.secret_holders import holder_for, kept_secrets, secret_holders
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import PointSecret

SECRET = PointSecret("vtpm", "3d5c1f0e-8a64-4f0e-9a0b-6a2f7f1d9c11", "win11", "", False, b"v" * 32)
OTHER = replace(SECRET, uuid="11111111-aaaa-4000-8000-000000000001", usage_id="other", value=b"w" * 32)


@dataclass
class Safe(Place):
    """A place that keeps secrets too."""

    cache: Path = Path()

    def encrypted(self, number: int, *, secret: PointSecret | None = SECRET, plain: bool = False) -> CatalogState:
        """Keep a state as a capture does, with the secret that its host sealed for it."""
        content = tpm(bytes([number]) * 800, **({} if plain else {"flags": 9}))
        newest = self.catalog.newest_state(VM, "tpm")
        version = self.repository.put_state(
            content,
            vm_uuid=VM,
            kind="tpm",
            generation=1 if newest is None else newest.generation + 1,
            file="tpm2/tpm2-00.permall",
            owner="tss",
            group="tss",
            mode=0o600,
            created=(datetime(2026, 3, 2, 12, tzinfo=UTC) + timedelta(minutes=number)).isoformat(
                timespec="microseconds"
            ),
        )
        state = CatalogState(
            version.id, VM, "tpm", version.generation, version.sha256, version.size_bytes, version.created
        )
        self.catalog.see_vm(VM, "win11")
        self.catalog.accept_states([state])
        self.keep(() if secret is None else (self.sealed(secret, state.id),))
        return state

    def sealed(self, secret: PointSecret, version_id: str = "") -> SealedSecret:
        pin_id, _ = self.repository.pins.seal(VM, (secret,))
        return SealedSecret(pin_id, version_id, secret.usage, secret.uuid)

    def keep(self, sealed: tuple[SealedSecret, ...] = (), *, rule: KeepRule = RULE, without: str | None = None) -> None:
        settle_pins(self.catalog, self.repository, VM, rule, without=without, sealed=sealed)

    def point(self, name: str, *states: CatalogState, secret: PointSecret | None = SECRET) -> CatalogPoint:
        """A point that holds states, and the secret in its envelope."""
        made = example_point(name, vm=VM, vm_name="win11", states=states)
        secrets = () if secret is None else (secret,)
        with self.repository.begin(purpose="x", host="a", cache=self.cache, workers=1, point_id=made.id) as writer:
            refs = writer.put_secrets(secrets, vm_uuid=VM)
            writer.commit(replace(record_of([]), vm_uuid=VM, secrets=refs))
        document = {**made.document, "secrets": [{"usage": ref.usage, "uuid": ref.uuid} for ref in refs]}
        made = replace(made, signed_by=SIGNER.fingerprint, document=document)
        self.catalog.record_point(made, list(states))
        return made

    def opens(self) -> dict[str, set[bytes]]:
        """Return the values that the envelopes of pins hold, by version; by an empty text without one."""
        found: dict[str, set[bytes]] = {}
        for pin_id in self.repository.pins.ids():
            record = self.repository.pins.get(pin_id)
            for name in [state.version_id for state in record.states] or [""]:
                values = {secret.value for secret in self.repository.secrets(record)}
                found.setdefault(name, set()).update(values)
        return found

    def envelopes(self) -> set[str]:
        return {path.name for path in (Path(self.repository.location) / "envelopes").iterdir()}


@pytest.fixture(params=["sql", "memory"])
def safe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Safe]:
    location, cache = tmp_path / "repository", tmp_path / "cache"
    if request.param == "memory":
        place = place_at(location, MemoryCatalog())
        yield Safe(place.catalog, place.repository, cache=cache)
        return
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as catalog:
        place = place_at(location, catalog)
        yield Safe(place.catalog, place.repository, cache=cache)


def test_version_has_its_secret_and_settling_again_changes_nothing(safe: Safe) -> None:
    state = safe.encrypted(1)
    assert safe.opens() == {state.id: {SECRET.value}}
    before = safe.pinned(), safe.envelopes()
    safe.keep()
    assert (safe.pinned(), safe.envelopes()) == before
    assert kept_secrets(safe.catalog, VM) == (KeptSecret(state.id, SECRET.uuid),)


def test_secret_goes_with_the_version_that_the_rule_does_not_keep(safe: Safe) -> None:
    states = [safe.encrypted(number) for number in range(1, 5)]
    assert safe.opens() == {state.id: {SECRET.value} for state in states[2:]}
    assert safe.envelopes() == set(safe.pinned())


def test_version_that_was_kept_without_its_secret_gets_it_when_it_is_there(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    assert safe.opens() == {state.id: set()}
    safe.keep((safe.sealed(SECRET, state.id),))
    assert safe.opens() == {state.id: {SECRET.value}}
    assert len(safe.pinned()) == 1


def test_versions_from_before_take_the_one_secret_that_their_vm_ever_had(safe: Safe) -> None:
    crypt, plain = safe.encrypted(1, secret=None), safe.encrypted(2, secret=None, plain=True)
    safe.point("a")
    safe.keep()
    assert safe.opens() == {crypt.id: {SECRET.value}, plain.id: set()}


def test_with_two_secrets_nobody_guesses_which_opens_an_older_version(safe: Safe) -> None:
    crypt = safe.encrypted(1, secret=None)
    safe.point("a")
    safe.point("b", secret=OTHER)
    safe.keep()
    assert safe.opens() == {crypt.id: set()}


def test_version_that_outlives_its_point_takes_the_secret_along(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    point = safe.point("a", state)
    safe.keep()
    assert safe.opens() == {}
    safe.keep(without=point.id)
    safe.repository.delete_point(point.id)
    safe.catalog.forget_point(point.id)
    safe.keep()
    assert safe.opens() == {state.id: {SECRET.value}}


def test_version_whose_other_point_lacks_the_secret_has_it_by_itself(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    with_it, without_it = safe.point("a", state), safe.point("b", state, secret=None)
    safe.keep(without=with_it.id)
    safe.repository.delete_point(with_it.id)
    safe.catalog.forget_point(with_it.id)
    safe.keep()
    assert safe.opens() == {state.id: {SECRET.value}}
    # Nothing needs the version any more.
    newer = safe.encrypted(2)
    safe.keep(rule=KeepRule(last=1), without=without_it.id)
    assert set(safe.opens()) == {newer.id}


def test_sealed_secret_that_a_point_has_anyway_is_deleted(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    safe.point("a", state)
    safe.keep((safe.sealed(SECRET, state.id),))
    assert safe.opens() == {}
    assert len(safe.envelopes()) == 1


def test_snapshot_has_the_secret_and_its_version_after_it(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    made = snapshot_of("before", state)
    safe.catalog.record_snapshot(made)
    safe.keep((safe.sealed(SECRET, state.id),))
    assert safe.opens() == {state.id: {SECRET.value}}
    safe.catalog.rename_snapshot(VM, "before", "after")
    safe.keep()
    assert [pin.snapshot_name for pin in safe.catalog.pins_of_vm(VM)] == ["after"]
    assert safe.opens() == {state.id: {SECRET.value}}
    safe.catalog.forget_snapshot(made.id)
    safe.keep()
    assert [pin.why for pin in safe.catalog.pins_of_vm(VM)] == ["kept"]
    assert safe.opens() == {state.id: {SECRET.value}}


def test_secret_of_a_tpm_that_was_never_started_is_kept_until_something_else_has_it(safe: Safe) -> None:
    safe.catalog.see_vm(VM, "win11")
    safe.keep((safe.sealed(SECRET),))
    safe.keep()
    assert safe.opens() == {"": {SECRET.value}}
    holder = holder_for(secret_holders(safe.catalog, VM), None, SECRET.uuid)
    assert holder is not None
    assert safe.repository.secrets(safe.repository.pins.get(holder.pin)) == (SECRET,)
    state = safe.encrypted(1)
    assert safe.opens() == {state.id: {SECRET.value}}


def test_another_value_of_the_same_secret_is_not_taken_for_it(safe: Safe) -> None:
    safe.catalog.see_vm(VM, "win11")
    safe.keep((safe.sealed(SECRET),))
    state = safe.encrypted(1, secret=replace(SECRET, value=b"x" * 32))
    assert safe.opens() == {"": {SECRET.value}, state.id: {b"x" * 32}}


def test_point_without_a_state_leaves_its_secret_behind(safe: Safe) -> None:
    point = safe.point("a")
    safe.keep(without=point.id)
    safe.repository.delete_point(point.id)
    safe.catalog.forget_point(point.id)
    safe.keep()
    assert safe.opens() == {"": {SECRET.value}}


def test_secrets_of_a_vm_that_is_forgotten_have_its_term(safe: Safe) -> None:
    state = safe.encrypted(1)
    safe.keep((safe.sealed(OTHER),))
    term = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="microseconds")
    safe.catalog.forget_vm(VM, term)
    safe.keep()
    assert safe.opens() == {state.id: {SECRET.value}, "": {OTHER.value}}
    assert {pin.until for pin in safe.catalog.pins_of_vm(VM)} == {term}
    safe.catalog.forget_vm(VM, (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="microseconds"))
    safe.keep()
    assert safe.opens() == {}
    assert safe.envelopes() == set()


def test_new_catalogue_finds_the_secrets_again_and_those_of_strangers_count_for_nothing(safe: Safe) -> None:
    state = safe.encrypted(1)
    new = MemoryCatalog()
    catch_up_on_pins(new, safe.repository, lambda _vm: True)
    assert [pin.secrets for pin in new.pins_of_vm(VM)] == [(HeldSecret("vtpm", SECRET.uuid),)]
    new.trust_host(SIGNER.fingerprint, Trust.DISTRUSTED)
    assert secret_holders(new, VM) == ()
    new.trust_host(SIGNER.fingerprint, Trust.TRUSTED)
    assert [holder.versions for holder in secret_holders(new, VM)] == [(state.id,)]


def test_envelope_that_cannot_be_read_keeps_nobody_from_settling(safe: Safe) -> None:
    state = safe.encrypted(1, secret=None)
    point = safe.point("a", state)
    (Path(safe.repository.location) / "envelopes" / point.id).write_bytes(b"damaged")
    safe.keep(without=point.id)
    assert safe.opens() == {state.id: set()}
