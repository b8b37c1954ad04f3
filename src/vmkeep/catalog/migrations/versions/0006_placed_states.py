"""The state that was put in place on purpose: a file that equals an older version is then nobody's roll-back.

Until now only whole restores were recorded, as the point that the VM is at: its state was put in place.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "placed_states",
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("sha256", text(64), nullable=False),
        sa.Column("generation", whole(), nullable=False),
        sa.CheckConstraint("kind in ('tpm', 'nvram')", name=op.f("ck_placed_states_kind")),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_placed_states_vm_uuid"),
        sa.PrimaryKeyConstraint("vm_uuid", "kind", name="pk_placed_states"),
    )
    connection = op.get_bind()
    current = sa.text("SELECT vms.uuid, points.document FROM vms JOIN points ON points.id = vms.current_point")
    newest = sa.text(
        "SELECT coalesce(max(generation), 0) FROM state_versions WHERE vm_uuid = :vm AND kind = :kind AND NOT conflict"
    )
    placed = sa.text("INSERT INTO placed_states VALUES (:vm, :kind, :sha256, :generation)")
    for row in connection.execute(current).all():
        for state in json.loads(row.document).get("states", ()):
            vm = {"vm": row.uuid, "kind": state["kind"]}
            generation = connection.execute(newest, vm).scalar()
            connection.execute(placed, {**vm, "sha256": state["sha256"], "generation": generation})
