"""Which checkpoints and bitmaps of ours a check-up calls left over, and what it would do about them."""

from __future__ import annotations

from collections.abc import Mapping

from tests.unit.host.test_checkpoint_health import BOTH, GONE, NEW, OLD, OURS, facts, layer
from vmkeep.host.checkpoints.health import Surveyed
from vmkeep.host.checkup.checkpoints import checkpoint_findings
from vmkeep.host.tasks.checkup import Finding, FindingCode, MendCheckpoint
from vmkeep.planning.checkpoint_health import CheckpointFacts, judge_checkpoints
from vmkeep.planning.checkpoint_repair import Forget, RemoveBitmap, plan_repair


def findings(seen: CheckpointFacts) -> list[Finding]:
    judged = judge_checkpoints(seen)
    return list(checkpoint_findings("guest", "uuid", Surveyed(seen, judged, plan_repair(seen, judged))))


def told(seen: CheckpointFacts) -> Mapping[FindingCode, str]:
    """Return what each finding is about: the name of ours in its message."""
    found = {}
    for finding in findings(seen):
        (name,) = [word.strip(",;") for word in finding.message.split() if word.startswith(OURS)]
        found[finding.code] = name
    return found


def test_newest_checkpoint_is_needed_and_nothing_else() -> None:
    both = {"vda": NEW, "vdb": NEW}
    assert told(facts({NEW: BOTH}, layer("vda", NEW), layer("vdb", NEW), bases=both)) == {}
    older = facts({NEW: BOTH, OLD: BOTH}, layer("vda", NEW, OLD), layer("vdb", NEW, OLD), bases=both)
    (found,) = findings(older)
    assert (found.code, found.vm) == (FindingCode.OLD_CHECKPOINT, "guest")
    steps = (Forget(OLD), RemoveBitmap(OLD, "vda", "/vda"), RemoveBitmap(OLD, "vdb", "/vdb"))
    assert found.mend == MendCheckpoint("uuid", steps)


def test_older_checkpoint_that_the_next_point_is_read_against_is_needed() -> None:
    """Whatever the newer one is like: it may be sound in an image that was another one when its point was made."""
    seen = facts({NEW: BOTH, OLD: BOTH}, layer("vda", NEW, OLD), layer("vdb", NEW, OLD), bases={"vda": OLD, "vdb": NEW})
    assert told(seen) == {}


def test_disk_without_any_base_is_told_and_its_newest_checkpoint_stays() -> None:
    seen = facts({NEW: BOTH, OLD: BOTH}, layer("vda", NEW), layer("vdb"), bases={"vda": NEW})
    assert told(seen) == {FindingCode.OLD_CHECKPOINT: OLD, FindingCode.BASE_UNSOUND: NEW}
    killed = facts({NEW: BOTH}, layer("vda", NEW, in_use=True), layer("vdb", NEW, in_use=True))
    assert [finding.code for finding in findings(killed)] == [FindingCode.BASE_UNSOUND] * 2
    assert not any(finding.fixable for finding in findings(killed))


def test_checkpoint_of_no_point_is_left_over_and_foreign_ones_are_not() -> None:
    names = (NEW, GONE, "theirs", "vmkeep-ffffffff-new")
    seen = facts(dict.fromkeys(names, BOTH), layer("vda", *names), layer("vdb", *names), bases={"vda": NEW, "vdb": NEW})
    assert told(seen) == {FindingCode.LEFT_CHECKPOINT: GONE}


def test_checkpoint_whose_point_another_installation_has_is_no_leftover() -> None:
    for listed in ({GONE: BOTH}, {}):
        seen = facts(listed, layer("vda", GONE), layer("vdb", GONE), others=frozenset({GONE}))
        assert told(seen) == {}
    assert told(facts({GONE: BOTH}, layer("vda", GONE), layer("vdb", GONE), unsure=True)) == {}


def test_bitmap_that_no_point_and_no_checkpoint_names_is_left_over() -> None:
    seen = facts(
        {NEW: BOTH},
        layer("vda", NEW, GONE, "theirs"),
        layer("vdb", NEW, GONE),
        bases={"vda": NEW, "vdb": NEW},
    )
    (found,) = findings(seen)
    assert found.code is FindingCode.LEFT_BITMAP
    assert "disk vda, vdb" in found.message
    steps = (RemoveBitmap(GONE, "vda", "/vda"), RemoveBitmap(GONE, "vdb", "/vdb"))
    assert found.mend == MendCheckpoint("uuid", steps)


def test_bitmap_in_an_image_of_another_vm_is_told_and_left() -> None:
    seen = facts({}, layer("vda", GONE), layer("vdb"), shared={"/vda": "second"})
    (found,) = findings(seen)
    assert (found.code, found.fixable) == (FindingCode.LEFT_BITMAP, False)
    assert "another VM uses the same image" in found.message


def test_bitmap_of_a_point_whose_checkpoint_is_lost_is_kept_until_a_newer_base_replaces_it() -> None:
    assert told(facts({}, layer("vda", OLD), layer("vdb"), bases={"vda": OLD})) == {
        FindingCode.CHECKPOINT_UNLISTED: OLD
    }
    partly = facts({NEW: ("vda",)}, layer("vda", OLD, NEW), layer("vdb", OLD), bases={"vda": NEW, "vdb": OLD})
    assert told(partly) == {FindingCode.CHECKPOINT_UNLISTED: OLD}
    replaced = facts({NEW: ("vda",)}, layer("vda", OLD, NEW), layer("vdb"), bases={"vda": NEW})
    assert told(replaced) == {FindingCode.LEFT_BITMAP: OLD}
