-- Why and until when an agent is given no work, as it stands in the agent's record; NULL where it is not in maintenance.
ALTER TABLE agent_registry ADD COLUMN maintenance TEXT;
