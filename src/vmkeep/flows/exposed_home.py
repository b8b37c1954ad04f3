"""A home that others have in hand, for `vmkeep doctor`: what is wrong is told, and nothing that is there is used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vmkeep.errors import VmkeepError
from vmkeep.flows.check_up import CheckedUp, Mended
from vmkeep.host.findings import Finding, FindingCode, MakePrivate
from vmkeep.host.leftovers import make_private
from vmkeep.ownership import Exposure, exposures


def look_at_exposed(found: Iterable[Exposure]) -> CheckedUp:
    """Return a finding for each thing of the home that is not this user's alone."""
    return CheckedUp(tuple(_finding(exposure) for exposure in found))


def mend_exposed(home: Path, found: Iterable[Exposure]) -> CheckedUp:
    """Take from others what they could only read, and return that with what is left.

    What they could change is left for a person, who must look whether they have.
    """
    mended = []
    for finding in map(_finding, found):
        if not isinstance(finding.mend, MakePrivate):
            continue
        try:
            mended.append(Mended(finding, make_private(finding.mend), done=True))
        except VmkeepError as error:
            mended.append(Mended(finding, error.message, done=False))
    return CheckedUp(look_at_exposed(exposures(home)).findings, mended=tuple(mended))


def _finding(exposure: Exposure) -> Finding:
    own = os.geteuid() in (0, Path(exposure.path).lstat().st_uid)
    return Finding(
        FindingCode.KEY_NOT_PRIVATE if exposure.only_read else FindingCode.HOME_EXPOSED,
        exposure.message,
        remedy=exposure.remedy,
        path=exposure.path,
        mend=MakePrivate(exposure.path) if exposure.only_read and own else None,
    )
