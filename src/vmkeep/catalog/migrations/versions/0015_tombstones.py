"""What must still be deleted on hosts, and the proofs of what was deleted there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0015"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("id", text(32), nullable=False),
        sa.Column("origin", text(64), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("host_uuid", text(36), nullable=False),
        sa.Column("host_name", text(), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("vm_name", text(), nullable=False),
        sa.Column("place", text(), nullable=False),
        sa.Column("since", text(32), nullable=False),
        sa.Column("files", text(), nullable=False),
        sa.Column("protection", text(16), nullable=False),
        sa.Column("secret", text(36), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("tries", whole(), nullable=False),
        sa.Column("last_at", text(32)),
        sa.Column("last_error", text(), nullable=False),
        sa.Column("ended", text(32)),
        sa.Column("ending", text(16), nullable=False),
        sa.Column("who", text(), nullable=False),
        sa.Column("why", text(), nullable=False),
        sa.CheckConstraint("kind in ('state', 'secret')", name=op.f("ck_tombstones_kind")),
        sa.CheckConstraint("state in ('open', 'retried', 'settled', 'waived')", name=op.f("ck_tombstones_state")),
        sa.PrimaryKeyConstraint("id", name="pk_tombstones"),
    )
    op.create_index("ix_tombstones_origin", "tombstones", ["origin"])
    op.create_index("ix_tombstones_vm_uuid", "tombstones", ["vm_uuid"])
    op.create_table(
        "deletions",
        sa.Column("id", text(32), nullable=False),
        sa.Column("of", text(32)),
        sa.Column("event", text(16), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("created", text(32), nullable=False),
        sa.Column("kept_until", text(32)),
        sa.Column("document", text(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("signed_by", text(32)),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
    )
    op.create_index("ix_deletions_of", "deletions", ["of"])
    op.create_index("ix_deletions_vm_uuid", "deletions", ["vm_uuid"])
