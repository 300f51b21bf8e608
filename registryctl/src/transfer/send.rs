//! Sending the agents of an export, each by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use registry_sdk::contract::{AgentRecord, Timestamp};
use registry_sdk::{Error, RegistryClient};
use serde_json::value::RawValue;

use super::format::{Entry, is_unfinished};

/// What became of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Imported,
    Replaced,
    AlreadyThere,
    /// As before, but the maintenance of the file is not there.
    AlreadyThereInService,
    /// Not sent: its own process was taking it out.
    Draining,
    /// Not sent: the token did not allow another agent meanwhile.
    NotBegun,
}

/// An agent of the file, and what became of it.
pub(super) struct Ended {
    pub(super) line: usize,
    pub(super) agent_id: String,
    pub(super) outcome: Result<Sent, Error>,
}

/// Sends agents to a registry.
pub(super) struct Sender {
    client: RegistryClient,
    /// Whether agents that the registry has are registered as the file says.
    replaces: bool,
    /// Whether the token did not allow something. No further agent is begun.
    is_denied: AtomicBool,
}

impl Sender {
    pub(super) fn new(client: RegistryClient, replaces: bool) -> Self {
        Self { client, replaces, is_denied: AtomicBool::new(false) }
    }

    pub(super) async fn send(&self, entry: &Entry, line: usize) -> Ended {
        let outcome = match self.try_to_send(entry).await {
            // The agent's own process has registered between two requests: it is there now.
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
        // Registered without the maintenance, it would be given work until the process takes itself out once more; with it, it
        // would stay out when the process is gone. Unknown, it is given no work, and its successor registers by itself.
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
        // In this order, so that it is given no work at any moment.
        let first = if sent == Sent::Imported { entry.unfinished_body() } else { entry.offline_body() };
        let Some(registered) = self.begin(&first?).await? else { return Ok(Sent::NotBegun) };
        let held = self.client.set_maintenance(agent_id, &maintenance).await?;
        // Otherwise its own process has registered meanwhile, which knows more than the file.
        if held.instance_id == registered.instance_id {
            self.client.register_raw(&entry.body()?).await?;
        }
        Ok(sent)
    }

    /// Makes the first change to an agent, unless the token has not allowed another one.
    async fn begin(&self, body: &RawValue) -> Result<Option<AgentRecord>, Error> {
        if self.is_denied.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.client.register_raw(body).await.map(Some)
    }
}
