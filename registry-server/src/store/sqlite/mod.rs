//! SQLite: one file, one process, nothing to install.

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
    Current, Decide, Event, FOLLOW_BATCH, Followed, Heard, Result, Snapshot, Store, StoreError, Touch,
    select_agents,
};
use crate::server::StartError;
use heartbeats::Heartbeats;
use rows::{agent_from, agents, head, write};

/// How long to wait for another program that holds the database, `sqlite3` for example.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct SqliteStore {
    /// One: SQLite has one writer at a time, and an in-memory database lives in its connection. `None` once it is closed.
    writer: Mutex<Option<Writer>>,
    clock: AnchoredClock,
    changed: Arc<Notify>,
    /// Held until the store is closed, so that no second server opens the file and serves from a memory that
    /// does not follow it. `None` in memory.
    lock: parking_lot::Mutex<Option<File>>,
}

/// The connection, and what is known of the file.
struct Writer {
    connection: SqliteConnection,
    /// Whether it waits for the disk at each commit.
    durable: bool,
    heartbeats: Heartbeats,
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
        let connection = SqliteConnection::connect_with(&options).await;
        let mut connection = connection.map_err(StartError::database(url))?;
        let migrations = sqlx::migrate!("../migrations/sqlite").run(&mut connection).await;
        migrations.map_err(StartError::migrations(url))?;
        let writer = Writer { connection, durable: true, heartbeats: Heartbeats::default() };
        Ok(Self {
            writer: Mutex::new(Some(writer)),
            clock: AnchoredClock::start(),
            changed: Arc::default(),
            lock: parking_lot::Mutex::new(lock),
        })
    }

    async fn writer(&self) -> Result<MappedMutexGuard<'_, Writer>> {
        let closed = |_| StoreError::Unavailable("it has been closed".into());
        MutexGuard::try_map(self.writer.lock().await, Option::as_mut).map_err(closed)
    }

    /// The connection, set to survive a power cut or not: heartbeats may be lost in one, changes not.
    async fn writer_that_is(&self, durable: bool) -> Result<MappedMutexGuard<'_, Writer>> {
        let mut writer = self.writer().await?;
        if writer.durable != durable {
            let pragma = if durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            // Who is interrupted here leaves it set again rather than taken for durable.
            writer.durable = false;
            sqlx::query(pragma).execute(&mut writer.connection).await?;
            writer.durable = durable;
        }
        Ok(writer)
    }
}

impl Writer {
    /// Replaces the log of heartbeats by what it amounts to.
    async fn shorten_log(&mut self) -> Result<()> {
        let rows = self.heartbeats.rows()?;
        heartbeats::replace(&mut self.connection, &rows).await?;
        self.heartbeats.replaced();
        Ok(())
    }
}

/// Locks the file's companion, and not the file itself: SQLite's own locks on a file are lost when anyone in
/// the process closes another handle of it.
fn lock(database: &Path) -> std::result::Result<File, StartError> {
    let mut companion = database.as_os_str().to_owned();
    companion.push("-lock");
    let failed = |error| StartError::LockDatabase(database.to_path_buf(), error);
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
        let mut writer = self.writer().await?;
        let mut transaction = writer.connection.begin().await?;
        let revision = head(&mut transaction).await?;
        let mut rows = sqlx::query(select_agents!("ORDER BY agent_id")).fetch(&mut *transaction);
        let mut agents = Vec::new();
        while let Some(row) = rows.try_next().await? {
            agents.push(agent_from(&row)?);
        }
        drop(rows);
        let now = self.clock.now();
        let heartbeats = Heartbeats::read(&mut transaction, &mut agents, now).await?;
        transaction.commit().await?;
        writer.heartbeats = heartbeats;
        Ok(Snapshot { agents, revision, now })
    }

    async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>> {
        let mut writer = self.writer_that_is(false).await?;
        let times = writer.heartbeats.judge(touches, self.clock.now());
        let beats = || {
            touches.iter().zip(&times).filter_map(|(touch, time)| Some((&*touch.agent.agent_id, (*time)?)))
        };
        if beats().next().is_some() {
            heartbeats::append(&mut writer.connection, beats()).await?;
            writer.heartbeats.took(beats());
            if writer.heartbeats.is_long() {
                writer.shorten_log().await?;
            }
        }
        Ok(times)
    }

    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()> {
        let mut file = self.writer_that_is(true).await?;
        let Writer { connection, heartbeats, .. } = &mut *file;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let revision = head(&mut transaction).await?;
        let mut agents = agents(&mut transaction, agent_ids).await?;
        for (agent_id, agent) in &mut agents {
            let heard = heartbeats.heard(agent_id);
            agent.last_heartbeat = heard.unwrap_or(agent.last_heartbeat);
        }
        let now = self.clock.now();
        let writes = decide(Current { agents, revision, now });
        if writes.is_empty() {
            return Ok(());
        }
        write(&mut transaction, &writes, now).await?;
        transaction.commit().await?;
        heartbeats.changed(&writes.events);
        if !writes.beats.is_empty() {
            heartbeats.took(writes.beats());
        }
        Ok(())
    }

    async fn heard(&self, agent_ids: &[String]) -> Result<Heard> {
        let writer = self.writer().await?;
        let time = |agent_id: &String| Some((agent_id.clone(), writer.heartbeats.heard(agent_id)?));
        Ok(Heard { now: self.clock.now(), times: agent_ids.iter().filter_map(time).collect() })
    }

    async fn follow(&self, after: i64) -> Result<Followed> {
        let rows = sqlx::query(
            "SELECT state.revision, event.kind, event.agent
             FROM agent_registry_state AS state LEFT JOIN (
                 SELECT revision, kind, agent FROM agent_registry_event
                 WHERE revision > ? ORDER BY revision LIMIT ?
             ) AS event ON true
             ORDER BY event.revision",
        )
        .bind(after)
        .bind(FOLLOW_BATCH)
        .fetch_all(&mut self.writer().await?.connection)
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

    async fn check_writing(&self) -> Result<()> {
        let mut writer = self.writer_that_is(true).await?;
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
        if let Some(mut writer) = self.writer.lock().await.take() {
            // What it fails at is done when the file is opened again, or costs that start a little time.
            let _ = writer.shorten_log().await;
            let _ = writer.connection.close().await;
        }
        // Here, and not where the store is dropped: somebody may hold on to it a little longer.
        self.lock.lock().take();
    }
}
