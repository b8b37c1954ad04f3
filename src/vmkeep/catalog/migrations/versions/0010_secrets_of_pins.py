"""Which secrets of libvirt's are in the envelopes of pins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("pin_objects", sa.Column("secrets", text(), nullable=False, server_default="[]"))
