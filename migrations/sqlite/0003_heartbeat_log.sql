-- Heartbeats, as a log: a batch of them is one small row at its end, and not a page for the row of each agent. An
-- object from agent to the time it was heard, in milliseconds since the Unix epoch. Every so often the log is
-- replaced by what it amounts to. The time in an agent's own row is that of its last change, or later.
CREATE TABLE agent_registry_heartbeat (
    batch INTEGER NOT NULL PRIMARY KEY,
    heard TEXT    NOT NULL
) STRICT;
