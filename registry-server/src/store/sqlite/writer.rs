//! The database's only connection, which sessions take turns to use.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use registry_sdk::contract::Timestamp;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

use crate::store::error::{Result, StoreError};

/// The connection, lent to one session at a time.
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    /// Whether commits wait for the disk.
    pub(super) is_durable: bool,
    /// Whether a transaction is open. If its session was dropped, the next user of the connection rolls it
    /// back.
    pub(super) in_transaction: bool,
    /// Number of heartbeats that this server has logged since the log was last moved.
    pub(super) logged: usize,
    /// The database file. `None` in memory.
    pub(super) file: Option<DatabaseFile>,
}

/// A path, and the identity of the file that it led to when it was opened.
pub(super) struct DatabaseFile {
    path: PathBuf,
    id: (u64, u64),
}

impl DatabaseFile {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), id: Self::id(path)? })
    }

    /// Returns the device and the inode.
    fn id(path: &Path) -> std::io::Result<(u64, u64)> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Whether the path still leads to the opened file. If not, all writes are lost at the next restart.
    fn is_in_place(&self) -> bool {
        Self::id(&self.path).is_ok_and(|id| id == self.id)
    }
}

pub(super) type WriterGuard = OwnedMappedMutexGuard<Option<Writer>, Writer>;

/// Waits for the connection and sets its durability: a power failure may lose heartbeats, but not changes.
pub(super) async fn writer(writer: Arc<Mutex<Option<Writer>>>, is_durable: bool) -> Result<WriterGuard> {
    let closed_error = |_| StoreError::Unavailable("the database is closed".into());
    let mut writer =
        OwnedMutexGuard::try_map(writer.lock_owned().await, Option::as_mut).map_err(closed_error)?;
    if writer.file.as_ref().is_some_and(|file| !file.is_in_place()) {
        return Err(StoreError::Unavailable("its file was removed or replaced: restart the server".into()));
    }
    if writer.in_transaction {
        // Fails if the transaction had not begun yet or has already ended, which is fine.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut writer.connection).await;
        writer.in_transaction = false;
    }
    if writer.is_durable != is_durable {
        let pragma = if is_durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
        // If this is cancelled, the next call sets the pragma again.
        writer.is_durable = false;
        sqlx::raw_sql(pragma).execute(&mut writer.connection).await?;
        writer.is_durable = is_durable;
    }
    Ok(writer)
}

/// Returns the database's time, which is the host's, since the database runs in this process.
pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}
