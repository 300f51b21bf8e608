//! What a change does to an agent. Pure: the same rules for both databases, in one place.

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Heartbeat, Owner, StatusUpdate, Timestamp, heartbeat_timeout};

use crate::store::{Event, EventKind, StoredAgent, Writes};

/// How long a heartbeat may take from its arrival until every replica would find it in the database.
const COMMIT_LAG: Duration = Duration::from_millis(500);

/// A heartbeat so far in the future is from before somebody set the database's clock back.
pub(crate) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A change that somebody asks for.
#[derive(Debug)]
pub(crate) enum Change {
    /// Creates or replaces the agent, and counts as a heartbeat.
    Register {
        draft: Box<StoredAgent>,
        /// How long before the request arrived its process had started.
        instance_age: Option<Duration>,
    },
    /// The agent is alive, and may say its status.
    Heartbeat(Heartbeat),
    /// Sets the status.
    SetStatus(StatusUpdate),
    /// Removes the agent.
    Remove,
    /// Marks the agent offline where it has missed its deadline by a margin.
    Expire,
    /// Removes the agent where it has been offline long enough.
    Purge,
    /// The agent itself was asked how it is, and failed at it, or did not.
    Probed { failed: bool },
}

/// How long agents may be silent, and since when that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadlinePolicy {
    /// The registry's own heartbeat timeout.
    pub(crate) timeout: Duration,
    /// Nobody's silence before this counts: the agents could not have been heard. `None` while they still
    /// cannot.
    pub(crate) reachable_since: Option<Timestamp>,
    /// How far past the deadline an agent has to be before that is written down. A heartbeat that arrived in
    /// time may still be on its way to the database.
    pub(crate) expiry_margin: Duration,
    /// How long an agent stays offline before it is removed; `None`: it is kept.
    pub(crate) remove_after: Option<Duration>,
}

impl DeadlinePolicy {
    /// Whether an agent that was last heard at `heard` is past its deadline.
    pub(crate) fn is_overdue(
        &self,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        self.silence(last_heartbeat, now) > heartbeat_timeout(self.timeout, interval)
    }

    /// Whether others may call the agent offline before a heartbeat that arrives now is committed. Such a
    /// heartbeat has to be announced, so that they hear of it.
    pub(crate) fn is_nearly_overdue(
        &self,
        last_heartbeat: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        self.silence(last_heartbeat, now) + COMMIT_LAG > heartbeat_timeout(self.timeout, interval)
    }

    fn silence(&self, last_heartbeat: Timestamp, now: Timestamp) -> Duration {
        let Some(since) = self.reachable_since else { return Duration::ZERO };
        // What is of another time says nothing: silence counts from when that was noticed.
        let last_heartbeat =
            if last_heartbeat.since(now) > MAX_CLOCK_SKEW { since } else { last_heartbeat.max(since) };
        now.since(last_heartbeat)
    }
}

/// Whether a process may speak for an agent: the one that registered it unless it was shut down, or one that does not say
/// which it is. Where the agent was registered without an instance, any that was not shut down may.
pub(crate) fn accepts_instance(agent: &StoredAgent, instance_id: Option<&str>) -> bool {
    let Some(instance_id) = instance_id else { return true };
    agent.instance_id.as_deref().is_none_or(|registered| registered == instance_id)
        && !agent.instances.has_ended(instance_id)
}

/// What became of a change.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The agent as it is now.
    Applied(Arc<StoredAgent>),
    /// The agent is not there any more.
    Removed,
    /// Nothing that anybody sees: the process that asked may not speak for the agent.
    Superseded {
        owner: Owner,
        /// Whether the process that asked was shut down, and not superseded by another.
        has_ended: bool,
    },
    /// There is no such agent.
    NotFound,
}

/// Decides one change after another within one transaction, and gathers what has to be written.
pub(crate) struct Transition<'a> {
    pub(crate) policy: &'a DeadlinePolicy,
    /// The database's clock.
    pub(crate) now: Timestamp,
    /// The registry's revision so far.
    pub(crate) revision: i64,
    pub(crate) writes: Writes,
}

