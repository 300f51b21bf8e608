//! The PostgreSQL store, for production, and for several servers over one database.

mod heartbeats;
mod rows;
mod write;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use registry_sdk::contract::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Connection, PgPool, Row};
use tokio::sync::{Mutex, Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    Decide, Event, EventBatch, HeartbeatWrite, LastHeartbeats, LockedState, MAX_EVENT_BATCH, Result,
    Snapshot, Store, StoreError, select_agents,
};
use crate::server::StartError;
use heartbeats::HeartbeatConnection;
use rows::{decode_agent, timestamp};
use write::write;

/// Notification channel for "something has changed".
const CHANNEL: &str = "agent_registry";

/// Notification channel for broadcasts, which are not stored.
const BROADCAST_CHANNEL: &str = "agent_registry_news";

/// Number of received broadcasts that are buffered before the oldest is lost.
const BROADCAST_CAPACITY: usize = 1_024;

/// Number of connections besides the one for heartbeats. One of them listens.
const POOL_SIZE: u32 = 4;

/// Timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout of a database operation, retries included. Then the database counts as unavailable.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for polling events: shorter, since polling detects that the database is unavailable.
const POLL_TIMEOUT: Duration = Duration::from_millis(1_250);

/// Timeout for loading all agents, at start or after falling far behind.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay before a lost listening connection is reopened.
const LISTEN_RETRY_DELAY: Duration = Duration::from_millis(500);

pub(crate) struct PostgresStore {
    pool: PgPool,
    heartbeats: HeartbeatConnection,
    /// Marks this process's own notifications, so that it can ignore them.
    process_id: String,
    changed: Arc<Notify>,
    broadcasts: broadcast::Sender<String>,
}

impl PostgresStore {
    /// Connects, migrates the database, and starts to listen for other replicas until `shutdown`.
    ///
    /// Replicas that start together migrate one after another.
    pub(crate) async fn open(
        url: &str,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> std::result::Result<Self, StartError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(StartError::database(url))?
            .application_name("registry-server")
            .options([
                // A server that was suspended inside a transaction must not block the others.
                ("idle_in_transaction_session_timeout", "5s"),
                ("statement_timeout", "60s"),
                // Every statement finds its rows by a key, whatever the size of batch and table. A custom
                // plan per batch, or one made while the table was still empty, costs many times more.
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("jit", "off"),
            ]);
        // The pool reports only that it timed out. A single connection reports the cause.
        let connection = tokio::time::timeout(OPERATION_TIMEOUT, PgConnection::connect_with(&options)).await;
        let connection = connection
            .unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut))
            .map_err(StartError::database(url))?;
        connection.close().await.map_err(StartError::database(url))?;
        let pool = PgPoolOptions::new()
            .max_connections(POOL_SIZE)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await
            .map_err(StartError::database(url))?;
        let mut migrations = sqlx::migrate!("../migrations/postgres");
        // A replica of a later version may have migrated further. The schema stays compatible with this one.
        migrations.set_ignore_missing(true);
        migrations.run(&pool).await.map_err(StartError::migrations(url))?;
        let heartbeats = HeartbeatConnection::open(options).await.map_err(StartError::database(url))?;

        let changed = Arc::new(Notify::new());
        let broadcasts = broadcast::Sender::new(BROADCAST_CAPACITY);
        let process_id = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let listener = listen(pool.clone(), process_id.clone(), changed.clone(), broadcasts.clone());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(listener));
        Ok(Self { pool, heartbeats, process_id, changed, broadcasts })
    }

    async fn transact_once(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        let state =
            sqlx::query("SELECT revision, now() FROM agent_registry_state WHERE singleton FOR UPDATE")
                .fetch_one(&mut *transaction)
                .await?;
        let (revision, now) = (state.try_get(0)?, timestamp(&state, 1)?);
        let rows = sqlx::query(select_agents!("WHERE agent_id = ANY ($1) ORDER BY agent_id FOR UPDATE"))
            .bind(agent_ids)
            .fetch_all(&mut *transaction)
            .await?;
        let mut agents = HashMap::with_capacity(rows.len());
        for row in &rows {
            // An undecodable row counts as missing, so the agent can register again.
            agents.extend(decode_agent(row)?.map(|agent| (agent.agent_id.clone(), agent)));
        }
        let writes = decide(LockedState { agents, revision, now });
        if writes.is_empty() {
            return Ok(transaction.rollback().await?);
        }
        write(&mut transaction, &writes, &self.process_id).await?;
        Ok(transaction.commit().await?)
    }
}

