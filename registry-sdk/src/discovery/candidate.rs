//! Candidates of a selection: matches of the registry, or records of a directory.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};

use super::load::ReportedLoad;
use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch, ProbeMode};
use crate::search::Rank;

#[derive(Clone, Debug)]
pub(super) enum Candidate {
    FromRegistry(Arc<CapabilityMatch>),
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

    pub(super) fn health_path(&self) -> Option<&str> {
        match self {
            Self::FromRegistry(found) => found.health_path.as_deref(),
            Self::FromDirectory { agent, .. } => agent.health_path.as_deref(),
        }
    }

    /// Returns whether the agent may be asked for its health.
    pub(super) fn probe(&self) -> ProbeMode {
        let probe = match self {
            Self::FromRegistry(found) => found.probe,
            Self::FromDirectory { agent, .. } => agent.probe,
        };
        probe.unwrap_or_default()
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

    /// Returns the agent's metadata. A match does not have it.
    pub(super) fn metadata(&self) -> Option<&Map<String, Value>> {
        match self {
            Self::FromRegistry(_) => None,
            Self::FromDirectory { agent, .. } => Some(&agent.metadata),
        }
    }

    /// Returns the load that the agent reported. A directory has it as of the agent's last change, which is too old.
    pub(super) fn reported_load(&self) -> ReportedLoad {
        match self {
            Self::FromRegistry(found) => ReportedLoad { load: found.load, active_tasks: found.active_tasks },
            Self::FromDirectory { .. } => ReportedLoad::default(),
        }
    }

    /// Returns the health that the registry reported, if any.
    pub(super) fn reported_health(&self) -> Option<bool> {
        match self {
            Self::FromRegistry(found) => found.healthy,
            Self::FromDirectory { agent, .. } => known_health(agent),
        }
    }

    /// Returns whether the agent is in maintenance. The registry omits such agents from its searches, but a directory knows
    /// them.
    pub(super) fn is_in_maintenance(&self) -> bool {
        matches!(self, Self::FromDirectory { agent, .. } if is_in_maintenance(agent))
    }

    /// Returns whether the agent can be given a task, as far as the registry knows.
    pub(super) fn looks_healthy(&self) -> bool {
        self.status().takes_work() && self.reported_health() != Some(false)
    }

    /// Returns whether it is as good a match as another candidate. If the registry sends no scores, only matches of the same
    /// capability are equally good.
    pub(super) fn is_equal_match(&self, other: &Self) -> bool {
        if self.looks_healthy() != other.looks_healthy() {
            return false;
        }
        match (self, other) {
            (Self::FromRegistry(one), Self::FromRegistry(other)) => {
                one.score == other.score && (one.score.is_some() || one.capability == other.capability)
            }
            (Self::FromDirectory { score: one, .. }, Self::FromDirectory { score: other, .. }) => {
                one.total_cmp(other).is_eq()
            }
            _ => false,
        }
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
            Self::FromRegistry(found) => Some(Arc::unwrap_or_clone(found)),
            Self::FromDirectory { agent, position, score } => {
                let found = CapabilityMatch::from_record(&agent, position.into(), score)?;
                Some(CapabilityMatch { healthy: known_health(&agent), ..found })
            }
        }
    }
}

/// Returns whether a record's maintenance continues, by this host's clock, because the registry may be unavailable when it ends.
pub(super) fn is_in_maintenance(agent: &AgentRecord) -> bool {
    agent.maintenance.as_ref().is_some_and(|maintenance| !maintenance.is_over(SystemTime::now().into()))
}

/// Returns what a record says about an agent's health. That is nothing once a maintenance is over that made the agent
/// unhealthy, until the registry says more.
pub(super) fn known_health(agent: &AgentRecord) -> Option<bool> {
    agent.healthy.filter(|_| agent.maintenance.is_none() || is_in_maintenance(agent))
}
