"""Whatever a VM holds, what is called left over is never a base, never somebody else's, and never needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning.judgement import Moments

OURS = "vmkeep-0123abcd-"
TARGETS = st.sampled_from(("vda", "vdb", "vdc"))
IDS = st.sampled_from(("p1", "p2", "p3", "p4", "p5"))
NAMES = st.one_of(IDS.map(lambda name: OURS + name), st.sampled_from(("theirs", "vmkeep-ffffffff-p1")))


@st.composite
def situations(draw: st.DrawFn) -> Moments:
    checkpoints = draw(st.dictionaries(NAMES, st.frozensets(TARGETS)))
    sound = {name: draw(st.frozensets(TARGETS)) & targets for name, targets in checkpoints.items()}
    return Moments(
        prefix=OURS,
        points=tuple(draw(st.lists(IDS, unique=True))),
        checkpoints=checkpoints,
        bitmaps=draw(st.dictionaries(TARGETS, st.frozensets(NAMES))),
        sound=sound,
    )


@given(situations())
def test_no_base_and_nothing_of_others_is_left_over(judged: Moments) -> None:
    removed = {*judged.left_checkpoints(), *judged.old_checkpoints(), *judged.left_bitmaps()}
    assert all(name.startswith(OURS) for name in removed)
    assert removed.isdisjoint(judged.bases().values())
    assert judged.left_bitmaps().keys().isdisjoint(judged.checkpoints)


@given(situations())
def test_removing_what_is_left_over_takes_no_sound_base_from_any_disk(judged: Moments) -> None:
    removed = {*judged.left_checkpoints(), *judged.old_checkpoints()}
    after = Moments(
        prefix=judged.prefix,
        points=judged.points,
        checkpoints={name: targets for name, targets in judged.checkpoints.items() if name not in removed},
        bitmaps=judged.bitmaps,
        sound={name: targets for name, targets in judged.sound.items() if name not in removed},
    )
    assert after.bases() == judged.bases()
    assert after.unsound() == judged.unsound()
    assert (after.left_checkpoints(), after.old_checkpoints()) == ([], [])


@given(situations())
def test_a_bitmap_that_a_lost_checkpoint_could_use_again_stays_where_there_is_no_sound_base(judged: Moments) -> None:
    for name, targets in judged.left_bitmaps().items():
        if name.removeprefix(OURS) in judged.points:
            for target in targets:
                assert target in judged.sound.get(judged.bases()[target], frozenset())
