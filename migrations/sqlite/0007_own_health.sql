-- Path of an agent's own health endpoint, and whether the registry may probe the agent. NULL if the agent registered neither.
ALTER TABLE agent_registry ADD COLUMN health_path TEXT;
ALTER TABLE agent_registry ADD COLUMN probe TEXT;

-- Until now, a 404 counted as a failed probe, and now it changes nothing. The next probes find the agents that do fail.
UPDATE agent_registry SET probe_failed = 0 WHERE probe_failed;
