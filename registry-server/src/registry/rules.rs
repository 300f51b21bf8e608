//! The effect of a change on an agent: pure functions that both databases share.

mod deadline_policy;
mod maintenance;
mod outcome;

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{
    AgentCard, AgentStatus, CHANGED_BY_REGISTRY, Heartbeat, MaintenanceRequest, Owner, StatusUpdate,
    Timestamp,
};
use registry_sdk::internal::outlasts_registration;

use crate::store::{CardWrite, Event, EventKind, StoredAgent, Writes};
pub(crate) use deadline_policy::DeadlinePolicy;
pub(crate) use maintenance::has_leftover_maintenance;
pub(crate) use outcome::Outcome;

/// A requested change of one agent.
#[derive(Debug)]
pub(crate) enum Change {
    /// Creates or replaces the agent. Counts as a heartbeat.
    Register {
        draft: Box<StoredAgent>,
        /// Age of the agent's process when the request arrived.
        instance_age: Option<Duration>,
        /// The card whose digest is in the draft.
        card: Option<AgentCard>,
    },
    /// Records a heartbeat, with an optional status.
    Heartbeat(Heartbeat),
    /// Sets the status.
    SetStatus(StatusUpdate),
    /// Takes the agent out of service for a while.
    SetMaintenance(MaintenanceRequest),
    /// Ends the agent's maintenance.
    EndMaintenance,
    /// Removes the agent.
    Remove,
    /// Marks the agent offline if it missed its deadline by the expiry margin.
    Expire,
    /// Ends the agent's maintenance if its time is over.
    ExpireMaintenance,
    /// Removes the agent if it has been offline for long enough.
    Purge,
    /// Records whether the registry's probes of the agent fail.
    Probed { failed: bool },
    /// Only compares the row with the registry's own state, as every change does.
    Reconcile,
}

/// The state of an agent before a change.
#[derive(Debug, Default)]
pub(crate) struct CurrentAgent {
    /// The locked row. `None` if there is none or it cannot be decoded.
    pub(crate) row: Option<StoredAgent>,
    /// Whether there is a row that cannot be decoded.
    pub(crate) is_unreadable: bool,
    /// The agent after its last known change. The row only differs if another program wrote it.
    pub(crate) known: Option<Arc<StoredAgent>>,
}

/// Whether an instance may act for an agent.
///
/// True if the instance registered the agent, or if the caller or the registration named no instance. False
/// if the instance was shut down.
pub(crate) fn accepts_instance(agent: &StoredAgent, instance_id: Option<&str>) -> bool {
    let Some(instance_id) = instance_id else { return true };
    agent.instance_id.as_deref().is_none_or(|registered| registered == instance_id)
        && !agent.instances.has_ended(instance_id)
}

/// Applies changes within one transaction, and collects the resulting writes.
pub(crate) struct Transition<'a> {
    pub(crate) policy: &'a DeadlinePolicy,
    /// Database time.
    pub(crate) now: Timestamp,
    /// Revision of the last change.
    pub(crate) revision: i64,
    pub(crate) writes: Writes,
    /// The agent after its last known change.
    known: Option<Arc<StoredAgent>>,
    /// Whether the row differs from `known`, because another program wrote it.
    is_edited: bool,
    /// Name to record for the change, if it is known.
    changed_by: Option<String>,
}

impl<'a> Transition<'a> {
    pub(crate) fn new(policy: &'a DeadlinePolicy, now: Timestamp, revision: i64) -> Self {
        let writes = Writes::default();
        Self { policy, now, revision, writes, known: None, is_edited: false, changed_by: None }
    }

