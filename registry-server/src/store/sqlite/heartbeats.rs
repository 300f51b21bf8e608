//! Last heartbeats: a log, which is moved in bulk to a table.
//!
//! Updating a row per agent would dirty a page for each agent of a batch. Appending to the log dirties one
//! page, and when the log is moved, each page of the table receives many heartbeats (measured in
//! `benches/README.md`).

use std::collections::{BTreeMap, HashSet};

use registry_sdk::contract::Timestamp;
use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::writer::Writer;
use crate::store::agent::StoredAgent;
use crate::store::rows::undecodable;
use crate::store::session::{HeartbeatWrite, WrittenHeartbeats};

/// Number of logged heartbeats after which they are moved to the table.
///
/// Large enough that each page receives many, small enough that moving them takes a few milliseconds.
const MAX_LOGGED: usize = 2_048;

/// Writes plain heartbeats: see [`crate::store::session::Session::write_heartbeats`].
pub(super) async fn write_heartbeats(
    writer: &mut Writer,
    heartbeats: &[HeartbeatWrite],
    now: Timestamp,
) -> sqlx::Result<WrittenHeartbeats> {
    let heard_at = |heartbeat: &HeartbeatWrite| now.saturating_sub(heartbeat.age);
    let entry = |heartbeat| {
        let HeartbeatWrite { agent, .. }: &HeartbeatWrite = heartbeat;
        (&*agent.agent_id, heard_at(heartbeat).unix_millis())
    };
    let revisions = heartbeats.iter().map(|HeartbeatWrite { agent, .. }| (&*agent.agent_id, agent.revision));
    writer.logged += heartbeats.len();
    // One statement, since each costs two thread switches. Fetch all rows, since reading the last one commits
    // it.
    let inserted = sqlx::query(
        "INSERT INTO agent_registry_heartbeat (heard) VALUES (?) RETURNING batch, (
             SELECT json_group_array(known.key) FROM json_each(?) AS known WHERE NOT EXISTS (
                 SELECT 1 FROM agent_registry_last_heartbeat AS agent
                 WHERE agent.agent_id = known.key AND agent.revision = known.value
             )
         )",
    )
    .bind(encode(heartbeats.iter().map(entry))?)
    .bind(encode(revisions)?)
    .fetch_all(&mut writer.connection)
    .await?;
    let inserted = inserted.first().ok_or(sqlx::Error::RowNotFound)?;
    let missing: HashSet<String> =
        serde_json::from_str(inserted.try_get(1)?).map_err(|error| undecodable("missing", error))?;
    let is_present = |heartbeat: &&HeartbeatWrite| !missing.contains(&heartbeat.agent.agent_id);
    if !missing.is_empty() {
        sqlx::query("UPDATE agent_registry_heartbeat SET heard = ? WHERE batch = ?")
            .bind(encode(heartbeats.iter().filter(is_present).map(entry))?)
            .bind(inserted.try_get::<i64, _>(0)?)
            .execute(&mut writer.connection)
            .await?;
    }
    if writer.logged > MAX_LOGGED {
        move_logged(&mut writer.connection, now).await?;
        writer.logged = 0;
    }
    let time = |heartbeat: &HeartbeatWrite| is_present(&heartbeat).then(|| heard_at(heartbeat));
    Ok(WrittenHeartbeats { now, times: heartbeats.iter().map(time).collect() })
}

/// Moves the log to the table. If interrupted, it may move entries twice, which does no harm.
pub(super) async fn move_logged(connection: &mut SqliteConnection, now: Timestamp) -> sqlx::Result<()> {
    // Entries that are no times, written by another program, are skipped.
    //
    // `min` caps a time in the future, which was stored before the host's clock was set back. For the same
    // reason, the latest entry counts rather than the greatest time.
    sqlx::query(
        "UPDATE agent_registry_last_heartbeat AS agent
         SET last_heartbeat = max(min(last_heartbeat, ?), latest.at)
         FROM (
             SELECT key AS agent_id, value AS at, max(batch)
             FROM agent_registry_heartbeat, json_each(iif(json_valid(heard), heard, '{}'))
             WHERE type = 'integer' GROUP BY key
         ) AS latest
         WHERE agent.agent_id = latest.agent_id",
    )
    .bind(now.unix_millis())
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM agent_registry_heartbeat").execute(connection).await?;
    Ok(())
}

/// Encodes a JSON object from agent ids to numbers, which SQLite reads faster than nested values.
fn encode<'a>(entries: impl Iterator<Item = (&'a str, i64)>) -> sqlx::Result<String> {
    let object: BTreeMap<&str, i64> = entries.collect();
    serde_json::to_string(&object).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Stores the last heartbeats of agents, each with the revision of its agent.
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
