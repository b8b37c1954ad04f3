"""What of a disk must be read: dirty, zero and clean ranges, merged and cut into blocks."""

from __future__ import annotations

from vmkeep.extents.blocks import BlockRun, cut
from vmkeep.extents.ranges import Extent, ExtentError, Kind, Reply, either_dirty, everything_dirty, merge

__all__ = ["BlockRun", "Extent", "ExtentError", "Kind", "Reply", "cut", "either_dirty", "everything_dirty", "merge"]
