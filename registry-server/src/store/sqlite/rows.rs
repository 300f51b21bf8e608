//! Reads and writes rows.
//!
//! Agents and events are written from a JSON array, which is materialized first: otherwise SQLite encodes the
//! whole element again for each column (244 µs of CPU time for a changed registration, instead of 214).

use std::collections::HashMap;

use registry_sdk::contract::{AgentStatus, Maintenance, ProbeMode, Timestamp};
use registry_sdk::internal::Instances;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::heartbeats;
use crate::store::agent::StoredAgent;
use crate::store::log::{Event, RETAINED_REVISIONS};
use crate::store::rows::{
    AgentRow, agent_row, changed_by, interval_from_seconds, select_agents, undecodable,
};
use crate::store::writes::Writes;

pub(super) async fn agents_by_id(
    connection: &mut SqliteConnection,
    agent_ids: &[String],
) -> sqlx::Result<HashMap<String, AgentRow>> {
    let rows = sqlx::query(select_agents!(
        "coalesce(heard.last_heartbeat, agent.last_heartbeat)",
        "LEFT JOIN agent_registry_last_heartbeat AS heard USING (agent_id)
         WHERE agent_id IN (SELECT value FROM json_each(?))"
    ))
    .bind(json!(agent_ids).to_string())
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("agent_id")?, decode_row(row)?))).collect()
}

pub(super) async fn write(
    connection: &mut SqliteConnection,
    writes: &Writes,
    now: Timestamp,
) -> sqlx::Result<()> {
    if writes.upserts().next().is_some() {
        upsert(connection, writes.upserts()).await?;
    }
    let heard = writes.heartbeats.iter().map(|agent| &**agent).chain(writes.upserts());
    heartbeats::store(connection, heard).await?;
    let deletes = writes.deletes();
    if !deletes.is_empty() {
        sqlx::query("DELETE FROM agent_registry WHERE agent_id IN (SELECT value FROM json_each(?))")
            .bind(json!(deletes).to_string())
            .execute(&mut *connection)
            .await?;
    }
    write_cards(connection, writes).await?;
    append_events(connection, &writes.events, now).await
}

