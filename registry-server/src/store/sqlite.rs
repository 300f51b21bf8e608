//! SQLite: one file, one process, nothing to install.

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

/// How long to wait for another program that holds the database, `sqlite3` for example.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct SqliteStore {
    /// A pool of one: SQLite has one writer at a time, and an in-memory database lives in its connection.
    pool: SqlitePool,
    /// Whether the connection waits for the disk at each commit.
    durable: AtomicBool,
    clock: AnchoredClock,
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
        let clock = AnchoredClock::start();
        // Where the host's clock went back between two runs, times in the future would keep the dead alive.
        sqlx::query("UPDATE agent_registry SET last_heartbeat = ?1 WHERE last_heartbeat > ?1")
            .bind(clock.now().unix_millis())
            .execute(&pool)
            .await
            .map_err(StartError::database(url))?;
        let durable = AtomicBool::new(true);
        Ok(Self { pool, durable, clock, changed: Arc::default(), lock: Mutex::new(lock) })
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
        transaction.commit().await?;
        Ok(Snapshot { agents, revision, now: self.clock.now() })
    }

    async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
        let now = self.clock.now().unix_millis();
        let beats: Vec<_> = touches
            .iter()
            .map(|touch| json!([touch.agent_id, touch.revision, now - age_millis(touch)]))
            .collect();
        let mut connection = self.connection(false).await?;
        let rows = sqlx::query(
            "UPDATE agent_registry SET last_heartbeat = max(last_heartbeat, beat.at)
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS revision, value ->> 2 AS at
                   FROM json_each(?)) AS beat
             WHERE agent_id = beat.id AND agent_registry.revision = beat.revision
             RETURNING agent_id, agent_registry.revision, last_heartbeat",
        )
        .bind(json!(beats).to_string())
        .fetch_all(&mut *connection)
        .await?;
        let mut heard = HashMap::with_capacity(rows.len());
        for row in &rows {
            let key: (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
            heard.insert(key, Timestamp::from_unix_millis(row.try_get(2)?));
        }
        Ok(touches.iter().map(|touch| heard.get(&(&*touch.agent_id, touch.revision)).copied()).collect())
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut connection = self.connection(true).await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let revision = head(&mut transaction).await?;
        let found = agents(&mut transaction, agent_ids).await?;
        let by_id = found.into_iter().map(|agent| (agent.agent_id.clone(), agent)).collect();
        let now = self.clock.now();
        let writes = decide(Current { agents: by_id, revision, now });
        if writes.is_empty() {
            return Ok(());
        }
        write(&mut transaction, &writes, now).await?;
        Ok(transaction.commit().await?)
    }

    async fn heard(&self, agent_ids: &[String]) -> Result<Heard> {
        let rows = sqlx::query(
            "SELECT agent_id, last_heartbeat FROM agent_registry
             WHERE agent_id IN (SELECT value FROM json_each(?))",
        )
        .bind(json!(agent_ids).to_string())
        .fetch_all(&self.pool)
        .await?;
        let time = |row: &SqliteRow| {
            Ok::<_, sqlx::Error>((row.try_get(0)?, Timestamp::from_unix_millis(row.try_get(1)?)))
        };
        let times = rows.iter().map(time).collect::<std::result::Result<_, _>>()?;
        Ok(Heard { now: self.clock.now(), times })
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
) -> std::result::Result<Vec<StoredAgent>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM agent_registry WHERE agent_id IN (SELECT value FROM json_each(?))")
        .bind(json!(agent_ids).to_string())
        .fetch_all(connection)
        .await?;
    rows.iter().map(agent_from).collect()
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
        let beats: Vec<_> = writes.beats.iter().map(|(id, time)| json!([id, time.unix_millis()])).collect();
        sqlx::query(
            "UPDATE agent_registry SET last_heartbeat = max(last_heartbeat, beat.at)
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS at FROM json_each(?)) AS beat
             WHERE agent_id = beat.id",
        )
        .bind(json!(beats).to_string())
        .execute(&mut *connection)
        .await?;
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
             last_heartbeat = max(agent_registry.last_heartbeat, excluded.last_heartbeat),
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

fn age_millis(touch: &Touch) -> i64 {
    i64::try_from(touch.arrived.elapsed().as_millis()).unwrap_or(i64::MAX)
}