/// Forwards the notifications of other replicas, and reconnects when the connection is lost. Never returns.
async fn listen(
    pool: PgPool,
    process_id: String,
    changed: Arc<Notify>,
    broadcasts: broadcast::Sender<String>,
) {
    loop {
        let session = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen_all([CHANNEL, BROADCAST_CHANNEL]).await?;
            // Notifications may have been missed while nobody listened.
            changed.notify_one();
            loop {
                match listener.try_recv().await? {
                    Some(notification) if notification.channel() == BROADCAST_CHANNEL => {
                        // Fails if nobody has subscribed, which is fine.
                        let _ = broadcasts.send(notification.payload().to_owned());
                    }
                    Some(notification) if notification.payload() == process_id => {}
                    // `None`: the connection was lost and reopened.
                    Some(_) | None => changed.notify_one(),
                }
            }
        };
        let outcome: std::result::Result<std::convert::Infallible, sqlx::Error> = session.await;
        let Err(error) = outcome;
        tracing::warn!(error = %error, "lost the connection that listens for changes of other servers, reconnecting");
        tokio::time::sleep(LISTEN_RETRY_DELAY).await;
    }
}

/// Runs an operation with a timeout, and retries it at once on another connection after a transient error.
///
/// After a restart of the database, each connection of the pool may be dead, so there are as many retries.
async fn retry_within<T, F>(limit: Duration, operation: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let attempts = async {
        for _ in 0..POOL_SIZE {
            match operation().await {
                Err(error) if is_transient(&error) => {
                    tracing::debug!(%error, "connection failed, retrying on another one");
                }
                outcome => return outcome,
            }
        }
        operation().await
    };
    tokio::time::timeout(limit, attempts).await.unwrap_or_else(|_| Err(StoreError::timed_out(limit)))
}

