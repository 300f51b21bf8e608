//! SQLite: one file, one process, nothing to install.

mod heartbeats;

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use parking_lot::Mutex;
use registry_sdk::contract::Timestamp;
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, SqlitePool};
use tokio::sync::{Notify, broadcast};

use super::{
    Current, Decide, Event, FOLLOW_BATCH, Followed, Heard, Result, Snapshot, Store, StoredAgent, Touch,
    Writes, interval_from_seconds, undecodable,
};
use crate::server::StartError;
use heartbeats::Heartbeats;

/// How long to wait for another program that holds the database, `sqlite3` for example.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct SqliteStore {
    /// A pool of one: SQLite has one writer at a time, and an in-memory database lives in its connection.
    pool: SqlitePool,
    /// Whether the connection waits for the disk at each commit.
    durable: AtomicBool,
    clock: AnchoredClock,
    heartbeats: Mutex<Heartbeats>,
    changed: Arc<Notify>,
    /// Held until the store is closed, so that no second server opens the file and serves from a memory that
    /// does not follow it. `None` in memory.
    lock: Mutex<Option<File>>,
}

impl SqliteStore {
    /// Opens or creates the file, locks it, and brings its tables up to date.
    pub(crate) async fn open(url: &str) -> std::result::Result<Self, StartError> {
        let options = SqliteConnectOptions::from_str(url).map_err(StartError::database(url))?;
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let lock = if in_memory { None } else { Some(lock(options.get_filename())?) };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(StartError::database(url))?;
        sqlx::migrate!("../migrations/sqlite").run(&pool).await.map_err(StartError::migrations(url))?;
        Ok(Self {
            pool,
            durable: AtomicBool::new(true),
            clock: AnchoredClock::start(),
            heartbeats: Mutex::default(),
            changed: Arc::default(),
            lock: Mutex::new(lock),
        })
    }

    /// The connection, set to survive a power cut or not: heartbeats may be lost in one, changes not.
    async fn connection(&self, durable: bool) -> Result<PoolConnection<Sqlite>> {
        let mut connection = self.pool.acquire().await?;
        // A new connection begins durable, so what is remembered here may only err on the safe side.
        if self.durable.load(Ordering::Relaxed) != durable {
            let pragma = if durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::query(pragma).execute(&mut *connection).await?;
            self.durable.store(durable, Ordering::Relaxed);
        }
        Ok(connection)
    }

    /// Replaces the log of heartbeats by what it amounts to, where it has become long.
    async fn shorten_log(&self, connection: &mut SqliteConnection) -> Result<()> {
        let rows = {
            let heartbeats = self.heartbeats.lock();
            if !heartbeats.is_long() {
                return Ok(());
            }
            heartbeats.rows()?
        };
        heartbeats::replace(connection, &rows).await?;
        self.heartbeats.lock().replaced_by(rows.len());
        Ok(())
    }
}

