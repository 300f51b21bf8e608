//! Sending one agent of an export.

use std::time::SystemTime;

use registry_sdk::contract::{AgentRecord, AgentStatus, Timestamp, UnhealthyReason};
use registry_sdk::{Error, RegistryClient};

use super::format::Entry;

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
}

/// An agent of the file, and what became of it.
pub(super) struct Ended {
    pub(super) line: usize,
    pub(super) agent_id: String,
    pub(super) outcome: Result<Sent, Error>,
}

pub(super) async fn send(client: RegistryClient, entry: Box<Entry>, line: usize, replaces: bool) -> Ended {
    let outcome = try_to_send(&client, &entry, replaces).await;
    Ended { line, agent_id: entry.agent_id().to_owned(), outcome }
}

async fn try_to_send(client: &RegistryClient, entry: &Entry, replaces: bool) -> Result<Sent, Error> {
    let (agent_id, now) = (entry.agent_id(), Timestamp::from(SystemTime::now()));
    // Registered without the maintenance, it would be given work until the process takes itself out once more; with it, it
    // would stay out when the process is gone. Unknown, it is given no work, and its successor registers by itself.
    if entry.is_draining(now) {
        return Ok(Sent::Draining);
    }
    let present = match client.get_agent(agent_id).await {
        Ok(record) => Some(record),
        Err(Error::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let maintenance = entry.maintenance(now);
    let sent = match &present {
        None => Sent::Imported,
        Some(record) if maintenance.is_some() && is_half_imported(client, entry, record).await? => {
            Sent::Imported
        }
        Some(_) if replaces => Sent::Replaced,
        Some(record) if maintenance.is_some() && record.maintenance.is_none() => {
            return Ok(Sent::AlreadyThereInService);
        }
        Some(_) => return Ok(Sent::AlreadyThere),
    };
    let Some(maintenance) = maintenance else {
        client.register_raw(&entry.body(entry.status())?).await?;
        if present.is_some_and(|record| record.maintenance.is_some()) {
            client.end_maintenance(agent_id).await?;
        }
        return Ok(sent);
    };
    // In this order, so that it is given no work at any moment.
    client.register_raw(&entry.body(AgentStatus::Offline)?).await?;
    client.set_maintenance(agent_id, &maintenance).await?;
    if entry.status() != AgentStatus::Offline {
        client.update_status(agent_id, entry.status()).await?;
    }
    Ok(sent)
}

/// Whether an earlier import was interrupted at this agent. An agent that has fallen silent since it was imported looks the same in
/// its record.
async fn is_half_imported(
    client: &RegistryClient,
    entry: &Entry,
    record: &AgentRecord,
) -> Result<bool, Error> {
    if !entry.is_half_of(record) {
        return Ok(false);
    }
    let health = client.check_health(entry.agent_id()).await?;
    Ok(health.reason != Some(UnhealthyReason::HeartbeatMissed))
}
