-- A random mark for each change, and for the last one in the state row. A restored file gives revisions again; by the
-- marks servers and watchers notice. (A column that is added cannot have a random default.)
ALTER TABLE agent_registry_event ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
UPDATE agent_registry_event SET mark = random();
ALTER TABLE agent_registry_state ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_registry_state ADD COLUMN heartbeat_timeout_seconds REAL;

-- Where the log begins, so that there is an entry to compare with from the first change on.
INSERT INTO agent_registry_event (revision, kind, agent_id, at, mark)
SELECT revision, 'heard', '', 0, random() FROM agent_registry_state WHERE true ON CONFLICT (revision) DO NOTHING;
UPDATE agent_registry_state SET mark =
    (SELECT event.mark FROM agent_registry_event AS event WHERE event.revision = agent_registry_state.revision);

-- The last heartbeats, apart from the agents: a heartbeat then writes a small row and not a large one. It counts for
-- the revision of the agent that it has. Replaces the log of heartbeats.
CREATE TABLE agent_registry_last_heartbeat (
    agent_id       TEXT    NOT NULL PRIMARY KEY,
    revision       INTEGER NOT NULL,
    last_heartbeat INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO agent_registry_last_heartbeat (agent_id, revision, last_heartbeat)
SELECT agent.agent_id, agent.revision, max(agent.last_heartbeat, coalesce(max(entry.value), 0))
FROM agent_registry AS agent
    LEFT JOIN (agent_registry_heartbeat AS batch JOIN json_each(batch.heard) AS entry) ON entry.key = agent.agent_id
GROUP BY agent.agent_id;
DROP TABLE agent_registry_heartbeat;
-- Whatever program removes an agent: no heartbeat of it is taken any more.
CREATE TRIGGER agent_registry_removed AFTER DELETE ON agent_registry BEGIN
    DELETE FROM agent_registry_last_heartbeat WHERE agent_id = old.agent_id;
END;
