-- The agents' cards, apart from their rows: a heartbeat would copy a card that stood in the row, and reads of many agents
-- need none. The row has the hash of its agent's card, which the agent's tag depends on.
ALTER TABLE agent_registry ADD COLUMN card_digest text;
CREATE TABLE agent_registry_card (
    agent_id text PRIMARY KEY,
    -- `text` and not `json`: it is given back byte for byte, and nothing searches it.
    card     text NOT NULL
);
