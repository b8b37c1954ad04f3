"""A home that others have in hand, for `vmkeep doctor`: what is wrong is told, and nothing that is there is used."""

from __future__ import annotations

from collections.abc import Iterable

from vmkeep.flows.check_up import CheckedUp
from vmkeep.host.tasks.checkup import Finding, FindingCode
from vmkeep.ownership import Exposure


def look_at_exposed(found: Iterable[Exposure]) -> CheckedUp:
    """Return a finding for each thing of the home that is not this user's alone. None is mended but by a person."""
    return CheckedUp(
        tuple(
            Finding(
                FindingCode.KEY_NOT_PRIVATE if exposure.only_read else FindingCode.HOME_EXPOSED,
                exposure.message,
                remedy=exposure.remedy,
                path=exposure.path,
            )
            for exposure in found
        )
    )
