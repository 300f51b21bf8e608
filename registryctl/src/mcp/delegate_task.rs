//! The tool `delegate_task`: sends a task to the best agent, failing over to the next one.

use std::time::Duration;

use registry_sdk::discovery::{DelegateError, EndReason, TaskResponse};
use registry_sdk::{Orchestrator, TaskQuery};
use rmcp::model::{Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::arguments::{Arguments, missing};
use super::explain::explain;
use super::filters;
use super::text::cut;
use super::tool::{Answer, answer, object, result_schema};

pub(super) const NAME: &str = "delegate_task";

/// Less than a minute, which is how long many clients wait for a tool.
const DEFAULT_DEADLINE: f64 = 45.0;
const MAX_DEADLINE: f64 = 600.0;
/// Maximum number of bytes of a response that are returned.
const MAX_RESPONSE: usize = 16 * 1_024;
const MAX_PATH: usize = 256;
const MAX_ERROR: usize = 300;
const MAX_FAILURE: usize = 1_500;

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Done {
    /// The agent that did the task.
    agent_id: String,
    agent_name: String,
    /// The capability that the agent was chosen for.
    capability: String,
    /// HTTP status of the agent's response.
    status: u16,
    /// The agent's response: a JSON value, or a string if the response is not JSON or was truncated.
    response: Value,
    /// Why the response is incomplete. The task is not retried because of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
    /// Earlier attempts at other agents: each agent, and why it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_attempts: Vec<String>,
}

pub(super) fn tool() -> Tool {
    let mut arguments = Map::new();
    let mut add = |name: &str, schema| arguments.insert(name.to_owned(), schema);
    add(
        "task",
        json!({"type": "string", "description": "Description of the task in a sentence. It is used to choose an agent, and is not sent to the agent. Give either this or `capability`."}),
    );
    add(
        "capability",
        json!({"type": "string", "description": "Exact name of a capability that the agent must have."}),
    );
    add(
        "path",
        json!({"type": "string", "maxLength": MAX_PATH, "pattern": "^/", "description": "Path to send the task to, below the agent's base_url, such as /execute."}),
    );
    add("body", json!({"description": "The task as JSON, in the form that the agent expects."}));
    add("tags", filters::tags());
    add("metadata", filters::metadata());
    add(
        "deadline_seconds",
        json!({"type": "number", "minimum": 1, "maximum": MAX_DEADLINE, "default": DEFAULT_DEADLINE, "description": "Time limit for all attempts together. The first agent gets half of it, unless it is the only one."}),
    );
    add(
        "at_most_once",
        json!({"type": "boolean", "default": false, "description": "true: do not send the task to a second agent if it may have reached the first. Set this for tasks that must not be done twice."}),
    );
    let title = "Delegate a task";
    Tool::new(
        NAME,
        "Sends a task as an HTTP POST to the best healthy agent, or to the next one if that fails, and returns the agent's response. \
         Agents may do anything with a task: ask the user first if the task changes something.",
        object(arguments, &["path", "body"]),
    )
    .with_title(title)
    .with_raw_output_schema(result_schema::<Done>())
    .with_annotations(
        ToolAnnotations::with_title(title).read_only(false).destructive(true).idempotent(false).open_world(true),
    )
}

pub(super) async fn call(orchestrator: &Orchestrator, mut arguments: Arguments) -> Answer {
    let query = take_query(&mut arguments)?;
    let path = arguments.required_text("path")?;
    check_path(&path)?;
    let body = arguments.value("body").ok_or_else(|| missing("body"))?;
    let deadline = arguments.number("deadline_seconds", 1.0..=MAX_DEADLINE)?.unwrap_or(DEFAULT_DEADLINE);
    let at_most_once = arguments.flag("at_most_once")?.unwrap_or_default();
    arguments.finish()?;

    let time_limit = Duration::from_secs_f64(deadline);
    let end = Instant::now() + time_limit;
    let mut delegation =
        orchestrator.delegate(query).time_limit(time_limit).header("content-type", "application/json");
    if at_most_once {
        delegation = delegation.at_most_once();
    }
    let post = "POST".parse().map_err(|_| "POST is not a method".to_owned())?;
    let done = delegation.send(post, &path, body.to_string()).await.map_err(|error| failure(&error))?;
    let (agent, mut response) = (done.selection.agent, done.value);
    let status = response.status();
    let (response, incomplete) = read(&mut response, end).await;
    answer(&Done {
        agent_id: agent.agent_id,
        agent_name: agent.agent_name,
        capability: agent.capability,
        status,
        response,
        incomplete,
        failed_attempts: done.failed.iter().map(|attempt| cut(&attempt.to_string(), MAX_ERROR)).collect(),
    })
}

fn take_query(arguments: &mut Arguments) -> Result<TaskQuery, String> {
    let (task, capability) = (arguments.text("task")?, arguments.text("capability")?);
    let mut query = match (task, capability) {
        (Some(task), None) => TaskQuery::describe(task),
        (None, Some(capability)) => TaskQuery::exact(capability),
        _ => return Err("give either `task` or `capability`: it chooses the agent".to_owned()),
    };
    query.tags = filters::take_tags(arguments)?;
    query.metadata = filters::take_metadata(arguments)?;
    Ok(query)
}

/// Rejects paths that lead out of the agent's base URL: others may share its host.
fn check_path(path: &str) -> Result<(), String> {
    let is_dots = |segment: &str| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == "." || segment == ".."
    };
    let before_query = path.split('?').next().unwrap_or_default();
    let is_plain = path.len() <= MAX_PATH && path.chars().all(|letter| letter.is_ascii_graphic());
    let is_below = path.starts_with('/') && !path.contains(['\\', '#']);
    if is_plain && is_below && !before_query.split('/').any(is_dots) {
        return Ok(());
    }
    Err(format!(
        "`path` must begin with / and have at most {MAX_PATH} visible ASCII characters, without \\, # and the segments . and .."
    ))
}

/// Reads a response up to the maximum length. Returns it, and why it is incomplete, if it is.
async fn read(response: &mut TaskResponse, end: Instant) -> (Value, Option<String>) {
    let mut body = Vec::new();
    let incomplete = loop {
        match timeout_at(end, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend(chunk),
            Ok(Ok(None)) => break None,
            Ok(Err(error)) => break Some(cut(&error.to_string(), MAX_ERROR)),
            Err(_) => break Some("the response did not end before the deadline".to_owned()),
        }
        if body.len() > MAX_RESPONSE {
            body.truncate(MAX_RESPONSE);
            break Some(format!("only the first {MAX_RESPONSE} bytes are shown"));
        }
    };
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    let value = match &incomplete {
        None if body.trim_ascii().is_empty() => Value::Null,
        None => serde_json::from_slice(&body).unwrap_or_else(|_| text()),
        Some(_) => text(),
    };
    (value, incomplete)
}

fn failure(error: &DelegateError) -> String {
    match &error.reason {
        EndReason::Registry(error) => explain(error),
        EndReason::NoAgent { .. } => format!(
            "{}. Call search_agents to see which agents there are.",
            cut(&error.to_string(), MAX_FAILURE)
        ),
        _ => cut(&error.to_string(), MAX_FAILURE),
    }
}
