//! Heartbeats that change nothing else, on a connection of their own.

use std::time::Instant;

use chrono::{DateTime, Utc};
use registry_sdk::contract::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::Mutex;

use super::CONNECT_TIMEOUT;
use crate::store::Touch;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// The connection of the heartbeats, which need not wait for the disk. A pool would ask it after each batch whether it is
/// still there, which takes as long again as the batch.
pub(super) struct Beats {
    options: PgConnectOptions,
    /// `None` where it was lost, and while it is in use.
    connection: Mutex<Option<PgConnection>>,
}

impl Beats {
    pub(super) async fn open(options: PgConnectOptions) -> Result<Self> {
        let options = options.options([
            ("synchronous_commit", "off"),
            // Below `deadlock_timeout`, and so heartbeats give way before a change could.
            ("lock_timeout", "250ms"),
        ]);
        let connection = Mutex::new(Some(connect(&options).await?));
        Ok(Self { options, connection })
    }

    /// Writes a batch: see [`crate::store::Store::touch`]. May be cancelled at any await: the connection is then made anew.
    pub(super) async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
        let mut place = self.connection.lock().await;
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => connect(&self.options).await?,
        };
        match touch(&mut connection, touches).await {
            // Written one after another by the changes, then.
            Err(error) if gave_way(&error) => {
                *place = Some(connection);
                Ok(vec![None; touches.len()])
            }
            outcome => {
                *place = outcome.is_ok().then_some(connection);
                outcome
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            // The database closes what it hears no more of.
            let _ = connection.close().await;
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options));
    connecting.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn touch(connection: &mut PgConnection, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
    let agent_ids: Vec<&str> = touches.iter().map(|touch| touch.agent.agent_id.as_str()).collect();
    let revisions: Vec<i64> = touches.iter().map(|touch| touch.agent.revision).collect();
    let sent = Instant::now();
    let age = |touch: &Touch| i32::try_from(sent.duration_since(touch.arrived).as_millis());
    let ages: Vec<i32> = touches.iter().map(|touch| age(touch).unwrap_or(i32::MAX)).collect();
    // `least`: a time in the future, from before somebody set the database's clock back, ends here.
    // One row for all, since each costs both sides.
    let row = sqlx::query(
        "WITH updated AS (
             UPDATE agent_registry AS agent
             SET last_heartbeat = greatest(least(agent.last_heartbeat, now()),
                 (SELECT date_trunc('milliseconds', now())) - beat.age * interval '1 millisecond')
             FROM unnest($1::text[], $2::int8[], $3::int4[]) WITH ORDINALITY AS beat (id, revision, age, n)
             WHERE agent.agent_id = beat.id AND agent.revision = beat.revision
             RETURNING beat.n, agent.last_heartbeat
         )
         SELECT array_agg(n), array_agg(last_heartbeat) FROM updated",
    )
    .bind(&agent_ids)
    .bind(&revisions)
    .bind(&ages)
    .fetch_one(connection)
    .await?;
    let numbers: Option<Vec<i64>> = row.try_get(0)?;
    let times: Option<Vec<DateTime<Utc>>> = row.try_get(1)?;
    let mut heard = vec![None; touches.len()];
    for (number, time) in numbers.into_iter().flatten().zip(times.into_iter().flatten()) {
        // They count from one.
        let place = usize::try_from(number - 1).ok().and_then(|place| heard.get_mut(place));
        if let Some(place) = place {
            *place = Some(Timestamp::from_unix_millis(time.timestamp_millis()));
        }
    }
    Ok(heard)
}

/// Whether heartbeats gave way to a change of the same agents.
fn gave_way(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}
