-- The agents. The name and the first six columns are those of the table that Python services of this kind
-- already have, so such a table is taken over as it stands.
CREATE TABLE IF NOT EXISTS agent_registry (
    agent_id       text        PRIMARY KEY,
    agent_name     text        NOT NULL,
    base_url       text        NOT NULL,
    status         text        NOT NULL DEFAULT 'active',
    capabilities   jsonb       NOT NULL DEFAULT '[]',
    last_heartbeat timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE agent_registry
    -- `json` and not `jsonb`: it is given back as it came, and nothing searches it.
    ADD COLUMN IF NOT EXISTS metadata                   json             NOT NULL DEFAULT '{}',
    -- What the agent declared; NULL where it declared nothing.
    ADD COLUMN IF NOT EXISTS heartbeat_interval_seconds double precision,
    -- Which process registered it last, of those that may come up with one id; NULL where it did not say.
    ADD COLUMN IF NOT EXISTS instance_id                text,
    ADD COLUMN IF NOT EXISTS registered_at              timestamptz      NOT NULL DEFAULT now(),
    -- Offline because it missed its deadline, and not because it said so.
    ADD COLUMN IF NOT EXISTS missed_deadline            boolean          NOT NULL DEFAULT false,
    -- NULL unless it is offline.
    ADD COLUMN IF NOT EXISTS offline_since              timestamptz,
    -- The registry's revision at the agent's last change. Heartbeats alone do not move it.
    ADD COLUMN IF NOT EXISTS revision                   bigint           NOT NULL DEFAULT 0;

-- Nearly all writes are heartbeats, and no index covers a column that they change: with free space in each
-- page such an update stays within its page and touches no index (a "heap-only tuple").
ALTER TABLE agent_registry SET (fillfactor = 70);

-- The one row that every change locks. It puts the changes of all replicas in one order, so that a revision
-- never becomes visible before a smaller one, and numbers them without gaps.
CREATE TABLE agent_registry_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision  bigint  NOT NULL
);
INSERT INTO agent_registry_state (revision) VALUES (0);

-- What changed, for replicas to follow. Old entries are removed; who has fallen behind reads all anew.
CREATE TABLE agent_registry_event (
    revision bigint      PRIMARY KEY,
    kind     text        NOT NULL,
    agent_id text        NOT NULL,
    at       timestamptz NOT NULL
);
