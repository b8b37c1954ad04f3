"""Hosts of a fleet, over TLS: enrolled, renewed, away for long, and with clocks that are wrong."""

from __future__ import annotations

import datetime as dt
import json
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig.fleet import Fleet
from vmkeep.agent import enrolment
from vmkeep.agent.credentials import Credentials
from vmkeep.agent.requests import ask
from vmkeep.config import Settings
from vmkeep.errors import ClockAstray, HostRefused, ServerUnreachable, TargetExists
from vmkeep.identity.certificates import certificate_pem
from vmkeep.identity.hosts import CertificateState, HostStatus
from vmkeep.server import listeners

MONTH = 30.0


@contextmanager
def running(directory: Path, *, tls_at: dt.datetime | None = None) -> Iterator[Fleet]:
    fleet = Fleet(directory, tls_at=tls_at)
    fleet.start()
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("fleet")) as started:
        yield started


def enrolled(fleet: Fleet, name: str, *, days_ago: float = 0) -> Settings:
    host = fleet.host(name)
    with fleet.days_ahead(-days_ago):
        enrolment.enrol(host, fleet.invite(name))
    return host


def standing(host: Settings) -> str:
    held = Credentials.load(host.agent_key_path)
    return str(ask(held.agents, held.tls(), "GET", "/agent/v1/standing")["name"])


def states(fleet: Fleet, name: str) -> list[CertificateState]:
    return [each.state for each in fleet.registrar.named(name).certificates]


def test_host_enrols_by_a_token_and_speaks_by_its_certificate(fleet: Fleet) -> None:
    host = fleet.host("alpha")
    outcome = enrolment.enrol(host, fleet.invite("alpha"))
    assert (outcome.renewed, outcome.clock, outcome.credentials.name) == (True, "", "alpha")
    assert standing(host) == "alpha"
    assert fleet.registrar.named("alpha").status is HostStatus.ENROLLED
    assert states(fleet, "alpha") == [CertificateState.CURRENT]
    assert stat.S_IMODE(host.agent_key_path.stat().st_mode) == 0o600
    done = [(each.what, each.who) for each in fleet.registrar.events(fleet.registrar.named("alpha"))]
    assert done[0] == ("invited", "a test")
    assert ("enrolled", "a host at 127.0.0.1") in done
    with pytest.raises(TargetExists, match="enrolled already"):
        enrolment.enrol(host, fleet.invite("another"))


def test_renewal_at_half_of_the_term_and_not_before(fleet: Fleet) -> None:
    host = enrolled(fleet, "half", days_ago=MONTH / 2)
    before = Credentials.load(host.agent_key_path)
    with fleet.days_ahead(-1):
        early = enrolment.renew(host)
    assert not early.renewed
    assert "24 hours ahead of" in early.clock or "1 days and 0 hours ahead of" in early.clock
    assert enrolment.renew(host).renewed
    after = Credentials.load(host.agent_key_path)
    assert after.key != before.key
    assert not after.next_key
    assert states(fleet, "half") == [CertificateState.SUPERSEDED, CertificateState.CURRENT]
    with pytest.raises(HostRefused, match="superseded"):
        ask(before.agents, before.tls(), "GET", "/agent/v1/standing")


def test_host_that_was_away_for_longer_than_its_term_comes_back_by_its_old_key(fleet: Fleet) -> None:
    host = enrolled(fleet, "away", days_ago=MONTH + 10)
    with pytest.raises(ServerUnreachable):
        standing(host)  # TLS itself refuses it
    assert enrolment.renew(host).renewed
    assert standing(host) == "away"
    assert [each.what for each in fleet.registrar.events(fleet.registrar.named("away"))][-2:] == ["returned", "used"]


def test_revoked_host_does_not_come_back_and_that_is_recorded(fleet: Fleet) -> None:
    host = enrolled(fleet, "gone", days_ago=MONTH + 10)
    fleet.registrar.revoke("gone", "a test")
    for _ in range(2):
        with pytest.raises(HostRefused, match="revoked"):
            enrolment.renew(host)
    assert [each.what for each in fleet.registrar.events(fleet.registrar.named("gone"))][-2:] == ["revoked", "refused"]
    host.agent_key_path.rename(host.agent_key_path.with_name("old"))
    assert enrolment.enrol(host, fleet.invite("gone")).renewed
    assert standing(host) == "gone"


def test_answer_to_an_enrolment_that_was_lost_is_got_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    host, token = fleet.host("lost"), fleet.invite("lost")
    asked = ask

    def lost(address: str, tls: object, method: str, path: str, body: object = None) -> object:
        answer = asked(address, tls, method, path, body)  # type: ignore[arg-type]  # as it was called
        if path == "/enrol/v1/hosts":
            raise ServerUnreachable("the answer was lost")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "ask", lost)
        with pytest.raises(ServerUnreachable, match="was lost"):
            enrolment.enrol(host, token)
    assert enrolment.enrol(host, token).renewed
    assert standing(host) == "lost"
    assert states(fleet, "lost") == [CertificateState.CURRENT]


