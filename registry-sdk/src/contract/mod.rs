//! What crosses the wire: the one definition of the registry's types and limits, which clients and servers
//! share.
//!
//! HTTP/1.1 and JSON. Times are RFC 3339 in UTC with milliseconds, durations are numbers of seconds in
//! fields whose names end in `_seconds`. Unknown fields are ignored on both sides. Fields that only this
//! project's server sends are optional here, so that a plainer server's answers decode as well.

pub(crate) mod address;
mod agent;
mod capability_match;
mod card;
mod delegation;
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

/// The port a registry listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 8009;

/// A response header: for how many seconds the database has been away, where a read is answered from memory.
pub const STALE_HEADER: &str = "registry-stale-seconds";
