//! Heartbeats and status updates.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::agent::AgentStatus;
use super::problem::ValidationError;
use super::request_body::{Fields, RequestBody, STATUS};
use super::time::{Timestamp, optional_seconds};

/// The body of a heartbeat, which is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Heartbeat {
    /// The agent's new status. Without it, `busy` stays `busy` and `offline` becomes `active`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<AgentStatus>,
    /// The process that sends the heartbeat. If another process owns the id, the heartbeat is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub instance_id: Option<String>,
    /// The fraction of the agent's capacity that is in use, from 0 to 1. Without it, the registry keeps the last one reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1))]
    pub load: Option<f64>,
    /// The number of tasks that the agent is working on. Without it, the registry keeps the last one reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(format = Int64, minimum = 0, maximum = 4_294_967_295_u32))]
    pub active_tasks: Option<u32>,
}

impl Heartbeat {
    /// Sets the agent's status.
    #[must_use]
    pub fn status(mut self, status: AgentStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Names the process that sends the heartbeat.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }

    /// Sets the fraction of the agent's capacity that is in use, clamped to 0 to 1.
    #[must_use]
    pub fn load(mut self, load: f64) -> Self {
        self.load = Some(load.clamp(0.0, 1.0));
        self
    }

    /// Sets the number of tasks that the agent is working on.
    #[must_use]
    pub fn active_tasks(mut self, tasks: u32) -> Self {
        self.active_tasks = Some(tasks);
        self
    }
}

/// The body may be empty.
impl RequestBody for Heartbeat {
    fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error> {
        let mut fields = Fields::read(body)?;
        let beat = Self {
            status: fields.status(),
            instance_id: fields.instance_id(),
            load: fields.get("load", "a number from 0 to 1", |value| {
                value.as_f64().filter(|load| (0.0..=1.0).contains(load))
            }),
            active_tasks: fields.get("active_tasks", "a whole number from 0 to 4294967295", |value| {
                // `2.0` is a whole number, too.
                let whole = value.as_f64().filter(|number| number.fract() == 0.0);
                whole.filter(|number| (0.0..=f64::from(u32::MAX)).contains(number)).map(to_u32)
            }),
        };
        Ok(fields.check().map(|()| beat))
    }
}

/// The response to a heartbeat.
///
/// A field that the server did not send is `None` or the default of its type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The response to a heartbeat.")
)]
#[non_exhaustive]
pub struct HeartbeatAck {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's status after the heartbeat.
    #[serde(deserialize_with = "AgentStatus::tolerant")]
    pub status: AgentStatus,
    /// When the heartbeat arrived, by the registry's clock.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required))]
    pub last_heartbeat: Option<Timestamp>,
    /// How long after this heartbeat the agent counts as offline.
    #[serde(default, rename = "heartbeat_timeout_seconds", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub heartbeat_timeout: Option<Duration>,
    /// The tag of the registration that the registry has, as in `AgentRecord`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required))]
    pub registration_tag: Option<String>,
}

impl HeartbeatAck {
    /// Creates the response to a heartbeat that arrived at `arrived`.
    #[must_use]
    pub fn new(agent_id: String, status: AgentStatus, arrived: Timestamp, timeout: Duration) -> Self {
        let (last_heartbeat, heartbeat_timeout) = (Some(arrived), Some(timeout));
        Self { agent_id, status, last_heartbeat, heartbeat_timeout, registration_tag: None }
    }

    /// Sets the tag of the registration that the registry has.
    #[must_use]
    pub fn registration_tag(mut self, tag: String) -> Self {
        self.registration_tag = Some(tag);
        self
    }
}

/// The body of `PUT /agents/{id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct StatusUpdate {
    /// The status to set.
    pub status: AgentStatus,
    /// The process that sets the status. If another process owns the id, the update is refused with 409, so that a process that
    /// shuts down cannot take its successor offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub instance_id: Option<String>,
    /// Whether the process was shut down. Its late requests are then refused with 409, until a process that starts later
    /// registers with the same `instance_id`. Requires the status `offline` and an `instance_id`.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub is_final: bool,
}

impl StatusUpdate {
    /// Sets the status, whichever process the agent runs in.
    #[must_use]
    pub fn new(status: AgentStatus) -> Self {
        Self { status, instance_id: None, is_final: false }
    }

    /// Reports that a process was shut down: the agent is `offline`, and the process will send nothing more.
    #[must_use]
    pub fn shut_down(instance_id: impl Into<String>) -> Self {
        Self { status: AgentStatus::Offline, instance_id: Some(instance_id.into()), is_final: true }
    }

    /// Names the process that sets the status.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }
}

impl RequestBody for StatusUpdate {
    fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error> {
        let mut fields = Fields::read(body)?;
        let (status, instance_id) = (fields.status(), fields.instance_id());
        if status.is_none() {
            fields.is_missing("status", STATUS);
        }
        let is_final = fields.get("final", "true or false", Value::as_bool).unwrap_or_default();
        if is_final && (status != Some(AgentStatus::Offline) || instance_id.is_none()) {
            fields.fail("final", "needs the status \"offline\" and an instance_id");
        }
        Ok(fields.check().map(|()| Self { status: status.unwrap_or_default(), instance_id, is_final }))
    }
}

/// Converts a whole number that is in range.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the caller checked the range")]
fn to_u32(number: f64) -> u32 {
    number as u32
}

/// Returns how long an agent may be silent: the registry's own timeout or twice the agent's declared interval, whichever is
/// longer.
#[must_use]
pub fn heartbeat_timeout(of_registry: Duration, declared_interval: Option<Duration>) -> Duration {
    of_registry.max(declared_interval.unwrap_or_default().saturating_mul(2))
}
