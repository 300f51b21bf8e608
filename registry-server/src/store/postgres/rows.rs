//! Decodes and encodes column values.

use chrono::{DateTime, Utc};
use registry_sdk::contract::{ProbeMode, Timestamp};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::types::Json;
use sqlx::{Decode, Row, Type};

use crate::store::agent::StoredAgent;
use crate::store::rows::{AgentRow, agent_row, changed_by, interval_from_seconds, undecodable};

pub(super) fn decode_row(row: &PgRow) -> sqlx::Result<AgentRow> {
    agent_row(row.try_get("agent_id")?, agent_from_row(row))
}

fn agent_from_row(row: &PgRow) -> sqlx::Result<StoredAgent> {
    let status: &str = row.try_get("status")?;
    let Json(capabilities) = row.try_get("capabilities")?;
    let Json(metadata) = row.try_get("metadata")?;
    let Json(instances) = row.try_get("instances")?;
    let maintenance: Option<Json<_>> = row.try_get("maintenance")?;
    let offline_since: Option<Time> = row.try_get("offline_since")?;
    let revision = row.try_get("revision")?;
    Ok(StoredAgent {
        agent_id: row.try_get("agent_id")?,
        agent_name: row.try_get("agent_name")?,
        base_url: row.try_get("base_url")?,
        health_path: row.try_get("health_path")?,
        probe: row.try_get::<Option<&str>, _>("probe")?.map(ProbeMode::from),
        capabilities,
        metadata,
        status: status.parse().map_err(|error| undecodable("status", error))?,
        missed_deadline: row.try_get("missed_deadline")?,
        offline_since: offline_since.map(|Time(time)| time),
        probe_failed: row.try_get("probe_failed")?,
        instance_id: row.try_get("instance_id")?,
        instances,
        maintenance: maintenance.map(|Json(maintenance)| maintenance),
        changed_by: changed_by(row.try_get("changed_by")?, row.try_get("changed_by_revision")?, revision),
        card_digest: row.try_get("card_digest")?,
        heartbeat_interval: interval_from_seconds(row.try_get("heartbeat_interval_seconds")?),
        registered_at: timestamp(row, "registered_at")?,
        last_heartbeat: timestamp(row, "last_heartbeat")?,
        revision,
    })
}

pub(super) fn timestamp<I: sqlx::ColumnIndex<PgRow>>(row: &PgRow, column: I) -> sqlx::Result<Timestamp> {
    let Time(time) = row.try_get(column)?;
    Ok(time)
}

/// A PostgreSQL timestamp, which may be infinite or far away. `chrono` panics on some of them.
pub(super) struct Time(pub(super) Timestamp);

impl Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for Time {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        // In binary form, a timestamp is in microseconds since the year 2000.
        let micros = <[u8; 8]>::try_from(value.as_bytes()?).map(i64::from_be_bytes)?;
        let millis = micros.div_euclid(1_000) + MILLENNIUM_MILLIS;
        if !TIME_RANGE.contains(&millis) {
            return Err("the time is infinite, or too far away".into());
        }
        Ok(Self(Timestamp::from_unix_millis(millis)))
    }
}

/// Unix time of the year 2000, and the range of supported times: the years 1 to 9999.
const MILLENNIUM_MILLIS: i64 = 946_684_800_000;
const TIME_RANGE: std::ops::Range<i64> = -62_135_596_800_000..253_402_300_800_000;

pub(super) fn date_time(time: Timestamp) -> DateTime<Utc> {
    DateTime::from(std::time::SystemTime::from(time))
}
