"""A host that was taken over has the repository's key, and is after the points of another, and after its root.

It may do all that the key and the storage allow: open and seal any object, and put it in any place. What it does not
have is the other host's `host.key`. Played in files; no hypervisor is needed for it, and no rights either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import vmkeep
from tests.integration.cli.test_catch_up import VM, make, premises
from vmkeep.catalog import Trust
from vmkeep.errors import IntegrityError
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.hosts import look_for_hosts
from vmkeep.keys.signing import SigningKey
from vmkeep.repository import PointRecord, Repository
from vmkeep.repository.layout import FrameKind, canonical, parse_canonical
from vmkeep.repository.signatures import sign_point

EVIL = "<domain type='qemu'><name>win11</name><devices><emulator>/tmp/evil</emulator></devices></domain>"


@dataclass(frozen=True, slots=True)
class Ground:
    """Two hosts that share a repository (``victim`` has one point, ``rogue`` is hostile), and one that comes later."""

    top: Path
    point: PointRecord

    @property
    def victim(self) -> Path:
        return self.top / "victim"

    @property
    def rogue(self) -> Path:
        return self.top / "rogue"

    @property
    def rogue_key(self) -> SigningKey:
        return SigningKey.load(self.rogue / "host.key")

    @property
    def victim_key(self) -> SigningKey:
        return SigningKey.load(self.victim / "host.key")

    def newcomer(self) -> Path:
        """A host that has met nobody yet and trusts the two hosts by their fingerprints, which it was told."""
        home = self.top / "newcomer"
        home.mkdir(mode=0o700)
        shutil.copytree(self.victim / "keys", home / "keys")
        with premises(home) as place:
            report = place.initialise(str(self.top / "repository"), adopt=True)
            for key in (self.victim_key.fingerprint, self.rogue_key.fingerprint):
                if key in {host.fingerprint for host in report.hosts}:
                    place.catalog.trust_host(key, Trust.TRUSTED)
        return home

    @contextmanager
    def opened(self) -> Iterator[Repository]:
        """The repository as the hostile host opens it, which asks nobody whether it may."""
        with premises(self.rogue) as place:
            yield place._open(str(self.top / "repository"))

    def read(self, point: str) -> dict[str, Any]:
        frame = (self.top / "repository" / "points" / point).read_bytes()
        with self.opened() as repository:
            return parse_canonical(repository._sealer.open_alone(FrameKind.POINT, point, frame, "x"), "x")

    def put(self, value: dict[str, Any], *, name: str | None = None) -> str:
        """Seal a point anew and put it in its place, or under another name."""
        name = name or str(value["id"])
        with self.opened() as repository:
            frame = repository._sealer.seal_alone(FrameKind.POINT, name, canonical(value))
        (self.top / "repository" / "points" / name).write_bytes(frame)
        return name

    def sign(self, value: dict[str, Any], *, by: SigningKey | None = None, repository: str = "") -> dict[str, Any]:
        """Sign a point, with the hostile host's own key unless another is given."""
        value = {name: content for name, content in value.items() if name != "signature"}
        signer = by or self.rogue_key
        with self.opened() as opened:
            states = [opened.state(state["version_id"])[0] for state in value["states"]]
            signature = sign_point(value, repository or opened.id, signer, states=states, envelope=None)
        return {**value, "signature": signature}


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    with premises(tmp_path / "victim") as place:
        place.initialise(str(tmp_path / "repository"))
    point = make(tmp_path / "victim", b"good")
    ground = Ground(tmp_path, point)
    ground.rogue.mkdir(mode=0o700)
    shutil.copytree(ground.victim / "keys", ground.rogue / "keys")
    with premises(ground.rogue) as place:
        place.initialise(str(tmp_path / "repository"), adopt=True)
    make(ground.rogue, b"its own", vm="11111111-2222-3333-4444-555555555555", name="web", host="beta")
    return ground


