"""The order of points, state versions that came late, and points of the repository that are of other VMs."""

from __future__ import annotations

import json
from collections import defaultdict

import sqlalchemy as sa
from alembic import op

from vmkeep.catalog.columns import text, whole

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("vms", sa.Column("sequence", whole(), nullable=False, server_default="0"))
    op.add_column("snapshots", sa.Column("sequence", whole(), nullable=False, server_default="0"))
    op.add_column("points", sa.Column("sequence", whole()))
    op.add_column("points", sa.Column("place", whole(), nullable=False, server_default="0"))
    op.drop_index("ix_points_vm_uuid_created", "points")
    op.drop_index("ix_points_created", "points")
    op.create_index("ix_points_vm_uuid_place", "points", ["vm_uuid", "place"])
    op.create_table(
        "passed_points",
        sa.Column("id", text(32), nullable=False),
        sa.Column("vm_uuid", text(36), nullable=False),
        sa.Column("vm_name", text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_passed_points"),
    )
    _let_versions_conflict()
    _order_points()


def _let_versions_conflict() -> None:
    # SQLite changes a constraint by making the table anew, and none may refer to it then.
    with op.batch_alter_table("pins") as pins:
        pins.drop_constraint("fk_pins_version_id", type_="foreignkey")
    with op.batch_alter_table("state_versions") as versions:
        versions.add_column(sa.Column("conflict", sa.Boolean, nullable=False, server_default="0"))
        versions.drop_constraint("uq_state_versions_vm_uuid_kind_generation", type_="unique")
    with op.batch_alter_table("pins") as pins:
        pins.create_foreign_key("fk_pins_version_id", "state_versions", ["version_id"], ["id"])
    op.create_index(
        "uq_state_versions_accepted",
        "state_versions",
        ["vm_uuid", "kind", "generation"],
        unique=True,
        sqlite_where=sa.text("conflict = 0"),
        postgresql_where=sa.text("conflict = false"),
    )


def _order_points() -> None:
    """Give each point its place: parents first, then by clock; a number that a newer release wrote comes first.

    It does what ``vmkeep.planning.order`` did when this revision was made.
    """
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT id, vm_uuid, parent, created, document FROM points ORDER BY id")).all()
    by_vm: dict[str, dict[str, tuple[str | None, str, int]]] = defaultdict(dict)
    for row in rows:
        sequence = json.loads(row.document).get("sequence")
        number = sequence if isinstance(sequence, int) else 0
        by_vm[row.vm_uuid][row.id] = (row.parent, row.created, number)
        if number:
            values = {"number": number, "id": row.id, "vm": row.vm_uuid}
            connection.execute(sa.text("UPDATE points SET sequence = :number WHERE id = :id"), values)
            connection.execute(
                sa.text("UPDATE vms SET sequence = :number WHERE uuid = :vm AND sequence < :number"), values
            )
    for points in by_vm.values():
        for place, point_id in enumerate(_ordered(points), start=1):
            connection.execute(
                sa.text("UPDATE points SET place = :place WHERE id = :id"), {"place": place, "id": point_id}
            )


def _ordered(points: dict[str, tuple[str | None, str, int]]) -> list[str]:
    found: dict[str, tuple[int, str, int]] = {}
    for first in points:
        path: list[str] = []
        at: str | None = first
        while at in points and at not in found and at not in path:
            path.append(at)
            at = points[at][0]
        for point_id in reversed(path):
            parent, created, number = points[point_id]
            above = found.get(parent) if parent is not None else None
            if above is None or number > above[0]:
                found[point_id] = (number, created, 0)
            else:
                found[point_id] = (above[0], max(created, above[1]), above[2] + 1)
    return sorted(points, key=lambda point_id: (*found[point_id], point_id))
