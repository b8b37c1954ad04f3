"""Rows that are written once, in words that every database knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, literal, select


def add_absent(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row unless there is one of its primary key.

    Each database has words of its own for that (ON CONFLICT), which SQLAlchemy knows by that one's dialect only. These
    are right because nobody else writes of the same meanwhile (``Database.writing``).
    """
    there = select(table).where(*(column == row[column.name] for column in table.primary_key))
    values = select(*(literal(value, table.c[name].type) for name, value in row.items())).where(~there.exists())
    connection.execute(insert(table).from_select(list(row), values))
