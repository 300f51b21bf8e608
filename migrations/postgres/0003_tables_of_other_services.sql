-- A table that was taken over may have other types than ours, and gaps. Nothing of it is lost.
DO $$
DECLARE
    is_type CONSTANT text := 'SELECT data_type = $2 FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = ''agent_registry'' AND column_name = $1';
    wanted  record;
    is_so   boolean;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('agent_id',       'text',                     'text'),
            ('agent_name',     'text',                     'text'),
            ('base_url',       'text',                     'text'),
            ('status',         'text',                     'text'),
            ('capabilities',   'jsonb',                    'text::jsonb'),
            ('metadata',       'json',                     'text::json'),
            -- A time without a zone is UTC, which is the zone of this connection.
            ('last_heartbeat', 'timestamp with time zone', 'timestamptz'),
            ('registered_at',  'timestamp with time zone', 'timestamptz')
        ) AS wanted (name, type, via)
    LOOP
        EXECUTE is_type INTO is_so USING wanted.name, wanted.type;
        IF NOT is_so THEN
            EXECUTE format('ALTER TABLE agent_registry ALTER COLUMN %I DROP DEFAULT', wanted.name);
            EXECUTE format(
                'ALTER TABLE agent_registry ALTER COLUMN %1$I TYPE %2$s USING %1$I::%3$s',
                wanted.name, wanted.type, wanted.via
            );
        END IF;
    END LOOP;
END
$$;

UPDATE agent_registry SET agent_name = agent_id WHERE agent_name IS NULL;
UPDATE agent_registry SET base_url = '' WHERE base_url IS NULL;
UPDATE agent_registry SET status = 'active' WHERE status IS NULL;
-- A word that is not known: not to be given work.
UPDATE agent_registry SET status = 'offline' WHERE status NOT IN ('active', 'busy', 'offline');
UPDATE agent_registry SET metadata = '{}' WHERE metadata IS NULL OR json_typeof(metadata) <> 'object';
-- Never heard of.
UPDATE agent_registry SET last_heartbeat = 'epoch' WHERE last_heartbeat IS NULL;
UPDATE agent_registry SET registered_at = last_heartbeat WHERE registered_at IS NULL;
UPDATE agent_registry SET offline_since = now() WHERE status = 'offline' AND offline_since IS NULL;

UPDATE agent_registry SET capabilities = '[]' WHERE capabilities IS NULL OR jsonb_typeof(capabilities) <> 'array';
-- Names alone are capabilities, too.
UPDATE agent_registry SET capabilities = (
    SELECT jsonb_agg(
        CASE jsonb_typeof(capability) WHEN 'string' THEN jsonb_build_object('name', capability) ELSE capability END
        ORDER BY place)
    FROM jsonb_array_elements(capabilities) WITH ORDINALITY AS of_agent (capability, place)
)
WHERE capabilities @? '$[*] ? (@.type() == "string")';

ALTER TABLE agent_registry
    ALTER COLUMN agent_name     SET NOT NULL,
    ALTER COLUMN base_url       SET NOT NULL,
    ALTER COLUMN status         SET NOT NULL,
    ALTER COLUMN status         SET DEFAULT 'active',
    ALTER COLUMN capabilities   SET NOT NULL,
    ALTER COLUMN capabilities   SET DEFAULT '[]',
    ALTER COLUMN metadata       SET NOT NULL,
    ALTER COLUMN metadata       SET DEFAULT '{}',
    ALTER COLUMN last_heartbeat SET NOT NULL,
    ALTER COLUMN last_heartbeat SET DEFAULT now(),
    ALTER COLUMN registered_at  SET NOT NULL,
    ALTER COLUMN registered_at  SET DEFAULT now();
