-- Where an agent says how it is, and whether it may be asked; NULL where it registered nothing of that kind.
ALTER TABLE agent_registry ADD COLUMN health_path TEXT;
ALTER TABLE agent_registry ADD COLUMN probe TEXT;

-- A 404 counted as a failed probe until now. It neither counts nor clears any more; who really fails is found out anew.
UPDATE agent_registry SET probe_failed = 0 WHERE probe_failed;
