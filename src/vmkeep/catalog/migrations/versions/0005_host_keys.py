"""Who signed a point, and the keys of those who sign."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op
from blake3 import blake3

from vmkeep.catalog.columns import text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "host_keys",
        sa.Column("fingerprint", text(32), nullable=False),
        sa.Column("key", text(64), nullable=False),
        sa.Column("installation", text(32), nullable=False),
        sa.Column("host", text(), nullable=False),
        sa.Column("seen_at", text(32), nullable=False),
        sa.Column("trust", text(16), nullable=False),
        sa.Column("machine", text(32), nullable=False, server_default=""),
        sa.Column("copied_to", text()),
        sa.CheckConstraint("trust in ('own', 'trusted', 'unknown', 'distrusted')", name=op.f("ck_host_keys_trust")),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_host_keys"),
    )
    op.create_index("ix_host_keys_installation", "host_keys", ["installation"])
    op.add_column("points", sa.Column("signed_by", text(32)))
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
