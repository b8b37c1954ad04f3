"""Operations whose undo stopped, and which wait for a person."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.batch_alter_table("operations") as operations:
        operations.drop_constraint(op.f("ck_operations_state"), type_="check")
        operations.create_check_constraint(
            op.f("ck_operations_state"),
            "state in ('queued', 'running', 'undoing', 'needs-operator', 'done', 'failed')",
        )
