"""Who signed a point, and the keys of those who sign."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op
from blake3 import blake3

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "host_keys",
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("installation", sa.String(32), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("seen_at", sa.String(32), nullable=False),
        sa.Column("trust", sa.String(16), nullable=False),
        sa.Column("machine", sa.String(32), nullable=False, server_default=""),
        sa.Column("copied_to", sa.Text),
        sa.CheckConstraint("trust in ('own', 'trusted', 'unknown', 'distrusted')", name=op.f("ck_host_keys_trust")),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_host_keys"),
    )
    op.create_index("ix_host_keys_installation", "host_keys", ["installation"])
    op.add_column("points", sa.Column("signed_by", sa.String(32)))
    _note_signers()


def _note_signers() -> None:
    """Mark the points that are known already; an older release may have taken over some that a newer one signed."""
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE points SET signed_by = ''"))
    signed = sa.text("SELECT id, document FROM points WHERE document LIKE '%\"signature\"%'")
    for row in connection.execute(signed).all():
        signature = json.loads(row.document).get("signature")
        key = signature.get("key") if isinstance(signature, dict) else None
        if isinstance(key, str):
            fingerprint = blake3(bytes.fromhex(key), derive_key_context="vmkeep 2026 host key fingerprint").hexdigest(
                16
            )
            values = {"by": fingerprint, "id": row.id}
            connection.execute(sa.text("UPDATE points SET signed_by = :by WHERE id = :id"), values)