    /// Decides the effect of a change requested `age` ago, and adds its writes.
    ///
    /// Each agent may be changed only once, since `current` does not include earlier decisions. If another
    /// program has changed the row, the decision also adds that edit to the history.
    pub(crate) fn decide(
        &mut self,
        change: &Change,
        changed_by: Option<&str>,
        age: Duration,
        mut current: CurrentAgent,
    ) -> Outcome {
        self.known = current.known;
        self.changed_by = changed_by.map(str::to_owned);
        self.is_edited = current.row.as_ref().is_some_and(|row| !self.is_known(row));
        if let Some(row) = current.row.as_mut().filter(|_| self.is_edited) {
            // The edit is the agent's last change, unless the requested change replaces it.
            row.changed_by = Some(CHANGED_BY_REGISTRY.to_owned());
        }
        let arrived = self.now.saturating_sub(age);
        match (change, current.row) {
            (Change::Register { draft, instance_age, card }, row) => {
                // An undecodable row, or one that another program deleted, may have left a card behind.
                let may_have_card = row.as_ref().is_none_or(|row| row.card_digest.is_some());
                let outcome = self.register(draft, *instance_age, arrived, row);
                if matches!(outcome, Outcome::Applied(_)) && (card.is_some() || may_have_card) {
                    let agent_id = draft.agent_id.clone();
                    self.writes.cards.push(CardWrite { agent_id, card: card.clone() });
                }
                outcome
            }
            (change, None) => self.missing(change, current.is_unreadable),
            (Change::SetStatus(update), Some(agent)) if is_repeated_shutdown(&agent, update) => {
                self.unchanged(agent)
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
            (Change::SetMaintenance(request), Some(agent)) => self.set_maintenance(agent, request, arrived),
            (Change::EndMaintenance, Some(agent)) => self.end_maintenance(agent),
            (Change::ExpireMaintenance, Some(agent)) => self.expire_maintenance(agent),
            (Change::Expire, Some(agent)) => self.expire(agent),
            (Change::Probed { failed }, Some(agent)) => self.probed(agent, *failed),
            (Change::Reconcile, Some(agent)) => self.unchanged(agent),
            (Change::Purge, Some(agent)) if !self.policy.is_purgeable(&agent, self.now) => {
                self.unchanged(agent)
            }
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
                    self.append(previous, EventKind::Internal);
                }
                return rejection;
            }
        }
        (agent.registered_at, agent.last_heartbeat) = (arrived, arrived);
        agent.changed_by.clone_from(&self.changed_by);
        if let Some(previous) = current {
            agent.registered_at = previous.registered_at;
            agent.last_heartbeat = self.latest_heartbeat(previous.last_heartbeat, arrived);
            agent.probe_failed =
                previous.probe_failed && agent.may_be_probed() && previous.has_same_probes(&agent);
            let started_at = instance_age.map(|age| arrived.saturating_sub(age));
            let is_owner = |instance_id: &str| agent.is_owned_by(instance_id);
            agent.maintenance = previous
                .maintenance
                .clone()
                .filter(|maintenance| outlasts_registration(maintenance, started_at, is_owner));
            let is_repeated = previous.has_same_registration(draft)
                && previous.maintenance == agent.maintenance
                && !self.is_past_deadline(&previous);
            if is_repeated {
                agent.changed_by = previous.changed_by;
            }
        }
        self.assign_status(&mut agent, draft.status);
        Outcome::Applied(self.append(agent, EventKind::Registered))
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
        } else if self.is_edited {
            self.unchanged(agent)
        } else if self.policy.is_nearly_overdue(last_heartbeat, interval, self.now) {
            Outcome::Applied(self.append(agent, EventKind::Internal))
        } else {
            let agent = Arc::new(agent);
            self.writes.heartbeats.push(agent.clone());
            Outcome::Unchanged(agent)
        }
    }

    fn set_status(&mut self, mut agent: StoredAgent, update: &StatusUpdate) -> Outcome {
        let status = update.status;
        let ended_instance = update.instance_id.as_deref().filter(|_| update.is_final);
        if let Some(instance_id) = ended_instance {
            agent.instances.end(instance_id, self.now);
        }
        // The maintenance may have belonged to that process.
        let ends_maintenance = ended_instance.is_some() && has_leftover_maintenance(&agent, self.now);
        if ends_maintenance {
            agent.maintenance = None;
        }
        let is_unchanged = agent.status == status && !agent.missed_deadline && !ends_maintenance;
        // Only a heartbeat revives an agent that is past its deadline.
        if is_unchanged || self.is_past_deadline(&agent) && status != AgentStatus::Offline {
            return self.unchanged(agent);
        }
        self.assign_status(&mut agent, status);
        self.emit(agent, EventKind::StatusChanged)
    }

    /// Records the shutdown of a remembered process that does not own the id, so that its late requests are rejected.
    fn end_other_instance(&mut self, mut agent: StoredAgent, update: &StatusUpdate) {
        let running = update.instance_id.as_deref().filter(|id| agent.instances.is_running(id));
        if let Some(instance_id) = running.filter(|_| update.is_final) {
            agent.instances.end(instance_id, self.now);
            self.append(agent, EventKind::Internal);
        }
    }

    /// Whether an agent is past its deadline, or was already marked as such.
    ///
    /// The mark survives a restart of the server, after which silence is counted anew.
    fn is_past_deadline(&self, agent: &StoredAgent) -> bool {
        agent.missed_deadline
            || self.policy.is_overdue(agent.last_heartbeat, agent.heartbeat_interval, self.now)
    }

    fn expire(&mut self, mut agent: StoredAgent) -> Outcome {
        let StoredAgent { last_heartbeat, heartbeat_interval, .. } = agent;
        let margin = self.policy.expiry_margin;
        let is_expired =
            self.policy.is_past_deadline_by(margin, last_heartbeat, heartbeat_interval, self.now);
        if agent.status == AgentStatus::Offline || !is_expired {
            return self.unchanged(agent);
        }
        self.assign_status(&mut agent, AgentStatus::Offline);
        agent.missed_deadline = true;
        self.emit(agent, EventKind::StatusChanged)
    }

    fn probed(&mut self, mut agent: StoredAgent, failed: bool) -> Outcome {
        // The agent may have registered again during the probe.
        let failed = failed && agent.may_be_probed();
        if agent.probe_failed == failed {
            return self.unchanged(agent);
        }
        agent.probe_failed = failed;
        self.emit(agent, EventKind::StatusChanged)
    }

    fn remove(&mut self, mut agent: StoredAgent) -> Outcome {
        agent.changed_by = self.changed_by.take();
        Outcome::Removed(self.append(agent, EventKind::Deregistered))
    }

    /// Decides a change of an agent that has no readable row.
    fn missing(&mut self, change: &Change, is_unreadable: bool) -> Outcome {
        let is_removal = matches!(change, Change::Remove | Change::Purge);
        match self.known.as_deref().cloned() {
            Some(known) if is_removal => self.remove(known),
            // Leave an unreadable row alone, since an operator may want to repair it.
            Some(mut known) if !is_unreadable => {
                known.changed_by = Some(CHANGED_BY_REGISTRY.to_owned());
                Outcome::FoundDeleted(self.append(known, EventKind::Deregistered))
            }
            _ => Outcome::NotFound,
        }
    }

    /// Keeps the row. If another program changed it, that edit is added to the history.
    fn unchanged(&mut self, mut agent: StoredAgent) -> Outcome {
        let kind = match &self.known {
            Some(known) if !self.is_edited && known.is_same_but_for_heartbeat(&agent) => {
                return Outcome::Unchanged(Arc::new(agent));
            }
            Some(known) => difference(known, &agent),
            None => EventKind::Registered,
        };
        // Another program may not know that these fields depend on the status.
        let is_offline = agent.status == AgentStatus::Offline;
        agent.missed_deadline &= is_offline;
        agent.offline_since = is_offline.then(|| agent.offline_since.unwrap_or(self.now));
        let agent = self.append(agent, kind);
        if self.is_edited { Outcome::Adopted(agent) } else { Outcome::Applied(agent) }
    }

    /// Whether the row matches the history.
    fn is_known(&self, agent: &StoredAgent) -> bool {
        self.known.as_ref().is_some_and(|known| known.is_same_but_for_heartbeat(agent))
    }

    /// Returns the later of two heartbeats.
    ///
    /// A heartbeat in the future, recorded before the clock was set back, counts as now.
    fn latest_heartbeat(&self, previous: Timestamp, arrived: Timestamp) -> Timestamp {
        previous.min(self.now).max(arrived)
    }

    /// Sets a reported status and the fields that depend on it.
    fn assign_status(&self, agent: &mut StoredAgent, status: AgentStatus) {
        agent.offline_since =
            (status == AgentStatus::Offline).then(|| agent.offline_since.unwrap_or(self.now));
        agent.status = status;
        agent.missed_deadline = false;
    }

    /// Adds a requested change.
    fn emit(&mut self, mut agent: StoredAgent, kind: EventKind) -> Outcome {
        agent.changed_by = self.changed_by.take();
        Outcome::Applied(self.append(agent, kind))
    }

    /// Adds a change, keeping the agent's `changed_by`.
    fn append(&mut self, mut agent: StoredAgent, kind: EventKind) -> Arc<StoredAgent> {
        self.revision += 1;
        agent.revision = self.revision;
        let agent = Arc::new(agent);
        self.writes.events.push(Event::new(kind, agent.clone()));
        agent
    }
}

