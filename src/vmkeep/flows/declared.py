"""The flows by their stable names, each imported when it is run, resumed or settled.

A command runs one flow, and with all of them came what their hosts are asked. DBOS knows flows by name only, so a name
is all it needs before one runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from vmkeep.flows.plan import Flow

TAKE_POINT: Final = "point.take"
PRUNE: Final = "repository.prune"
REPAIR: Final = "repository.repair"
"""No flows, but operations in the catalogue (``flows.prune``, ``flows.repair``)."""
DECLARED: Final[Mapping[str, str]] = {
    TAKE_POINT: "take_point",
    "point.delete": "delete_point",
    "point.protect": "protect_point",
    "point.undelete": "undelete_point",
    "points.retain": "retain_points",
    "restore.files": "restore_files",
    "restore.vm": "restore_vm",
    "restore.in_place": "restore_in_place",
    "snapshot.revert": "revert_snapshot",
    "snapshot.take": "take_snapshot",
    "nvram.replace": "replace_nvram",
    "state.restore": "restore_states",
    "tpm.add": "add_tpm",
    "tpm.rekey": "rekey_tpm",
    "tpm.remove": "remove_tpm",
    "tpm.clone": "clone_tpm",
    "vm.clone": "clone_vm",
    "vm.rename": "rename_vm",
    "tpm.reset": "reset_tpm",
}
"""The module of each flow, in which it has the same name as its module."""


def declared_flow(name: str) -> Flow[Any, Any]:
    """Return the flow of this name. Raises KeyError when this release has none."""
    module = DECLARED[name]
    found: Flow[Any, Any] = getattr(importlib.import_module(f"vmkeep.flows.{module}"), module)
    return found
