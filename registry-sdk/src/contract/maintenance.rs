//! Maintenance: an operator, or the agent itself, takes the agent out of service for a while.

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// Why and until when an agent is given no work.
///
/// Maintenance begins with a [`MaintenanceRequest`](super::MaintenanceRequest). Nothing that the agent sends ends it, unless it
/// belongs to one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Why and until when an agent is given no work.")
)]
#[non_exhaustive]
pub struct Maintenance {
    /// The reason, for people.
    pub reason: String,
    /// When the maintenance began, by the registry's clock.
    pub since: Timestamp,
    /// When the maintenance ends by itself, by the registry's clock. Omitted if it lasts until it is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required = false))]
    pub until: Option<Timestamp>,
    /// The process that the maintenance belongs to: it ends with that process, and when another process registers. Omitted if
    /// it belongs to the agent, whichever process the agent runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub instance_id: Option<String>,
}

impl Maintenance {
    /// Returns whether the maintenance has ended by itself at a time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use registry_sdk::contract::{MaintenanceRequest, Timestamp};
    /// let hour = MaintenanceRequest::new("disk upgrade").duration(Duration::from_secs(3_600));
    /// let noon: Timestamp = "2026-11-24T12:00:00Z".parse()?;
    /// let maintenance = hour.begin(noon);
    /// assert!(!maintenance.is_over("2026-11-24T12:59:59.999Z".parse()?));
    /// assert!(maintenance.is_over("2026-11-24T13:00:00Z".parse()?));
    /// # Ok::<(), registry_sdk::contract::ParseTimestampError>(())
    /// ```
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Returns whether a maintenance continues after a registration.
///
/// `started_at` is the start of the registering process, if it gave its age; `is_owner` returns whether a process owns the
/// agent's id.
///
/// A maintenance that belongs to a process ends when another process registers. A process with the same `instance_id`
/// counts as another one if its age says that it did not start before the maintenance began.
#[must_use]
pub fn outlasts_registration(
    maintenance: &Maintenance,
    started_at: Option<Timestamp>,
    is_owner: impl FnOnce(&str) -> bool,
) -> bool {
    let is_later = started_at.is_some_and(|started_at| started_at >= maintenance.since);
    maintenance.instance_id.as_deref().is_none_or(|instance_id| is_owner(instance_id) && !is_later)
}
