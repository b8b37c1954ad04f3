"""A backup job that libvirtd keeps for ever is told from one that is just beginning."""

from __future__ import annotations

from typing import Any, cast

import libvirt
import pytest

from vmkeep.hypervisor import domain
from vmkeep.hypervisor.domain import Domain


class Handle:
    """A VM whose job has no data at the first looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def name(self) -> str:
        return "guest"

    def UUIDString(self) -> str:  # noqa: N802  libvirt's name
        return "u"

    def jobInfo(self) -> list[int]:  # noqa: N802  libvirt's name
        self.looks -= 1
        if self.looks >= 0:
            words = "internal error: backup job data missing"
            error: Any = libvirt.libvirtError(words)
            error.args = (words,)  # it takes the last error of this thread's, if a test before this one had one
            error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 10, words, 2, "", "", "")
            raise error
        return [libvirt.VIR_DOMAIN_JOB_NONE + 2]


@pytest.mark.parametrize(("looks", "stuck"), [(0, False), (2, False), (1000, True)])
def test_job_without_data_is_stuck_when_it_stays_so(
    monkeypatch: pytest.MonkeyPatch, looks: int, *, stuck: bool
) -> None:
    monkeypatch.setattr(domain, "_BEGINNING_SECONDS", 0.2)
    seen = Domain(cast("Any", Handle(looks)))
    assert seen.has_stuck_job() is stuck
    if stuck:
        assert seen.has_job()
