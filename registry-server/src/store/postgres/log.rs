//! Reads the state row and the log.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgExecutor, Row};

use super::rows::timestamp;
use crate::store::log::{Head, LogEntry, LogPage, MAX_LOG_PAGE, Position};
use crate::store::rows::timeout_from_seconds;

/// Reads the log from a revision on: see [`LogReader::read_log`](crate::store::session::LogReader::read_log).
pub(super) async fn read_log(executor: impl PgExecutor<'_>, from: i64) -> sqlx::Result<LogPage> {
    let rows = sqlx::query(
        // The subquery limits the entries before the join; otherwise, the database would sort all later
        // entries. Older servers do not set the mark in the state row, but their log entries have one.
        "SELECT state.revision, coalesce(last.mark, state.mark), now(), state.heartbeat_timeout_seconds,
             NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off',
             entry.revision, entry.mark, entry.agent_id, entry.kind, entry.agent
         FROM agent_registry_state AS state
             LEFT JOIN agent_registry_event AS last ON last.revision = state.revision
             LEFT JOIN (
                 SELECT revision, mark, agent_id, kind, agent::text AS agent FROM agent_registry_event
                 WHERE revision >= $1 ORDER BY revision LIMIT $2
             ) AS entry ON true
         WHERE state.singleton ORDER BY entry.revision",
    )
    .bind(from)
    .bind(MAX_LOG_PAGE)
    .fetch_all(executor)
    .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mut page = LogPage { head: head(first)?, is_writable: first.try_get(4)?, entries: Vec::new() };
    for row in &rows {
        if row.try_get::<Option<i64>, _>(5)?.is_some() {
            page.entries.push(entry(row, 5)?);
        }
    }
    Ok(page)
}

/// Decodes the state row from the first four columns.
pub(super) fn head(row: &PgRow) -> sqlx::Result<Head> {
    let heartbeat_timeout: Option<Duration> = timeout_from_seconds(row.try_get(3)?);
    let position = Position { revision: row.try_get(0)?, mark: row.try_get(1)? };
    Ok(Head { position, heartbeat_timeout, now: timestamp(row, 2)? })
}

/// Decodes a log entry: revision, mark, agent id, kind and agent, starting at a column.
pub(super) fn entry(row: &PgRow, column: usize) -> sqlx::Result<LogEntry> {
    let position = Position { revision: row.try_get(column)?, mark: row.try_get(column + 1)? };
    let kind: &str = row.try_get(column + 3)?;
    Ok(LogEntry::decode(position, row.try_get(column + 2)?, kind, row.try_get(column + 4)?))
}
