"""Snapshots, and state versions that are kept for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("name", text(), nullable=False),
        sa.Column("creation_time", whole(), nullable=False),
        sa.Column("current_point", text(32)),
        sa.Column("created", text(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_snapshots_vm_uuid"),
        sa.UniqueConstraint("vm_uuid", "name", name="uq_snapshots_vm_uuid_name"),
    )
    with op.batch_alter_table("pins") as pins:
        pins.drop_constraint(op.f("ck_pins_reason"), type_="check")
        pins.create_check_constraint(op.f("ck_pins_reason"), "reason in ('point', 'snapshot')")
