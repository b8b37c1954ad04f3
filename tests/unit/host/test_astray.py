"""What QEMU writes to is told to be astray only when two looks agree; a look that failed is not the absence of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmkeep.definition import Definition
from vmkeep.errors import HypervisorError, VmkeepError, VmNotFound
from vmkeep.host.vm import astray
from vmkeep.host.vm.astray import AstrayDisk, astray_disks
from vmkeep.hypervisor import RunState

_ASTRAY = AstrayDisk("vda", "/images/base", "qcow2", "/images/overlay")


def _domain(error: VmkeepError, run: RunState) -> Any:
    def fail() -> None:
        raise error

    return SimpleNamespace(block_jobs=fail, state=lambda: SimpleNamespace(run=run))


@pytest.fixture(autouse=True)
def _first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astray, "_look", lambda *_: (_ASTRAY,))


def _look(domain: Any) -> tuple[AstrayDisk, ...]:
    definition: Definition = SimpleNamespace()  # type: ignore[assignment] # nothing of it is asked
    return astray_disks(domain, definition, SimpleNamespace())  # type: ignore[arg-type]


def test_libvirt_that_does_not_answer_for_a_running_vm_is_no_reason_to_go_on() -> None:
    with pytest.raises(HypervisorError):
        _look(_domain(HypervisorError("libvirt could not tell"), RunState.RUNNING))


@pytest.mark.parametrize("error", [VmNotFound("gone"), HypervisorError("domain is not running")])
def test_vm_that_ended_meanwhile_is_not_astray(error: VmkeepError) -> None:
    assert _look(_domain(error, RunState.OFF)) == ()
