-- The `maintenance` of an agent's record, as JSON. NULL if the agent is not in maintenance.
-- A server of an older version that runs beside this one leaves the column alone.
ALTER TABLE agent_registry ADD COLUMN maintenance json;
