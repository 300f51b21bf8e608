//! What a transaction writes.

use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::CHANNEL;
use super::rows::date_time;
use crate::store::{Event, StoredAgent, Writes};

pub(super) async fn write(
    connection: &mut PgConnection,
    writes: &Writes,
    process: &str,
) -> std::result::Result<(), sqlx::Error> {
    if !writes.beats.is_empty() {
        let (agent_ids, times): (Vec<&str>, Vec<_>) =
            writes.beats.iter().map(|(id, time)| (id.as_str(), date_time(*time))).unzip();
        sqlx::query(
            "UPDATE agent_registry AS agent
             SET last_heartbeat = greatest(least(agent.last_heartbeat, now()), beat.at)
             FROM unnest($1::text[], $2::timestamptz[]) AS beat (id, at) WHERE agent.agent_id = beat.id",
        )
        .bind(agent_ids)
        .bind(times)
        .execute(&mut *connection)
        .await?;
    }
    if !writes.events.is_empty() {
        change(connection, writes, process).await?;
    }
    Ok(())
}

/// Puts and removes agents, numbers the changes, and tells the other replicas at the moment the transaction commits. One
/// statement, since each takes the way to the database and back; no agent is in it twice.
async fn change(
    connection: &mut PgConnection,
    writes: &Writes,
    process: &str,
) -> std::result::Result<(), sqlx::Error> {
    fn each<'a, T>(agents: &[&'a StoredAgent], column: impl Fn(&'a StoredAgent) -> T) -> Vec<T> {
        agents.iter().map(|agent| column(agent)).collect()
    }
    let puts: Vec<&StoredAgent> = writes.puts().collect();
    let revisions: Vec<i64> = writes.events.iter().map(|event| event.agent.revision).collect();
    let kinds: Vec<&str> = writes.events.iter().map(|event| event.kind.as_str()).collect();
    let agent_ids: Vec<&str> = writes.events.iter().map(|event| event.agent.agent_id.as_str()).collect();
    let agents = writes.events.iter().map(Event::to_json).collect::<std::result::Result<Vec<_>, _>>()?;
    sqlx::query(
        "WITH put AS (
             INSERT INTO agent_registry AS agent
                 (agent_id, agent_name, base_url, status, capabilities, metadata, last_heartbeat,
                  heartbeat_interval_seconds, instance_id, registered_at, missed_deadline, offline_since,
                  probe_failed, revision, instances)
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::json[],
                 $7::timestamptz[], $8::float8[], $9::text[], $10::timestamptz[], $11::bool[], $12::timestamptz[],
                 $13::bool[], $14::int8[], $15::json[])
             ON CONFLICT (agent_id) DO UPDATE SET
                 agent_name = excluded.agent_name, base_url = excluded.base_url, status = excluded.status,
                 capabilities = excluded.capabilities, metadata = excluded.metadata,
                 last_heartbeat = greatest(least(agent.last_heartbeat, now()), excluded.last_heartbeat),
                 heartbeat_interval_seconds = excluded.heartbeat_interval_seconds,
                 instance_id = excluded.instance_id,
                 missed_deadline = excluded.missed_deadline, offline_since = excluded.offline_since,
                 probe_failed = excluded.probe_failed, revision = excluded.revision, instances = excluded.instances
         ), removed AS (
             DELETE FROM agent_registry WHERE agent_id = ANY ($16)
         ), event AS (
             INSERT INTO agent_registry_event (revision, kind, agent_id, agent, at)
             SELECT *, now() FROM unnest($17::int8[], $18::text[], $19::text[], $20::json[])
         ), head AS (
             UPDATE agent_registry_state SET revision = $21 WHERE singleton
         )
         SELECT pg_notify($22, $23)",
    )
    .bind(each(&puts, |agent| agent.agent_id.as_str()))
    .bind(each(&puts, |agent| agent.agent_name.as_str()))
    .bind(each(&puts, |agent| agent.base_url.as_str()))
    .bind(each(&puts, |agent| agent.status.as_str()))
    .bind(each(&puts, |agent| Json(agent.capabilities.json())))
    // As text: as `Json` it would pass through `jsonb`, which knows no negative zero.
    .bind(each(&puts, |agent| agent.metadata.json().get()))
    .bind(each(&puts, |agent| date_time(agent.last_heartbeat)))
    .bind(each(&puts, |agent| agent.heartbeat_interval.map(|interval| interval.as_secs_f64())))
    .bind(each(&puts, |agent| agent.instance_id.as_deref()))
    .bind(each(&puts, |agent| date_time(agent.registered_at)))
    .bind(each(&puts, |agent| agent.missed_deadline))
    .bind(each(&puts, |agent| agent.offline_since.map(date_time)))
    .bind(each(&puts, |agent| agent.probe_failed))
    .bind(each(&puts, |agent| agent.revision))
    .bind(each(&puts, |agent| Json(&agent.instances)))
    .bind(writes.removes())
    .bind(&revisions)
    .bind(kinds)
    .bind(agent_ids)
    .bind(agents)
    .bind(revisions.last())
    .bind(CHANNEL)
    .bind(process)
    .execute(connection)
    .await?;
    Ok(())
}
