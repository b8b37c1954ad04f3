"""The names of checkpoints and bitmaps that vmkeep makes."""

from __future__ import annotations

import re
from typing import Final


def checkpoint_prefix(repository_id: str) -> str:
    """Return what the names of our checkpoints and bitmaps begin with.

    Part of it is the repository, so that two of them can keep the same VM without removing each other's as left-overs.
    """
    return f"vmkeep-{repository_id[:8]}-"


# "vmkeep-", 8 digits of the repository's id and the id of the point (checkpoint_prefix in host/checkpoints/bases.py).
_BASE_NAME: Final = re.compile(r"vmkeep-[0-9a-f]{8}-[0-9a-f]{32}", re.ASCII)


def is_base_name(name: str) -> bool:
    """Return whether a checkpoint's name is one that vmkeep gives: the next point of the VM is read against it."""
    return _BASE_NAME.fullmatch(name) is not None
