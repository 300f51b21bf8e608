//! Log lines for changes that the registry makes itself.
//!
//! Only the server that made a change logs it, however many replicas there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use registry_sdk::contract::CHANGED_BY_REGISTRY;

use super::rules::Outcome;
use crate::store::StoredAgent;

/// Maximum number of lines for changes of one kind made together. In an outage, thousands of agents go
/// offline.
const MAX_LINES: usize = 100;

/// Number of agents that a summary line names.
const NAMED_AGENTS: usize = 10;

/// Descriptions of changes that another program made in the database.
pub(super) const EDIT: &str = "adopt what another program wrote to the database";
const DELETION: &str = "remove: another program deleted its row";

/// Changes that are logged together.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    by_change: BTreeMap<&'static str, Vec<Made>>,
}

/// A change that was applied.
#[derive(Debug)]
struct Made {
    agent: Arc<StoredAgent>,
    /// The cause of the change.
    detail: Option<String>,
}

impl ChangeLog {
    /// Adds the outcome of a submitted change. Outcomes without a change are ignored.
    pub(super) fn add(&mut self, change: &'static str, detail: Option<String>, outcome: Outcome) {
        let (change, made) = match outcome {
            Outcome::Applied(agent) | Outcome::Removed(agent) => (change, Made { agent, detail }),
            Outcome::Adopted(agent) => (EDIT, Made { agent, detail: None }),
            Outcome::FoundDeleted(agent) => (DELETION, Made { agent, detail: None }),
            Outcome::Unchanged(_) | Outcome::Superseded { .. } | Outcome::NotFound | Outcome::Locked => {
                return;
            }
        };
        self.by_change.entry(change).or_default().push(made);
    }

    /// Logs the collected changes.
    pub(super) fn write(self) {
        for (change, made) in self.by_change {
            if made.len() > MAX_LINES {
                log_many(change, &made);
            } else {
                for Made { agent, detail } in &made {
                    log_one(change, detail.as_deref(), agent);
                }
            }
        }
    }
}

/// Logs an edit by another program that was found while making a requested change.
pub(super) fn log_adoption(outcome: &Outcome) {
    match outcome {
        Outcome::Adopted(agent) => log_one(EDIT, None, agent),
        Outcome::FoundDeleted(agent) => log_one(DELETION, None, agent),
        _ => {}
    }
}

fn log_one(change: &str, detail: Option<&str>, agent: &StoredAgent) {
    let StoredAgent { agent_id, revision, last_heartbeat, .. } = agent;
    let changed_by = CHANGED_BY_REGISTRY;
    tracing::info!(agent_id, change, detail, revision, changed_by, %last_heartbeat, "changed an agent");
}

/// Logs the same change of many agents in one line.
fn log_many(change: &str, made: &[Made]) {
    let named: Vec<&str> = made.iter().take(NAMED_AGENTS).map(|made| &*made.agent.agent_id).collect();
    let (first_agent_ids, changed_by) = (named.join(", "), CHANGED_BY_REGISTRY);
    let revisions = || made.iter().map(|made| made.agent.revision);
    let (first_revision, last_revision) = (revisions().min(), revisions().max());
    tracing::info!(
        agents = made.len(),
        first_agent_ids,
        change,
        first_revision,
        last_revision,
        changed_by,
        "changed many agents"
    );
}
