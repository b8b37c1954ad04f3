"""Pins that stand in the repository: what keeps versions that no point names is known without the catalogue.

Versions that were captured by themselves before had none, and stay as they are: known to this catalogue alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "pin_objects",
        sa.Column("id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("vm_name", text(), nullable=False),
        sa.Column("host", text(), nullable=False),
        sa.Column("created", text(32), nullable=False),
        sa.Column("why", text(32), nullable=False),
        sa.Column("until", text(32)),
        sa.Column("signed_by", text(32)),
        sa.Column("snapshot_id", text(32)),
        sa.Column("snapshot_name", text()),
        sa.Column("snapshot_time", whole()),
        sa.Column("snapshot_point", text(32)),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_pin_objects_vm_uuid"),
        sa.PrimaryKeyConstraint("id", name="pk_pin_objects"),
    )
    op.create_index("ix_pin_objects_vm_uuid", "pin_objects", ["vm_uuid"])
    op.create_index("ix_pin_objects_snapshot_id", "pin_objects", ["snapshot_id"])
    op.create_table(
        "passed_pins",
        sa.Column("id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_passed_pins"),
    )
    op.create_table(
        "state_alerts",
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("code", text(64), nullable=False),
        sa.Column("message", text(), nullable=False),
        sa.Column("first_at", text(32), nullable=False),
        sa.Column("last_at", text(32), nullable=False),
        sa.Column("times", whole(), nullable=False),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_state_alerts_vm_uuid"),
        sa.PrimaryKeyConstraint("vm_uuid", "code", name="pk_state_alerts"),
    )
    with op.batch_alter_table("pins") as pins:
        pins.drop_constraint(op.f("ck_pins_reason"), type_="check")
        pins.create_check_constraint(op.f("ck_pins_reason"), "reason in ('point', 'snapshot', 'pin')")
