"""Alembic's way in; ``serving.audit.database`` brings the connection along."""

from __future__ import annotations

from alembic import context

from serving.audit.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
