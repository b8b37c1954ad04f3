"""What whoever opens the catalogue's file must know, with SQLAlchemy or without."""

from __future__ import annotations

from typing import Final

HEAD_REVISION: Final = "0023"
BUSY_TIMEOUT_MS: Final = 30_000
