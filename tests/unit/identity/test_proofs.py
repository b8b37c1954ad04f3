"""Coming back by the old key: what is proved, and what does not count."""

from __future__ import annotations

import pytest

from vmkeep.errors import HostRefused
from vmkeep.identity.certificates import draw_key
from vmkeep.identity.proofs import check_nonce, check_return, make_nonce, sign_return

NOW, SOON, LATER = (f"2027-01-01T00:0{minute}:00.000000+00:00" for minute in (0, 4, 6))
SECRET = b"what servers share"


def test_nonce_counts_for_five_minutes_and_at_the_servers_of_its_fleet() -> None:
    nonce = make_nonce(SECRET, NOW)
    check_nonce(SECRET, nonce, SOON)
    with pytest.raises(HostRefused, match="too old"):
        check_nonce(SECRET, nonce, LATER)
    with pytest.raises(HostRefused, match="not one of this server"):
        check_nonce(b"another fleet", nonce, NOW)


@pytest.mark.parametrize("nonce", ["", "zz" * 56, "00" * 56, "0" * 113])
def test_made_up_nonce_is_refused(nonce: str) -> None:
    with pytest.raises(HostRefused):
        check_nonce(SECRET, nonce, NOW)


def test_proof_holds_for_what_was_signed_alone() -> None:
    key = draw_key()
    signed = ("1" * 32, "c1", make_nonce(SECRET, NOW), b"request")
    signature = sign_return(key, *signed)
    check_return(key.public_key(), *signed, signature)
    others = [
        ("2" * 32, *signed[1:]),
        (signed[0], "c2", *signed[2:]),
        (*signed[:2], "n", b"request"),
        (*signed[:3], b""),
    ]
    for other in others:
        with pytest.raises(HostRefused, match="does not hold"):
            check_return(key.public_key(), *other, signature)
    for wrong in (b"", b"\0" * 70, signature[:-1]):
        with pytest.raises(HostRefused, match="does not hold"):
            check_return(key.public_key(), *signed, wrong)
    with pytest.raises(HostRefused, match="does not hold"):
        check_return(draw_key().public_key(), *signed, signature)