/// Returns the kind of event for the difference between two states of an agent.
fn difference(known: &StoredAgent, agent: &StoredAgent) -> EventKind {
    let health = |agent: &StoredAgent| {
        (agent.status, agent.missed_deadline, agent.probe_failed, agent.maintenance.clone())
    };
    if !known.has_same_registration(&StoredAgent { status: known.status, ..agent.clone() }) {
        EventKind::Registered
    } else if health(known) != health(agent) {
        EventKind::StatusChanged
    } else {
        EventKind::Internal
    }
}

/// Whether the owner repeats its shutdown report, for example because it missed the response.
fn is_repeated_shutdown(agent: &StoredAgent, update: &StatusUpdate) -> bool {
    let is_owner = |instance_id| agent.instance_id.as_deref() == Some(instance_id);
    update.is_final
        && update.instance_id.as_deref().is_some_and(|id| is_owner(id) && agent.instances.has_ended(id))
}

/// Creates the rejection of a process that may not act for the agent.
fn superseded(agent: &StoredAgent, instance_id: Option<&str>) -> Outcome {
    let owner = Owner::new(agent.instance_id.clone(), agent.base_url.clone());
    Outcome::Superseded { owner, has_ended: instance_id.is_some_and(|id| agent.instances.has_ended(id)) }
}

#[cfg(test)]
mod tests;
