//! Writes: heartbeats, and changes requested by clients.

use std::sync::Arc;

use registry_sdk::contract::{
    AgentStatus, CHANGED_BY_REGISTRY, Heartbeat, HeartbeatAck, MaintenanceRequest, Registration,
    StatusUpdate, Timestamp,
};
use registry_sdk::internal::{heartbeat_timeout, is_valid_agent_id};
use tokio::time::Instant;

use super::availability::Part;
use super::change_log::log_adoption;
use super::reports::Report;
use super::rules::{Change, Outcome, accepts_instance};
use super::view::{Entry, Json};
use super::{Error, Registry};
use crate::store::StoredAgent;

/// The response to a request for a change, and the agent after it.
#[derive(Debug)]
pub(crate) struct Written<T> {
    pub(crate) response: T,
    agent: Arc<StoredAgent>,
}

impl<T> Written<T> {
    /// Returns the revision of the agent's last change, which is older if the request changed nothing.
    pub(crate) fn revision(&self) -> i64 {
        self.agent.revision
    }

    /// Returns the name behind that change, if it is known.
    pub(crate) fn changed_by(&self) -> Option<&str> {
        self.agent.changed_by.as_deref()
    }
}

/// The response to a heartbeat.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) ack: HeartbeatAck,
    /// The agent after the heartbeat, if the heartbeat changed its status.
    pub(crate) changed: Option<Arc<StoredAgent>>,
}

