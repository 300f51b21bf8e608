//! Last heartbeats, in a table of their own.

use registry_sdk::contract::Timestamp;
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use crate::store::{HeartbeatWrite, StoredAgent, WrittenHeartbeats};

/// Writes plain heartbeats: see [`crate::store::Session::write_heartbeats`].
pub(super) async fn write_heartbeats(
    connection: &mut SqliteConnection,
    heartbeats: &[HeartbeatWrite],
    now: Timestamp,
) -> sqlx::Result<WrittenHeartbeats> {
    let heard_at = |heartbeat: &HeartbeatWrite| {
        let age = i64::try_from(heartbeat.age.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_unix_millis(now.unix_millis().saturating_sub(age))
    };
    let row = |heartbeat| {
        let HeartbeatWrite { agent, .. }: &HeartbeatWrite = heartbeat;
        (agent.agent_id.as_str(), agent.revision, heard_at(heartbeat).unix_millis())
    };
    let rows: Vec<_> = heartbeats.iter().map(row).collect();
    let batch = serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    // `min` caps a time that lies in the future, from before the host's clock was set back.
    let written = sqlx::query(
        "UPDATE agent_registry_last_heartbeat AS agent
         SET last_heartbeat = max(min(last_heartbeat, ?), heartbeat.at)
         FROM (
             SELECT value ->> 0 AS id, value ->> 1 AS revision, value ->> 2 AS at FROM json_each(?)
         ) AS heartbeat
         WHERE agent.agent_id = heartbeat.id AND agent.revision = heartbeat.revision",
    )
    .bind(now.unix_millis())
    .bind(&batch)
    .execute(&mut *connection)
    .await?;
    let mut times: Vec<_> = heartbeats.iter().map(|heartbeat| Some(heard_at(heartbeat))).collect();
    // Returned rows cost more than the update itself, so those without a row are looked for only if there are some.
    if written.rows_affected() < heartbeats.len() as u64 {
        let missing: Vec<i64> = sqlx::query_scalar(
            "SELECT heartbeat.key FROM json_each(?) AS heartbeat WHERE NOT EXISTS (
                 SELECT 1 FROM agent_registry_last_heartbeat AS agent
                 WHERE agent.agent_id = heartbeat.value ->> 0 AND agent.revision = heartbeat.value ->> 1
             )",
        )
        .bind(&batch)
        .fetch_all(connection)
        .await?;
        for index in missing {
            if let Some(time) = usize::try_from(index).ok().and_then(|index| times.get_mut(index)) {
                *time = None;
            }
        }
    }
    Ok(WrittenHeartbeats { now, times })
}

/// Stores the last heartbeats of agents, each for its revision.
pub(super) async fn store(
    connection: &mut SqliteConnection,
    agents: impl Iterator<Item = &StoredAgent>,
) -> sqlx::Result<()> {
    let heard =
        |agent: &StoredAgent| json!([agent.agent_id, agent.revision, agent.last_heartbeat.unix_millis()]);
    let rows: Vec<_> = agents.map(heard).collect();
    sqlx::query(
        "INSERT OR REPLACE INTO agent_registry_last_heartbeat (agent_id, revision, last_heartbeat)
         SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)",
    )
    .bind(serde_json::Value::from(rows).to_string())
    .execute(connection)
    .await?;
    Ok(())
}
