"""Repair the repository. No flow: what was found is told piece by piece, and a repair that died is begun anew.

The operation stands in the catalogue, as that of a prune does.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from vmkeep.flows.services import Services
from vmkeep.host.tasks.survey import Progress

if TYPE_CHECKING:
    from vmkeep.repository.repair import RepairReport

_PROGRESS_SECONDS: Final = 1.0
_STAGES: Final = {"look": "looking what is lost", "search": "looking for it elsewhere"}


def repair_purpose(operation: str) -> str:
    """Return what the intent of a repair says that it writes for."""
    return f"repair {operation}"


def repair_repository(services: Services, operation: str, *, dry_run: bool) -> RepairReport:
    """Repair, tell where it stands, and heed what asks it to stop."""
    recorded = time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal recorded
        services.stop()
        services.watch(Progress(f"{_STAGES[stage]} ({done} of {total})"))
        if time.monotonic() - recorded >= _PROGRESS_SECONDS:
            recorded = time.monotonic()
            services.catalog.report_progress(operation, _STAGES[stage], 0, 0)

    return services.with_repository(
        lambda repository: repository.repair(
            dry_run=dry_run, host=socket.gethostname(), purpose=repair_purpose(operation), tell=tell
        )
    )
