//! The results of a search.

use serde::{Deserialize, Serialize};

use super::agent::{AgentRecord, AgentStatus, Capability, null_is_default};
use super::own_health::ProbeMode;
use super::time::Timestamp;

/// An agent that matches a search, with its best capability.
///
/// A field that the server did not send is `None` or the default of its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "An agent that matches a search, with its best capability.")
)]
#[non_exhaustive]
pub struct CapabilityMatch {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's name, for people.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub agent_name: String,
    /// The URL at which the agent answers.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub base_url: String,
    /// The path below `base_url` of the agent's health endpoint; omitted if the agent registered none, which means
    /// `/health`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
    /// Whether the registry may probe the agent; omitted if the agent did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeMode>,
    /// The agent's status at the time of the response.
    #[serde(deserialize_with = "AgentStatus::tolerant")]
    pub status: AgentStatus,
    /// When the agent was last heard from.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required))]
    pub last_heartbeat: Option<Timestamp>,
    /// The name of the capability that matched.
    pub capability: String,
    /// The capability's description.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub description: String,
    /// The cost of a task, in the agent's own words.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub cost_estimate: Option<String>,
    /// The capability's tags.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub tags: Vec<String>,
    /// The capability's name for people; omitted if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Tasks and questions that the capability is meant for; omitted if it names none.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub examples: Vec<String>,
    /// How well the capability matches: above 0, up to 1. It is 1 if the query is not a sentence and equals the whole
    /// name.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub score: Option<f64>,
    /// Whether a health check would have reported the agent healthy at that time.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = bool, required))]
    pub healthy: Option<bool>,
    /// The fraction of the agent's capacity that is in use, from 0 to 1, if a heartbeat has reported it since the server
    /// started.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1, required))]
    pub load: Option<f64>,
    /// The number of tasks that the agent is working on, if a heartbeat has reported it since the server started.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(format = Int64, minimum = 0, maximum = 4_294_967_295_u32, required))]
    pub active_tasks: Option<u32>,
    /// An opaque text that depends on the agent's A2A agent card, if it registered one; as in its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub card_digest: Option<String>,
}

impl CapabilityMatch {
    /// Creates a match with only an agent's identity, status and capability. For tests, which set the other fields.
    #[must_use]
    pub fn new(agent_id: impl Into<String>, status: AgentStatus, capability: Capability) -> Self {
        Self {
            agent_id: agent_id.into(),
            agent_name: String::new(),
            base_url: String::new(),
            health_path: None,
            probe: None,
            status,
            last_heartbeat: None,
            capability: capability.name,
            description: capability.description,
            cost_estimate: capability.cost_estimate,
            tags: capability.tags,
            title: capability.title,
            examples: capability.examples,
            score: None,
            healthy: None,
            load: None,
            active_tasks: None,
            card_digest: None,
        }
    }

    /// Creates the match for an agent's record and the capability at an index. Returns `None` if there is no such capability.
    pub(crate) fn from_record(record: &AgentRecord, position: usize, score: f64) -> Option<Self> {
        let mut found =
            Self::new(&*record.agent_id, record.status, record.capabilities.get(position)?.clone());
        found.agent_name.clone_from(&record.agent_name);
        found.base_url.clone_from(&record.base_url);
        found.health_path.clone_from(&record.health_path);
        found.probe = record.probe;
        found.last_heartbeat = record.last_heartbeat;
        found.score = Some(score);
        found.healthy = record.healthy;
        found.load = record.load;
        found.active_tasks = record.active_tasks;
        found.card_digest.clone_from(&record.card_digest);
        Some(found)
    }
}
