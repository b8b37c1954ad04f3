"""What the shell offers for a VM or a point: what the catalogue knows, and nothing when it cannot be read."""

from __future__ import annotations

from vmkeep.errors import VmkeepError


def complete_vm(incomplete: str) -> list[str]:
    """Return the names of known VMs that begin so."""
    return sorted({name for name, _ in _known() if name.startswith(incomplete)})


def complete_point(incomplete: str) -> list[tuple[str, str]]:
    """Return the ids of points that begin so, each with its VM, and VM@latest."""
    known = _known()
    latest = {f"{name}@latest" for name, _ in known}
    offered = [(point_id, name) for name, point_id in known] + [(name, "the newest point") for name in sorted(latest)]
    return [(text, described) for text, described in offered if text.startswith(incomplete)]


def _known() -> list[tuple[str, str]]:
    from vmkeep.catalog import Catalog
    from vmkeep.config import load_settings

    try:
        path = load_settings().catalog_path
        if not path.exists():
            return []
        with Catalog.open(path) as catalog:
            return [(summary["vm"], summary["id"]) for summary in catalog.summaries()]
    except VmkeepError:
        return []
