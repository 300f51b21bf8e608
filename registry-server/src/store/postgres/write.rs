//! Writes the result of a transaction.

use registry_sdk::contract::ProbeMode;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::heartbeats::{self, later_heartbeat};
use super::listener::CHANGE_CHANNEL;
use super::rows::date_time;
use crate::store::agent::StoredAgent;
use crate::store::log::{Event, RETAINED_REVISIONS};
use crate::store::writes::Writes;

pub(super) async fn write(
    connection: &mut PgConnection,
    writes: &Writes,
    process_id: &str,
) -> sqlx::Result<()> {
    if writes.is_empty() {
        // Proves that the database accepts writes.
        sqlx::query("UPDATE agent_registry_state SET revision = revision WHERE singleton")
            .execute(&mut *connection)
            .await?;
    }
    if !writes.heartbeats.is_empty() {
        heartbeats::store(connection, &writes.heartbeats).await?;
    }
    if !writes.events.is_empty() {
        write_events(connection, writes, process_id).await?;
    }
    Ok(())
}

/// Writes the changed agents and their events, and notifies the other servers on commit.
///
/// A single statement, since each statement costs a round trip. No agent occurs twice.
async fn write_events(connection: &mut PgConnection, writes: &Writes, process_id: &str) -> sqlx::Result<()> {
    fn column<'a, T>(agents: &[&'a StoredAgent], value: impl Fn(&'a StoredAgent) -> T) -> Vec<T> {
        agents.iter().map(|agent| value(agent)).collect()
    }
    let upserts: Vec<&StoredAgent> = writes.upserts().collect();
    let (agents_with_cards, cards): (Vec<&str>, Vec<&str>) = writes.new_cards().unzip();
    let revisions: Vec<i64> = writes.events.iter().map(|event| event.agent.revision).collect();
    let kinds: Vec<&str> = writes.events.iter().map(|event| event.kind.as_str()).collect();
    let agent_ids: Vec<&str> = writes.events.iter().map(|event| event.agent.agent_id.as_str()).collect();
    let marks: Vec<i64> = writes.events.iter().map(|event| event.mark).collect();
    let agents = writes.events.iter().map(Event::agent_json).collect::<sqlx::Result<Vec<_>>>()?;
    sqlx::query(concat!(
        "WITH put AS (
             INSERT INTO agent_registry AS agent
                 (agent_id, agent_name, base_url, status, capabilities, metadata, last_heartbeat,
                  heartbeat_interval_seconds, instance_id, registered_at, missed_deadline, offline_since,
                  probe_failed, revision, instances, health_path, probe, maintenance, changed_by, changed_by_revision,
                  card_digest)
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::json[],
                 $7::timestamptz[], $8::float8[], $9::text[], $10::timestamptz[], $11::bool[], $12::timestamptz[],
                 $13::bool[], $14::int8[], $15::json[], $16::text[], $17::text[], $18::json[], $19::text[],
                 $14::int8[], $33::text[])
             ON CONFLICT (agent_id) DO UPDATE SET
                 agent_name = excluded.agent_name, base_url = excluded.base_url, status = excluded.status,
                 capabilities = excluded.capabilities, metadata = excluded.metadata,
                 last_heartbeat = ",
        later_heartbeat!("excluded.last_heartbeat"),
        ",
                 heartbeat_interval_seconds = excluded.heartbeat_interval_seconds,
                 instance_id = excluded.instance_id, registered_at = excluded.registered_at,
                 missed_deadline = excluded.missed_deadline, offline_since = excluded.offline_since,
                 probe_failed = excluded.probe_failed, revision = excluded.revision, instances = excluded.instances,
                 health_path = excluded.health_path, probe = excluded.probe, maintenance = excluded.maintenance,
                 changed_by = excluded.changed_by, changed_by_revision = excluded.changed_by_revision,
                 card_digest = excluded.card_digest
         ), removed AS (
             DELETE FROM agent_registry WHERE agent_id = ANY ($20)
         ), card AS (
             INSERT INTO agent_registry_card (agent_id, card)
             SELECT * FROM unnest($31::text[], $32::text[])
             ON CONFLICT (agent_id) DO UPDATE SET card = excluded.card
         ), removed_card AS (
             DELETE FROM agent_registry_card WHERE agent_id = ANY ($34)
         ), event AS (
             INSERT INTO agent_registry_event (revision, mark, kind, agent_id, agent, at)
             SELECT *, now() FROM unnest($21::int8[], $22::int8[], $23::text[], $24::text[], $25::json[])
         ), old_event AS (
             DELETE FROM agent_registry_event WHERE revision <= $26 - $28
         ), head AS (
             UPDATE agent_registry_state SET revision = $26, mark = $27 WHERE singleton
         )
         SELECT pg_notify($29, $30)",
    ))
    .bind(column(&upserts, |agent| agent.agent_id.as_str()))
    .bind(column(&upserts, |agent| agent.agent_name.as_str()))
    .bind(column(&upserts, |agent| agent.base_url.as_str()))
    .bind(column(&upserts, |agent| agent.status.as_str()))
    .bind(column(&upserts, |agent| Json(agent.capabilities.json())))
    // As text: `Json` would go through `jsonb`, which has no negative zero.
    .bind(column(&upserts, |agent| agent.metadata.json().get()))
    .bind(column(&upserts, |agent| date_time(agent.last_heartbeat)))
    .bind(column(&upserts, |agent| agent.heartbeat_interval.map(|interval| interval.as_secs_f64())))
    .bind(column(&upserts, |agent| agent.instance_id.as_deref()))
    .bind(column(&upserts, |agent| date_time(agent.registered_at)))
    .bind(column(&upserts, |agent| agent.missed_deadline))
    .bind(column(&upserts, |agent| agent.offline_since.map(date_time)))
    .bind(column(&upserts, |agent| agent.probe_failed))
    .bind(column(&upserts, |agent| agent.revision))
    .bind(column(&upserts, |agent| Json(&agent.instances)))
    .bind(column(&upserts, |agent| agent.health_path.as_deref()))
    .bind(column(&upserts, |agent| agent.probe.as_ref().map(ProbeMode::as_str)))
    .bind(column(&upserts, |agent| agent.maintenance.as_ref().map(Json)))
    .bind(column(&upserts, |agent| agent.changed_by.as_deref()))
    .bind(writes.deletes())
    .bind(&revisions)
    .bind(&marks)
    .bind(kinds)
    .bind(agent_ids)
    .bind(agents)
    .bind(revisions.last())
    .bind(marks.last())
    .bind(RETAINED_REVISIONS)
    .bind(CHANGE_CHANNEL)
    .bind(process_id)
    .bind(agents_with_cards)
    .bind(cards)
    .bind(column(&upserts, |agent| agent.card_digest.as_deref()))
    .bind(writes.agents_without_cards())
    .execute(connection)
    .await?;
    Ok(())
}
