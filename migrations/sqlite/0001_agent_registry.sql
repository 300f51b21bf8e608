-- The agents. Times are milliseconds since the Unix epoch: SQLite has no type for them.
CREATE TABLE agent_registry (
    agent_id                   TEXT    NOT NULL PRIMARY KEY,
    agent_name                 TEXT    NOT NULL,
    base_url                   TEXT    NOT NULL,
    status                     TEXT    NOT NULL DEFAULT 'active',
    capabilities               TEXT    NOT NULL DEFAULT '[]',
    last_heartbeat             INTEGER NOT NULL,
    metadata                   TEXT    NOT NULL DEFAULT '{}',
    -- What the agent declared; NULL where it declared nothing.
    heartbeat_interval_seconds REAL,
    -- Which process registered it last, of those that may come up with one id; NULL where it did not say.
    instance_id                TEXT,
    registered_at              INTEGER NOT NULL,
    -- Offline because it missed its deadline, and not because it said so.
    missed_deadline            INTEGER NOT NULL DEFAULT 0,
    -- NULL unless it is offline.
    offline_since              INTEGER,
    -- The registry's revision at the agent's last change. Heartbeats alone do not move it.
    revision                   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The revision of the registry's last change.
CREATE TABLE agent_registry_state (
    singleton INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (singleton = 1),
    revision  INTEGER NOT NULL
) STRICT;
INSERT INTO agent_registry_state (revision) VALUES (0);

-- What changed. Old entries are removed.
CREATE TABLE agent_registry_event (
    revision INTEGER NOT NULL PRIMARY KEY,
    kind     TEXT    NOT NULL,
    agent_id TEXT    NOT NULL,
    at       INTEGER NOT NULL
) STRICT;
