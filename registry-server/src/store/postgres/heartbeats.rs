//! Writes plain heartbeats, on a connection of their own.

use std::time::Instant;

use chrono::{DateTime, Utc};
use registry_sdk::contract::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::Mutex;

use super::CONNECT_TIMEOUT;
use crate::store::HeartbeatWrite;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// The connection for heartbeats, whose commits do not wait for the disk.
///
/// It is not pooled: a pool pings the connection after each batch, which takes as long as the batch itself.
pub(super) struct HeartbeatConnection {
    options: PgConnectOptions,
    /// `None` while the connection is in use, and after it was lost.
    connection: Mutex<Option<PgConnection>>,
}

impl HeartbeatConnection {
    pub(super) async fn open(options: PgConnectOptions) -> Result<Self> {
        let options = options.options([
            ("synchronous_commit", "off"),
            // Shorter than `deadlock_timeout`, so that heartbeats give way before a change has to.
            ("lock_timeout", "250ms"),
        ]);
        let connection = Mutex::new(Some(connect(&options).await?));
        Ok(Self { options, connection })
    }

    /// Writes a batch: see [`crate::store::Store::write_heartbeats`].
    ///
    /// # Cancel safety
    /// Cancel safe: the connection is dropped, and the next call opens a new one.
    pub(super) async fn write_heartbeats(
        &self,
        heartbeats: &[HeartbeatWrite],
    ) -> Result<Vec<Option<Timestamp>>> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => connect(&self.options).await?,
        };
        match write_heartbeats(&mut connection, heartbeats).await {
            // `None` makes the caller write them as changes.
            Err(error) if is_lock_conflict(&error) => {
                *slot = Some(connection);
                Ok(vec![None; heartbeats.len()])
            }
            outcome => {
                *slot = outcome.is_ok().then_some(connection);
                outcome
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            // If that fails, the database notices the closed socket.
            let _ = connection.close().await;
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options));
    connection.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn write_heartbeats(
    connection: &mut PgConnection,
    heartbeats: &[HeartbeatWrite],
) -> Result<Vec<Option<Timestamp>>> {
    let agent_ids: Vec<&str> = heartbeats.iter().map(|heartbeat| heartbeat.agent.agent_id.as_str()).collect();
    let revisions: Vec<i64> = heartbeats.iter().map(|heartbeat| heartbeat.agent.revision).collect();
    let now = Instant::now();
    let age_millis =
        |heartbeat: &HeartbeatWrite| i32::try_from(now.duration_since(heartbeat.arrived).as_millis());
    let ages: Vec<i32> =
        heartbeats.iter().map(|heartbeat| age_millis(heartbeat).unwrap_or(i32::MAX)).collect();
    // `least` caps a time that lies in the future, from before the database's clock was set back. The result
    // is aggregated into one row, since each row costs both sides.
    let row = sqlx::query(
        "WITH updated AS (
             UPDATE agent_registry AS agent
             SET last_heartbeat = greatest(least(agent.last_heartbeat, now()),
                 (SELECT date_trunc('milliseconds', now())) - heartbeat.age * interval '1 millisecond')
             FROM unnest($1::text[], $2::int8[], $3::int4[]) WITH ORDINALITY AS heartbeat (id, revision, age, n)
             WHERE agent.agent_id = heartbeat.id AND agent.revision = heartbeat.revision
             RETURNING heartbeat.n, agent.last_heartbeat
         )
         SELECT array_agg(n), array_agg(last_heartbeat) FROM updated",
    )
    .bind(&agent_ids)
    .bind(&revisions)
    .bind(&ages)
    .fetch_one(connection)
    .await?;
    let positions: Option<Vec<i64>> = row.try_get(0)?;
    let times: Option<Vec<DateTime<Utc>>> = row.try_get(1)?;
    let mut written = vec![None; heartbeats.len()];
    for (position, time) in positions.into_iter().flatten().zip(times.into_iter().flatten()) {
        // Ordinality counts from one.
        let slot = usize::try_from(position - 1).ok().and_then(|slot| written.get_mut(slot));
        if let Some(slot) = slot {
            *slot = Some(Timestamp::from_unix_millis(time.timestamp_millis()));
        }
    }
    Ok(written)
}

/// Whether the heartbeats hit a lock timeout or a deadlock with a change of the same agents.
fn is_lock_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}