async fn write_cards(connection: &mut SqliteConnection, writes: &Writes) -> sqlx::Result<()> {
    let removed = writes.agents_without_cards();
    if !removed.is_empty() {
        sqlx::query("DELETE FROM agent_registry_card WHERE agent_id IN (SELECT value FROM json_each(?))")
            .bind(json!(removed).to_string())
            .execute(&mut *connection)
            .await?;
    }
    let new = writes.new_cards().collect::<Vec<_>>();
    if !new.is_empty() {
        sqlx::query(
            "INSERT INTO agent_registry_card (agent_id, card)
             SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
             ON CONFLICT (agent_id) DO UPDATE SET card = excluded.card",
        )
        .bind(json!(new).to_string())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Appends events to the log and drops old ones. Without events, it updates the state row without changing
/// it.
async fn append_events(
    connection: &mut SqliteConnection,
    events: &[Event],
    now: Timestamp,
) -> sqlx::Result<()> {
    let Some(last) = events.last() else {
        sqlx::query("UPDATE agent_registry_state SET revision = revision").execute(connection).await?;
        return Ok(());
    };
    let event = |event: &Event| {
        let Event { kind, mark, agent } = event;
        Ok(json!([agent.revision, mark, kind.as_str(), agent.agent_id, event.agent_json()?]))
    };
    let events = events.iter().map(event).collect::<sqlx::Result<Vec<_>>>()?;
    sqlx::query(
        "WITH event AS MATERIALIZED (SELECT value FROM json_each(?))
         INSERT INTO agent_registry_event (revision, mark, kind, agent_id, agent, at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ? FROM event",
    )
    .bind(json!(events).to_string())
    .bind(now.unix_millis())
    .execute(&mut *connection)
    .await?;
    let revision = last.agent.revision;
    sqlx::query("DELETE FROM agent_registry_event WHERE revision <= ?")
        .bind(revision - RETAINED_REVISIONS)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE agent_registry_state SET revision = ?, mark = ?")
        .bind(revision)
        .bind(last.mark)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// The columns of an agent's row.
#[derive(Serialize)]
struct NewRow<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    base_url: &'a str,
    health_path: Option<&'a str>,
    probe: Option<ProbeMode>,
    status: AgentStatus,
    capabilities: &'a RawValue,
    last_heartbeat: i64,
    metadata: &'a RawValue,
    heartbeat_interval_seconds: Option<f64>,
    instance_id: Option<&'a str>,
    instances: &'a Instances,
    registered_at: i64,
    missed_deadline: bool,
    offline_since: Option<i64>,
    probe_failed: bool,
    maintenance: Option<&'a Maintenance>,
    changed_by: Option<&'a str>,
    card_digest: Option<&'a str>,
    revision: i64,
}

impl<'a> NewRow<'a> {
    fn new(agent: &'a StoredAgent) -> Self {
        Self {
            agent_id: &agent.agent_id,
            agent_name: &agent.agent_name,
            base_url: &agent.base_url,
            health_path: agent.health_path.as_deref(),
            probe: agent.probe,
            status: agent.status,
            capabilities: agent.capabilities.json(),
            last_heartbeat: agent.last_heartbeat.unix_millis(),
            metadata: agent.metadata.json(),
            heartbeat_interval_seconds: agent.heartbeat_interval.map(|interval| interval.as_secs_f64()),
            instance_id: agent.instance_id.as_deref(),
            instances: &agent.instances,
            registered_at: agent.registered_at.unix_millis(),
            missed_deadline: agent.missed_deadline,
            offline_since: agent.offline_since.map(Timestamp::unix_millis),
            probe_failed: agent.probe_failed,
            maintenance: agent.maintenance.as_ref(),
            changed_by: agent.changed_by.as_deref(),
            card_digest: agent.card_digest.as_deref(),
            revision: agent.revision,
        }
    }
}

async fn upsert(
    connection: &mut SqliteConnection,
    agents: impl Iterator<Item = &StoredAgent>,
) -> sqlx::Result<()> {
    let rows = agents.map(NewRow::new).collect::<Vec<_>>();
    let rows = serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "WITH new AS MATERIALIZED (SELECT value FROM json_each(?))
         INSERT INTO agent_registry
             (agent_id, agent_name, base_url, health_path, probe, status, capabilities, last_heartbeat, metadata,
              heartbeat_interval_seconds, instance_id, instances, registered_at, missed_deadline, offline_since,
              probe_failed, maintenance, changed_by, changed_by_revision, revision, card_digest)
         SELECT value ->> 'agent_id', value ->> 'agent_name', value ->> 'base_url', value ->> 'health_path',
                value ->> 'probe', value ->> 'status',
                value -> 'capabilities', value ->> 'last_heartbeat', value -> 'metadata',
                value ->> 'heartbeat_interval_seconds', value ->> 'instance_id', value -> 'instances',
                value ->> 'registered_at', value ->> 'missed_deadline', value ->> 'offline_since', value ->> 'probe_failed',
                nullif(value -> 'maintenance', 'null'), value ->> 'changed_by', value ->> 'revision', value ->> 'revision',
                value ->> 'card_digest'
         FROM new WHERE true
         ON CONFLICT (agent_id) DO UPDATE SET
             agent_name = excluded.agent_name, base_url = excluded.base_url,
             health_path = excluded.health_path, probe = excluded.probe, status = excluded.status,
             capabilities = excluded.capabilities, metadata = excluded.metadata,
             last_heartbeat = excluded.last_heartbeat,
             heartbeat_interval_seconds = excluded.heartbeat_interval_seconds,
             registered_at = excluded.registered_at, instance_id = excluded.instance_id, instances = excluded.instances,
             missed_deadline = excluded.missed_deadline, offline_since = excluded.offline_since,
             probe_failed = excluded.probe_failed, maintenance = excluded.maintenance,
             changed_by = excluded.changed_by, changed_by_revision = excluded.changed_by_revision,
             revision = excluded.revision, card_digest = excluded.card_digest",
    )
    .bind(rows)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) fn decode_row(row: &SqliteRow) -> sqlx::Result<AgentRow> {
    agent_row(row.try_get("agent_id")?, agent_from_row(row))
}

fn agent_from_row(row: &SqliteRow) -> sqlx::Result<StoredAgent> {
    let json = |column: &'static str| row.try_get::<&str, _>(column);
    let status: &str = row.try_get("status")?;
    let maintenance: Option<&str> = row.try_get("maintenance")?;
    let revision = row.try_get("revision")?;
    Ok(StoredAgent {
        agent_id: row.try_get("agent_id")?,
        agent_name: row.try_get("agent_name")?,
        base_url: row.try_get("base_url")?,
        health_path: row.try_get("health_path")?,
        probe: row.try_get::<Option<&str>, _>("probe")?.map(ProbeMode::from),
        capabilities: serde_json::from_str(json("capabilities")?)
            .map_err(|error| undecodable("capabilities", error))?,
        metadata: serde_json::from_str(json("metadata")?).map_err(|error| undecodable("metadata", error))?,
        status: status.parse().map_err(|error| undecodable("status", error))?,
        missed_deadline: row.try_get("missed_deadline")?,
        offline_since: row.try_get::<Option<i64>, _>("offline_since")?.map(Timestamp::from_unix_millis),
        probe_failed: row.try_get("probe_failed")?,
        instance_id: row.try_get("instance_id")?,
        instances: serde_json::from_str(json("instances")?)
            .map_err(|error| undecodable("instances", error))?,
        maintenance: maintenance
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| undecodable("maintenance", error))?,
        changed_by: changed_by(row.try_get("changed_by")?, row.try_get("changed_by_revision")?, revision),
        card_digest: row.try_get("card_digest")?,
        heartbeat_interval: interval_from_seconds(row.try_get("heartbeat_interval_seconds")?),
        registered_at: Timestamp::from_unix_millis(row.try_get("registered_at")?),
        last_heartbeat: Timestamp::from_unix_millis(row.try_get("last_heartbeat")?),
        revision,
    })
}
