"""The digest of each point's record, by which another record under its id is told from it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Filled when a record is first read and agrees with what is known: the repository may not be there now.
    op.add_column("points", sa.Column("digest", sa.String(64)))
