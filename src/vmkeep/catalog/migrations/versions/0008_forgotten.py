"""VMs that are gone for good, and until when versions of their state files are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("vms", sa.Column("forgotten_until", text(32)))
