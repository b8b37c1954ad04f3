"""The first schema.

It is written out rather than taken from the models: a revision must stay what it was when the models move on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

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
        sa.Column("id", text(32), nullable=False),
        sa.Column("location", text(), nullable=False),
        sa.Column("since", text(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_repositories"),
    )
    op.create_table(
        "hosts",
        sa.Column("uuid", text(36), nullable=False),
        sa.Column("name", text(), nullable=False),
        sa.Column("seen_at", text(32), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name="pk_hosts"),
    )
    op.create_table(
        "vms",
        sa.Column("uuid", text(36), nullable=False),
        sa.Column("name", text(), nullable=False),
        sa.Column("host_uuid", text(36)),
        sa.Column("seen_at", text(32), nullable=False),
        sa.Column("adopted", sa.Boolean, nullable=False),
        sa.Column("current_point", text(32)),
        sa.PrimaryKeyConstraint("uuid", name="pk_vms"),
        sa.ForeignKeyConstraint(["host_uuid"], ["hosts.uuid"], name="fk_vms_host_uuid"),
    )
    op.create_index("ix_vms_name", "vms", ["name"])


def _create_points() -> None:
    op.create_table(
        "points",
        sa.Column("id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("vm_name", text(), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("parent", text(32)),
        sa.Column("created", text(32), nullable=False),
        sa.Column("host", text(), nullable=False),
        sa.Column("checkpoint", text()),
        sa.Column("pause_ms", sa.Float, nullable=False),
        sa.Column("labels", text(), nullable=False),
        sa.Column("summary", text(), nullable=False),
        sa.Column("document", text(), nullable=False),
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
        sa.Column("id", text(64), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("generation", whole(), nullable=False),
        sa.Column("sha256", text(64), nullable=False),
        sa.Column("size_bytes", whole(), nullable=False),
        sa.Column("created", text(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_state_versions"),
        sa.ForeignKeyConstraint(["vm_uuid"], ["vms.uuid"], name="fk_state_versions_vm_uuid"),
        sa.UniqueConstraint("vm_uuid", "kind", "generation", name="uq_state_versions_vm_uuid_kind_generation"),
        sa.CheckConstraint("kind in ('tpm', 'nvram')", name=op.f("ck_state_versions_kind")),
        sa.CheckConstraint("generation > 0", name=op.f("ck_state_versions_generation")),
    )
    op.create_table(
        "pins",
        sa.Column("version_id", text(64), nullable=False),
        sa.Column("reason", text(16), nullable=False),
        sa.Column("holder", text(64), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "reason", "holder", name="pk_pins"),
        sa.ForeignKeyConstraint(["version_id"], ["state_versions.id"], name="fk_pins_version_id"),
        sa.CheckConstraint("reason in ('point')", name=op.f("ck_pins_reason")),
    )
    op.create_index("ix_pins_reason_holder", "pins", ["reason", "holder"])


def _create_operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", text(64), nullable=False),
        sa.Column("kind", text(32), nullable=False),
        sa.Column("vm", text()),
        sa.Column("owner", text(64), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("started", text(32), nullable=False),
        sa.Column("updated", text(32), nullable=False),
        sa.Column("finished", text(32)),
        sa.Column("stage", text(), nullable=False),
        sa.Column("done_bytes", whole(), nullable=False),
        sa.Column("total_bytes", whole(), nullable=False),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sa.Column("error", text()),
        sa.Column("request", text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_operations"),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'undoing', 'done', 'failed')", name=op.f("ck_operations_state")
        ),
    )
    op.create_index("ix_operations_state_owner", "operations", ["state", "owner"])
