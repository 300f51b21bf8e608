//! A session: transactions and reads on one connection. `heartbeats.rs` writes heartbeats.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::heartbeats;
use super::listener::BROADCAST_CHANNEL;
use super::log::{entry, head, read_log};
use super::rows::decode_row;
use super::write::write;
use crate::store::agent_sender::AgentSender;
use crate::store::error::{CommitError, Result};
use crate::store::log::{Head, LogPage, MAX_REPLAYED_ENTRIES, Snapshot};
use crate::store::rows::select_agents;
use crate::store::session::{
    AgentPage, HeartbeatWrite, LastHeartbeats, LockedAgents, LogReader, Session, WrittenHeartbeats,
};
use crate::store::writes::Writes;

pub(super) struct PostgresSession {
    connection: PgConnection,
    process_id: Arc<str>,
}

impl PostgresSession {
    pub(super) fn new(connection: PgConnection, process_id: Arc<str>) -> Self {
        Self { connection, process_id }
    }
}

#[async_trait]
impl LogReader for PostgresSession {
    async fn read_log(&mut self, from: i64) -> Result<LogPage> {
        Ok(read_log(&mut self.connection, from).await?)
    }
}

#[async_trait]
impl Session for PostgresSession {
    async fn begin(&mut self) -> Result<Head> {
        sqlx::raw_sql("BEGIN").execute(&mut self.connection).await?;
        let state = sqlx::query(
            "SELECT revision, mark, now(), heartbeat_timeout_seconds FROM agent_registry_state
             WHERE singleton FOR UPDATE",
        )
        .fetch_one(&mut self.connection)
        .await?;
        Ok(head(&state)?)
    }

    async fn lock_agents(&mut self, agent_ids: &[String]) -> Result<LockedAgents> {
        // Another session holds the rows that are present but not locked.
        let rows = sqlx::query(concat!(
            "WITH present AS (
                 SELECT agent_id FROM agent_registry WHERE agent_id = ANY ($1)
             ), locked AS (",
            select_agents!(
                "agent.last_heartbeat",
                "WHERE agent_id = ANY ($1) ORDER BY agent_id FOR UPDATE SKIP LOCKED"
            ),
            ")
             SELECT present.agent_id AS id, locked.* FROM present LEFT JOIN locked USING (agent_id)",
        ))
        .bind(agent_ids)
        .fetch_all(&mut self.connection)
        .await?;
        let mut agents = LockedAgents::default();
        for row in &rows {
            let id: String = row.try_get("id")?;
            if row.try_get::<Option<&str>, _>("agent_id")?.is_some() {
                agents.rows.insert(id, decode_row(row)?);
            } else {
                agents.held.insert(id);
            }
        }
        Ok(agents)
    }

    async fn commit(&mut self, writes: &Writes) -> std::result::Result<(), CommitError> {
        write(&mut self.connection, writes, &self.process_id).await?;
        let committed = sqlx::raw_sql("COMMIT").execute(&mut self.connection).await;
        committed.map_err(|error| CommitError::Unknown(error.into()))?;
        Ok(())
    }

    async fn rollback(&mut self) -> Result<()> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await?;
        Ok(())
    }

    async fn write_heartbeats(&mut self, heartbeats: &[HeartbeatWrite]) -> Result<WrittenHeartbeats> {
        Ok(heartbeats::write(&mut self.connection, heartbeats).await?)
    }

    async fn last_heartbeats(&mut self, agent_ids: &[String]) -> Result<LastHeartbeats> {
        Ok(heartbeats::read_last(&mut self.connection, agent_ids).await?)
    }

    async fn load(&mut self, mut agents: AgentSender) -> Result<Snapshot> {
        // Unlike all other statements, this one reads the whole table. Indexing the last agents may take
        // longer than transactions usually may be idle, but no other session waits for this one's locks.
        sqlx::raw_sql(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
             SET LOCAL enable_seqscan = on;
             SET LOCAL statement_timeout = 0;
             SET LOCAL idle_in_transaction_session_timeout = '60s'",
        )
        .execute(&mut self.connection)
        .await?;
        let head = read_log(&mut self.connection, i64::MAX).await?.head;
        let mut rows = sqlx::query(select_agents!("agent.last_heartbeat",)).fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            agents.send(decode_row(&row)?).await;
        }
        drop(rows);
        agents.flush().await;
        let log = sqlx::query(
            "SELECT revision, mark, agent_id, kind, agent::text FROM agent_registry_event
             WHERE revision > $1 ORDER BY revision",
        )
        .bind(head.position.revision - MAX_REPLAYED_ENTRIES)
        .fetch_all(&mut self.connection)
        .await?;
        let log = log.iter().map(|row| entry(row, 0)).collect::<sqlx::Result<_>>()?;
        self.rollback().await?;
        Ok(Snapshot { log, head })
    }

    async fn read_agents(&mut self, after: &str, limit: usize) -> Result<AgentPage> {
        // A single statement, so that the revision belongs to the rows. Ids are ordered by their bytes, as in
        // memory, whatever the locale of the database.
        let rows = sqlx::query(concat!(
            "SELECT state.revision AS head, page.*
             FROM agent_registry_state AS state LEFT JOIN (",
            select_agents!(
                "agent.last_heartbeat",
                "WHERE agent_id COLLATE \"C\" > $1 ORDER BY agent_id COLLATE \"C\" LIMIT $2"
            ),
            ") AS page ON true WHERE state.singleton ORDER BY page.agent_id COLLATE \"C\"",
        ))
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut self.connection)
        .await?;
        let mut page = AgentPage { rows: Vec::with_capacity(rows.len()), revision: 0 };
        for row in &rows {
            page.revision = row.try_get("head")?;
            if row.try_get::<Option<&str>, _>("agent_id")?.is_some() {
                page.rows.push(decode_row(row)?);
            }
        }
        Ok(page)
    }

    async fn read_card(&mut self, agent_id: &str) -> Result<Option<String>> {
        let card = sqlx::query_scalar("SELECT card FROM agent_registry_card WHERE agent_id = $1")
            .bind(agent_id)
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(card)
    }

    async fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<()> {
        sqlx::query(
            "UPDATE agent_registry_state SET heartbeat_timeout_seconds = $1
             WHERE singleton AND heartbeat_timeout_seconds IS DISTINCT FROM $1",
        )
        .bind(timeout.as_secs_f64())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn broadcast(&mut self, messages: &[String]) -> Result<()> {
        sqlx::query(
            "SELECT pg_notify($1::text || 'agent_registry_state'::regclass::oid, message)
             FROM unnest($2::text[]) AS message",
        )
        .bind(BROADCAST_CHANNEL)
        .bind(messages)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn acquire_lease(&mut self, name: &str, holder: &str, duration: Duration) -> Result<bool> {
        let outcome = sqlx::query(
            "INSERT INTO agent_registry_lease AS lease (name, holder, until)
             VALUES ($1, $2, now() + make_interval(secs => $3))
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
             WHERE lease.holder = excluded.holder OR lease.until < now()",
        )
        .bind(name)
        .bind(holder)
        .bind(duration.as_secs_f64())
        .execute(&mut self.connection)
        .await?;
        Ok(outcome.rows_affected() == 1)
    }
}
