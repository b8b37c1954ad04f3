"""The digest of each point's record, by which another record under its id is told from it.

Earlier releases took over points with any text as their time, which then ended every list and backup. Such a point
cannot be restored any more: its record is damaged to a reader of today. So it leaves the catalogue, and is told like
every other damaged one.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Filled when a record is first read and agrees with what is known: the repository may not be there now.
    op.add_column("points", sa.Column("digest", text(64)))
    connection = op.get_bind()
    for row in connection.execute(sa.text("SELECT id, created FROM points")).all():
        if not _is_time(row.created):
            connection.execute(sa.text("DELETE FROM pins WHERE reason = 'point' AND holder = :id"), {"id": row.id})
            connection.execute(sa.text("DELETE FROM points WHERE id = :id"), {"id": row.id})


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.tzinfo is not None and datetime(1970, 1, 1, tzinfo=UTC) <= moment < datetime(9999, 1, 1, tzinfo=UTC)
