"""Which points are kept: policies, marks of points that the repository holds, and points that were found harmed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_table(
        "point_removals",
        sa.Column("point_id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36)),
        sa.Column("vm_name", text()),
        sa.Column("taken", text(32)),
        sa.Column("host", text(), nullable=False),
        sa.Column("created", text(32), nullable=False),
        sa.Column("stored_at", text(32), nullable=False),
        sa.Column("grace_seconds", whole(), nullable=False),
        sa.Column("why", text(), nullable=False),
        sa.Column("signed_by", text(32)),
        sa.PrimaryKeyConstraint("point_id", name="pk_point_removals"),
    )
    op.create_index("ix_point_removals_vm_uuid", "point_removals", ["vm_uuid"])
    op.create_table(
        "point_protections",
        sa.Column("point_id", text(32), nullable=False),
        sa.Column("stored_at", text(32), nullable=False),
        sa.Column("host", text(), nullable=False),
        sa.Column("created", text(32), nullable=False),
        sa.Column("until", text(32)),
        sa.Column("why", text(), nullable=False),
        sa.Column("signed_by", text(32)),
        sa.PrimaryKeyConstraint("point_id", name="pk_point_protections"),
    )
    op.create_table(
        "harmed_points",
        sa.Column("point_id", text(32), nullable=False),
        sa.Column("found_at", text(32), nullable=False),
        sa.PrimaryKeyConstraint("point_id", name="pk_harmed_points"),
    )
    op.create_table(
        "policies",
        sa.Column("subject", text(), nullable=False),
        sa.Column("keep", text(), nullable=False),
        sa.Column("within_seconds", whole(), nullable=False),
        sa.Column("zone", text(), nullable=False),
        sa.Column("grace_seconds", whole(), nullable=False),
        sa.Column("changed_at", text(32), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_policies"),
    )
