"""Which restores and snapshots have a record here, without what reads one: for most commands there is none."""

from __future__ import annotations

from pathlib import Path

from vmkeep.config import Settings
from vmkeep.errors import StoreError


def journals(settings: Settings) -> list[Path]:
    """Return the journals of all restores in place that are not at their end."""
    return sorted(settings.restores_dir.glob("*.json"))


def keepsakes(directory: Path) -> list[Path]:
    """Return the directories of all snapshots that were begun and are not at their end."""
    return [path for path in entries(directory) if path.is_dir()]


def entries(directory: Path) -> list[Path]:
    """Return what is in a directory, which need not be there. Raises StoreError when it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{directory} cannot be read: {error.strerror}", path=str(directory)) from error


def refuse_while_pending(settings: Settings, vm: str, vm_uuid: str) -> None:
    """Raise RestorePending while the VM's disks are not whole, or its definition is not its own."""
    if journals(settings):
        from vmkeep.host.records import restore

        restore.refuse_while_pending(settings, vm, vm_uuid)


def refuse_while_needed(settings: Settings, point_id: str) -> None:
    """Raise VmBusy while a restore in place that is not at its end writes the point, or may have to go back to it."""
    if journals(settings):
        from vmkeep.host.records import restore

        restore.refuse_while_needed(settings, point_id)
