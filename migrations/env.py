"""How alembic runs: the connection comes from ``server.repository.schema``, which holds the lock and the time limits."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from server.repository.tables import TENANT_TABLES

connection: Connection | None = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run `flowledger migrate`: it takes the lock and the owner's connection that migrations need")

context.configure(connection=connection, target_metadata=TENANT_TABLES[0].metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
