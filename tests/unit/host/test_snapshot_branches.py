"""Which images the deletion of a snapshot harms: its overlay is written into the image below, and removed."""

from __future__ import annotations

import pytest

from vmkeep.planning.branches import ImageUser, is_harmed

# a <- b <- c is the chain that snapshots one (overlay b) and two (overlay c) made; n is a branch over a, m one over b.
_A, _B, _C, _N, _M = ("a",), ("b", "a"), ("c", "b", "a"), ("n", "a"), ("m", "b", "a")


@pytest.mark.parametrize(
    ("present", "user", "harmed"),
    [
        (_C, _B, False),  # the state of snapshot two: libvirt says that it is in a from then on
        (_C, _C, False),
        (_C, _A, True),  # the state of another snapshot of the same image
        (_C, _N, True),
        (_M, _N, True),
        (_M, _C, True),  # what the VM was on before it was reverted to two
        (_N, _B, True),  # snapshot two stands on the overlay, and the VM on another branch
        (_N, _C, True),
        (_N, _N, False),
        (_N, ("other",), False),
        (_C, ("other",), False),
    ],
)
def test_deletion_of_the_first_snapshot(present: tuple[str, ...], user: tuple[str, ...], harmed: bool) -> None:
    assert is_harmed(ImageUser("it", user), "b", "a", present) is harmed


@pytest.mark.parametrize(("user", "harmed"), [(_A, False), (_B, True), (_C, False), (_N, True)])
def test_snapshot_in_an_image_bears_a_merge_into_it_and_goes_with_it(user: tuple[str, ...], harmed: bool) -> None:
    assert is_harmed(ImageUser("it", user, inside=True), "b", "a", _C) is harmed
