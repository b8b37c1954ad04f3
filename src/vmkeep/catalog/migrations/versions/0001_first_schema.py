"""The first schema.

It is written out rather than taken from the models: a revision must stay what it was when the models move on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_places()
    _create_points()
    _create_states()
    _create_operations()


def _create_places() -> None:
    op.create_table(
        "repositories",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("since", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_repositories"),
    )
    op.create_table(
        "hosts",
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("seen_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name="pk_hosts"),
    )
    op.create_table(
        "vms",
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("host_uuid", sa.String(36)),
        sa.Column("seen_at", sa.String(32), nullable=False),
        sa.Column("adopted", sa.Boolean, nullable=False),
        sa.Column("current_point", sa.String(32)),
        sa.PrimaryKeyConstraint("uuid", name="pk_vms"),
        sa.ForeignKeyConstraint(["host_uuid"], ["hosts.uuid"], name="fk_vms_host_uuid"),
    )
    op.create_index("ix_vms_name", "vms", ["name"])


def _create_points() -> None:
    op.create_table(
        "points",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("vm_uuid", sa.String(36), nullable=False),
        sa.Column("vm_name", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("parent", sa.String(32)),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.Text),
        sa.Column("pause_ms", sa.Float, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_points"),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_points_vm_uuid"),
        sa.CheckConstraint("kind in ('full', 'incremental')", name=op.f("ck_points_kind")),
    )
    op.create_index("ix_points_vm_uuid_created", "points", ["vm_uuid", "created"])
    op.create_index("ix_points_created", "points", ["created"])
    op.create_index("ix_points_vm_name", "points", ["vm_name"])


def _create_states() -> None:
    op.create_table(
        "state_versions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("vm_uuid", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_state_versions"),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_state_versions_vm_uuid"),
        sa.UniqueConstraint("vm_uuid", "kind", "generation", name="uq_state_versions_vm_uuid_kind_generation"),
        sa.CheckConstraint("kind in ('tpm', 'nvram')", name=op.f("ck_state_versions_kind")),
        sa.CheckConstraint("generation > 0", name=op.f("ck_state_versions_generation")),
    )
    op.create_table(
        "pins",
        sa.Column("version_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "reason", "holder", name="pk_pins"),
        sa.ForeignKeyConstraint(["version_id"], ["state_versions.id"], name="fk_pins_version_id"),
        sa.CheckConstraint("reason in ('point')", name=op.f("ck_pins_reason")),
    )
    op.create_index("ix_pins_reason_holder", "pins", ["reason", "holder"])


def _create_operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("vm", sa.Text),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("updated", sa.String(32), nullable=False),
        sa.Column("finished", sa.String(32)),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("done_bytes", sa.Integer, nullable=False),
        sa.Column("total_bytes", sa.Integer, nullable=False),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("request", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_operations"),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'undoing', 'done', 'failed')", name=op.f("ck_operations_state")
        ),
    )
    op.create_index("ix_operations_state_owner", "operations", ["state", "owner"])
