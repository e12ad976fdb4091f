"""Run by Alembic, inside the transaction that `Database.migrate` opened."""

from __future__ import annotations

from alembic import context

from gateway.tables import ALL_METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=ALL_METADATA)
context.run_migrations()
