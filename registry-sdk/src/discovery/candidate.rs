//! Candidates of a selection: matches of the registry, or records of a directory.

use std::sync::Arc;

use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};
use crate::search::Rank;

#[derive(Debug)]
pub(super) enum Candidate {
    FromRegistry(Box<CapabilityMatch>),
    FromDirectory { agent: Arc<AgentRecord>, position: u16, score: f64 },
}

impl Candidate {
    pub(super) fn agent_id(&self) -> &str {
        match self {
            Self::FromRegistry(found) => &found.agent_id,
            Self::FromDirectory { agent, .. } => &agent.agent_id,
        }
    }

    pub(super) fn base_url(&self) -> &str {
        match self {
            Self::FromRegistry(found) => &found.base_url,
            Self::FromDirectory { agent, .. } => &agent.base_url,
        }
    }

    pub(super) fn status(&self) -> AgentStatus {
        match self {
            Self::FromRegistry(found) => found.status,
            Self::FromDirectory { agent, .. } => agent.status,
        }
    }

    pub(super) fn tags(&self) -> &[String] {
        match self {
            Self::FromRegistry(found) => &found.tags,
            Self::FromDirectory { agent, position, .. } => {
                agent.capabilities.get(usize::from(*position)).map_or(&[], |capability| &capability.tags)
            }
        }
    }

    /// Share of its capacity in use, and number of active tasks.
    pub(super) fn load(&self) -> (Option<f64>, Option<u32>) {
        match self {
            Self::FromRegistry(found) => (found.load, found.active_tasks),
            Self::FromDirectory { agent, .. } => (agent.load, agent.active_tasks),
        }
    }

    /// What the registry reported of its health. A registry that does not report it has at least not called the agent offline.
    pub(super) fn is_reported_healthy(&self) -> bool {
        let reported = match self {
            Self::FromRegistry(found) => found.healthy,
            Self::FromDirectory { agent, .. } => agent.healthy,
        };
        reported.unwrap_or(self.status() != AgentStatus::Offline)
    }

    pub(super) fn rank(&self) -> Rank<'_> {
        let (score, last_heartbeat) = match self {
            Self::FromRegistry(found) => (found.score.unwrap_or_default(), found.last_heartbeat),
            Self::FromDirectory { agent, score, .. } => (*score, agent.last_heartbeat),
        };
        Rank { score, status: self.status(), last_heartbeat, agent_id: self.agent_id() }
    }

    pub(super) fn into_match(self) -> Option<CapabilityMatch> {
        match self {
            Self::FromRegistry(found) => Some(*found),
            Self::FromDirectory { agent, position, score } => {
                CapabilityMatch::from_record(&agent, position.into(), score)
            }
        }
    }
}
