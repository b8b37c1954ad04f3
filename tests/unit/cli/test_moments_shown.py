"""What commands say of checkpoints and snapshots: objects, tables, and which options exclude each other."""

from __future__ import annotations

from typing import Any

import pytest

from vmkeep.cli.checkpoint import read_diskspec
from vmkeep.cli.moment_listing import Listing
from vmkeep.cli.moment_output import moment_facts, moment_object, moment_table
from vmkeep.cli.tables import Facts, Table
from vmkeep.errors import InvalidRequest
from vmkeep.host.tasks.moments import VmMoments
from vmkeep.moments import Checkpoint, CheckpointDisk, MomentKind, Snapshot, SnapshotDisk, SnapshotMemory

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
CHECKPOINTS = VmMoments(
    vm="win11",
    uuid=UUID,
    kind=MomentKind.CHECKPOINT,
    running=True,
    moments=(
        Checkpoint(
            name="a",
            creation_time=1_525_889_631,
            description="first",
            disks=(CheckpointDisk("vda", "bitmap", "a"), CheckpointDisk("vdb", "no")),  # type: ignore[arg-type]
        ),
        Checkpoint(name="b", parent_name="a", creation_time=1 << 62),
        Checkpoint(name="c", parent_name="lost"),
    ),
)
SNAPSHOTS = VmMoments(
    vm="win11",
    uuid=UUID,
    kind=MomentKind.SNAPSHOT,
    running=False,
    current="s",
    moments=(
        Snapshot(
            name="s",
            creation_time=1_525_889_631,
            state="running",  # type: ignore[arg-type]
            memory=SnapshotMemory("external", "/m"),  # type: ignore[arg-type]
            disks=(SnapshotDisk("vda", "external", "/o", format="qcow2"),),  # type: ignore[arg-type]
        ),
    ),
)


def objects(found: VmMoments, health: dict[str, str] | None = None) -> list[dict[str, Any]]:
    tree = found.tree()
    return [moment_object(moment, found, tree, health or {}) for moment in found.moments]


def text(shown: Table | Facts) -> list[str]:
    return [" ".join(line.split()) for line in shown.lines(120)]


def test_object_of_a_checkpoint_has_its_place_and_the_disks_with_bitmaps() -> None:
    assert objects(CHECKPOINTS)[0] == {
        "name": "a",
        "vm": "win11",
        "vm_uuid": UUID,
        "description": "first",
        "created": "2018-05-09T18:13:51Z",
        "parent": None,
        "children": ["b"],
        "disks": [{"target": "vda", "bitmap": "a"}],
    }


def test_a_time_that_no_calendar_has_and_a_parent_that_is_lost_are_null() -> None:
    _, far, orphan = objects(CHECKPOINTS)
    assert (far["created"], far["parent"]) == (None, "a")
    assert (orphan["created"], orphan["parent"]) == (None, None)


def test_object_of_a_snapshot_says_where_it_is_kept() -> None:
    (shown,) = objects(SNAPSHOTS)
    assert shown["current"] is True
    assert (shown["state"], shown["location"]) == ("running", "external")
    assert shown["memory"] == {"location": "external", "file": "/m"}
    assert shown["disks"] == [{"target": "vda", "location": "external", "source": "/o", "format": "qcow2"}]


def test_tables_have_the_columns_that_are_asked_for() -> None:
    listed = objects(CHECKPOINTS, {"a": "sound"})
    assert text(moment_table(listed, MomentKind.CHECKPOINT, parents=False))[0] == "checkpoint created disks"
    with_all = text(moment_table(listed, MomentKind.CHECKPOINT, parents=True, health=True))
    assert with_all[0] == "checkpoint created disks parent health"
    assert with_all[1].endswith("vda sound")
    assert with_all[2] == "b - none a"
    snapshots = text(moment_table(objects(SNAPSHOTS), MomentKind.SNAPSHOT, parents=False))
    assert snapshots[0] == "snapshot created state location"
    assert snapshots[1].endswith("running external")


def test_facts_say_all_that_is_known() -> None:
    (shown,) = objects(SNAPSHOTS, {"s": "overlay missing"})
    facts = text(moment_facts({**shown, "descendants": 0}, MomentKind.SNAPSHOT))
    assert {"snapshot s", "memory /m", "disks vda /o", "current yes", "health overlay missing"} <= set(facts)


@pytest.mark.parametrize(
    "options",
    [
        {"tree": True, "name": True},
        {"parent": True, "roots": True},
        {"parent": True, "tree": True},
        {"roots": True, "tree": True},
        {"roots": True, "start": "a"},
        {"roots": True, "current": True},
        {"start": "a", "current": True},
        {"tree": True, "filters": {"no_leaves": True}},
    ],
)
def test_options_that_virsh_refuses_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="mutually exclusive"):
        Listing(**options).check()


def test_descendants_need_a_start() -> None:
    with pytest.raises(InvalidRequest, match="--descendants requires --from"):
        Listing(descendants=True).check()
    Listing(descendants=True, start="a").check()
    Listing(descendants=True, current=True, tree=True).check()


@pytest.mark.parametrize(
    ("spec", "disk"),
    [
        ("vda", CheckpointDisk("vda")),
        ("vda,checkpoint=no", CheckpointDisk("vda", "no")),  # type: ignore[arg-type]
        ("vda,bitmap=b,checkpoint=bitmap", CheckpointDisk("vda", "bitmap", "b")),  # type: ignore[arg-type]
        ("/a,,b.qcow2,bitmap=b", CheckpointDisk("/a,b.qcow2", bitmap="b")),
    ],
)
def test_a_diskspec_is_read_as_virsh_reads_it(spec: str, disk: CheckpointDisk) -> None:
    assert read_diskspec(spec) == disk


@pytest.mark.parametrize(
    "spec",
    [
        "",
        ",checkpoint=no",
        "vda,checkpoint",
        "vda,checkpoint=",
        "vda,checkpoint=yes",
        "vda,size=1",
        "vda,bitmap=a,bitmap=b",
    ],
)
def test_a_diskspec_that_cannot_be_meant_is_refused(spec: str) -> None:
    with pytest.raises(InvalidRequest, match="--diskspec"):
        read_diskspec(spec)
