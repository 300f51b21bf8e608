//! PostgreSQL: for production, and for several servers over one database.

mod beats;
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
    Current, Decide, Event, FOLLOW_BATCH, Followed, Heard, Result, Snapshot, Store, StoreError, Touch,
    select_agents,
};
use crate::server::StartError;
use beats::Beats;
use rows::{readable, timestamp};
use write::write;

/// The channel on which replicas announce that something has changed.
const CHANNEL: &str = "agent_registry";

/// The channel on which they tell what is not stored.
const NEWS_CHANNEL: &str = "agent_registry_news";

/// How many pieces of news may wait to be read before the oldest is lost.
const NEWS_KEPT: usize = 1_024;

/// How many connections there are for everything but heartbeats; one of them listens.
const CONNECTIONS: u32 = 4;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long one database operation may take before the database counts as away.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for following, which soon tells when the database is away.
const FOLLOW_TIMEOUT: Duration = Duration::from_millis(1_250);

/// How long reading all agents may take: at start, and after falling far behind.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait before the listening connection is made anew.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

pub(crate) struct PostgresStore {
    pool: PgPool,
    beats: Beats,
    /// Tells this process's announcements apart: it knows already what they announce.
    process: String,
    changed: Arc<Notify>,
    news: broadcast::Sender<String>,
}

impl PostgresStore {
    /// Connects, and brings the tables up to date: replicas that start together take turns at that. Listens
    /// to the other replicas, as one of `tasks`, until `stop`.
    pub(crate) async fn open(
        url: &str,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> std::result::Result<Self, StartError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(StartError::database(url))?
            .application_name("registry-server")
            .options([
                // A server that was stopped inside a transaction must not hold up the others.
                ("idle_in_transaction_session_timeout", "5s"),
                ("statement_timeout", "60s"),
                // Every statement finds its rows by a key, for any batch and however many agents there are: with a plan
                // of its own for each batch, or by what the table was when it was still empty, it costs many times more.
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("jit", "off"),
            ]);
        // A pool would only say that it waited for a connection in vain, and not why there is none.
        let first = tokio::time::timeout(OPERATION_TIMEOUT, PgConnection::connect_with(&options)).await;
        let first =
            first.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut)).map_err(StartError::database(url))?;
        first.close().await.map_err(StartError::database(url))?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await
            .map_err(StartError::database(url))?;
        let mut migrations = sqlx::migrate!("../migrations/postgres");
        // A replica of a later version may have brought the tables further: what this one needs stays as it was.
        migrations.set_ignore_missing(true);
        migrations.run(&pool).await.map_err(StartError::migrations(url))?;
        let beats = Beats::open(options).await.map_err(StartError::database(url))?;

        let changed = Arc::new(Notify::new());
        let news = broadcast::Sender::new(NEWS_KEPT);
        let process = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let listening = listen(pool.clone(), process.clone(), changed.clone(), news.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(listening));
        Ok(Self { pool, beats, process, changed, news })
    }

    async fn transact_once(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        let head = sqlx::query("SELECT revision, now() FROM agent_registry_state WHERE singleton FOR UPDATE")
            .fetch_one(&mut *transaction)
            .await?;
        let (revision, now) = (head.try_get(0)?, timestamp(&head, 1)?);
        let rows = sqlx::query(select_agents!("WHERE agent_id = ANY ($1) ORDER BY agent_id FOR UPDATE"))
            .bind(agent_ids)
            .fetch_all(&mut *transaction)
            .await?;
        let mut agents = HashMap::with_capacity(rows.len());
        for row in &rows {
            // One that cannot be read is as good as none: it may be registered anew.
            agents.extend(readable(row)?.map(|agent| (agent.agent_id.clone(), agent)));
        }
        let writes = decide(Current { agents, revision, now });
        if writes.is_empty() {
            return Ok(transaction.rollback().await?);
        }
        write(&mut transaction, &writes, &self.process).await?;
        Ok(transaction.commit().await?)
    }
}

