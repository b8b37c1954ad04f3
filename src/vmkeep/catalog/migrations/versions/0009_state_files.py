"""Where state files of VMs lie, on which host, and since when that is known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "state_files",
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("host_uuid", text(36), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("path", text(), nullable=False),
        sa.Column("sha256", text(64)),
        sa.Column("size_bytes", whole()),
        sa.Column("standing", text(16), nullable=False),
        sa.Column("since", text(32), nullable=False),
        sa.Column("seen_at", text(32), nullable=False),
        sa.CheckConstraint("kind in ('tpm', 'nvram')", name=op.f("ck_state_files_kind")),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_state_files_vm_uuid"),
        sa.ForeignKeyConstraint(["host_uuid"], ["hosts.uuid"], name="fk_state_files_host_uuid"),
        sa.PrimaryKeyConstraint("vm_uuid", "host_uuid", "kind", name="pk_state_files"),
    )
