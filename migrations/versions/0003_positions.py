# ruff: noqa: E501 - frozen DDL, as it was rendered
"""Positions of events in their tenant's feed, and up to which position events were removed.

An event's position is the number of the transaction that wrote it: whoever reads below the oldest transaction that is under way has missed
nothing. Events that were there before have position 0 and so come first, flow by flow. The index is made while the table can be read and
not written: some ten seconds for ten million events.

Frozen: the names and constraints of this day, whatever the modules say later.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DDL = """
ALTER TABLE events ADD COLUMN position BIGINT DEFAULT 0 NOT NULL;

ALTER TABLE events ALTER COLUMN position SET DEFAULT ((pg_current_xact_id())::text)::bigint;

CREATE INDEX events_position_idx ON events (client_account_id, engagement_id, position, flow_id, revision);

ALTER TABLE installation ADD COLUMN position_base BIGINT DEFAULT 0 NOT NULL, ADD COLUMN cluster_id BIGINT;

CREATE TABLE removals (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT removals_pkey PRIMARY KEY (client_account_id, engagement_id)
)
"""

# As in 0001.
POLICY = """
CREATE POLICY tenant ON removals USING (
    (client_account_id::text || '/' || engagement_id::text)
        = ANY ((SELECT string_to_array(current_setting('flowledger.tenants', true), ','))::text[])
)
"""

# Once a statement, whoever removes events and why: a reader of the feed must be able to tell that it missed some.
FUNCTION = (
    "CREATE FUNCTION events_removed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO removals AS known SELECT client_account_id, engagement_id, max(position) FROM removed GROUP BY client_account_id, engagement_id "
    "ON CONFLICT (client_account_id, engagement_id) DO UPDATE SET position = greatest(known.position, excluded.position); "
    "RETURN NULL; END $$"
)
TRIGGER = (
    "CREATE TRIGGER events_removed AFTER DELETE ON events REFERENCING OLD TABLE AS removed FOR EACH STATEMENT "
    "EXECUTE FUNCTION events_removed()"
)


def upgrade() -> None:
    """Give events their positions, and remember what is removed."""
    for statement in DDL.split(";\n\n"):
        op.execute(statement)
    op.execute("ALTER TABLE removals ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE removals FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON removals TO flowledger_service")
    op.execute(FUNCTION)
    op.execute(TRIGGER)


def downgrade() -> None:
    """Forget them."""
    op.execute("DROP TRIGGER events_removed ON events")
    op.execute("DROP FUNCTION events_removed()")
    op.execute("DROP TABLE removals")
    op.execute("ALTER TABLE installation DROP COLUMN position_base, DROP COLUMN cluster_id")
    op.execute("DROP INDEX events_position_idx")
    op.execute("ALTER TABLE events DROP COLUMN position")
