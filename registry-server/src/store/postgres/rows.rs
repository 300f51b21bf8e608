//! Decodes and encodes the values in rows.

use chrono::{DateTime, Utc};
use registry_sdk::contract::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use crate::store::{StoredAgent, interval_from_seconds, undecodable};

/// Decodes an agent's row; `None` if that fails, since another service may have written the row.
pub(super) fn decode_agent(row: &PgRow) -> std::result::Result<Option<StoredAgent>, sqlx::Error> {
    match agent_from_row(row) {
        Err(error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_))) => {
            let agent_id: &str = row.try_get("agent_id")?;
            tracing::error!(agent_id, %error, "cannot decode an agent's row, ignoring the agent until it registers again");
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

pub(super) fn agent_from_row(row: &PgRow) -> std::result::Result<StoredAgent, sqlx::Error> {
    let status: &str = row.try_get("status")?;
    let Json(capabilities) = row.try_get("capabilities")?;
    let Json(metadata) = row.try_get("metadata")?;
    let Json(instances) = row.try_get("instances")?;
    let offline_since: Option<DateTime<Utc>> = row.try_get("offline_since")?;
    Ok(StoredAgent {
        agent_id: row.try_get("agent_id")?,
        agent_name: row.try_get("agent_name")?,
        base_url: row.try_get("base_url")?,
        capabilities,
        metadata,
        status: status.parse().map_err(|error| undecodable("status", error))?,
        missed_deadline: row.try_get("missed_deadline")?,
        offline_since: offline_since.map(|time| Timestamp::from_unix_millis(time.timestamp_millis())),
        probe_failed: row.try_get("probe_failed")?,
        instance_id: row.try_get("instance_id")?,
        instances,
        heartbeat_interval: interval_from_seconds(row.try_get("heartbeat_interval_seconds")?),
        registered_at: timestamp(row, "registered_at")?,
        last_heartbeat: timestamp(row, "last_heartbeat")?,
        revision: row.try_get("revision")?,
    })
}

pub(super) fn timestamp<I: sqlx::ColumnIndex<PgRow>>(
    row: &PgRow,
    column: I,
) -> std::result::Result<Timestamp, sqlx::Error> {
    let time: DateTime<Utc> = row.try_get(column)?;
    Ok(Timestamp::from_unix_millis(time.timestamp_millis()))
}

pub(super) fn date_time(time: Timestamp) -> DateTime<Utc> {
    DateTime::from(std::time::SystemTime::from(time))
}
