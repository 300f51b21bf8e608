-- The last few processes that came up with the id: when each started, and whether it was shut down. It decides which of
-- them may have the id, and has to outlive the server: a late request of a process that was shut down must be refused
-- after a restart, too. A list in JSON; the default is for the rows that are there.
ALTER TABLE agent_registry ADD COLUMN instances TEXT NOT NULL DEFAULT '[]';
