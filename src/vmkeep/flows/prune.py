"""Prune the repository. No flow: whatever a prune that died has left, the next one takes away.

The operation stands in the catalogue, so that others see that it runs, and how far, and can ask it to stop.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.filesystem import make_directory
from vmkeep.flows.repair import repair_purpose
from vmkeep.flows.services import Services
from vmkeep.host.tasks.survey import Progress
from vmkeep.repository import Repository

if TYPE_CHECKING:
    from vmkeep.repository.prune import PruneOptions, PruneReport, Stage

_PROGRESS_SECONDS: Final = 1.0
_STAGES: Final = {
    "walk": "finding what is needed",
    "wait": "waiting for those who write",
    "copy": "copying what is needed",
    "delete": "deleting",
    "lock": "locking anew",
}


def forget_dead(repository: Repository, operation: str) -> None:
    """Let nobody wait for the writer that a prune, or a repair, was whose process is dead."""
    for writer in repository.writers():
        if writer.purpose in (_purpose(operation), repair_purpose(operation)):
            repository.forget_writer(writer.id)


def _purpose(operation: str) -> str:
    """Return what the intent of a prune says that it writes for."""
    return f"prune {operation}"


def prune_repository(services: Services, operation: str, options: PruneOptions, cache: Path) -> PruneReport:
    """Prune, tell where it stands, and heed what asks it to stop. ``cache`` takes temporary files."""
    recorded = time.monotonic()

    def tell(stage: Stage) -> None:
        nonlocal recorded
        services.stop()
        # What is counted is nodes and packs, and bytes of what is copied.
        sized = stage.name == "copy"
        progress = Progress(
            _STAGES[stage.name], done_bytes=stage.done if sized else 0, total_bytes=stage.total if sized else 0
        )
        services.watch(progress)
        if stage.note:
            services.watch(Progress(progress.stage, note=stage.note))
        if time.monotonic() - recorded >= _PROGRESS_SECONDS:
            recorded = time.monotonic()
            services.catalog.report_progress(operation, progress.stage, progress.done_bytes, progress.total_bytes)

    make_directory(cache)
    host = socket.gethostname()
    return services.with_repository(
        lambda repository: repository.prune(options, host=host, directory=cache, tell=tell, purpose=_purpose(operation))
    )