impl Registry {
    /// Creates or updates an agent. A registration that changes nothing is as cheap as a heartbeat.
    ///
    /// `changed_by` is the name of the caller's token, as in the other changes.
    pub(crate) async fn register(
        &self,
        registration: Registration,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<Json>, Error> {
        let arrived = Instant::now();
        let instance_age = registration.instance_age;
        let card = registration.card.clone();
        let draft = StoredAgent::from_registration(registration).map_err(|error| {
            tracing::error!(%error, "cannot encode a registration, answering 500");
            Error::Internal
        })?;
        if let Some(entry) = self.shared.view.entry(&draft.agent_id)
            && entry.agent.has_same_registration(&draft)
            // The start of a new instance has to be stored, and a late request of an ended instance rejected.
            && draft.instance_id.as_deref().is_none_or(|id| {
                entry.agent.instances.is_noted(id, instance_age, self.shared.time.now())
            })
            // A later process with the same instance id may end the maintenance by registering.
            && entry.agent.maintenance.as_ref().is_none_or(|maintenance| maintenance.instance_id.is_none())
            && let Some(last_heartbeat) = self.write_heartbeat(&entry, arrived).await?
        {
            let response = entry.record(&self.shared.read_context(), last_heartbeat);
            return Ok(Written { response, agent: entry.agent.clone() });
        }
        let agent_id = draft.agent_id.clone();
        let change = Change::Register { draft: Box::new(draft), instance_age, card };
        let agent = self.submit_and_get(&agent_id, change, changed_by, arrived).await?;
        Ok(Written { response: self.shared.record(&agent), agent })
    }

    /// Records a heartbeat, with optional status and load.
    pub(crate) async fn heartbeat(
        &self,
        agent_id: &str,
        heartbeat: Heartbeat,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Heard, Error> {
        let arrived = Instant::now();
        let report = Report { load: heartbeat.load, active_tasks: heartbeat.active_tasks, probe: None };
        let ack = |agent: &StoredAgent, last_heartbeat, tag: String| {
            let timeout = heartbeat_timeout(self.shared.heartbeat_timeout(), agent.heartbeat_interval);
            HeartbeatAck::new(agent_id.to_owned(), agent.status, last_heartbeat, timeout)
                .registration_tag(tag)
        };
        let entry = self.shared.view.entry(agent_id);
        if let Some(entry) = &entry
            && entry.agent.status != AgentStatus::Offline
            && heartbeat.status.is_none_or(|status| status == entry.agent.status)
            && accepts_instance(&entry.agent, heartbeat.instance_id.as_deref())
            && let Some(last_heartbeat) = self.write_heartbeat(entry, arrived).await?
        {
            self.shared.report(agent_id, report);
            let ack = ack(&entry.agent, last_heartbeat, entry.registration_tag().to_string());
            return Ok(Heard { ack, changed: None });
        }
        let change = Change::Heartbeat(heartbeat);
        let agent = self.submit_and_get(agent_id, change, changed_by, arrived).await?;
        self.shared.report(agent_id, report);
        let ack = ack(&agent, agent.last_heartbeat, agent.registration_tag().to_string());
        let changed = entry.is_some_and(|entry| entry.agent.status != agent.status).then_some(agent);
        Ok(Heard { ack, changed })
    }

    pub(crate) async fn update_status(
        &self,
        agent_id: &str,
        update: StatusUpdate,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<Json>, Error> {
        self.submit_and_record(agent_id, Change::SetStatus(update), changed_by).await
    }

    /// Puts an agent into maintenance, replacing any earlier maintenance.
    pub(crate) async fn set_maintenance(
        &self,
        agent_id: &str,
        request: MaintenanceRequest,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<Json>, Error> {
        self.submit_and_record(agent_id, Change::SetMaintenance(request), changed_by).await
    }

    /// Ends the maintenance of an agent, if there is any.
    pub(crate) async fn end_maintenance(
        &self,
        agent_id: &str,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<Json>, Error> {
        self.submit_and_record(agent_id, Change::EndMaintenance, changed_by).await
    }

    pub(crate) async fn deregister(
        &self,
        agent_id: &str,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<()>, Error> {
        let change = Change::Remove;
        match self.submit_requested(agent_id, change, changed_by, Instant::now()).await? {
            Outcome::Removed(agent) => Ok(Written { response: (), agent }),
            outcome => Err(not_applied(agent_id, outcome)),
        }
    }

    /// Writes a plain heartbeat and returns its time. `None` if the heartbeat changes more than the time.
    async fn write_heartbeat(&self, entry: &Entry, arrived: Instant) -> Result<Option<Timestamp>, Error> {
        let (last_heartbeat, interval) = (entry.liveness.last_heartbeat(), entry.agent.heartbeat_interval);
        let context = self.shared.read_context();
        if entry.agent.missed_deadline
            || context.policy.is_nearly_overdue(last_heartbeat, interval, context.now)
        {
            return Ok(None);
        }
        self.shared.check_available(Part::Heartbeats)?;
        self.heartbeats.write(entry, arrived).await
    }

    async fn submit_and_record(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Written<Json>, Error> {
        let agent = self.submit_and_get(agent_id, change, changed_by, Instant::now()).await?;
        Ok(Written { response: self.shared.record(&agent), agent })
    }

    async fn submit_and_get(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<&Arc<str>>,
        arrived: Instant,
    ) -> Result<Arc<StoredAgent>, Error> {
        let outcome = self.submit_requested(agent_id, change, changed_by, arrived).await?;
        outcome.agent().cloned().ok_or_else(|| not_applied(agent_id, outcome))
    }

    /// Submits a change requested by a client.
    async fn submit_requested(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<&Arc<str>>,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        let outcome = self.submit(agent_id, change, changed_by.cloned(), arrived).await?;
        log_adoption(&outcome);
        Ok(outcome)
    }

    /// Submits a change of the registry itself.
    pub(super) async fn submit_own(&self, agent_id: &str, change: Change) -> Result<Outcome, Error> {
        self.submit(agent_id, change, Some(CHANGED_BY_REGISTRY.into()), Instant::now()).await
    }

    async fn submit(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<Arc<str>>,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        // An invalid id cannot be registered, so it is only looked up if another program wrote it to the
        // database.
        if !is_valid_agent_id(agent_id) && self.shared.view.entry(agent_id).is_none() {
            return Ok(Outcome::NotFound);
        }
        self.shared.check_available(Part::Changes)?;
        self.changes.submit(agent_id.to_owned(), change, changed_by, arrived).await
    }
}

/// Returns the error for an outcome other than the requested one.
fn not_applied(agent_id: &str, outcome: Outcome) -> Error {
    let agent_id = agent_id.to_owned();
    match outcome {
        Outcome::Superseded { owner, has_ended: false } => Error::Superseded { agent_id, owner },
        Outcome::Superseded { owner, has_ended: true } => Error::ShutDown { agent_id, owner },
        Outcome::Locked => Error::Locked(agent_id),
        _ => Error::NotFound(agent_id),
    }
}
