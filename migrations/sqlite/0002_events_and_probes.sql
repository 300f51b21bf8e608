-- What the agent was after the change, so that who follows sees every change as it was.
ALTER TABLE agent_registry_event ADD COLUMN agent TEXT;

-- The registry asked the agent itself, and it did not answer well.
ALTER TABLE agent_registry ADD COLUMN probe_failed INTEGER NOT NULL DEFAULT 0;