/// Locks the file's companion, and not the file itself: SQLite's own locks on a file are lost when anyone in
/// the process closes another handle of it.
fn lock(database: &Path) -> std::result::Result<File, StartError> {
    let mut companion = database.as_os_str().to_owned();
    companion.push("-lock");
    let failed = |error| StartError::DatabaseFile(database.to_path_buf(), error);
    let file = File::options().create(true).truncate(false).write(true).open(&companion).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::DatabaseInUse(database.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The host's clock when the store was opened, carried on by the monotonic clock: nobody misses a deadline
/// because somebody set the host's clock.
struct AnchoredClock {
    anchor: SystemTime,
    since: Instant,
}

impl AnchoredClock {
    fn start() -> Self {
        Self { anchor: SystemTime::now(), since: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        (self.anchor + self.since.elapsed()).into()
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn load(&self) -> Result<Snapshot> {
        let mut transaction = self.pool.begin().await?;
        let revision = head(&mut transaction).await?;
        let mut rows = sqlx::query("SELECT * FROM agent_registry ORDER BY agent_id").fetch(&mut *transaction);
        let mut agents = Vec::new();
        while let Some(row) = rows.try_next().await? {
            agents.push(agent_from(&row)?);
        }
        drop(rows);
        let now = self.clock.now();
        *self.heartbeats.lock() = Heartbeats::read(&mut transaction, &mut agents, now).await?;
        transaction.commit().await?;
        Ok(Snapshot { agents, revision, now })
    }

    async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
        let mut connection = self.connection(false).await?;
        let times = self.heartbeats.lock().judge(touches, self.clock.now());
        let beats =
            || touches.iter().zip(&times).filter_map(|(touch, time)| Some((&*touch.agent_id, (*time)?)));
        if beats().next().is_some() {
            heartbeats::append(&mut connection, beats()).await?;
            self.heartbeats.lock().took(beats());
            self.shorten_log(&mut connection).await?;
        }
        Ok(times)
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut connection = self.connection(true).await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let revision = head(&mut transaction).await?;
        let mut agents = agents(&mut transaction, agent_ids).await?;
        for (agent_id, agent) in &mut agents {
            let heard = self.heartbeats.lock().heard(agent_id);
            agent.last_heartbeat = heard.unwrap_or(agent.last_heartbeat);
        }
        let now = self.clock.now();
        let writes = decide(Current { agents, revision, now });
        if writes.is_empty() {
            return Ok(());
        }
        write(&mut transaction, &writes, now).await?;
        transaction.commit().await?;
        let mut heartbeats = self.heartbeats.lock();
        heartbeats.changed(&writes.events);
        if !writes.beats.is_empty() {
            heartbeats.took(writes.beats());
        }
        Ok(())
    }

    async fn heard(&self, agent_ids: &[String]) -> Result<Heard> {
        let heartbeats = self.heartbeats.lock();
        let time = |agent_id: &String| Some((agent_id.clone(), heartbeats.heard(agent_id)?));
        Ok(Heard { now: self.clock.now(), times: agent_ids.iter().filter_map(time).collect() })
    }

    async fn follow(&self, after: i64) -> Result<Followed> {
        let rows = sqlx::query(
            "SELECT state.revision, event.kind, event.agent
             FROM agent_registry_state AS state LEFT JOIN agent_registry_event AS event ON event.revision > ?
             ORDER BY event.revision LIMIT ?",
        )
        .bind(after)
        .bind(FOLLOW_BATCH)
        .fetch_all(&self.pool)
        .await?;
        let mut followed = Followed { revision: after, now: self.clock.now(), changed: Vec::new() };
        for row in &rows {
            followed.revision = row.try_get(0)?;
            let (kind, agent): (Option<&str>, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
            let event = kind.zip(agent).and_then(|(kind, agent)| Event::from_json(kind, agent));
            let Some(event) = event else { break };
            followed.changed.push(event);
        }
        Ok(followed)
    }

    async fn prune_events(&self, keep: i64) -> Result<()> {
        sqlx::query(
            "DELETE FROM agent_registry_event
             WHERE revision <= (SELECT revision FROM agent_registry_state) - ?",
        )
        .bind(keep)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    async fn tell(&self, _: &[String]) -> Result<()> {
        Ok(())
    }

    fn news(&self) -> broadcast::Receiver<String> {
        broadcast::channel(1).1
    }

    async fn hold_lease(&self, _: &str, _: &str, _: Duration) -> Result<bool> {
        // One file serves one server.
        Ok(true)
    }

    async fn close(&self) {
        self.pool.close().await;
        // Here, and not where the store is dropped: somebody may hold on to it a little longer.
        self.lock.lock().take();
    }
}

async fn head(connection: &mut SqliteConnection) -> std::result::Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT revision FROM agent_registry_state").fetch_one(connection).await
}

async fn agents(
    connection: &mut SqliteConnection,
    agent_ids: &[String],
) -> std::result::Result<HashMap<String, StoredAgent>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM agent_registry WHERE agent_id IN (SELECT value FROM json_each(?))")
        .bind(json!(agent_ids).to_string())
        .fetch_all(connection)
        .await?;
    let agent = |row| agent_from(row).map(|agent| (agent.agent_id.clone(), agent));
    rows.iter().map(agent).collect()
}

async fn write(
    connection: &mut SqliteConnection,
    writes: &Writes,
    now: Timestamp,
) -> std::result::Result<(), sqlx::Error> {
    if writes.puts().next().is_some() {
        put(connection, writes.puts()).await?;
    }
    if !writes.beats.is_empty() {
        heartbeats::append(connection, writes.beats()).await?;
    }
    let removes = writes.removes();
    if !removes.is_empty() {
        sqlx::query("DELETE FROM agent_registry WHERE agent_id IN (SELECT value FROM json_each(?))")
            .bind(json!(removes).to_string())
            .execute(&mut *connection)
            .await?;
    }
    let Some(last) = writes.events.last() else {
        return Ok(());
    };
    let event = |event: &Event| {
        let Event { kind, agent } = event;
        Ok(json!([agent.revision, kind.as_str(), agent.agent_id, event.to_json()?]))
    };
    let events = writes.events.iter().map(event).collect::<std::result::Result<Vec<_>, sqlx::Error>>()?;
    sqlx::query(
        "INSERT INTO agent_registry_event (revision, kind, agent_id, agent, at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, ? FROM json_each(?)",
    )
    .bind(now.unix_millis())
    .bind(json!(events).to_string())
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE agent_registry_state SET revision = ?")
        .bind(last.agent.revision)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn put(
    connection: &mut SqliteConnection,
    agents: impl Iterator<Item = &StoredAgent>,
) -> std::result::Result<(), sqlx::Error> {
    let rows: Vec<_> = agents
        .map(|agent| {
            json!({
                "agent_id": agent.agent_id,
                "agent_name": agent.agent_name,
                "base_url": agent.base_url,
                "status": agent.status,
                "capabilities": agent.capabilities,
                "last_heartbeat": agent.last_heartbeat.unix_millis(),
                "metadata": agent.metadata,
                "heartbeat_interval_seconds": agent.heartbeat_interval.map(|interval| interval.as_secs_f64()),
                "instance_id": agent.instance_id,
                "registered_at": agent.registered_at.unix_millis(),
                "missed_deadline": agent.missed_deadline,
                "offline_since": agent.offline_since.map(Timestamp::unix_millis),
                "probe_failed": agent.probe_failed,
                "revision": agent.revision,
            })
        })
        .collect();
    sqlx::query(
        "INSERT INTO agent_registry
             (agent_id, agent_name, base_url, status, capabilities, last_heartbeat, metadata,
              heartbeat_interval_seconds, instance_id, registered_at, missed_deadline, offline_since,
              probe_failed, revision)
         SELECT value ->> 'agent_id', value ->> 'agent_name', value ->> 'base_url', value ->> 'status',
                value -> 'capabilities', value ->> 'last_heartbeat', value -> 'metadata',
                value ->> 'heartbeat_interval_seconds', value ->> 'instance_id', value ->> 'registered_at',
                value ->> 'missed_deadline', value ->> 'offline_since', value ->> 'probe_failed', value ->> 'revision'
         FROM json_each(?) WHERE true
         ON CONFLICT (agent_id) DO UPDATE SET
             agent_name = excluded.agent_name, base_url = excluded.base_url, status = excluded.status,
             capabilities = excluded.capabilities, metadata = excluded.metadata,
             last_heartbeat = excluded.last_heartbeat,
             heartbeat_interval_seconds = excluded.heartbeat_interval_seconds,
             instance_id = excluded.instance_id,
             missed_deadline = excluded.missed_deadline, offline_since = excluded.offline_since,
             probe_failed = excluded.probe_failed, revision = excluded.revision",
    )
    .bind(json!(rows).to_string())
    .execute(connection)
    .await?;
    Ok(())
}

fn agent_from(row: &SqliteRow) -> std::result::Result<StoredAgent, sqlx::Error> {
    let json = |column: &'static str| row.try_get::<&str, _>(column);
    let status: &str = row.try_get("status")?;
    Ok(StoredAgent {
        agent_id: row.try_get("agent_id")?,
        agent_name: row.try_get("agent_name")?,
        base_url: row.try_get("base_url")?,
        capabilities: serde_json::from_str(json("capabilities")?)
            .map_err(|error| undecodable("capabilities", error))?,
        metadata: serde_json::from_str(json("metadata")?).map_err(|error| undecodable("metadata", error))?,
        status: status.parse().map_err(|error| undecodable("status", error))?,
        missed_deadline: row.try_get("missed_deadline")?,
        offline_since: row.try_get::<Option<i64>, _>("offline_since")?.map(Timestamp::from_unix_millis),
        probe_failed: row.try_get("probe_failed")?,
        instance_id: row.try_get("instance_id")?,
        heartbeat_interval: interval_from_seconds(row.try_get("heartbeat_interval_seconds")?),
        registered_at: Timestamp::from_unix_millis(row.try_get("registered_at")?),
        last_heartbeat: Timestamp::from_unix_millis(row.try_get("last_heartbeat")?),
        revision: row.try_get("revision")?,
    })
}
