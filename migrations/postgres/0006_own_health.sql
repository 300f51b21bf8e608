-- Where an agent says how it is, and whether it may be asked; NULL where it registered nothing of that kind. Servers of an
-- older version leave both as they are.
ALTER TABLE agent_registry ADD COLUMN health_path text, ADD COLUMN probe text;

-- A 404 counted as a failed probe until now. It neither counts nor clears any more; who really fails is found out anew.
UPDATE agent_registry SET probe_failed = false WHERE probe_failed;
