"""How a host's identity changes: who is let in, for how long, and what ends it."""

from __future__ import annotations

import pytest

from tests.unit.identity.identities import INVITE, OTHER, at, certificate, enrolled, invited
from vmkeep.errors import HostRefused, InvalidRequest
from vmkeep.identity.hosts import CertificateState, HostStatus, host_name


def test_invite_counts_once_and_for_its_time_only() -> None:
    host = invited()
    with pytest.raises(HostRefused, match="not known"):
        host.enrolled(OTHER, certificate("c1"), at(1))
    with pytest.raises(HostRefused, match="ended at"):
        host.enrolled(INVITE, certificate("c1"), at(2))
    used = host.enrolled(INVITE, certificate("c1"), at(1))
    assert used.status is HostStatus.ENROLLED
    with pytest.raises(HostRefused, match="used already"):
        used.enrolled(INVITE, certificate("c2"), at(1))


def test_answer_that_was_lost_is_given_again_to_the_same_key_until_the_certificate_is_used() -> None:
    host = invited().enrolled(INVITE, certificate("c1", "k"), at(1))
    assert host.enrolled(INVITE, certificate("c2", "k"), at(1)) is host
    with pytest.raises(HostRefused):
        host.used("c1", at(1)).enrolled(INVITE, certificate("c2", "k"), at(1))


def test_former_certificate_counts_until_the_new_one_was_used() -> None:
    host = enrolled().renewed("c1", certificate("c2"), at(15))
    assert host.admitted("c1", at(15)).serial == "c1"
    assert host.admitted("c2", at(15)).serial == "c2"
    used = host.used("c2", at(16))
    with pytest.raises(HostRefused, match="superseded"):
        used.admitted("c1", at(16))


def test_superseded_certificate_gets_no_other_one() -> None:
    host = enrolled().renewed("c1", certificate("c2"), at(15)).used("c2", at(16))
    with pytest.raises(HostRefused, match="superseded"):
        host.renewed("c1", certificate("c3"), at(16))


def test_two_who_renew_at_once_leave_one_certificate_to_be_used_and_the_old_one() -> None:
    host = enrolled().renewed("c1", certificate("c2"), at(15)).renewed("c1", certificate("c3"), at(15))
    assert [each.state for each in host.certificates] == [
        CertificateState.CURRENT,
        CertificateState.SUPERSEDED,
        CertificateState.ISSUED,
    ]
    host.admitted("c1", at(15))


def test_request_that_is_played_again_gets_the_certificate_that_was_made() -> None:
    host = enrolled().renewed("c1", certificate("c2", "k"), at(15))
    assert host.renewed("c1", certificate("c3", "k"), at(15)) is host


def test_certificate_that_has_ended_admits_nobody_and_proves_who_it_was() -> None:
    host = enrolled()
    with pytest.raises(HostRefused, match="ended at"):
        host.admitted("c1", at(30))
    back = host.renewed("c1", certificate("c2", ends=60), at(31))
    assert back.admitted("c2", at(40)).serial == "c2"
    assert host.certificates[0].standing(at(30)) == "expired"


def test_nothing_of_a_revoked_host_counts_until_it_is_invited_anew() -> None:
    host = enrolled().renewed("c1", certificate("c2"), at(15)).revoked(at(16))
    for serial in ("c1", "c2"):
        with pytest.raises(HostRefused, match="revoked"):
            host.admitted(serial, at(16))
        with pytest.raises(HostRefused, match="revoked"):
            host.renewed(serial, certificate("c3"), at(16))
    again = host.invited(OTHER, at(20), at(17)).enrolled(OTHER, certificate("c4"), at(17))
    with pytest.raises(HostRefused, match="not known"):
        again.admitted("c1", at(17))
    assert again.admitted("c4", at(17)).serial == "c4"


def test_invite_of_a_revoked_host_is_gone() -> None:
    with pytest.raises(HostRefused, match="not known"):
        invited().revoked(at(1)).enrolled(INVITE, certificate("c1"), at(1))


def test_enrolled_host_is_neither_invited_again_nor_forgotten() -> None:
    with pytest.raises(InvalidRequest, match="enrolled already"):
        enrolled().invited(OTHER, at(9), at(3))
    with pytest.raises(InvalidRequest, match="is enrolled"):
        enrolled().forgotten(at(3))
    gone = enrolled().revoked(at(3)).forgotten(at(3))
    assert gone.status is HostStatus.FORGOTTEN
    with pytest.raises(InvalidRequest, match="was forgotten"):
        gone.invited(OTHER, at(9), at(3))


@pytest.mark.parametrize("text", ["", "-rf", "a b", "a" * 64, "é", "a\n", "../a", "a/b", ".a"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no name for a host"):
        host_name(text)
    with pytest.raises(InvalidRequest):
        enrolled().renamed(text, at(3))


def test_it_is_time_for_another_certificate_at_half_of_the_term() -> None:
    made = certificate("c1", ends=31)
    assert not made.is_half_over(at(15))
    assert made.is_half_over(at(16))
