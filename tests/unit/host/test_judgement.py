"""Which checkpoints and bitmaps of ours are still needed."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.planning.judgement import Moments

OURS = "vmkeep-0123abcd-"
NEW, OLD, GONE = (OURS + name for name in ("new", "old", "gone"))
BOTH = frozenset({"vda", "vdb"})
A, B = frozenset({"vda"}), frozenset({"vdb"})


def moments(
    checkpoints: Mapping[str, frozenset[str]],
    *,
    bitmaps: Mapping[str, frozenset[str]] | None = None,
    sound: Mapping[str, frozenset[str]] | None = None,
) -> Moments:
    """Points "new" and "old"; every listed bitmap is in its image and sound unless said otherwise."""
    held = {target: frozenset(name for name, disks in checkpoints.items() if target in disks) for target in BOTH}
    return Moments(
        prefix=OURS,
        points=("new", "old"),
        checkpoints=checkpoints,
        bitmaps=held if bitmaps is None else bitmaps,
        sound=checkpoints if sound is None else sound,
    )


def nothing_left(judged: Moments) -> bool:
    return not (judged.left_checkpoints() or judged.old_checkpoints() or judged.left_bitmaps() or judged.unsound())


def test_the_newest_checkpoint_is_needed_and_nothing_else() -> None:
    assert nothing_left(moments({NEW: BOTH}))
    assert moments({NEW: BOTH, OLD: BOTH}).old_checkpoints() == [OLD]


def test_an_older_checkpoint_is_needed_for_a_disk_that_the_newest_left_out() -> None:
    assert nothing_left(moments({NEW: A, OLD: BOTH}))


def test_an_older_sound_checkpoint_is_needed_where_the_newest_is_broken() -> None:
    judged = moments({NEW: BOTH, OLD: BOTH}, sound={NEW: A, OLD: BOTH})
    assert judged.bases() == {"vda": NEW, "vdb": OLD}
    assert nothing_left(judged)


def test_a_disk_without_any_sound_bitmap_is_told_and_its_newest_checkpoint_stays() -> None:
    judged = moments({NEW: BOTH, OLD: BOTH}, sound={NEW: A, OLD: A})
    assert judged.unsound() == {"vdb": NEW}
    assert judged.old_checkpoints() == [OLD]


def test_a_checkpoint_of_no_point_is_left_over_and_foreign_ones_are_not() -> None:
    judged = moments({NEW: BOTH, GONE: BOTH, "theirs": BOTH, "vmkeep-ffffffff-new": BOTH})
    assert judged.left_checkpoints() == [GONE]
    assert judged.old_checkpoints() == []
    assert judged.left_bitmaps() == {}


def test_a_bitmap_that_no_point_and_no_checkpoint_names_is_left_over() -> None:
    judged = moments({NEW: BOTH}, bitmaps={"vda": frozenset({NEW, GONE, "theirs"}), "vdb": frozenset({NEW, GONE})})
    assert judged.left_bitmaps() == {GONE: BOTH}


def test_a_bitmap_of_a_point_whose_checkpoint_is_lost_is_kept_until_a_newer_base_replaces_it() -> None:
    lost = moments({}, bitmaps={"vda": frozenset({OLD})})
    assert (lost.left_bitmaps(), lost.unlisted()) == ({}, {OLD: A})
    replaced = moments({NEW: A}, bitmaps={"vda": frozenset({OLD, NEW}), "vdb": frozenset({OLD})})
    assert (replaced.left_bitmaps(), replaced.unlisted()) == ({OLD: A}, {OLD: B})
    broken = moments({NEW: A}, bitmaps={"vda": frozenset({OLD, NEW})}, sound={})
    assert (broken.left_bitmaps(), broken.unlisted()) == ({}, {OLD: A})
