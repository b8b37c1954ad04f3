"""The catalogue's schema, revision by revision (Alembic)."""
