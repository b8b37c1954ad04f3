"""How a state file stands to the versions that are kept of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.custody.standing import NOTHING, FoundState, Grounds, JudgedState, KnownVersion, Standing, judge_state

A, B, C, D = "a" * 64, "b" * 64, "c" * 64, "d" * 64
VERSIONS = (
    KnownVersion("tpm", 3, C),
    KnownVersion("tpm", 3, D, conflict=True),
    KnownVersion("tpm", 2, B),
    KnownVersion("tpm", 1, A),
)
MISSING = FoundState("tpm", "/tpm")


def found(sha256: str) -> FoundState:
    return FoundState("tpm", "/tpm", sha256, 8000)


@pytest.mark.parametrize(
    ("state", "judged"),
    [
        (found(C), JudgedState(Standing.CURRENT, 3)),
        (found(B), JudgedState(Standing.SUPERSEDED, 2)),
        (found(D), JudgedState(Standing.CONFLICT, 3)),
        (found("e" * 64), JudgedState(Standing.CHANGED)),
        (MISSING, JudgedState(Standing.MISSING)),
        (replace(MISSING, problem="Permission denied"), JudgedState(Standing.UNREAD)),
        (replace(MISSING, backup=B), JudgedState(Standing.SUPERSEDED, 2, from_backup=True)),
        (replace(MISSING, backup="e" * 64), JudgedState(Standing.SUPERSEDED, None, from_backup=True)),
        (replace(found(C), backup=B), JudgedState(Standing.CURRENT, 3)),
    ],
)
def test_standing(state: FoundState, judged: JudgedState) -> None:
    assert judge_state(state, Grounds(VERSIONS)) == judged


def test_version_that_nobody_vouches_for_says_nothing_about_a_file() -> None:
    """Else whoever can write to the repository has a file called older than it is, or one that is older the newest."""
    theirs = (
        KnownVersion("tpm", 5, A, vouched=False),
        KnownVersion("tpm", 4, "e" * 64, vouched=False),
        KnownVersion("tpm", 4, "f" * 64, conflict=True, vouched=False),
    )
    for sha256 in (A, B, C, D, "e" * 64, "f" * 64):
        assert judge_state(found(sha256), Grounds((*theirs, *VERSIONS))) == judge_state(
            found(sha256), Grounds(VERSIONS)
        )
    assert Grounds((*theirs, *VERSIONS)).newest("tpm") == VERSIONS[0]
    assert judge_state(found(A), Grounds(theirs)) == JudgedState(Standing.NOT_KEPT)


def test_state_that_the_vm_was_taken_back_to_is_current() -> None:
    assert judge_state(found(A), Grounds(VERSIONS, {"tpm": A})) == JudgedState(Standing.CURRENT, 1)
    assert judge_state(found(D), Grounds(VERSIONS, {"tpm": D})) == JudgedState(Standing.CURRENT, 3)
    assert judge_state(found(B), Grounds(VERSIONS, {"tpm": A})).standing is Standing.SUPERSEDED
    theirs = Grounds((KnownVersion("tpm", 4, "e" * 64, vouched=False), *VERSIONS), {"tpm": "e" * 64})
    assert judge_state(found("e" * 64), theirs) == JudgedState(Standing.CURRENT)


def test_state_that_is_to_be_made_anew_is_blank_until_it_is_there() -> None:
    meant = Grounds(VERSIONS, {"tpm": NOTHING})
    assert judge_state(MISSING, meant) == JudgedState(Standing.BLANK)
    assert judge_state(found(B), meant).standing is Standing.SUPERSEDED
    assert judge_state(MISSING, Grounds((), {"tpm": NOTHING})) == JudgedState(Standing.NOT_KEPT)


def test_state_without_versions_is_not_kept_yet_and_a_lost_one_is_missing_all_the_same() -> None:
    assert judge_state(found(A), Grounds()) == JudgedState(Standing.NOT_KEPT)
    assert judge_state(MISSING, Grounds()) == JudgedState(Standing.NOT_KEPT)
    assert judge_state(replace(MISSING, backup=A), Grounds()) == JudgedState(Standing.MISSING, None, from_backup=True)


@given(
    contents=st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=6),
    conflicts=st.sets(st.integers(0, 5)),
    sha256=st.sampled_from([A, B, C, D]),
)
def test_only_the_newest_accepted_content_is_current(contents: list[str], conflicts: set[int], sha256: str) -> None:
    versions = tuple(
        KnownVersion("tpm", len(contents) - place, content, conflict=place in conflicts)
        for place, content in enumerate(contents)
    )
    accepted = [version for version in versions if not version.conflict]
    judged = judge_state(found(sha256), Grounds(versions))
    assert (judged.standing is Standing.CURRENT) == bool(accepted and accepted[0].sha256 == sha256)
    assert (judged.standing is Standing.CHANGED) == (sha256 not in contents)
    if judged.generation is not None:
        assert sha256 in {version.sha256 for version in versions if version.generation == judged.generation}
