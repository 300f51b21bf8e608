-- Why and until when an agent is given no work, as it stands in the agent's record; NULL where it is not in maintenance.
-- A server of an older version that runs beside this one leaves the column alone.
ALTER TABLE agent_registry ADD COLUMN maintenance json;
