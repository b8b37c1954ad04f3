"""The guardian does not end while libvirt is away: nobody else lets the guest go on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vmkeep.errors import HypervisorError, HypervisorUnavailable
from vmkeep.host.guard import guardian


class Clients:
    def any_open(self) -> bool:
        return False


def test_guardian_goes_on_until_libvirt_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [HypervisorUnavailable("away"), HypervisorUnavailable("away"), None]

    def rescue(_record: Any, _hypervisor: Any, *, owner: Any) -> None:  # noqa: ARG001
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(guardian, "rescue", rescue)
    guardian._rescue(cast("Any", None), cast("Any", None), cast("Any", Clients()))
    assert answers == []


def test_guardian_ends_at_what_waiting_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def rescue(_record: Any, _hypervisor: Any, *, owner: Any) -> None:  # noqa: ARG001
        raise HypervisorError("refused")

    monkeypatch.setattr(guardian, "rescue", rescue)
    with pytest.raises(HypervisorError):
        guardian._rescue(cast("Any", None), cast("Any", None), cast("Any", Clients()))
