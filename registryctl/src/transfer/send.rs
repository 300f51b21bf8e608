//! Requests that import one agent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use registry_sdk::contract::{AgentRecord, Timestamp};
use registry_sdk::{Error, RegistryClient};
use serde_json::value::RawValue;

use super::format::{Entry, is_unfinished};

/// Result of sending an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Imported,
    Replaced,
    AlreadyThere,
    /// Already registered, but without the maintenance that the file has.
    AlreadyThereInService,
    /// Not sent: the agent was draining before a shutdown.
    Draining,
    /// Not sent: the token was denied another agent in the meantime.
    NotBegun,
}

/// An agent in the file, and the result of sending it.
pub(super) struct Ended {
    pub(super) line: usize,
    pub(super) agent_id: String,
    pub(super) outcome: Result<Sent, Error>,
}

/// Sends agents to a registry.
pub(super) struct Sender {
    client: RegistryClient,
    /// Whether to replace agents that are already registered.
    replaces: bool,
    /// Whether the token was denied a request. No further agent is sent then.
    is_denied: AtomicBool,
}

impl Sender {
    pub(super) fn new(client: RegistryClient, replaces: bool) -> Self {
        Self { client, replaces, is_denied: AtomicBool::new(false) }
    }

    pub(super) async fn send(&self, entry: &Entry, line: usize) -> Ended {
        let outcome = match self.try_to_send(entry).await {
            // The agent's own process registered between two requests, so the agent is already there now.
            Err(Error::Superseded { .. }) => self.try_to_send(entry).await,
            outcome => outcome,
        };
        if let Err(Error::Denied { .. }) = outcome {
            self.is_denied.store(true, Ordering::Relaxed);
        }
        Ended { line, agent_id: entry.agent_id().to_owned(), outcome }
    }

    async fn try_to_send(&self, entry: &Entry) -> Result<Sent, Error> {
        let (agent_id, now) = (entry.agent_id(), Timestamp::from(SystemTime::now()));
        // Without its maintenance, the agent would be given work until its process drains again; with the maintenance, it would stay
        // out after that process has ended. An unregistered agent is given no work, and its successor registers itself.
        if entry.is_draining(now) {
            return Ok(Sent::Draining);
        }
        let present = match self.client.get_agent(agent_id).await {
            Ok(record) => Some(record),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let maintenance = entry.maintenance(now);
        let sent = match &present {
            None => Sent::Imported,
            Some(record) if is_unfinished(record.instance_id.as_deref()) => Sent::Imported,
            Some(_) if self.replaces => Sent::Replaced,
            Some(record) if maintenance.is_some() && record.maintenance.is_none() => {
                return Ok(Sent::AlreadyThereInService);
            }
            Some(_) => return Ok(Sent::AlreadyThere),
        };
        let Some(maintenance) = maintenance else {
            if self.begin(&entry.body()?).await?.is_none() {
                return Ok(Sent::NotBegun);
            }
            let had_maintenance = present.is_some_and(|record| record.maintenance.is_some());
            if sent == Sent::Replaced && had_maintenance {
                self.client.end_maintenance(agent_id).await?;
            }
            return Ok(sent);
        };
        // In this order, the agent is not given work at any moment.
        let first = if sent == Sent::Imported { entry.unfinished_body() } else { entry.offline_body() };
        let Some(registered) = self.begin(&first?).await? else { return Ok(Sent::NotBegun) };
        let held = self.client.set_maintenance(agent_id, &maintenance).await?;
        // Otherwise the agent's own process has registered in the meantime, and its registration is newer than the file.
        if held.instance_id == registered.instance_id {
            self.client.register_raw(&entry.body()?).await?;
        }
        Ok(sent)
    }

    /// Sends the first change to an agent, unless the token was denied another one.
    async fn begin(&self, body: &RawValue) -> Result<Option<AgentRecord>, Error> {
        if self.is_denied.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.client.register_raw(body).await.map(Some)
    }
}
