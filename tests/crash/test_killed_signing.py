"""Killed while the key that signs points is made, published or renewed: points are proved, and no key is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.bed import KILLED
from tests.crash.test_walked_commands import Bench, bare, bench, stocked
from tests.crash.walk import NO_DEATH, Death, deaths
from tests.integration.cli.test_catch_up import make, premises
from vmkeep.catalog import Trust
from vmkeep.flows.catch_up import catch_up
from vmkeep.keys.signing import SigningKey

__all__ = ["bare", "bench", "stocked"]
pytestmark = pytest.mark.crash

_MOST = 6


def walk(bench: Bench, run: Callable[[Death], int], wanted: str, check: Callable[[], None]) -> None:
    """Run something undisturbed, then kill it around each effect that has to do with keys, and check each time."""
    bench.keep()
    assert run(NO_DEATH) == 0
    effects = bench.zygote.effects
    assert any(wanted in effect for effect in effects), effects
    near = {number + 1 for number, effect in enumerate(effects) for word in ("host.key", "/hosts/") if word in effect}
    # Before such an effect, and before the one that follows it.
    places = [death for death in deaths(effects) if {death.effect, (death.effect or 1) - 1} & near]
    killed = 0
    for death in places[:: max(1, len(places) // _MOST)]:
        bench.put_back()
        killed += run(death) == KILLED
        try:
            check()
        except AssertionError as error:
            error.add_note(f"killed at effect {death}: {effects[(death.effect or 1) - 1]}")
            raise
    assert killed > 0


def assert_points_are_made_and_proved(home: Path) -> None:
    """Make one more point; all there are must be sound, and signed by keys that this home has as its own."""
    for left in home.glob("host.key*"):
        assert left.stat().st_mode & 0o777 == 0o600, left
    make(home, b"after the kill", minute=9)
    with premises(home) as place:
        catch_up(place.catalog, place.repository)
        assert place.repository.verify_all().findings == ()
        assert set(place.catalog.point_ids()) == set(place.repository.point_ids())
        signed = [made["key"] for made in place.catalog.makers().values() if made["key"] is not None]
        assert {made["trust"] for made in place.catalog.makers().values() if made["key"]} <= {"own", "trusted"}
        known = {key.fingerprint: key for key in place.catalog.host_keys()}
        published = {key.fingerprint for key in place.repository.host_keys()}
    held = {SigningKey.load(path).fingerprint for path in home.glob("host.key*") if path.suffix != ".partial"}
    assert signed
    assert set(signed) <= held & known.keys() & published
    own = SigningKey.load(home / "host.key")
    assert [key.fingerprint for key in known.values() if key.trust is Trust.OWN] == [own.fingerprint]


def test_making_and_publishing_the_key_killed_anywhere(stocked: Bench) -> None:
    def check() -> None:
        assert_points_are_made_and_proved(stocked.home)

    walk(stocked, lambda death: stocked.zygote.make_point(stocked.home, death=death), "/hosts/", check)


def test_renewal_killed_anywhere_keeps_what_was_signed_proved(stocked: Bench) -> None:
    make(stocked.home, b"before", minute=7)
    former = SigningKey.load(stocked.home / "host.key")

    def check() -> None:
        kept = {SigningKey.load(path).fingerprint for path in stocked.home.glob("host.key*")}
        assert former.fingerprint in kept
        assert_points_are_made_and_proved(stocked.home)
        stocked.done("host", "renew", "--yes")
        assert_points_are_made_and_proved(stocked.home)
        assert SigningKey.load(stocked.home / "host.key").installation != former.installation

    def run(death: Death) -> int:
        return stocked.run("host", "renew", "--yes", death=death).status

    walk(stocked, run, "host.key", check)
    shutil.rmtree(stocked.place)
