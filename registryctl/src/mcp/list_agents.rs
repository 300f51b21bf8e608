//! The tool `list_agents`: all registered agents, page by page.

use registry_sdk::{AgentRecord, ListQuery, RegistryClient};
use rmcp::model::Tool;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::arguments::Arguments;
use super::explain::explain;
use super::filters;
use super::text::{cut, rounded};
use super::tool::{Answer, answer, read_only};

pub(super) const NAME: &str = "list_agents";

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 50;
const MAX_CAPABILITIES: usize = 8;
const MAX_REASON: usize = 100;

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Listed {
    /// The agents, ordered by id.
    agents: Vec<ListedAgent>,
    /// The `cursor` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct ListedAgent {
    agent_id: String,
    name: String,
    /// Names of the agent's first capabilities.
    capabilities: Vec<String>,
    /// Number of further capabilities: `get_agent` shows all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    more_capabilities: Option<usize>,
    /// active, busy or offline.
    status: String,
    /// Whether the agent can be given work now.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// Why the agent is in maintenance, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance: Option<String>,
    /// Share of the agent's capacity in use, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<f64>,
}

impl From<AgentRecord> for ListedAgent {
    fn from(agent: AgentRecord) -> Self {
        let more = agent.capabilities.len().saturating_sub(MAX_CAPABILITIES);
        let names = agent.capabilities.into_iter().take(MAX_CAPABILITIES).map(|capability| capability.name);
        Self {
            agent_id: agent.agent_id,
            name: agent.agent_name,
            capabilities: names.collect(),
            more_capabilities: (more > 0).then_some(more),
            status: agent.status.to_string(),
            healthy: agent.healthy,
            maintenance: agent.maintenance.map(|maintenance| cut(&maintenance.reason, MAX_REASON)),
            load: agent.load.map(rounded),
        }
    }
}

pub(super) fn tool() -> Tool {
    let mut arguments = filters::properties();
    arguments.insert(
        "limit".to_owned(),
        json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT, "description": "Maximum number of agents."}),
    );
    arguments.insert(
        "cursor".to_owned(),
        json!({"type": "string", "description": "The `next_cursor` of the previous page."}),
    );
    read_only::<Listed>(
        NAME,
        "List agents",
        "Lists registered agents, ordered by id. To find an agent for a task, use search_agents.",
        arguments,
        &[],
    )
}

pub(super) async fn call(client: &RegistryClient, mut arguments: Arguments) -> Answer {
    let filter = filters::take(&mut arguments)?;
    let limit = arguments.count("limit", MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
    let cursor = arguments.text("cursor")?;
    arguments.finish()?;
    let query = ListQuery { filter, limit: Some(limit), cursor: cursor.clone() };
    let page = client.list_agents(query).await.map_err(|error| explain(&error))?;
    let (mut agents, mut next_cursor) = (page.agents, page.next_cursor);
    agents.sort_unstable_by(|one, other| one.agent_id.cmp(&other.agent_id));
    if agents.len() > limit || agents.iter().any(|agent| cursor.as_ref() == Some(&agent.agent_id)) {
        // A registry without pages returns all agents, whatever the cursor is. An id serves as a cursor.
        agents.retain(|agent| cursor.as_ref().is_none_or(|cursor| agent.agent_id > *cursor));
        let has_more = agents.len() > limit;
        agents.truncate(limit);
        next_cursor = agents.last().filter(|_| has_more).map(|agent| agent.agent_id.clone());
    }
    answer(&Listed { agents: agents.into_iter().map(ListedAgent::from).collect(), next_cursor })
}
