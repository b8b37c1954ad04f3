"""What Alembic runs to migrate: only ever on a connection that the program gives it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from vmkeep.catalog.models import metadata

connection = context.config.attributes.get("connection")
if not isinstance(connection, Connection):
    raise TypeError("the catalogue is migrated by vmkeep itself, never by the alembic command")
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
