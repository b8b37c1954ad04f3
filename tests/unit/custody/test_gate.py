"""What the gate is told, and that it says no exactly where the one judgement of state calls a start dangerous."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.custody.gate import GatedState, gated_state
from vmkeep.custody.standing import NOTHING, FoundState, Grounds, KnownVersion, Standing, judge_state
from vmkeep.host.gate import hook

A, B, C, D = "a" * 64, "b" * 64, "c" * 64, "d" * 64
DANGEROUS = (Standing.SUPERSEDED, Standing.CONFLICT, Standing.MISSING)


def test_of_what_is_not_kept_nothing_is_told() -> None:
    assert gated_state("tpm", Grounds()) is None


def test_newest_and_what_was_put_in_place_may_start_and_all_others_not() -> None:
    versions = (
        KnownVersion("tpm", 3, C),
        KnownVersion("tpm", 3, D, conflict=True),
        KnownVersion("tpm", 2, B),
        KnownVersion("tpm", 1, A),
    )
    assert gated_state("tpm", Grounds(versions)) == GatedState("tpm", (C,), (D, B, A))
    assert gated_state("tpm", Grounds(versions, {"tpm": A})) == GatedState("tpm", (C, A), (D, B))
    assert gated_state("tpm", Grounds(versions, {"tpm": NOTHING})) == GatedState("tpm", (C, NOTHING), (D, B, A))


@given(
    contents=st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=6),
    conflicts=st.sets(st.integers(0, 5)),
    doubtful=st.sets(st.integers(0, 5), max_size=3),
    placed=st.none() | st.sampled_from([NOTHING, A, B, D]),
    lies_there=st.none() | st.sampled_from([A, B, C, D]),
    backup=st.none() | st.sampled_from([A, D]),
    tracked=st.booleans(),
)
def test_gate_and_judgement_are_of_one_mind(
    contents: list[str],
    conflicts: set[int],
    doubtful: set[int],
    placed: str | None,
    lies_there: str | None,
    backup: str | None,
    tracked: bool,
) -> None:
    versions = tuple(
        KnownVersion("tpm", len(contents) - place, content, place in conflicts, place not in doubtful)
        for place, content in enumerate(contents)
    )
    grounds = Grounds(versions, {} if placed is None else {"tpm": placed}, tracked)
    gated = gated_state("tpm", grounds)
    backup = backup if lies_there is None else None
    judged = judge_state(FoundState("tpm", "/tpm", lies_there, backup=backup), grounds)
    if gated is None:
        unknown = Standing.CURRENT if lies_there is not None and lies_there == placed else Standing.NOT_KEPT
        assert judged.standing is (Standing.MISSING if judged.from_backup else unknown)
        return
    asked = SimpleNamespace(files={"tpm": "/tpm"})
    known = {"kinds": {"tpm": {"allowed": list(gated.allowed), "superseded": list(gated.superseded)}}}
    files = {"/tpm": lies_there, "/tpm.bak": backup}
    with mock.patch.object(hook, "hash_of", lambda path, _kind: files[path]):
        objections = hook.objections(asked, known)  # type: ignore[arg-type]
    assert bool(objections) == (judged.standing in DANGEROUS)
