-- A batch of heartbeats is one row at the end of a log, whose entries are moved to agent_registry_last_heartbeat many at
-- a time: a row for each agent is a page for each agent and batch. A batch is a JSON object from agent id to time, in
-- milliseconds since the Unix epoch.
CREATE TABLE agent_registry_heartbeat (
    batch INTEGER NOT NULL PRIMARY KEY,
    heard TEXT    NOT NULL
) STRICT;
