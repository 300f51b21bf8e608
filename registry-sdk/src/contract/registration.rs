//! Registrations. `CONTRIBUTING.md` lists every file that a new field concerns.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::agent::{AgentStatus, Capability, null_is_default};
use super::card::AgentCard;
use super::own_health::ProbeMode;
use super::time::optional_seconds;

/// The body of `POST /register`.
///
/// ```
/// use std::time::Duration;
/// use registry_sdk::contract::{Capability, Registration};
///
/// let registration = Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
///     .capability(Capability::new("code_generation").tag("python"))
///     .heartbeat_interval(Duration::from_secs(30));
/// registration.validate()?;
/// # Ok::<(), registry_sdk::contract::ValidationError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The registration of an agent.")
)]
#[non_exhaustive]
pub struct Registration {
    /// The agent's id: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub agent_id: String,
    /// The agent's name, for people: 1 to 128 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000]*$"))]
    pub agent_name: String,
    /// The URL at which callers reach the agent: absolute, `http` or `https`, without user info, query and fragment, up to 256
    /// characters. Addresses that nobody can connect to, such as `0.0.0.0`, are refused.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256, format = "uri"))]
    pub base_url: String,
    /// The path of the agent's health endpoint, below `base_url`: 1 to 256 characters, beginning with one slash. Default:
    /// `/health`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 256,
            pattern = "^/([^/?#\\\\\\s\\x00-\\x1f\\x7f-\\x9f][^?#\\\\\\s\\x00-\\x1f\\x7f-\\x9f]*)?$"
        )
    )]
    pub health_path: Option<String>,
    /// Whether the registry may probe the agent. Default: `on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeMode>,
    /// The agent's capabilities: up to 128, with distinct names.
    #[cfg_attr(feature = "openapi", schema(max_items = 128))]
    pub capabilities: Vec<Capability>,
    /// The initial status. Default: `active`.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<AgentStatus>))]
    pub status: AgentStatus,
    /// Any further information about the agent: up to 16 KiB of JSON, nested up to 64 levels deep.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<super::agent::Metadata>))]
    pub metadata: Map<String, Value>,
    /// The interval at which the agent intends to send heartbeats: above 0, up to a day. The registry waits at least twice as
    /// long before the agent counts as offline.
    #[serde(
        default,
        rename = "heartbeat_interval_seconds",
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(exclusive_minimum = 0, maximum = 86400, value_type = Option<f64>))]
    pub heartbeat_interval: Option<Duration>,
    /// The process, if several may start with the same `agent_id`: 1 to 64 of the characters that an `agent_id` may have. The
    /// youngest running process owns the id; heartbeats of another process are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub instance_id: Option<String>,
    /// How long ago the process started, by a monotonic clock. Requires an `instance_id`. A registration is refused with 409 if
    /// its process is older than the running owner of the id; one without an age is always accepted.
    #[serde(
        default,
        rename = "instance_age_seconds",
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1_000_000_000, value_type = Option<f64>))]
    pub instance_age: Option<Duration>,
    /// The agent's A2A agent card, up to 64 KiB of JSON. It is kept byte for byte and is not part of the record: `GET
    /// /agents/{id}/card` returns it. A registration without a card removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<super::card::Card>))]
    pub card: Option<AgentCard>,
}

impl Registration {
    /// Creates a registration without capabilities.
    #[must_use]
    pub fn new(
        agent_id: impl Into<String>,
        agent_name: impl Into<String>,
        base_url: impl Into<String>,
    ) -> Self {
        Self {
            agent_id: agent_id.into(),
            agent_name: agent_name.into(),
            base_url: base_url.into(),
            health_path: None,
            probe: None,
            capabilities: Vec::new(),
            status: AgentStatus::Active,
            metadata: Map::new(),
            heartbeat_interval: None,
            instance_id: None,
            instance_age: None,
            card: None,
        }
    }

    /// Adds a capability.
    #[must_use]
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    /// Sets the initial status.
    #[must_use]
    pub fn status(mut self, status: AgentStatus) -> Self {
        self.status = status;
        self
    }

    /// Adds an entry to the metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the path of the agent's health endpoint, below `base_url`. Default: `/health`.
    #[must_use]
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        self.health_path = Some(path.into());
        self
    }

    /// Sets whether the registry may probe the agent.
    #[must_use]
    pub fn probe(mut self, probe: ProbeMode) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Turns off probes: the registry judges the agent by its heartbeats alone.
    #[must_use]
    pub fn no_probe(self) -> Self {
        self.probe(ProbeMode::Off)
    }

    /// Declares the interval of the heartbeats.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// Names the process, which distinguishes it from others with the same `agent_id`.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }

    /// Sets how long ago the process started. [`Agent`](crate::Agent) does so by itself each time it registers.
    #[must_use]
    pub fn instance_age(mut self, age: Duration) -> Self {
        self.instance_age = Some(age);
        self
    }

    /// Sets the agent's A2A agent card, which the registry passes on unchanged.
    #[must_use]
    pub fn card(mut self, card: AgentCard) -> Self {
        self.card = Some(card);
        self
    }
}
