//! The SQLite store: one file, one process, nothing to install.

mod heartbeats;
mod rows;
mod session;
mod writer;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use tokio::sync::Mutex;

use crate::config::MigrateMode;
use crate::start_error::StartError;
use crate::store::error::Result;
use crate::store::migrations;
use crate::store::session::{Database, Listener, Purpose, Session};
use session::SqliteSession;
use writer::{DatabaseFile, Writer};

/// Timeout for a lock that another program holds, such as `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1_500);

pub(crate) struct SqliteDatabase {
    /// The only connection: SQLite allows one writer, and an in-memory database lives in its connection.
    ///
    /// `None` after the database was closed.
    writer: Arc<Mutex<Option<Writer>>>,
    /// File lock that keeps a second server off the file until the database is closed. `None` in memory.
    lock: parking_lot::Mutex<Option<File>>,
}

impl SqliteDatabase {
    /// Opens or creates the file, locks it, and migrates it.
    pub(crate) async fn open(url: &str, mode: MigrateMode) -> std::result::Result<Self, StartError> {
        let options = SqliteConnectOptions::from_str(url).map_err(StartError::database(url))?;
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        // An in-memory database cannot have been migrated beforehand.
        let may_migrate = mode == MigrateMode::Auto || in_memory;
        if !may_migrate && !options.get_filename().exists() {
            return Err(StartError::migration_required(url));
        }
        let lock = if in_memory { None } else { Some(lock_file(options.get_filename())?) };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            // A large transaction would need a temporary file, for which there may be no writable folder.
            .pragma("temp_store", "memory")
            // Whenever the buffer is full, one thread waits for another, which is noticeable when all agents
            // are loaded.
            .row_buffer_size(1_000)
            .synchronous(SqliteSynchronous::Full);
        let connection = SqliteConnection::connect_with(&options).await;
        let mut connection = connection.map_err(StartError::database(url))?;
        let migrator = sqlx::migrate!("../migrations/sqlite");
        if may_migrate {
            migrator.run(&mut connection).await.map_err(StartError::migrations(url))?;
        } else if !is_current(&mut connection, &migrator).await.map_err(StartError::migrations(url))? {
            return Err(StartError::migration_required(url));
        }
        let path = options.get_filename();
        let failed = |error| StartError::LockDatabase(path.to_path_buf(), error);
        let file = if in_memory { None } else { Some(DatabaseFile::open(path).map_err(failed)?) };
        let writer = Writer { connection, is_durable: true, in_transaction: false, logged: 0, file };
        Ok(Self { writer: Arc::new(Mutex::new(Some(writer))), lock: parking_lot::Mutex::new(lock) })
    }
}

/// Whether all migrations have been applied.
async fn is_current(
    connection: &mut SqliteConnection,
    migrator: &Migrator,
) -> std::result::Result<bool, MigrateError> {
    let query =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = $1").bind(migrations::TABLE);
    let tables: i64 = query.fetch_one(&mut *connection).await?;
    Ok(tables > 0 && migrations::are_applied(migrator, connection).await?)
}

/// Locks a companion file.
///
/// The database file itself cannot be locked: SQLite loses its own locks on a file when the process closes
/// any handle to that file.
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

#[async_trait]
impl Database for SqliteDatabase {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn connect(&self, purpose: Purpose) -> Result<Box<dyn Session>> {
        Ok(Box::new(SqliteSession::new(self.writer.clone(), purpose)))
    }

    async fn listen(&self) -> Result<Box<dyn Listener>> {
        Ok(Box::new(SqliteSession::new(self.writer.clone(), Purpose::Reads)))
    }

    async fn close(&self) {
        if let Some(writer) = self.writer.lock().await.take() {
            // If this fails, only the next start takes longer.
            let _ = writer.connection.close().await;
        }
        // Unlock now rather than on drop, since other tasks may keep the database alive a little longer.
        self.lock.lock().take();
    }
}

#[cfg(test)]
mod tests;
