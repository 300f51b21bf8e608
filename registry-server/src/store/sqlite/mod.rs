//! The SQLite store: one file, one process, nothing to install.

mod heartbeats;
mod rows;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use registry_sdk::contract::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Row};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, Notify, broadcast};

use super::{
    Decide, Event, EventBatch, HeartbeatWrite, LastHeartbeats, LockedState, MAX_EVENT_BATCH, Result,
    Snapshot, Store, StoreError, select_agents,
};
use crate::server::StartError;
use heartbeats::HeartbeatLog;
use rows::{agent_from_row, agents_by_id, current_revision, write};

/// Timeout for a lock that another program holds, `sqlite3` for example.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct SqliteStore {
    /// The only connection: SQLite allows one writer, and an in-memory database lives in its connection.
    ///
    /// `None` after the store was closed.
    writer: Mutex<Option<Writer>>,
    clock: AnchoredClock,
    changed: Arc<Notify>,
    /// Lock held until the store is closed, so that no second server uses the file. `None` in memory.
    lock: parking_lot::Mutex<Option<File>>,
}

/// The connection, and the state that mirrors the file.
struct Writer {
    connection: SqliteConnection,
    /// Whether commits wait for the disk.
    is_durable: bool,
    heartbeats: HeartbeatLog,
}

impl SqliteStore {
    /// Opens or creates the file, locks it, and migrates it.
    pub(crate) async fn open(url: &str) -> std::result::Result<Self, StartError> {
        let options = SqliteConnectOptions::from_str(url).map_err(StartError::database(url))?;
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let lock = if in_memory { None } else { Some(lock_file(options.get_filename())?) };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full);
        let connection = SqliteConnection::connect_with(&options).await;
        let mut connection = connection.map_err(StartError::database(url))?;
        let migrations = sqlx::migrate!("../migrations/sqlite").run(&mut connection).await;
        migrations.map_err(StartError::migrations(url))?;
        let writer = Writer { connection, is_durable: true, heartbeats: HeartbeatLog::default() };
        Ok(Self {
            writer: Mutex::new(Some(writer)),
            clock: AnchoredClock::start(),
            changed: Arc::default(),
            lock: parking_lot::Mutex::new(lock),
        })
    }

    async fn writer(&self) -> Result<MappedMutexGuard<'_, Writer>> {
        let closed_error = |_| StoreError::Unavailable("the store is closed".into());
        MutexGuard::try_map(self.writer.lock().await, Option::as_mut).map_err(closed_error)
    }

    /// Returns the connection with its durability set: a power failure may lose heartbeats, but not changes.
    async fn writer_with_durability(&self, is_durable: bool) -> Result<MappedMutexGuard<'_, Writer>> {
        let mut writer = self.writer().await?;
        if writer.is_durable != is_durable {
            let pragma = if is_durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            // If this is cancelled, the next call sets the pragma again.
            writer.is_durable = false;
            sqlx::query(pragma).execute(&mut writer.connection).await?;
            writer.is_durable = is_durable;
        }
        Ok(writer)
    }
}

impl Writer {
    /// Replaces the log of heartbeats by its compacted form.
    async fn compact_log(&mut self) -> Result<()> {
        let rows = self.heartbeats.compacted_rows()?;
        heartbeats::replace_log(&mut self.connection, &rows).await?;
        self.heartbeats.mark_compacted();
        Ok(())
    }
}

