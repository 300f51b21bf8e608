//! Rows of agents, and the parts of decoding them that both databases share.

use std::time::Duration;

use registry_sdk::contract::limits;

use super::agent::StoredAgent;

/// The row of an agent.
#[derive(Debug)]
pub(crate) enum AgentRow {
    Readable(Box<StoredAgent>),
    /// The id of an agent whose row cannot be decoded, because another program may have written it.
    Unreadable(String),
}

impl AgentRow {
    pub(crate) fn agent_id(&self) -> &str {
        match self {
            Self::Readable(agent) => &agent.agent_id,
            Self::Unreadable(agent_id) => agent_id,
        }
    }
}

/// Selects agents, with the given expression as their last heartbeat.
///
/// Names the columns, since a later version may have added others.
macro_rules! select_agents {
    ($last_heartbeat:literal, $($rest:literal)*) => {
        concat!(
            "SELECT agent.agent_id, agent_name, base_url, health_path, probe, status, capabilities, metadata, ",
            $last_heartbeat,
            " AS last_heartbeat, heartbeat_interval_seconds, instance_id, instances, registered_at, missed_deadline,
                 offline_since, probe_failed, maintenance, changed_by, changed_by_revision, card_digest,
                 agent.revision
             FROM agent_registry AS agent ",
            $($rest),*
        )
    };
}
pub(super) use select_agents;

/// Creates the error for a column with an invalid value.
pub(super) fn undecodable(column: &'static str, error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: error.to_string().into() }
}

/// Returns the row of an agent, readable or not. Fails if the row could not be fetched.
///
/// Any program may write to the database, so an undecodable value must only affect its own agent.
pub(super) fn agent_row(
    agent_id: String,
    decoded: std::result::Result<StoredAgent, sqlx::Error>,
) -> std::result::Result<AgentRow, sqlx::Error> {
    match decoded {
        Ok(agent) => Ok(AgentRow::Readable(Box::new(agent))),
        Err(error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_))) => {
            tracing::error!(
                agent_id,
                %error,
                "cannot read an agent's row, ignoring the agent until it registers again"
            );
            Ok(AgentRow::Unreadable(agent_id))
        }
        Err(error) => Err(error),
    }
}

/// Converts a heartbeat interval. Intervals that the contract forbids, written by another program, are
/// ignored.
pub(super) fn interval_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    timeout_from_seconds(seconds).filter(|interval| *interval <= limits::HEARTBEAT_INTERVAL)
}

/// Returns the name behind an agent's last change.
///
/// Older servers leave these columns unchanged, so they only count for the revision with which they were
/// written.
pub(super) fn changed_by(name: Option<String>, at_revision: Option<i64>, revision: i64) -> Option<String> {
    name.filter(|_| at_revision == Some(revision))
}

pub(super) fn timeout_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
