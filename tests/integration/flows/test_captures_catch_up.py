"""A capture is made of what the repository holds, also in a home that was put back as it was earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.flows.test_kept_versions import RULE, VM, Place, place_at
from vmkeep.catalog import Catalog, MemoryCatalog
from vmkeep.custody.states import NewVersion
from vmkeep.errors import VmNotFound
from vmkeep.flows.capture_states import capture_states
from vmkeep.host.tasks.states import CaptureStates, StatesCaptured
from vmkeep.host.tasks.survey import FindVm, Identify, LookAtStates
from vmkeep.host.vm.versions import store_states
from vmkeep.repository import Repository
from vmkeep.statefiles.capture import CapturedState


class HostWithFile:
    """A host of which the TPM state of one VM is there, and no gate; what a catalogue and repository are asked for
    too.
    """

    def __init__(self, place: Place) -> None:
        self.catalog: Catalog = place.catalog
        self.repository: Repository = place.repository
        self.keep_state_versions = RULE
        self.content = b""

    def ask(self, task: Any) -> Any:
        if isinstance(task, FindVm):
            return VM
        if isinstance(task, Identify):
            raise VmNotFound("where the file lies is not of interest here")
        if not isinstance(task, CaptureStates):
            return () if isinstance(task, LookAtStates) else None
        read = CapturedState("tpm", "tpm2/tpm2-00.permall", self.content * 1000, "tss", "tss", 0o600, "here")
        stored = store_states(self.repository, self.repository, [read], task.known, VM)
        new = [
            NewVersion(each.kind, each.id, each.generation, each.sha256, each.size_bytes, each.created)
            for each in stored.new
        ]
        return StatesCaptured("win11", ("tpm",), tuple(new), stored.older)

    def capture(self, content: bytes) -> int:
        """Return the generation of what a capture of a content adds, 0 for nothing."""
        self.content = content
        captured = capture_states(self, self, VM)  # type: ignore[arg-type]
        return max((state.generation for state in captured.new), default=0)


def test_home_that_was_put_back_goes_on_above_what_it_captured_before(tmp_path: Path) -> None:
    """Else a version of before becomes the newest once it is met, and what lies on the host an older one."""
    catalog = MemoryCatalog()
    host = HostWithFile(place_at(tmp_path / "repository", catalog))
    assert host.capture(b"1") == 1
    earlier = catalog._tables  # a transaction makes new ones
    assert [host.capture(content) for content in (b"2", b"3")] == [2, 3]
    catalog._tables = earlier
    assert host.capture(b"4") == 4
    newest = catalog.newest_state(VM, "tpm")
    assert newest is not None
    assert newest.generation == 4
    assert [state.conflict for state in catalog.states_of_vm(VM)] == [False] * 4


def test_new_home_goes_on_with_what_the_lost_one_captured(tmp_path: Path) -> None:
    first = HostWithFile(place_at(tmp_path / "repository", MemoryCatalog()))
    assert [first.capture(content) for content in (b"1", b"2")] == [1, 2]
    new = HostWithFile(place_at(tmp_path / "repository", MemoryCatalog()))
    assert new.capture(b"2") == 0
    assert new.capture(b"3") == 3
