//! Log lines of the changes that the registry makes itself.
//!
//! Each change is logged by the server that made it, whatever the number of replicas.

use std::sync::Arc;

use registry_sdk::contract::CHANGED_BY_REGISTRY;

use super::rules::Outcome;
use crate::store::StoredAgent;

/// Maximum number of lines for changes of one kind that are made together. In an outage thousands of agents go offline.
const MAX_LINES: usize = 100;

/// Number of agents that one line for all of them names.
const NAMED_AGENTS: usize = 10;

/// What another program did, as a change.
pub(super) const EDIT: &str = "adopt what another program wrote to the database";
const DELETION: &str = "remove: another program deleted its row";

/// Outcomes of changes that are made together.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    made: Vec<Arc<StoredAgent>>,
    edited: Vec<Arc<StoredAgent>>,
    deleted: Vec<Arc<StoredAgent>>,
}

impl ChangeLog {
    /// Adds an outcome. Those that changed nothing do not count.
    pub(super) fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied(agent) | Outcome::Removed(agent) => self.made.push(agent),
            Outcome::Adopted(agent) => self.edited.push(agent),
            Outcome::FoundDeleted(agent) => self.deleted.push(agent),
            Outcome::Unchanged(_) | Outcome::Superseded { .. } | Outcome::NotFound | Outcome::Locked => {}
        }
    }

    /// Logs what was changed; `change` says what was asked for.
    pub(super) fn write(&self, change: &str) {
        for (change, agents) in [(change, &self.made), (EDIT, &self.edited), (DELETION, &self.deleted)] {
            if agents.len() > MAX_LINES {
                log_many(change, agents);
            } else {
                for agent in agents {
                    log_one(change, None, agent);
                }
            }
        }
    }
}

/// Logs what another program did to an agent whose change was asked for.
pub(super) fn log_adoption(outcome: &Outcome) {
    match outcome {
        Outcome::Adopted(agent) => log_one(EDIT, None, agent),
        Outcome::FoundDeleted(agent) => log_one(DELETION, None, agent),
        _ => {}
    }
}

/// Logs a change, with what led to it.
pub(super) fn log_one(change: &str, detail: Option<&str>, agent: &StoredAgent) {
    let StoredAgent { agent_id, revision, last_heartbeat, .. } = agent;
    let changed_by = CHANGED_BY_REGISTRY;
    tracing::info!(agent_id, %change, detail, revision, changed_by, %last_heartbeat, "changed an agent");
}

/// Logs the same change of many agents in one line.
fn log_many(change: &str, agents: &[Arc<StoredAgent>]) {
    let named: Vec<&str> = agents.iter().take(NAMED_AGENTS).map(|agent| &*agent.agent_id).collect();
    let (first_agent_ids, changed_by) = (named.join(", "), CHANGED_BY_REGISTRY);
    tracing::info!(agents = agents.len(), first_agent_ids, %change, changed_by, "changed many agents");
}