def is_damaged(home: Path, point: str) -> None:
    """Reading, listing anew, verifying and restoring all name the point, and none uses it."""
    with premises(home) as place, pytest.raises(IntegrityError) as caught:
        place.repository.point(point)
    assert point in caught.value.message
    with premises(home) as place:
        report = place.initialise(adopt=True)
        assert point in [damaged.point for damaged in report.damaged]
        assert not place.repository.verify_point(point).sound
        (finding,) = [each for each in place.repository.verify_all().findings if each.object == f"points/{point}"]
        assert (point in finding.what, finding.harms) == (True, (point,))


def forge(ground: Ground, **changes: object) -> dict[str, Any]:
    return {**ground.read(ground.point.id), **changes}


def test_point_in_the_name_of_another_is_damaged_or_is_its_makers(ground: Ground) -> None:
    """A new point that says it is of the victim's: with the victim's signature of another one, and with its own."""
    value = forge(ground, id="ab" * 16, definition=EVIL, sequence=9)
    ground.put(value)
    with premises(ground.victim) as place:
        told = catch_up(place.catalog, place.repository).sentences()
        assert [("ab" * 16) in sentence for sentence in told] == [True]
        assert place.catalog.find_point("win11@latest").id == ground.point.id
    ground.put(ground.sign(forge(ground, id="cd" * 16, definition=EVIL, sequence=9)))
    refused = vmkeep(ground.victim, "restore", "win11@latest", "--output", str(ground.top / "out"), "--json")
    assert refused.error()["code"] == "choice-required"
    assert ground.rogue_key.fingerprint in refused.err
    with premises(ground.victim) as place:
        point = place.catalog.find_point("cd" * 16)
        assert (point.host, point.trust, point.signed_by) == ("alpha", Trust.UNKNOWN, ground.rogue_key.fingerprint)
        assert not place.catalog.is_signed_by_trusted_host(point.id)
        assert place.catalog.is_signed_by_trusted_host(ground.point.id)


def _altered(ground: Ground, value: dict[str, Any]) -> dict[str, Any]:
    del ground
    return value


def _stripped(ground: Ground, value: dict[str, Any]) -> dict[str, Any]:
    del ground
    return {name: content for name, content in value.items() if name != "signature"}


def _signed_by_itself(ground: Ground, value: dict[str, Any]) -> dict[str, Any]:
    return ground.sign(value)