/// Whether the operation may succeed at once on another connection.
///
/// The connection may have been closed by a restart of the database, or the transaction lost a deadlock.
fn is_transient(error: &StoreError) -> bool {
    let StoreError::Unavailable(source) = error else {
        return false;
    };
    match source.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
        Some(sqlx::Error::Database(database)) => {
            matches!(
                database.code().as_deref(),
                Some("57P01" | "57P02" | "25P03" | "40001" | "40P01" | "55P03")
            )
        }
        _ => false,
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn load(&self) -> Result<Snapshot> {
        retry_within(LOAD_TIMEOUT, || async {
            let mut transaction =
                self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            // Unlike all other statements, this one reads the whole table.
            sqlx::query("SET LOCAL enable_seqscan = on").execute(&mut *transaction).await?;
            let state = sqlx::query("SELECT revision, now() FROM agent_registry_state WHERE singleton")
                .fetch_one(&mut *transaction)
                .await?;
            let mut rows = sqlx::query(select_agents!("ORDER BY agent_id")).fetch(&mut *transaction);
            let mut agents = Vec::new();
            while let Some(row) = rows.try_next().await? {
                agents.extend(decode_agent(&row)?);
            }
            Ok(Snapshot { agents, revision: state.try_get(0)?, now: timestamp(&state, 1)? })
        })
        .await
    }

    async fn write_heartbeats(&self, heartbeats: &[HeartbeatWrite]) -> Result<Vec<Option<Timestamp>>> {
        retry_within(OPERATION_TIMEOUT, || async { Ok(self.heartbeats.write_heartbeats(heartbeats).await?) })
            .await
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        // Never contended: it lends `decide` to one attempt after another.
        let decide = Mutex::new(decide);
        retry_within(OPERATION_TIMEOUT, || async {
            self.transact_once(agent_ids, &mut **decide.lock().await).await
        })
        .await
    }

    async fn last_heartbeats(&self, agent_ids: &[String]) -> Result<LastHeartbeats> {
        retry_within(OPERATION_TIMEOUT, || async {
            let rows = sqlx::query(
                "SELECT now(), agent.agent_id, agent.last_heartbeat
                 FROM (VALUES (1)) AS one LEFT JOIN agent_registry AS agent ON agent.agent_id = ANY ($1)",
            )
            .bind(agent_ids)
            .fetch_all(&self.pool)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut heartbeats =
                LastHeartbeats { now: timestamp(first, 0)?, times: Vec::with_capacity(rows.len()) };
            for row in &rows {
                if let Some(agent_id) = row.try_get(1)? {
                    heartbeats.times.push((agent_id, timestamp(row, 2)?));
                }
            }
            Ok(heartbeats)
        })
        .await
    }

    async fn read_events(&self, after: i64) -> Result<EventBatch> {
        retry_within(POLL_TIMEOUT, || async {
            let rows = sqlx::query(
                // The subquery limits the events before the join. Otherwise the database would sort all later
                // events.
                "SELECT state.revision, now(), event.kind, event.agent
                 FROM agent_registry_state AS state LEFT JOIN (
                     SELECT revision, kind, agent::text FROM agent_registry_event
                     WHERE revision > $1 ORDER BY revision LIMIT $2
                 ) AS event ON true
                 WHERE state.singleton ORDER BY event.revision",
            )
            .bind(after)
            .bind(MAX_EVENT_BATCH)
            .fetch_all(&self.pool)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut batch =
                EventBatch { revision: first.try_get(0)?, now: timestamp(first, 1)?, events: Vec::new() };
            for row in &rows {
                let (kind, agent): (Option<&str>, Option<&str>) = (row.try_get(2)?, row.try_get(3)?);
                let event = kind.zip(agent).and_then(|(kind, agent)| Event::from_json(kind, agent));
                let Some(event) = event else { break };
                batch.events.push(event);
            }
            Ok(batch)
        })
        .await
    }

    async fn check_writable(&self) -> Result<()> {
        retry_within(OPERATION_TIMEOUT, || async {
            sqlx::query("UPDATE agent_registry_state SET revision = revision WHERE singleton")
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    async fn prune_events(&self, keep: i64) -> Result<()> {
        retry_within(OPERATION_TIMEOUT, || async {
            sqlx::query(
                "DELETE FROM agent_registry_event
                 WHERE revision <= (SELECT revision FROM agent_registry_state WHERE singleton) - $1",
            )
            .bind(keep)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    fn change_notify(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    async fn broadcast(&self, messages: &[String]) -> Result<()> {
        retry_within(OPERATION_TIMEOUT, || async {
            sqlx::query("SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message")
                .bind(BROADCAST_CHANNEL)
                .bind(messages)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    fn subscribe(&self) -> broadcast::Receiver<String> {
        self.broadcasts.subscribe()
    }

    async fn acquire_lease(&self, name: &str, holder: &str, duration: Duration) -> Result<bool> {
        retry_within(OPERATION_TIMEOUT, || async {
            let outcome = sqlx::query(
                "INSERT INTO agent_registry_lease AS lease (name, holder, until)
                 VALUES ($1, $2, now() + make_interval(secs => $3))
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
                 WHERE lease.holder = excluded.holder OR lease.until < now()",
            )
            .bind(name)
            .bind(holder)
            .bind(duration.as_secs_f64())
            .execute(&self.pool)
            .await?;
            Ok(outcome.rows_affected() == 1)
        })
        .await
    }

    async fn close(&self) {
        self.heartbeats.close().await;
        self.pool.close().await;
    }
}