impl Transition<'_> {
    /// Decides what a change that arrived `age` ago does to an agent. At most one change an agent: what was
    /// decided before is not in `current`.
    pub(crate) fn decide(&mut self, change: &Change, age: Duration, current: Option<StoredAgent>) -> Outcome {
        let arrived = Timestamp::from_unix_millis(
            self.now.unix_millis() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        );
        match (change, current) {
            (Change::Register { draft, instance_age }, current) => {
                self.register(draft, *instance_age, arrived, current)
            }
            (_, None) => Outcome::NotFound,
            (Change::SetStatus(update), Some(agent)) if is_repeated_shutdown(&agent, update) => {
                unchanged(agent)
            }
            (
                Change::Heartbeat(Heartbeat { instance_id, .. })
                | Change::SetStatus(StatusUpdate { instance_id, .. }),
                Some(agent),
            ) if !accepts_instance(&agent, instance_id.as_deref()) => {
                let rejection = superseded(&agent, instance_id.as_deref());
                if let Change::SetStatus(update) = change {
                    self.end_other_instance(agent, update);
                }
                rejection
            }
            (Change::Heartbeat(heartbeat), Some(agent)) => self.heartbeat(agent, heartbeat.status, arrived),
            (Change::SetStatus(update), Some(agent)) => self.set_status(agent, update),
            (Change::Expire, Some(agent)) => self.expire(agent),
            (Change::Probed { failed }, Some(agent)) => self.probed(agent, *failed),
            (Change::Purge, Some(agent)) if !self.is_purgeable(&agent) => unchanged(agent),
            (Change::Remove | Change::Purge, Some(agent)) => self.remove(agent),
        }
    }

    fn register(
        &mut self,
        draft: &StoredAgent,
        instance_age: Option<Duration>,
        arrived: Timestamp,
        current: Option<StoredAgent>,
    ) -> Outcome {
        let mut agent = draft.clone();
        agent.instances = current.as_ref().map(|previous| previous.instances.clone()).unwrap_or_default();
        if let Some(claimant) = &draft.instance_id {
            let live_agent = current.as_ref().filter(|previous| !self.is_past_deadline(previous));
            let owner = live_agent.and_then(|previous| previous.instance_id.as_deref());
            if !agent.instances.claim(claimant, instance_age, owner, arrived)
                && let Some(mut previous) = current
            {
                let has_changed = previous.instances != agent.instances;
                previous.instances = agent.instances;
                let rejection = superseded(&previous, Some(claimant));
                if has_changed {
                    self.emit(previous, EventKind::Internal);
                }
                return rejection;
            }
        }
        (agent.registered_at, agent.last_heartbeat) = (arrived, arrived);
        if let Some(previous) = current {
            agent.registered_at = previous.registered_at;
            agent.last_heartbeat = self.latest_heartbeat(previous.last_heartbeat, arrived);
            // What was found at another address, or of another process, says nothing of this one.
            let is_same_process =
                previous.base_url == agent.base_url && previous.instance_id == agent.instance_id;
            agent.probe_failed = previous.probe_failed && is_same_process;
        }
        self.assign_status(&mut agent, draft.status);
        self.emit(agent, EventKind::Registered)
    }

    fn heartbeat(
        &mut self,
        mut agent: StoredAgent,
        status: Option<AgentStatus>,
        arrived: Timestamp,
    ) -> Outcome {
        let (last_heartbeat, interval) = (agent.last_heartbeat, agent.heartbeat_interval);
        let is_overdue = self.policy.is_overdue(last_heartbeat, interval, arrived);
        let was_offline = agent.status == AgentStatus::Offline || is_overdue;
        let next = status.unwrap_or(if was_offline { AgentStatus::Active } else { agent.status });
        agent.last_heartbeat = self.latest_heartbeat(last_heartbeat, arrived);
        if next != agent.status || agent.missed_deadline {
            self.assign_status(&mut agent, next);
            self.emit(agent, EventKind::StatusChanged)
        } else if self.policy.is_nearly_overdue(last_heartbeat, interval, self.now) {
            self.emit(agent, EventKind::Internal)
        } else {
            self.writes.heartbeats.push((agent.agent_id.clone(), agent.last_heartbeat));
            unchanged(agent)
        }
    }

    fn set_status(&mut self, mut agent: StoredAgent, update: &StatusUpdate) -> Outcome {
        let status = update.status;
        let ended_instance = update.instance_id.as_deref().filter(|_| update.is_final);
        if let Some(instance_id) = ended_instance {
            agent.instances.end(instance_id, self.now);
        }
        let is_unchanged = agent.status == status && !agent.missed_deadline;
        // Only a heartbeat brings back an agent that has fallen silent.
        if is_unchanged || self.is_past_deadline(&agent) && status != AgentStatus::Offline {
            return if ended_instance.is_some() {
                self.emit(agent, EventKind::Internal)
            } else {
                unchanged(agent)
            };
        }
        self.assign_status(&mut agent, status);
        self.emit(agent, EventKind::StatusChanged)
    }

    /// Notes the end of a process that does not own the id: its late requests change nothing either.
    fn end_other_instance(&mut self, mut agent: StoredAgent, update: &StatusUpdate) {
        let running = update.instance_id.as_deref().filter(|id| agent.instances.is_running(id));
        if let Some(instance_id) = running.filter(|_| update.is_final) {
            agent.instances.end(instance_id, self.now);
            self.emit(agent, EventKind::Internal);
        }
    }

    /// Whether an agent is past its deadline, or was marked so. The mark outlives a restart of the server, after which
    /// silence counts anew.
    fn is_past_deadline(&self, agent: &StoredAgent) -> bool {
        agent.missed_deadline
            || self.policy.is_overdue(agent.last_heartbeat, agent.heartbeat_interval, self.now)
    }

    fn expire(&mut self, mut agent: StoredAgent) -> Outcome {
        let limit =
            heartbeat_timeout(self.policy.timeout, agent.heartbeat_interval) + self.policy.expiry_margin;
        let is_expired = self.policy.silence(agent.last_heartbeat, self.now) > limit;
        if agent.status == AgentStatus::Offline || !is_expired {
            return unchanged(agent);
        }
        self.assign_status(&mut agent, AgentStatus::Offline);
        agent.missed_deadline = true;
        self.emit(agent, EventKind::StatusChanged)
    }

    fn is_purgeable(&self, agent: &StoredAgent) -> bool {
        let (Some(since), Some(limit)) = (agent.offline_since, self.policy.remove_after) else {
            return false;
        };
        agent.status == AgentStatus::Offline && self.policy.silence(since, self.now) > limit
    }

    fn probed(&mut self, mut agent: StoredAgent, failed: bool) -> Outcome {
        if agent.probe_failed == failed {
            return unchanged(agent);
        }
        agent.probe_failed = failed;
        self.emit(agent, EventKind::StatusChanged)
    }

    fn remove(&mut self, agent: StoredAgent) -> Outcome {
        self.emit(agent, EventKind::Deregistered);
        Outcome::Removed
    }

    /// The later of two heartbeats. One in the future, from before somebody set the clock back, is now.
    fn latest_heartbeat(&self, previous: Timestamp, arrived: Timestamp) -> Timestamp {
        previous.min(self.now).max(arrived)
    }

    /// Sets a status that somebody said, and what follows from it.
    fn assign_status(&self, agent: &mut StoredAgent, status: AgentStatus) {
        agent.offline_since =
            (status == AgentStatus::Offline).then(|| agent.offline_since.unwrap_or(self.now));
        agent.status = status;
        agent.missed_deadline = false;
    }

    fn emit(&mut self, mut agent: StoredAgent, kind: EventKind) -> Outcome {
        self.revision += 1;
        agent.revision = self.revision;
        let agent = Arc::new(agent);
        self.writes.events.push(Event { kind, agent: agent.clone() });
        Outcome::Applied(agent)
    }
}

/// Whether the agent's process says again that it was shut down: it may have got no answer the first time.
fn is_repeated_shutdown(agent: &StoredAgent, update: &StatusUpdate) -> bool {
    let is_owner = |instance_id| agent.instance_id.as_deref() == Some(instance_id);
    update.is_final
        && update.instance_id.as_deref().is_some_and(|id| is_owner(id) && agent.instances.has_ended(id))
}

/// Refuses a process that may not speak for the agent.
fn superseded(agent: &StoredAgent, instance_id: Option<&str>) -> Outcome {
    let owner = Owner::new(agent.instance_id.clone(), agent.base_url.clone());
    Outcome::Superseded { owner, has_ended: instance_id.is_some_and(|id| agent.instances.has_ended(id)) }
}

fn unchanged(agent: StoredAgent) -> Outcome {
    Outcome::Applied(Arc::new(agent))
}

#[cfg(test)]
mod tests;
