//! An agent that may be chosen: a match that the registry gave, or a record of a directory that is not yet written
//! out as one.

use std::sync::Arc;

use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};
use crate::search::Rank;

#[derive(Debug)]
pub(super) enum Candidate {
    Given(Box<CapabilityMatch>),
    Copied { agent: Arc<AgentRecord>, position: u16, score: f64 },
}

impl Candidate {
    pub(super) fn agent_id(&self) -> &str {
        match self {
            Self::Given(found) => &found.agent_id,
            Self::Copied { agent, .. } => &agent.agent_id,
        }
    }

    pub(super) fn base_url(&self) -> &str {
        match self {
            Self::Given(found) => &found.base_url,
            Self::Copied { agent, .. } => &agent.base_url,
        }
    }

    pub(super) fn status(&self) -> AgentStatus {
        match self {
            Self::Given(found) => found.status,
            Self::Copied { agent, .. } => agent.status,
        }
    }

    pub(super) fn tags(&self) -> &[String] {
        match self {
            Self::Given(found) => &found.tags,
            Self::Copied { agent, position, .. } => {
                agent.capabilities.get(usize::from(*position)).map_or(&[], |capability| &capability.tags)
            }
        }
    }

    /// How much of its capacity is in use, and how many tasks it is at.
    pub(super) fn load(&self) -> (Option<f64>, Option<u32>) {
        match self {
            Self::Given(found) => (found.load, found.active_tasks),
            Self::Copied { agent, .. } => (agent.load, agent.active_tasks),
        }
    }

    /// What the registry said of its health. One that does not say has at least not called it offline.
    pub(super) fn is_said_healthy(&self) -> bool {
        let said = match self {
            Self::Given(found) => found.healthy,
            Self::Copied { agent, .. } => agent.healthy,
        };
        said.unwrap_or(self.status() != AgentStatus::Offline)
    }

    pub(super) fn rank(&self) -> Rank<'_> {
        let (score, last_heartbeat) = match self {
            Self::Given(found) => (found.score.unwrap_or_default(), found.last_heartbeat),
            Self::Copied { agent, score, .. } => (*score, agent.last_heartbeat),
        };
        Rank { score, status: self.status(), last_heartbeat, agent_id: self.agent_id() }
    }

    pub(super) fn into_match(self) -> Option<CapabilityMatch> {
        match self {
            Self::Given(found) => Some(*found),
            Self::Copied { agent, position, score } => CapabilityMatch::of(&agent, position.into(), score),
        }
    }
}
