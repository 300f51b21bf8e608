//! Decides when an agent has missed its deadline, and when an offline agent is removed.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Timestamp};
use registry_sdk::internal::heartbeat_timeout;

use crate::registry::time::{Silence, is_far_ahead};
use crate::store::StoredAgent;

/// Maximum time until an arrived heartbeat is visible to all servers. At most a quarter of a short timeout.
const MAX_COMMIT_LAG: Duration = Duration::from_secs(1);

/// The limits on an agent's silence, and what counts as silence.
#[derive(Clone, Debug)]
pub(crate) struct DeadlinePolicy {
    /// The heartbeat timeout of the registry.
    pub(crate) timeout: Duration,
    pub(crate) silence: Silence,
    /// Time past the deadline after which the deadline is persisted as missed.
    ///
    /// Allows for heartbeats that arrived in time and are still on their way to the database.
    pub(crate) expiry_margin: Duration,
    /// Time after which an offline agent is removed. `None` keeps offline agents.
    pub(crate) remove_after: Option<Duration>,
}

impl DeadlinePolicy {
    /// Whether an agent is past its deadline.
    pub(crate) fn is_overdue(
        &self,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        self.is_past_deadline_by(Duration::ZERO, last_heartbeat, interval, now)
    }

    /// Whether an agent is past its deadline by more than a margin.
    pub(crate) fn is_past_deadline_by(
        &self,
        margin: Duration,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        let timeout = heartbeat_timeout(self.timeout, interval);
        self.silence.of(last_heartbeat, timeout, now) > timeout.saturating_add(margin)
    }

    /// Whether an agent has been offline for long enough to be removed.
    ///
    /// Starting a server does not reset that time, since servers may be restarted at shorter intervals than
    /// `remove_after`. But after a start, the agent has one timeout to come back, since it could not do so
    /// before.
    pub(crate) fn is_purgeable(&self, agent: &StoredAgent, now: Timestamp) -> bool {
        let (Some(since), Some(limit)) = (agent.offline_since, self.remove_after) else {
            return false;
        };
        let timeout = heartbeat_timeout(self.timeout, agent.heartbeat_interval);
        agent.status == AgentStatus::Offline
            // An agent in maintenance is expected back.
            && !agent.is_in_maintenance(now)
            && self.silence.with_downtime(since, limit, now) > limit
            && self.silence.of(since, limit, now) > timeout.min(limit)
    }

    /// Whether other servers may see a missed deadline before a heartbeat that arrives now is committed.
    ///
    /// Such a heartbeat needs an event to reach the other servers. They may know of other outages than this
    /// server, so all the time since the last heartbeat counts.
    pub(crate) fn is_nearly_overdue(
        &self,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        let timeout = heartbeat_timeout(self.timeout, interval);
        // Heartbeats from before the clock was set back do not count for them.
        is_far_ahead(last_heartbeat, now)
            || now.since(last_heartbeat) + MAX_COMMIT_LAG.min(timeout / 4) > timeout
    }
}
