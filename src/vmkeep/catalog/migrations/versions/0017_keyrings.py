"""The keyring of a repository as it was met last, so that an older one is not taken for the one in force."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("repositories", sa.Column("keyring", text()))
