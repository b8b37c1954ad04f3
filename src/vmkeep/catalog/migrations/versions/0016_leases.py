"""Which host may run a VM, and why a state version has its number."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("host_uuid", text(36), nullable=False),
        sa.Column("epoch", whole(), nullable=False),
        sa.Column("serial", whole(), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("until", text(32), nullable=False),
        sa.Column("who", text(), nullable=False),
        sa.Column("why", text(), nullable=False),
        sa.CheckConstraint("epoch > 0", name=op.f("ck_leases_epoch")),
        sa.CheckConstraint("serial > 0", name=op.f("ck_leases_serial")),
        sa.CheckConstraint("state in ('held', 'free', 'fenced')", name=op.f("ck_leases_state")),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_leases_vm_uuid"),
        sa.ForeignKeyConstraint(["host_uuid"], ["hosts.uuid"], name="fk_leases_host_uuid"),
        sa.PrimaryKeyConstraint("vm_uuid", name="pk_leases"),
    )
    op.add_column("state_versions", sa.Column("because", text(32), nullable=False, server_default=""))
    op.add_column("state_versions", sa.Column("made_here", sa.Boolean(), nullable=False, server_default="1"))
