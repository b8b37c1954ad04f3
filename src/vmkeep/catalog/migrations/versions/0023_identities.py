"""Who a host of a fleet is: invites, certificates, and what was done about them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0023"
down_revision = "0018"


def upgrade() -> None:
    op.create_table(
        "host_identities",
        sa.Column("id", text(32), nullable=False),
        sa.Column("name", text(64), nullable=False),
        sa.Column("taken_name", text(64)),
        sa.Column("status", text(16), nullable=False),
        sa.Column("revision", whole(), nullable=False),
        sa.Column("changed_at", text(32), nullable=False),
        sa.Column("invite", text(64), nullable=False),
        sa.Column("invite_until", text(32), nullable=False),
        sa.Column("invite_serial", text(40), nullable=False),
        sa.CheckConstraint("revision > 0", name=op.f("ck_host_identities_revision")),
        sa.CheckConstraint(
            "status in ('invited', 'enrolled', 'revoked', 'forgotten')", name=op.f("ck_host_identities_status")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_host_identities"),
        sa.UniqueConstraint("taken_name", name="uq_host_identities_taken_name"),
    )
    op.create_index("ix_host_identities_invite", "host_identities", ["invite"])
    op.create_table(
        "host_certificates",
        sa.Column("serial", text(40), nullable=False),
        sa.Column("identity_id", text(32), nullable=False),
        sa.Column("place", whole(), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("key", text(64), nullable=False),
        sa.Column("begins", text(32), nullable=False),
        sa.Column("ends", text(32), nullable=False),
        sa.Column("authority", text(64), nullable=False),
        sa.Column("pem", text(), nullable=False),
        sa.CheckConstraint(
            "state in ('issued', 'current', 'superseded', 'revoked')", name=op.f("ck_host_certificates_state")
        ),
        sa.ForeignKeyConstraint(["identity_id"], ["host_identities.id"], name="fk_host_certificates_identity_id"),
        sa.PrimaryKeyConstraint("serial", name="pk_host_certificates"),
    )
    op.create_index("ix_host_certificates_identity_id", "host_certificates", ["identity_id"])
    op.create_table(
        "host_events",
        sa.Column("identity_id", text(32), nullable=False),
        sa.Column("revision", whole(), nullable=False),
        sa.Column("at", text(32), nullable=False),
        sa.Column("what", text(16), nullable=False),
        sa.Column("who", text(), nullable=False),
        sa.Column("serial", text(40), nullable=False),
        sa.ForeignKeyConstraint(["identity_id"], ["host_identities.id"], name="fk_host_events_identity_id"),
        sa.PrimaryKeyConstraint("identity_id", "revision", name="pk_host_events"),
    )