/// Passes on what other replicas announce, and makes a lost connection anew. Never ends by itself.
async fn listen(pool: PgPool, process: String, changed: Arc<Notify>, news: broadcast::Sender<String>) {
    loop {
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen_all([CHANNEL, NEWS_CHANNEL]).await?;
            // Something may have been announced while nobody listened.
            changed.notify_one();
            loop {
                match listener.try_recv().await? {
                    Some(told) if told.channel() == NEWS_CHANNEL => {
                        // Where nobody listens, nobody has to know.
                        let _ = news.send(told.payload().to_owned());
                    }
                    Some(told) if told.payload() == process => {}
                    // `None` is a connection that was lost and made anew.
                    Some(_) | None => changed.notify_one(),
                }
            }
        };
        let outcome: std::result::Result<std::convert::Infallible, sqlx::Error> = listening.await;
        let Err(error) = outcome;
        tracing::warn!(error = %error, "lost the connection on which other replicas announce changes");
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// Ends an operation that takes too long: an answer that never comes is no better than none. Repeats one whose
/// connection had been closed, each of those in the pool if it has to: the database was restarted, perhaps.
async fn within<T, F>(limit: Duration, operation: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let attempts = async {
        for _ in 0..CONNECTIONS {
            match operation().await {
                Err(error) if is_passing(&error) => tracing::debug!(%error, "trying another connection"),
                outcome => return outcome,
            }
        }
        operation().await
    };
    tokio::time::timeout(limit, attempts).await.unwrap_or_else(|_| Err(StoreError::timed_out(limit)))
}

/// Whether the same operation may succeed at once on another connection: this one was closed, by a restart
/// of the database for example, or lost to a deadlock.
fn is_passing(error: &StoreError) -> bool {
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
        within(LOAD_TIMEOUT, || async {
            let mut transaction =
                self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            // Here all rows are wanted.
            sqlx::query("SET LOCAL enable_seqscan = on").execute(&mut *transaction).await?;
            let head = sqlx::query("SELECT revision, now() FROM agent_registry_state WHERE singleton")
                .fetch_one(&mut *transaction)
                .await?;
            let mut rows = sqlx::query(select_agents!("ORDER BY agent_id")).fetch(&mut *transaction);
            let mut agents = Vec::new();
            while let Some(row) = rows.try_next().await? {
                agents.extend(readable(&row)?);
            }
            Ok(Snapshot { agents, revision: head.try_get(0)?, now: timestamp(&head, 1)? })
        })
        .await
    }

    async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
        within(OPERATION_TIMEOUT, || async { Ok(self.beats.touch(touches).await?) }).await
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        // Only ever locked by one attempt: it lends the decision to each in turn.
        let decide = Mutex::new(decide);
        within(OPERATION_TIMEOUT, || async {
            self.transact_once(agent_ids, &mut **decide.lock().await).await
        })
        .await
    }

    async fn heard(&self, agent_ids: &[String]) -> Result<Heard> {
        within(OPERATION_TIMEOUT, || async {
            let rows = sqlx::query(
                "SELECT now(), agent.agent_id, agent.last_heartbeat
                 FROM (VALUES (1)) AS one LEFT JOIN agent_registry AS agent ON agent.agent_id = ANY ($1)",
            )
            .bind(agent_ids)
            .fetch_all(&self.pool)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut heard = Heard { now: timestamp(first, 0)?, times: Vec::with_capacity(rows.len()) };
            for row in &rows {
                if let Some(agent_id) = row.try_get(1)? {
                    heard.times.push((agent_id, timestamp(row, 2)?));
                }
            }
            Ok(heard)
        })
        .await
    }

    async fn follow(&self, after: i64) -> Result<Followed> {
        within(FOLLOW_TIMEOUT, || async {
            let rows = sqlx::query(
                // Limited before it is joined: else the database would sort all that came since.
                "SELECT state.revision, now(), event.kind, event.agent
                 FROM agent_registry_state AS state LEFT JOIN (
                     SELECT revision, kind, agent::text FROM agent_registry_event
                     WHERE revision > $1 ORDER BY revision LIMIT $2
                 ) AS event ON true
                 WHERE state.singleton ORDER BY event.revision",
            )
            .bind(after)
            .bind(FOLLOW_BATCH)
            .fetch_all(&self.pool)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut followed =
                Followed { revision: first.try_get(0)?, now: timestamp(first, 1)?, changed: Vec::new() };
            for row in &rows {
                let (kind, agent): (Option<&str>, Option<&str>) = (row.try_get(2)?, row.try_get(3)?);
                let event = kind.zip(agent).and_then(|(kind, agent)| Event::from_json(kind, agent));
                let Some(event) = event else { break };
                followed.changed.push(event);
            }
            Ok(followed)
        })
        .await
    }

    async fn check_writing(&self) -> Result<()> {
        within(OPERATION_TIMEOUT, || async {
            sqlx::query("UPDATE agent_registry_state SET revision = revision WHERE singleton")
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    async fn prune_events(&self, keep: i64) -> Result<()> {
        within(OPERATION_TIMEOUT, || async {
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

    fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    async fn tell(&self, messages: &[String]) -> Result<()> {
        within(OPERATION_TIMEOUT, || async {
            sqlx::query("SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message")
                .bind(NEWS_CHANNEL)
                .bind(messages)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    fn news(&self) -> broadcast::Receiver<String> {
        self.news.subscribe()
    }

    async fn hold_lease(&self, name: &str, holder: &str, time: Duration) -> Result<bool> {
        within(OPERATION_TIMEOUT, || async {
            let held = sqlx::query(
                "INSERT INTO agent_registry_lease AS lease (name, holder, until)
                 VALUES ($1, $2, now() + make_interval(secs => $3))
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
                 WHERE lease.holder = excluded.holder OR lease.until < now()",
            )
            .bind(name)
            .bind(holder)
            .bind(time.as_secs_f64())
            .execute(&self.pool)
            .await?;
            Ok(held.rows_affected() == 1)
        })
        .await
    }

    async fn close(&self) {
        self.beats.close().await;
        self.pool.close().await;
    }
}
