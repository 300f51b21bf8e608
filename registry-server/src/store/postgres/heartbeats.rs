//! Heartbeats in the table of agents.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use registry_sdk::contract::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::log::head;
use super::rows::{date_time, timestamp};
use crate::store::agent::StoredAgent;
use crate::store::session::{HeartbeatWrite, LastHeartbeats, WrittenHeartbeats};

/// The last heartbeat to write to the row `agent`, given the time of a heartbeat: the later one of both.
///
/// A time in the future, which was stored before the database's clock was set back, counts as now.
macro_rules! later_heartbeat {
    ($time:literal) => {
        concat!("greatest(least(agent.last_heartbeat, now()), ", $time, ")")
    };
}
pub(super) use later_heartbeat;

/// Writes heartbeats, except for agents whose rows are locked or have another revision.
pub(super) async fn write(
    connection: &mut PgConnection,
    heartbeats: &[HeartbeatWrite],
) -> sqlx::Result<WrittenHeartbeats> {
    let agent_ids: Vec<&str> = heartbeats.iter().map(|heartbeat| heartbeat.agent.agent_id.as_str()).collect();
    let revisions: Vec<i64> = heartbeats.iter().map(|heartbeat| heartbeat.agent.revision).collect();
    let age_millis =
        |heartbeat: &HeartbeatWrite| i64::try_from(heartbeat.age.as_millis()).unwrap_or(i64::MAX);
    let ages: Vec<i64> = heartbeats.iter().map(age_millis).collect();
    // The result is aggregated into a single row, since each row costs both sides.
    let row = sqlx::query(concat!(
        "WITH locked AS (
             SELECT agent.agent_id, heartbeat.n, heartbeat.age
             FROM unnest($1::text[], $2::int8[], $3::int8[]) WITH ORDINALITY AS heartbeat (id, revision, age, n)
                 JOIN agent_registry AS agent
                     ON agent.agent_id = heartbeat.id AND agent.revision = heartbeat.revision
             FOR NO KEY UPDATE OF agent SKIP LOCKED
         ), updated AS (
             UPDATE agent_registry AS agent SET last_heartbeat = ",
        later_heartbeat!(
            "(SELECT date_trunc('milliseconds', now())) - locked.age * interval '1 millisecond'"
        ),
        " FROM locked WHERE agent.agent_id = locked.agent_id
             RETURNING locked.n, agent.last_heartbeat
         )
         SELECT now(), array_agg(n), array_agg(last_heartbeat) FROM updated",
    ))
    .bind(&agent_ids)
    .bind(&revisions)
    .bind(&ages)
    .fetch_one(connection)
    .await?;
    let positions: Option<Vec<i64>> = row.try_get(1)?;
    let times: Option<Vec<DateTime<Utc>>> = row.try_get(2)?;
    let mut written = WrittenHeartbeats { now: timestamp(&row, 0)?, times: vec![None; heartbeats.len()] };
    for (position, time) in positions.into_iter().flatten().zip(times.into_iter().flatten()) {
        // Ordinality counts from one.
        let slot = usize::try_from(position - 1).ok().and_then(|slot| written.times.get_mut(slot));
        if let Some(slot) = slot {
            *slot = Some(Timestamp::from_unix_millis(time.timestamp_millis()));
        }
    }
    Ok(written)
}

/// Writes the last heartbeats of agents whose rows are locked by the open transaction.
pub(super) async fn store<'a>(
    connection: &mut PgConnection,
    agents: &'a [Arc<StoredAgent>],
) -> sqlx::Result<()> {
    let heartbeat = |agent: &'a Arc<StoredAgent>| (agent.agent_id.as_str(), date_time(agent.last_heartbeat));
    let (agent_ids, times): (Vec<&str>, Vec<_>) = agents.iter().map(heartbeat).unzip();
    sqlx::query(concat!(
        "UPDATE agent_registry AS agent SET last_heartbeat = ",
        later_heartbeat!("heartbeat.at"),
        " FROM unnest($1::text[], $2::timestamptz[]) AS heartbeat (id, at) WHERE agent.agent_id = heartbeat.id",
    ))
    .bind(agent_ids)
    .bind(times)
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads the last heartbeats of agents.
pub(super) async fn read_last(
    connection: &mut PgConnection,
    agent_ids: &[String],
) -> sqlx::Result<LastHeartbeats> {
    let rows = sqlx::query(
        "SELECT state.revision, coalesce(last.mark, state.mark), now(), state.heartbeat_timeout_seconds,
             agent.agent_id, agent.last_heartbeat
         FROM agent_registry_state AS state
             LEFT JOIN agent_registry_event AS last ON last.revision = state.revision
             LEFT JOIN agent_registry AS agent ON agent.agent_id = ANY ($1)
         WHERE state.singleton",
    )
    .bind(agent_ids)
    .fetch_all(connection)
    .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mut heartbeats = LastHeartbeats { head: head(first)?, times: Vec::with_capacity(rows.len()) };
    for row in &rows {
        // A time that cannot be read confirms nothing.
        if let (Some(agent_id), Ok(time)) = (row.try_get(4)?, timestamp(row, 5)) {
            heartbeats.times.push((agent_id, time));
        }
    }
    Ok(heartbeats)
}
