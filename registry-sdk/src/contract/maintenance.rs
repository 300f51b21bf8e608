//! Maintenance: an agent that an operator, or the agent itself, takes out for a while.

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// Why and until when an agent is given no work.
///
/// It begins with a [`MaintenanceRequest`](super::MaintenanceRequest). Nothing that the agent sends ends it, unless it belongs to one process.
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
    /// When it began, by the registry's clock.
    pub since: Timestamp,
    /// When it ends by itself, by the registry's clock. Left out if somebody has to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required = false))]
    pub until: Option<Timestamp>,
    /// The process that it belongs to: it ends with that process, and when another one registers. Left out if it belongs
    /// to the agent, whichever process is behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub instance_id: Option<String>,
}

impl Maintenance {
    /// Whether its time is over.
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

/// Returns whether a maintenance goes on after a registration by a process that started at a time, if it said so. `is_owner`
/// says whether a process owns the agent's id now.
///
/// A maintenance that belongs to a process ends when another one registers. That includes one that started later under the
/// same name.
#[must_use]
pub fn outlasts_registration(
    maintenance: &Maintenance,
    started_at: Option<Timestamp>,
    is_owner: impl FnOnce(&str) -> bool,
) -> bool {
    let is_later = started_at.is_some_and(|started_at| started_at >= maintenance.since);
    maintenance.instance_id.as_deref().is_none_or(|instance_id| is_owner(instance_id) && !is_later)
}
