//! What a search answers.

use serde::{Deserialize, Serialize};

use super::agent::{AgentRecord, AgentStatus, Capability, null_is_default};
use super::time::Timestamp;

/// An agent that can do what was asked for, by its best capability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct CapabilityMatch {
    /// Who it is.
    pub agent_id: String,
    /// Its name, for people.
    #[serde(default)]
    pub agent_name: String,
    /// Where it answers.
    #[serde(default)]
    pub base_url: String,
    /// Its status at the moment of the answer.
    pub status: AgentStatus,
    /// When it was last heard of.
    #[serde(default)]
    pub last_heartbeat: Option<Timestamp>,
    /// The name of the capability that matched.
    pub capability: String,
    /// Its description.
    #[serde(default, deserialize_with = "null_is_default")]
    pub description: String,
    /// What a task costs, in the agent's own words.
    #[serde(default)]
    pub cost_estimate: Option<String>,
    /// Its tags.
    #[serde(default, deserialize_with = "null_is_default")]
    pub tags: Vec<String>,
    /// How well it matched: above 0, and 1 where the whole name was asked for. `None` from a server that
    /// does not rank.
    #[serde(default)]
    pub score: Option<f64>,
    /// What a health check would have said at that moment. `None` from a server that does not say.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// How much of its capacity is in use, from 0 to 1, as its last heartbeats said.
    #[serde(default)]
    pub load: Option<f64>,
    /// How many tasks it is at, as its last heartbeats said.
    #[serde(default)]
    pub active_tasks: Option<u32>,
}

impl CapabilityMatch {
    /// A match of which only the agent's identity, its status and the capability are known.
    #[must_use]
    pub fn new(agent_id: impl Into<String>, status: AgentStatus, capability: Capability) -> Self {
        Self {
            agent_id: agent_id.into(),
            agent_name: String::new(),
            base_url: String::new(),
            status,
            last_heartbeat: None,
            capability: capability.name,
            description: capability.description,
            cost_estimate: capability.cost_estimate,
            tags: capability.tags,
            score: None,
            healthy: None,
            load: None,
            active_tasks: None,
        }
    }

    /// The match of an agent's record by the capability at a position of its list; `None` if there is none.
    #[must_use]
    pub fn from_record(record: &AgentRecord, position: usize, score: f64) -> Option<Self> {
        let mut found =
            Self::new(&*record.agent_id, record.status, record.capabilities.get(position)?.clone());
        found.agent_name.clone_from(&record.agent_name);
        found.base_url.clone_from(&record.base_url);
        found.last_heartbeat = record.last_heartbeat;
        found.score = Some(score);
        found.healthy = record.healthy;
        found.load = record.load;
        found.active_tasks = record.active_tasks;
        Some(found)
    }
}
