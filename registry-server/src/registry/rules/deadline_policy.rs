//! When an agent is past its deadline, and when it has been offline for long enough to be removed.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Timestamp};
use registry_sdk::internal::heartbeat_timeout;

use crate::registry::time::Silence;
use crate::store::StoredAgent;

/// Maximum time from a heartbeat's arrival until every server finds it in the database; a quarter of a short timeout.
const MAX_COMMIT_LAG: Duration = Duration::from_secs(1);

/// How long agents may be silent, and what counts as silence.
#[derive(Clone, Debug)]
pub(crate) struct DeadlinePolicy {
    /// The registry's own heartbeat timeout.
    pub(crate) timeout: Duration,
    pub(crate) silence: Silence,
    /// Time past the deadline after which it is persisted as missed.
    ///
    /// A heartbeat that arrived in time may still be on its way to the database.
    pub(crate) expiry_margin: Duration,
    /// Time after which an offline agent is removed; `None` keeps it.
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

    /// Whether an agent is past its deadline by a margin.
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
    /// The start of a server does not begin that time anew: servers may be replaced more often. But then the agent gets
    /// one timeout to come back, since it could not before.
    pub(crate) fn is_purgeable(&self, agent: &StoredAgent, now: Timestamp) -> bool {
        let (Some(since), Some(limit)) = (agent.offline_since, self.remove_after) else {
            return false;
        };
        let timeout = heartbeat_timeout(self.timeout, agent.heartbeat_interval);
        agent.status == AgentStatus::Offline
            // Whoever took it out expects it back.
            && !agent.is_in_maintenance(now)
            && self.silence.with_downtime(since, limit, now) > limit
            && self.silence.of(since, limit, now) > timeout.min(limit)
    }

    /// Whether other servers may see a missed deadline before a heartbeat that arrives now is committed.
    ///
    /// Such a heartbeat needs an event, so that they learn of it. They may know of other outages than this server, so
    /// all the time counts since the last heartbeat.
    pub(crate) fn is_nearly_overdue(
        &self,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        let timeout = heartbeat_timeout(self.timeout, interval);
        now.since(last_heartbeat) + MAX_COMMIT_LAG.min(timeout / 4) > timeout
    }
}
