-- The order in which servers lock: some may be running, of the version before this one.
LOCK TABLE agent_registry_state IN ACCESS EXCLUSIVE MODE;

-- A random mark for each change, and for the last one in the state row. A database that lost its latest changes (a
-- promoted standby, a restored backup) gives their revisions again; by the marks servers and watchers notice.
ALTER TABLE agent_registry_event ADD COLUMN mark bigint NOT NULL DEFAULT (random() * 9007199254740991)::bigint;
ALTER TABLE agent_registry_state
    ADD COLUMN mark bigint NOT NULL DEFAULT (random() * 9007199254740991)::bigint,
    -- The timeout of all servers, so that they agree. The server that started last has set it.
    ADD COLUMN heartbeat_timeout_seconds double precision;

-- Where the log begins, so that there is an entry to compare with from the first change on.
INSERT INTO agent_registry_event (revision, kind, agent_id, at)
SELECT revision, 'heard', '', now() FROM agent_registry_state ON CONFLICT (revision) DO NOTHING;
UPDATE agent_registry_state AS state SET mark = event.mark
FROM agent_registry_event AS event WHERE event.revision = state.revision;

-- Servers compare rows with what they know page by page, in the order of bytes and not of the database's locale.
CREATE INDEX agent_registry_id_bytes ON agent_registry (agent_id COLLATE "C");
