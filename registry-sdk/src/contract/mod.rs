//! The wire contract: the one definition of the registry's types and limits, shared by clients and servers.
//!
//! An agent's author needs [`Registration`] and [`Capability`]; [`AgentRecord`] and [`CapabilityMatch`] are what the registry
//! returns. The types of requests and responses implement serde's traits, so a client of your own can use them, too:
//!
//! ```
//! use registry_sdk::contract::{AgentRecord, AgentStatus, Capability, Registration};
//!
//! let registration = Registration::new("sec-scan", "Security Scanner", "http://sec-scan:8003")
//!     .capability(Capability::new("security_scanning").tag("sast"));
//! registration.validate()?; // names every field that is out of its limits
//! let body = serde_json::to_string(&registration)?;
//!
//! let response = r#"{"agent_id": "sec-scan", "status": "active", "a_newer_field": 1}"#;
//! let record: AgentRecord = serde_json::from_str(response)?;
//! assert_eq!(record.status, AgentStatus::Active);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Structs that the registry returns are `#[non_exhaustive]`, because they may get more fields. Tests create them with
//! constructors such as [`AgentRecord::new`].
//!
//! The protocol is HTTP/1.1 and JSON. Times are RFC 3339 in UTC with milliseconds. Durations are numbers of seconds in fields
//! whose names end in `_seconds`. Both sides ignore unknown fields. Fields that only this project's server sends are optional
//! here, so that the responses of simpler servers can be decoded as well.

pub(crate) mod address;
mod agent;
mod capability_match;
mod card;
mod delegation;
pub(crate) mod entity_tag;
pub(crate) mod event;
mod health;
pub(crate) mod heartbeat;
pub(crate) mod instances;
pub(crate) mod maintenance;
mod maintenance_request;
pub(crate) mod own_health;
pub(crate) mod problem;
mod registration;
mod registration_body;
pub(crate) mod request_body;
pub(crate) mod stats;
mod time;
pub(crate) mod trace_context;
pub(crate) mod validate;
mod words;

#[cfg(feature = "a2a")]
pub(crate) use agent::null_is_default;
pub use agent::{AgentRecord, AgentStatus, CHANGED_BY_REGISTRY, Capability, ParseStatusError};
pub use capability_match::CapabilityMatch;
pub use card::{AgentCard, CARD_MEDIA_TYPE};
pub use delegation::{
    ATTEMPT_HEADER, IDEMPOTENCY_KEY_HEADER, TIME_LEFT_HEADER, idempotency_key_value, parse_idempotency_key,
};
pub use health::{
    AgentHealth, FailedCheck, HealthReport, HealthStatus, ProbeResult, ServerHealth, UnhealthyReason,
};
pub use heartbeat::{Heartbeat, HeartbeatAck, StatusUpdate};
pub use instances::Owner;
pub use maintenance::Maintenance;
pub use maintenance_request::MaintenanceRequest;
pub use own_health::{DEFAULT_HEALTH_PATH, ProbeMode};
pub use problem::{FieldError, Problem, ValidationError};
pub use registration::Registration;
pub use stats::RegistryStats;
pub use time::{ParseTimestampError, Timestamp};
pub use validate::limits;
pub use words::UnknownWord;
#[cfg(feature = "client")]
pub(crate) use words::cut;

/// Default port of a registry.
pub const DEFAULT_PORT: u16 = 8009;

/// Response header of a read that was answered from memory: for how many seconds the database has been unavailable.
pub const STALE_HEADER: &str = "registry-stale-seconds";
