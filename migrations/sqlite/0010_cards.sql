-- The agents' cards, apart from their rows: reads of many agents need none. The row has the hash of its agent's card, which the
-- agent's tag depends on.
ALTER TABLE agent_registry ADD COLUMN card_digest TEXT;
CREATE TABLE agent_registry_card (
    agent_id TEXT NOT NULL PRIMARY KEY,
    card     TEXT NOT NULL
) STRICT;