/// Locks a companion file.
///
/// Locking the database file itself would fail: SQLite loses its own locks on a file when any handle of the
/// process for that file is closed.
fn lock_file(database: &Path) -> std::result::Result<File, StartError> {
    let mut lock_path = database.as_os_str().to_owned();
    lock_path.push("-lock");
    let failed = |error| StartError::LockDatabase(database.to_path_buf(), error);
    let file = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::DatabaseInUse(database.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The host's time when the store was opened, advanced by the monotonic clock.
///
/// So no agent misses a deadline because somebody set the host's clock.
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
        let mut writer = self.writer().await?;
        let mut transaction = writer.connection.begin().await?;
        let revision = current_revision(&mut transaction).await?;
        let mut rows = sqlx::query(select_agents!("ORDER BY agent_id")).fetch(&mut *transaction);
        let mut agents = Vec::new();
        while let Some(row) = rows.try_next().await? {
            agents.push(agent_from_row(&row)?);
        }
        drop(rows);
        let now = self.clock.now();
        let heartbeats = HeartbeatLog::load(&mut transaction, &mut agents, now).await?;
        transaction.commit().await?;
        writer.heartbeats = heartbeats;
        Ok(Snapshot { agents, revision, now })
    }

    async fn write_heartbeats(&self, heartbeats: &[HeartbeatWrite]) -> Result<Vec<Option<Timestamp>>> {
        let mut writer = self.writer_with_durability(false).await?;
        let times = writer.heartbeats.resolve(heartbeats, self.clock.now());
        let written = || {
            heartbeats
                .iter()
                .zip(&times)
                .filter_map(|(heartbeat, time)| Some((&*heartbeat.agent.agent_id, (*time)?)))
        };
        if written().next().is_some() {
            heartbeats::append(&mut writer.connection, written()).await?;
            writer.heartbeats.record(written());
            if writer.heartbeats.needs_compaction() {
                writer.compact_log().await?;
            }
        }
        Ok(times)
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut guard = self.writer_with_durability(true).await?;
        let Writer { connection, heartbeats, .. } = &mut *guard;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let revision = current_revision(&mut transaction).await?;
        let mut agents = agents_by_id(&mut transaction, agent_ids).await?;
        for (agent_id, agent) in &mut agents {
            let last_heartbeat = heartbeats.last_heartbeat(agent_id);
            agent.last_heartbeat = last_heartbeat.unwrap_or(agent.last_heartbeat);
        }
        let now = self.clock.now();
        let writes = decide(LockedState { agents, revision, now });
        if writes.is_empty() {
            return Ok(());
        }
        write(&mut transaction, &writes, now).await?;
        transaction.commit().await?;
        heartbeats.apply_events(&writes.events);
        if !writes.heartbeats.is_empty() {
            heartbeats.record(writes.heartbeats());
        }
        Ok(())
    }

    async fn last_heartbeats(&self, agent_ids: &[String]) -> Result<LastHeartbeats> {
        let writer = self.writer().await?;
        let time = |agent_id: &String| Some((agent_id.clone(), writer.heartbeats.last_heartbeat(agent_id)?));
        Ok(LastHeartbeats { now: self.clock.now(), times: agent_ids.iter().filter_map(time).collect() })
    }

    async fn read_events(&self, after: i64) -> Result<EventBatch> {
        let rows = sqlx::query(
            "SELECT state.revision, event.kind, event.agent
             FROM agent_registry_state AS state LEFT JOIN (
                 SELECT revision, kind, agent FROM agent_registry_event
                 WHERE revision > ? ORDER BY revision LIMIT ?
             ) AS event ON true
             ORDER BY event.revision",
        )
        .bind(after)
        .bind(MAX_EVENT_BATCH)
        .fetch_all(&mut self.writer().await?.connection)
        .await?;
        let mut batch = EventBatch { revision: after, now: self.clock.now(), events: Vec::new() };
        for row in &rows {
            batch.revision = row.try_get(0)?;
            let (kind, agent): (Option<&str>, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
            let event = kind.zip(agent).and_then(|(kind, agent)| Event::from_json(kind, agent));
            let Some(event) = event else { break };
            batch.events.push(event);
        }
        Ok(batch)
    }

    async fn check_writable(&self) -> Result<()> {
        let mut writer = self.writer_with_durability(true).await?;
        sqlx::query("UPDATE agent_registry_state SET revision = revision")
            .execute(&mut writer.connection)
            .await?;
        Ok(())
    }

    async fn prune_events(&self, keep: i64) -> Result<()> {
        sqlx::query(
            "DELETE FROM agent_registry_event
             WHERE revision <= (SELECT revision FROM agent_registry_state) - ?",
        )
        .bind(keep)
        .execute(&mut self.writer().await?.connection)
        .await?;
        Ok(())
    }

    fn change_notify(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    async fn broadcast(&self, _: &[String]) -> Result<()> {
        Ok(())
    }

    fn subscribe(&self) -> broadcast::Receiver<String> {
        broadcast::channel(1).1
    }

    async fn acquire_lease(&self, _: &str, _: &str, _: Duration) -> Result<bool> {
        // There is only one server per file.
        Ok(true)
    }

    async fn close(&self) {
        if let Some(mut writer) = self.writer.lock().await.take() {
            // A failure only makes the next start slower.
            let _ = writer.compact_log().await;
            let _ = writer.connection.close().await;
        }
        // Unlocks here rather than on drop: something may hold on to the store a little longer.
        self.lock.lock().take();
    }
}
