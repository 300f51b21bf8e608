CREATE TABLE agent_registry (
    agent_id       text        PRIMARY KEY,
    agent_name     text        NOT NULL,
    base_url       text        NOT NULL,
    status         text        NOT NULL DEFAULT 'active',
    capabilities   jsonb       NOT NULL DEFAULT '[]',
    last_heartbeat timestamptz NOT NULL DEFAULT now()
);
