//! The tool `get_agent`: the details of one agent, bounded in size.

use registry_sdk::contract::Maintenance;
use registry_sdk::{AgentRecord, Capability, RegistryClient};
use rmcp::model::Tool;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::arguments::Arguments;
use super::explain::explain_agent;
use super::text::{cut, rounded};
use super::tool::{Answer, agent_id, answer, read_only};

pub(super) const NAME: &str = "get_agent";

/// Maximum length of all capabilities together as JSON. 128 capabilities can take 300 KiB.
const MAX_CAPABILITIES: usize = 12 * 1_024;
/// Maximum length of the metadata as JSON.
const MAX_METADATA: usize = 4 * 1_024;
const MAX_DESCRIPTION: usize = 400;
const MAX_EXAMPLES: usize = 4;

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Details {
    agent_id: String,
    name: String,
    /// URL of the agent.
    base_url: String,
    /// active, busy or offline.
    status: String,
    /// Whether the agent can be given work now.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// Absent if the agent is not in maintenance.
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance: Option<InMaintenance>,
    /// Share of the agent's capacity in use, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_tasks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registered_at: Option<String>,
    capabilities: Vec<AgentCapability>,
    /// Other data that the agent registered.
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
    /// Parts that were left out because they are too long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct InMaintenance {
    reason: String,
    since: String,
    /// When the maintenance ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct AgentCapability {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// Example tasks for the capability.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_estimate: Option<String>,
}

impl From<Capability> for AgentCapability {
    fn from(capability: Capability) -> Self {
        Self {
            name: capability.name,
            title: capability.title,
            description: cut(&capability.description, MAX_DESCRIPTION),
            tags: capability.tags,
            examples: capability.examples.into_iter().take(MAX_EXAMPLES).collect(),
            cost_estimate: capability.cost_estimate,
        }
    }
}

impl From<Maintenance> for InMaintenance {
    fn from(maintenance: Maintenance) -> Self {
        Self {
            reason: maintenance.reason,
            since: maintenance.since.to_string(),
            until: maintenance.until.map(|until| until.to_string()),
        }
    }
}

impl From<AgentRecord> for Details {
    fn from(agent: AgentRecord) -> Self {
        let mut omitted = Vec::new();
        let count = agent.capabilities.len();
        let capabilities = bounded(agent.capabilities);
        if capabilities.len() < count {
            omitted.push(format!("{} of {count} capabilities", count - capabilities.len()));
        }
        let mut metadata = agent.metadata;
        if json_len(&metadata) > MAX_METADATA {
            let keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
            omitted.push(format!("the metadata, with the keys {}", cut(&keys.join(", "), MAX_DESCRIPTION)));
            metadata.clear();
        }
        Self {
            agent_id: agent.agent_id,
            name: agent.agent_name,
            base_url: agent.base_url,
            status: agent.status.to_string(),
            healthy: agent.healthy,
            maintenance: agent.maintenance.map(InMaintenance::from),
            load: agent.load.map(rounded),
            active_tasks: agent.active_tasks,
            last_heartbeat: agent.last_heartbeat.map(|time| time.to_string()),
            registered_at: agent.registered_at.map(|time| time.to_string()),
            capabilities,
            metadata,
            omitted,
        }
    }
}

/// Returns as many of the first capabilities as fit.
fn bounded(capabilities: Vec<Capability>) -> Vec<AgentCapability> {
    let mut room = MAX_CAPABILITIES;
    let has_room = |capability: &AgentCapability| {
        let left = room.checked_sub(json_len(capability));
        room = left.unwrap_or_default();
        left.is_some()
    };
    capabilities.into_iter().map(AgentCapability::from).take_while(has_room).collect()
}

fn json_len(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

pub(super) fn tool() -> Tool {
    read_only::<Details>(
        NAME,
        "Show an agent",
        "Shows one agent: its capabilities, status, URL and metadata.",
        agent_id(),
        &["agent_id"],
    )
}

pub(super) async fn call(client: &RegistryClient, mut arguments: Arguments) -> Answer {
    let id = arguments.required_text("agent_id")?;
    arguments.finish()?;
    let agent = client.get_agent(&id).await.map_err(|error| explain_agent(&error, &id))?;
    answer(&Details::from(agent))
}
