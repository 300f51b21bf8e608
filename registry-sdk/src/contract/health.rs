//! The health of an agent and of the registry.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::agent::AgentStatus;
use super::time::{Timestamp, optional_seconds, seconds};
use super::words::{UnknownWord, words};

/// The health of an agent or of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Ready for use.
    Healthy,
    /// Not ready for use.
    Unhealthy,
    /// A value that only a newer server knows. It does not count as healthy.
    Unknown(UnknownWord),
}

words!(HealthStatus "The health of an agent or of the registry.": Healthy = "healthy", Unhealthy = "unhealthy");

impl<'de> Deserialize<'de> for HealthStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::tolerant(deserializer)
    }
}

/// Why an agent is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnhealthyReason {
    /// The agent was set offline.
    Offline,
    /// The agent missed its deadline.
    HeartbeatMissed,
    /// The agent is in maintenance: see `maintenance` in its record.
    Maintenance,
    /// The agent failed the registry's probes.
    ProbeFailed,
    /// A reason that only a newer server knows.
    Unknown(UnknownWord),
}

words!(UnhealthyReason "Why an agent is unhealthy.": Offline = "offline", HeartbeatMissed = "heartbeat_missed", Maintenance = "maintenance", ProbeFailed = "probe_failed");

impl<'de> Deserialize<'de> for UnhealthyReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::tolerant(deserializer)
    }
}

/// The result of the registry's last probe, a request to the agent's own `GET {base_url}{health_path}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ProbeResult {
    /// When the agent was probed.
    pub checked_at: Timestamp,
    /// How long the agent took to answer.
    #[serde(rename = "latency_seconds", with = "seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub latency: Duration,
    /// Whether the last probe succeeded. The agent becomes unhealthy after two failed probes in a row. A response such as 404
    /// says nothing about the agent's health; this is then `false` only if earlier probes have made the agent unhealthy.
    pub ok: bool,
    /// What went wrong if the probe failed, or why its result is unknown.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub detail: Option<String>,
}

impl ProbeResult {
    /// Creates the result of a probe.
    #[must_use]
    pub fn new(checked_at: Timestamp, latency: Duration, ok: bool, detail: Option<String>) -> Self {
        Self { checked_at, latency, ok, detail }
    }
}

/// An agent's own report at `GET {base_url}{health_path}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthReport {
    /// Whether the agent can be given work. An unhealthy agent responds with 503.
    pub status: HealthStatus,
    /// The agent's id.
    pub agent_id: String,
    /// Number of tasks that the agent is working on.
    #[serde(default)]
    pub active_tasks: u32,
    /// How long the agent has been running.
    #[serde(default, rename = "uptime_seconds", with = "seconds")]
    pub uptime: Duration,
    /// The agent's own checks that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_checks: Vec<FailedCheck>,
}

impl HealthReport {
    /// Creates the report of an agent that has just started and has no tasks.
    #[must_use]
    pub fn new(status: HealthStatus, agent_id: impl Into<String>) -> Self {
        let agent_id = agent_id.into();
        Self { status, agent_id, active_tasks: 0, uptime: Duration::ZERO, failed_checks: Vec::new() }
    }
}

/// A check that failed, one of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FailedCheck {
    /// The name of the check.
    pub name: String,
    /// What is wrong.
    pub detail: String,
}

impl FailedCheck {
    /// Creates a failed check from its name and what is wrong.
    #[must_use]
    pub fn new(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), detail: detail.into() }
    }
}

/// The health of an agent.
///
/// A field that the server did not send is `None` or the default of its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "The health of an agent."))]
#[non_exhaustive]
pub struct AgentHealth {
    /// The agent's id.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub agent_id: String,
    /// Healthy if the agent is active or busy, before its deadline, not in maintenance, and has not failed two probes in a row
    /// since the last one that succeeded.
    pub status: HealthStatus,
    /// The agent's status.
    #[serde(default, deserialize_with = "AgentStatus::tolerant_option")]
    #[cfg_attr(feature = "openapi", schema(value_type = AgentStatus, required))]
    pub agent_status: Option<AgentStatus>,
    /// When the agent was last heard from.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required))]
    pub last_heartbeat: Option<Timestamp>,
    /// How long ago that was, by the registry's clock.
    #[serde(default, rename = "seconds_since_heartbeat", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub since_heartbeat: Option<Duration>,
    /// How long after its last heartbeat the agent counts as offline.
    #[serde(default, rename = "heartbeat_timeout_seconds", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub heartbeat_timeout: Option<Duration>,
    /// Why the agent is unhealthy, if it is.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub reason: Option<UnhealthyReason>,
    /// The last probe, if the registry probes agents and has probed this one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub probe: Option<ProbeResult>,
}

impl AgentHealth {
    /// Creates a health record with only an identity and a verdict. For tests, which set the other fields.
    #[must_use]
    pub fn new(agent_id: impl Into<String>, status: HealthStatus) -> Self {
        Self {
            agent_id: agent_id.into(),
            status,
            agent_status: None,
            last_heartbeat: None,
            since_heartbeat: None,
            heartbeat_timeout: None,
            reason: None,
            probe: None,
        }
    }

    /// Returns whether the agent can be given work.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.status == HealthStatus::Healthy
    }
}

/// The health of the registry itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ServerHealth {
    /// Healthy if the database responds and the sweeper runs.
    pub status: HealthStatus,
    /// The server's version.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub version: String,
    /// The kind of database: `sqlite` or `postgres`.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub store: String,
    /// How long the server has been running.
    #[serde(default, rename = "uptime_seconds", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub uptime: Option<Duration>,
}

impl ServerHealth {
    /// Creates the health of a server.
    #[must_use]
    pub fn new(status: HealthStatus, version: &str, store: &str, uptime: Duration) -> Self {
        Self { status, version: version.to_owned(), store: store.to_owned(), uptime: Some(uptime) }
    }
}
