-- The last few processes that came up with the id: when each started, and whether it was shut down. It decides which of
-- them may have the id, and has to outlive the server: a late request of a process that was shut down must be refused
-- after a restart, too. `json` and not `jsonb`: it is given back as it came, and nothing searches it. The default is for
-- the rows that are there, and for those that a server of an older version writes beside this one.
ALTER TABLE agent_registry ADD COLUMN instances json NOT NULL DEFAULT '[]';
