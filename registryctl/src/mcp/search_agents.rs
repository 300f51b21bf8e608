//! The tool `search_agents`: agents for a task that is described in words.

use registry_sdk::{CapabilityMatch, RegistryClient, SearchQuery};
use rmcp::model::Tool;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::arguments::Arguments;
use super::explain::explain;
use super::filters;
use super::text::{cut, rounded};
use super::tool::{Answer, answer, read_only};

pub(super) const NAME: &str = "search_agents";

const DEFAULT_LIMIT: usize = 5;
const MAX_LIMIT: usize = 20;
const MAX_DESCRIPTION: usize = 200;
const MAX_TAGS: usize = 8;

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Found {
    /// The agents, best match first, each with its best matching capability.
    agents: Vec<FoundAgent>,
    /// Advice on what to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct FoundAgent {
    agent_id: String,
    name: String,
    /// Name of the matching capability.
    capability: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_estimate: Option<String>,
    /// active, busy or offline.
    status: String,
    /// Whether the agent can be given work now.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// Share of the agent's capacity in use, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_tasks: Option<u32>,
    /// How well the capability matches, from 0 to 1. Only comparable within one result.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

impl From<CapabilityMatch> for FoundAgent {
    fn from(found: CapabilityMatch) -> Self {
        Self {
            agent_id: found.agent_id,
            name: found.agent_name,
            capability: found.capability,
            title: found.title,
            description: cut(&found.description, MAX_DESCRIPTION),
            tags: found.tags.into_iter().take(MAX_TAGS).collect(),
            cost_estimate: found.cost_estimate,
            status: found.status.to_string(),
            healthy: found.healthy,
            load: found.load.map(rounded),
            active_tasks: found.active_tasks,
            score: found.score.map(rounded),
        }
    }
}

pub(super) fn tool() -> Tool {
    let mut arguments = filters::properties();
    arguments.insert(
        "query".to_owned(),
        json!({"type": "string", "description": "Description of the task, as a sentence or as words. Optional if `capability` is given."}),
    );
    arguments.insert(
        "min_score".to_owned(),
        json!({"type": "number", "minimum": 0, "maximum": 1, "description": "Only matches with at least this score."}),
    );
    arguments.insert(
        "limit".to_owned(),
        json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT, "description": "Maximum number of agents."}),
    );
    read_only::<Found>(
        NAME,
        "Search agents",
        "Finds registered agents for a task, best match first. Set `healthy` to true for agents that can be given work now. Scores \
         compare words, not meaning: read the capability before you rely on it.",
        arguments,
        &[],
    )
}

pub(super) async fn call(client: &RegistryClient, mut arguments: Arguments) -> Answer {
    let text = arguments.text("query")?;
    let filter = filters::take(&mut arguments)?;
    let min_score = arguments.number("min_score", 0.0..=1.0)?.unwrap_or_default();
    let limit = arguments.count("limit", MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
    arguments.finish()?;
    if text.is_none() && filter.capability.is_none() {
        return Err("missing argument `query`: describe the task".to_owned());
    }
    let is_filtered = filter != registry_sdk::AgentFilter::default();
    let mut query = SearchQuery::sentence(text.unwrap_or_default()).min_score(min_score);
    query.filter = filter;
    // One more than the limit, to see whether there are more.
    query.limit = Some(limit + 1);
    let mut found = client.search_capabilities(query).await.map_err(|error| explain(&error))?;
    let note = match found.len() {
        0 if is_filtered || min_score > 0.0 => {
            Some("No agent matches. Use other words, or fewer filters.".to_owned())
        }
        0 => Some("No agent matches. Use other words, or call list_agents to see all agents.".to_owned()),
        count if count > limit && limit < MAX_LIMIT => Some(format!(
            "More agents match: narrow the search with filters, or raise `limit` (up to {MAX_LIMIT})."
        )),
        count if count > limit => Some("More agents match: narrow the search with filters.".to_owned()),
        _ => None,
    };
    found.truncate(limit);
    answer(&Found { agents: found.into_iter().map(FoundAgent::from).collect(), note })
}
