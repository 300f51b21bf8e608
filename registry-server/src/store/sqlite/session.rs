//! A session: borrows the database's only connection, and keeps it during a transaction.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tokio::sync::Mutex;

use super::heartbeats;
use super::rows::{agents_by_id, decode_row, write};
use super::writer::{Writer, WriterGuard, now, writer};
use crate::store::agent_sender::AgentSender;
use crate::store::error::{CommitError, Result, StoreError};
use crate::store::log::{Head, LogEntry, LogPage, MAX_LOG_PAGE, MAX_REPLAYED_ENTRIES, Position, Snapshot};
use crate::store::rows::{select_agents, timeout_from_seconds};
use crate::store::session::{
    AgentPage, HeartbeatWrite, Listener, LockedAgents, LogReader, Notification, Purpose, Session,
    WrittenHeartbeats,
};
use crate::store::writes::Writes;

pub(super) struct SqliteSession {
    writer: Arc<Mutex<Option<Writer>>>,
    /// Whether commits wait for the disk.
    is_durable: bool,
    /// The connection, while a transaction is open.
    transaction: Option<WriterGuard>,
}

impl SqliteSession {
    pub(super) fn new(writer: Arc<Mutex<Option<Writer>>>, purpose: Purpose) -> Self {
        Self { writer, is_durable: purpose != Purpose::Heartbeats, transaction: None }
    }

    async fn writer(&self) -> Result<WriterGuard> {
        writer(self.writer.clone(), self.is_durable).await
    }

    fn transaction(&mut self) -> Result<&mut WriterGuard> {
        self.transaction.as_mut().ok_or_else(|| StoreError::Unavailable("no transaction is open".into()))
    }

    async fn begin_with(&mut self, statement: &'static str) -> Result<Head> {
        let mut writer = self.writer().await?;
        writer.in_transaction = true;
        sqlx::raw_sql(statement).execute(&mut writer.connection).await?;
        let head = read_head(&mut writer.connection).await?;
        self.transaction = Some(writer);
        Ok(head)
    }

    async fn end_transaction(&mut self, statement: &'static str) -> Result<()> {
        let writer = self.transaction()?;
        sqlx::raw_sql(statement).execute(&mut writer.connection).await?;
        writer.in_transaction = false;
        self.transaction = None;
        Ok(())
    }
}

#[async_trait]
impl LogReader for SqliteSession {
    async fn read_log(&mut self, from: i64) -> Result<LogPage> {
        if let Some(writer) = &mut self.transaction {
            return read_log(&mut writer.connection, from).await;
        }
        read_log(&mut self.writer().await?.connection, from).await
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn begin(&mut self) -> Result<Head> {
        self.begin_with("BEGIN IMMEDIATE").await
    }

    async fn lock_agents(&mut self, agent_ids: &[String]) -> Result<LockedAgents> {
        let connection = &mut self.transaction()?.connection;
        heartbeats::move_logged(connection, now()).await?;
        // The transaction has already locked the whole database.
        let rows = agents_by_id(connection, agent_ids).await?;
        Ok(LockedAgents { rows, ..LockedAgents::default() })
    }

    async fn commit(&mut self, writes: &Writes) -> std::result::Result<(), CommitError> {
        write(&mut self.transaction()?.connection, writes, now()).await?;
        self.end_transaction("COMMIT").await.map_err(CommitError::Unknown)
    }

    async fn rollback(&mut self) -> Result<()> {
        self.end_transaction("ROLLBACK").await
    }

    async fn write_heartbeats(&mut self, heartbeats: &[HeartbeatWrite]) -> Result<WrittenHeartbeats> {
        let mut writer = self.writer().await?;
        Ok(heartbeats::write_heartbeats(&mut writer, heartbeats, now()).await?)
    }

    async fn load(&mut self, mut agents: AgentSender) -> Result<Snapshot> {
        let head = self.begin_with("BEGIN IMMEDIATE").await?;
        let connection = &mut self.transaction()?.connection;
        heartbeats::move_logged(connection, head.now).await?;
        let mut rows = sqlx::query(select_agents!(
            "coalesce(heard.last_heartbeat, agent.last_heartbeat)",
            "LEFT JOIN agent_registry_last_heartbeat AS heard USING (agent_id)"
        ))
        .fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            agents.send(decode_row(&row)?).await;
        }
        drop(rows);
        agents.flush().await;
        let from = head.position.revision - MAX_REPLAYED_ENTRIES + 1;
        let log = read_entries(connection, from, MAX_REPLAYED_ENTRIES).await?;
        self.end_transaction("COMMIT").await?;
        Ok(Snapshot { log, head })
    }

    async fn read_agents(&mut self, after: &str, limit: usize) -> Result<AgentPage> {
        let revision = self.begin_with("BEGIN").await?.position.revision;
        let connection = &mut self.transaction()?.connection;
        let rows = sqlx::query(select_agents!(
            "coalesce(heard.last_heartbeat, agent.last_heartbeat)",
            "LEFT JOIN agent_registry_last_heartbeat AS heard USING (agent_id)
             WHERE agent_id > ? ORDER BY agent_id LIMIT ?"
        ))
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
        self.rollback().await?;
        Ok(AgentPage { rows: rows.iter().map(decode_row).collect::<sqlx::Result<_>>()?, revision })
    }

    async fn read_card(&mut self, agent_id: &str) -> Result<Option<String>> {
        let card = sqlx::query_scalar("SELECT card FROM agent_registry_card WHERE agent_id = ?")
            .bind(agent_id)
            .fetch_optional(&mut self.writer().await?.connection)
            .await?;
        Ok(card)
    }

    async fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<()> {
        sqlx::query("UPDATE agent_registry_state SET heartbeat_timeout_seconds = ?")
            .bind(timeout.as_secs_f64())
            .execute(&mut self.transaction()?.connection)
            .await?;
        Ok(())
    }
}

#[async_trait]
impl Listener for SqliteSession {
    async fn notified(&mut self) -> Result<Notification> {
        // There is no other server. Writes by other programs are found without notifications.
        std::future::pending().await
    }
}

async fn read_log(connection: &mut SqliteConnection, from: i64) -> Result<LogPage> {
    let entries = read_entries(connection, from, MAX_LOG_PAGE).await?;
    // Read after the entries: another program may write in between, and the head must not precede an entry.
    let head = read_head(connection).await?;
    Ok(LogPage { head, is_writable: true, entries })
}

async fn read_head(connection: &mut SqliteConnection) -> Result<Head> {
    let row = sqlx::query("SELECT revision, mark, heartbeat_timeout_seconds FROM agent_registry_state")
        .fetch_one(connection)
        .await?;
    let position = Position { revision: row.try_get(0)?, mark: row.try_get(1)? };
    Ok(Head { position, heartbeat_timeout: timeout_from_seconds(row.try_get(2)?), now: now() })
}

async fn read_entries(connection: &mut SqliteConnection, from: i64, limit: i64) -> Result<Vec<LogEntry>> {
    let rows = sqlx::query(
        "SELECT revision, mark, agent_id, kind, agent FROM agent_registry_event
         WHERE revision >= ? ORDER BY revision LIMIT ?",
    )
    .bind(from)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let entry = |row: &SqliteRow| {
        let position = Position { revision: row.try_get(0)?, mark: row.try_get(1)? };
        let kind: &str = row.try_get(3)?;
        Ok(LogEntry::decode(position, row.try_get(2)?, kind, row.try_get(4)?))
    };
    Ok(rows.iter().map(entry).collect::<sqlx::Result<_>>()?)
}