@pytest.mark.parametrize("lost_at", ["/agent/v1/renewals", "/agent/v1/standing", "used"])
def test_agent_that_dies_anywhere_in_a_renewal_has_a_key_that_counts(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, lost_at: str
) -> None:
    name = f"died-{lost_at.rpartition('/')[2]}"
    host = enrolled(fleet, name, days_ago=MONTH / 2)
    asked = ask

    def dying(address: str, tls: object, method: str, path: str, body: object = None) -> object:
        if path == lost_at == "/agent/v1/standing":
            raise KeyboardInterrupt
        answer = asked(address, tls, method, path, body)  # type: ignore[arg-type]  # as it was called
        if path == lost_at or (path == "/agent/v1/standing" and lost_at == "used"):
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "ask", dying)
        with pytest.raises(KeyboardInterrupt):
            enrolment.renew(host)
    if lost_at != "used":
        assert standing(host) == name  # the former one counts
    assert enrolment.renew(host).renewed
    assert standing(host) == name
    assert not enrolment.renew(host).renewed


def test_authority_is_rotated_under_hosts_that_know_the_former_one(tmp_path: Path) -> None:
    with running(tmp_path) as other:
        host, away = (enrolled(other, name, days_ago=MONTH / 2) for name in ("alpha", "beta"))
        early = other.invite("gamma")
        now = dt.datetime.now(dt.UTC)
        other.registrar.authorities().rotated(now).replace(other.settings.authority_path)
        other.read_certificates_again()
        assert standing(host) == "alpha"
        assert enrolment.enrol(other.host("gamma"), early).renewed  # by a token of the time before
        assert enrolment.renew(host).renewed
        assert len(Credentials.load(host.agent_key_path).authorities) == 2
        other.registrar.authorities().retired().replace(other.settings.authority_path)
        other.read_certificates_again()
        assert standing(host) == "alpha"
        with pytest.raises(ServerUnreachable, match="no certificate of this fleet"):
            standing(away)  # it knows the former one alone


def test_server_that_runs_takes_another_authority_up_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "TEND_SECONDS", 0.05)
    with running(tmp_path) as other:
        host = enrolled(other, "alpha")
        former = other.registrar.authorities()
        former.rotated(dt.datetime.now(dt.UTC)).replace(other.settings.authority_path)
        new = certificate_pem(other.registrar.authorities().present.certificate)
        held = Credentials.load(host.agent_key_path)
        knows_the_new_one_alone = replace(held, authorities=(new,))
        deadline = time.monotonic() + 20
        while True:
            try:
                ask(held.server, knows_the_new_one_alone.tls(shown=False), "GET", "/enrol/v1/authority")
                break
            except ServerUnreachable:
                assert time.monotonic() < deadline
        assert standing(host) == "alpha"


def test_clock_that_is_ten_minutes_wrong_is_told_and_tolerated(fleet: Fleet) -> None:
    host = fleet.host("minutes")
    with fleet.days_ahead(10 / 1440):
        outcome = enrolment.enrol(host, fleet.invite("minutes"))
        assert "10 minutes behind" in outcome.clock
        assert standing(host) == "minutes"


def test_clock_that_is_ten_days_behind_is_named_and_nothing_is_sent(tmp_path: Path) -> None:
    with running(tmp_path, tls_at=dt.datetime.now(dt.UTC) + dt.timedelta(days=10)) as other, other.days_ahead(10):
        token = other.invite("alpha")
        with pytest.raises(ClockAstray, match="10 days and 0 hours behind"):
            enrolment.enrol(other.host("alpha"), token)
        assert other.registrar.named("alpha").status is HostStatus.INVITED


def test_damaged_file_of_an_agent_is_refused_without_telling_it(fleet: Fleet) -> None:
    host = enrolled(fleet, "damaged")
    good = json.loads(host.agent_key_path.read_bytes())
    damaged: list[object] = [
        {**good, "key": "x" + good["key"][1:]},
        {**good, "authorities": []},
        {**good, "name": 7},
        [],
    ]
    for wrong in damaged:
        host.agent_key_path.write_text(json.dumps(wrong))
        with pytest.raises(Exception, match="not the key of a host") as raised:
            enrolment.renew(host)
        assert good["key"][40:60] not in str(raised.value)


def test_token_and_keys_stand_in_no_output_of_values(fleet: Fleet) -> None:
    host = enrolled(fleet, "quiet")
    held = Credentials.load(host.agent_key_path)
    assert "PRIVATE" not in repr(replace(held, next_key=held.key))
    assert "PRIVATE" not in repr(fleet.registrar.authorities())
