"""The journal of a restore comes back as it was written, belongs to nobody else, and is never taken for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.config import Settings, load_settings
from vmkeep.errors import RestorePending
from vmkeep.host.records.restore import (
    JournalDisk,
    JournalOverlay,
    RestoreJournal,
    RestoreStage,
    SnapshotRevert,
    journal_path,
    pending_restore,
    refuse_while_pending,
)
from vmkeep.host.tasks.restores import DeliveredItem

_JOURNAL = RestoreJournal(
    operation="ab" * 16,
    uri="qemu:///system",
    vm="Büro",
    vm_uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
    point="01" * 16,
    safety="02" * 16,
    disks=(
        JournalDisk("vda", "/a,b.qcow2", "qcow2", made=False, runs=((0, 3), (9, 1)), exact=True, broken=("theirs",)),
        JournalDisk("vdb", "/b.raw", "raw", made=True),
    ),
    items=(DeliveredItem("tpm", "tpm", "/s/.t.partial", "/s/t", file="tpm2/tpm2-00.permall"),),
    parked_path="/r/restore",
    parked_target="vda",
    parked_element="<disk/>",
    whole=True,
)


def _settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, environ={})


@pytest.mark.parametrize("stage", list(RestoreStage))
def test_journal_comes_back_as_it_was_written(tmp_path: Path, stage: RestoreStage) -> None:
    directory = _settings(tmp_path).restores_dir
    journal = replace(_JOURNAL, stage=stage)
    _JOURNAL.save(directory)
    journal.save(directory)
    path = journal_path(directory, journal.operation)
    assert RestoreJournal.load(path) == journal
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert list(directory.iterdir()) == [path]
    journal.remove(directory)
    journal.remove(directory)
    assert list(directory.iterdir()) == []


def test_journal_of_a_revert_comes_back_as_it_was_written_and_names_its_snapshot(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    overlay = JournalOverlay(
        "vda",
        "/n.qcow2",
        "/a.qcow2",
        "qcow2",
        "/b.qcow2",
        64055,
        993,
        0o600,
        (("p1", 65536), ("p2", 4096)),
        discard=True,
    )
    revert = SnapshotRevert(
        snapshot="vor dem Update",
        overlays=(overlay,),
        memory="/m",
        internal=False,
        with_memory=True,
        run="paused",
        reset_nvram=False,
        drop_checkpoints=True,
        former_current="",
        aim=("", True),
        origin=("03" * 16, False),
        states=(("tpm", "04" * 16),),
        checkpoints=("<domaincheckpoint/>",),
    )
    journal = replace(_JOURNAL, revert=revert)
    journal.save(settings.restores_dir)
    assert RestoreJournal.load(journal_path(settings.restores_dir, journal.operation)) == journal
    with pytest.raises(RestorePending, match="to snapshot vor dem Update, is not finished"):
        refuse_while_pending(settings, "Büro", journal.vm_uuid)


def test_only_the_vm_whose_restore_is_not_finished_is_refused(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert pending_restore(settings, _JOURNAL.vm_uuid) is None
    _JOURNAL.save(settings.restores_dir)
    assert pending_restore(settings, _JOURNAL.vm_uuid) == _JOURNAL
    assert pending_restore(settings, "another") is None
    refuse_while_pending(settings, "other", "another")
    with pytest.raises(RestorePending) as raised:
        refuse_while_pending(settings, "Büro", _JOURNAL.vm_uuid)
    assert raised.value.path == str(journal_path(settings.restores_dir, _JOURNAL.operation))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"stage": "parked"}', '{"stage": "unheard-of"}', "\x00"])
def test_journal_that_cannot_be_read_refuses_every_vm(tmp_path: Path, content: str) -> None:
    settings = _settings(tmp_path)
    settings.restores_dir.mkdir()
    (settings.restores_dir / "cd.json").write_text(content)
    with pytest.raises(RestorePending) as raised:
        pending_restore(settings, _JOURNAL.vm_uuid)
    assert "cd.json" in raised.value.message
