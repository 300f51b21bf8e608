-- The `changed_by` of an agent's record. It counts only while `changed_by_revision` is the row's revision: an older version
-- leaves both columns alone.
ALTER TABLE agent_registry ADD COLUMN changed_by TEXT;
ALTER TABLE agent_registry ADD COLUMN changed_by_revision INTEGER;
