-- The `maintenance` of an agent's record, as JSON. NULL if the agent is not in maintenance.
ALTER TABLE agent_registry ADD COLUMN maintenance TEXT;
