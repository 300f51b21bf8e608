-- Path of an agent's own health endpoint, and whether the registry may probe the agent. NULL if the agent registered neither.
-- Servers of an older version leave both columns alone.
ALTER TABLE agent_registry ADD COLUMN health_path text, ADD COLUMN probe text;

-- Until now, a 404 counted as a failed probe, and now it changes nothing. The next probes find the agents that do fail.
UPDATE agent_registry SET probe_failed = false WHERE probe_failed;
