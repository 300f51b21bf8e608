-- What the agent was after the change, so that who follows need not read its row, and sees every change as it
-- was. Written as the server writes it; events without it make who follows read all anew.
ALTER TABLE agent_registry_event ADD COLUMN agent json;

-- The registry asked the agent itself, and it did not answer well.
ALTER TABLE agent_registry ADD COLUMN probe_failed boolean NOT NULL DEFAULT false;

-- Work that one server does for all, as long as it renews its lease in time.
CREATE TABLE agent_registry_lease (
    name   text        PRIMARY KEY,
    holder text        NOT NULL,
    until  timestamptz NOT NULL
);