Way = Callable[[Ground, dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("way", "what"),
    [
        (_altered, "definition"),
        (_altered, "disks"),
        (_altered, "states"),
        (_altered, "vm_uuid"),
        (_stripped, "definition"),
        (_signed_by_itself, "disks"),
    ],
)
def test_altered_point_is_damaged_where_it_was_met(ground: Ground, way: Way, what: str) -> None:
    with ground.opened() as repository:
        others = next(point for point in repository.points() if point.id != ground.point.id)
    other = {
        "definition": EVIL,
        "disks": others.as_json()["disks"],
        "states": [],
        "vm_uuid": "99999999-2222-3333-4444-555555555555",
    }
    value = forge(ground, **{what: other[what]})
    ground.put(way(ground, value))
    is_damaged(ground.victim, ground.point.id)


def test_altered_point_is_nobodys_or_its_alterers_where_it_is_met_first(ground: Ground) -> None:
    ground.put(_stripped(ground, forge(ground, definition=EVIL)))
    with premises(ground.newcomer()) as place:
        point = place.catalog.find_point(ground.point.id)
        assert point.trust is Trust.UNSIGNED
        assert not place.catalog.is_signed_by_trusted_host(point.id)
        # That the host which it names signs points is known all the same: its key is in the repository.
        assert [key.fingerprint for key in place.catalog.host_keys() if key.host == ground.victim_key.host]


def test_public_key_in_the_place_of_anothers_is_not_taken(ground: Ground) -> None:
    """The object of the victim's key holds the attacker's, which signs it; and the attacker's says it is the victim."""
    folder = ground.top / "repository" / "hosts"
    rogue, victim = ground.rogue_key.fingerprint, ground.victim_key.fingerprint

    with ground.opened() as repository:
        own = repository._sealer.open_alone(FrameKind.HOST, rogue, (folder / rogue).read_bytes(), "x")
        posing = canonical({**json.loads(own), "installation": ground.victim_key.installation, "host": "victim"})
        (folder / victim).write_bytes(repository._sealer.seal_alone(FrameKind.HOST, victim, own))
        (folder / rogue).write_bytes(repository._sealer.seal_alone(FrameKind.HOST, rogue, posing))
    with ground.opened() as repository:
        assert repository.host_keys() == ()
        found = {finding.object for finding in repository.verify_all().findings}
    assert found == {f"hosts/{victim}", f"hosts/{rogue}"}
    newcomer = ground.newcomer()
    with premises(newcomer) as place:
        # Each point carries its key, so who made which is known, and the victim's is still proved.
        assert place.catalog.is_signed_by_trusted_host(ground.point.id)


def test_another_key_for_an_installation_that_is_known_is_told_and_not_taken(ground: Ground) -> None:
    """The attacker draws a key and poses with it as the victim's installation, whose key is lost, it says."""
    posing = SigningKey.draw(machine="0" * 32, host="alpha", installation=ground.victim_key.installation)
    newcomer = ground.newcomer()
    with premises(ground.rogue) as place:
        place.repository.sign_with(lambda: posing)
        opened = place.repository
        with opened.begin(purpose="x", host="alpha", cache=place.settings.cache_dir, workers=1) as writer:
            value = forge(ground, definition=EVIL, sequence=7, kind="full", disks=[], states=[])
            value.pop("signature")
            forged = writer.commit(replace(PointRecord.from_json(value, "x"), id=""))
    for home in (newcomer, ground.victim):
        with premises(home) as place:
            said = catch_up(place.catalog, place.repository).sentences()
            assert [posing.fingerprint in each for each in said if "another key than before" in each] == [True]
            assert place.catalog.find_point(forged.id).trust is Trust.UNKNOWN
            assert look_for_hosts(place, lambda _: None) is None
            (host,) = [key for key in place.catalog.host_keys() if key.fingerprint == posing.fingerprint]
            assert host.trust is Trust.UNKNOWN


def test_old_point_under_a_new_id_is_damaged(ground: Ground) -> None:
    """So that an older state would be the newest one: the id is changed within, or only the object's name."""
    ground.put(forge(ground, id="ab" * 16, sequence=5))
    ground.put(forge(ground), name="cd" * 16)
    for home in (ground.victim, ground.newcomer()):
        for point in ("ab" * 16, "cd" * 16):
            is_damaged(home, point)
        with premises(home) as place:
            assert place.catalog.find_point("win11@latest").id == ground.point.id


def test_signature_from_another_repository_does_not_hold(ground: Ground) -> None:
    """The victim signs points in a second repository too; its point is carried over into this one, as it is."""
    elsewhere = ground.sign(forge(ground, id="ab" * 16), by=ground.victim_key, repository="ef" * 16)
    ground.put(elsewhere)
    is_damaged(ground.victim, "ab" * 16)


def test_what_the_distrusted_host_goes_on_making_is_passed_over(ground: Ground) -> None:
    make(ground.rogue, b"forged", minute=9, host="alpha")
    with premises(ground.victim) as place:
        catch_up(place.catalog, place.repository)
        place.catalog.trust_host(ground.rogue_key.fingerprint, Trust.DISTRUSTED)
    make(ground.rogue, b"and again", minute=10, host="alpha")
    with premises(ground.victim) as place:
        catch_up(place.catalog, place.repository)
        assert len(place.catalog.points_of_vm(VM)) == 3
        assert place.catalog.find_point("win11@latest").id == ground.point.id


def test_control_points_of_both_hosts_are_good_where_both_are_trusted(ground: Ground) -> None:
    made = make(ground.rogue, b"honest", minute=3, host="beta")
    newcomer = ground.newcomer()
    with premises(newcomer) as place:
        assert place.catalog.find_point("win11@latest").id == made.id
        assert all(point.trust is Trust.TRUSTED for point in place.catalog.points())
        assert all(place.catalog.is_signed_by_trusted_host(point.id) for point in place.catalog.points())
        assert place.repository.verify_all().sound
    restored = vmkeep(newcomer, "restore", "win11@latest", "--output", str(ground.top / "out"))
    assert (restored.status, restored.err) == (0, "")
