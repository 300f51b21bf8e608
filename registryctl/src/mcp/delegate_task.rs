//! The tool `delegate_task`: gives a task to the best agent, failing over to the next one.

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

/// Below the minute for which many clients wait for a tool.
const DEFAULT_DEADLINE: f64 = 45.0;
const MAX_DEADLINE: f64 = 600.0;
/// How much of a response is returned, in bytes.
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
    /// The capability by which it was chosen.
    capability: String,
    /// HTTP status of its response.
    status: u16,
    /// Its response: JSON, or a text if it is none or was cut.
    response: Value,
    /// Why the response is not complete. The task is not repeated for this.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
    /// Attempts at other agents before: each agent, and how it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_attempts: Vec<String>,
}

pub(super) fn tool() -> Tool {
    let mut arguments = Map::new();
    let mut add = |name: &str, schema| arguments.insert(name.to_owned(), schema);
    add(
        "task",
        json!({"type": "string", "description": "What is to be done, in a sentence. It chooses the agent, and is not sent to it. Give either this or `capability`."}),
    );
    add(
        "capability",
        json!({"type": "string", "description": "The exact name of the capability that the agent has to have."}),
    );
    add(
        "path",
        json!({"type": "string", "maxLength": MAX_PATH, "pattern": "^/", "description": "Path of the task below the agent's base_url, such as /execute."}),
    );
    add("body", json!({"description": "The task as JSON, in the form that the agent expects."}));
    add("tags", filters::tags());
    add("metadata", filters::metadata());
    add(
        "deadline_seconds",
        json!({"type": "number", "minimum": 1, "maximum": MAX_DEADLINE, "default": DEFAULT_DEADLINE, "description": "Time limit of all attempts. The first agent has half of it, unless it is the only one."}),
    );
    add(
        "at_most_once",
        json!({"type": "boolean", "default": false, "description": "true: never sent to a second agent once it may have arrived at one. Set it for tasks that must not be done twice."}),
    );
    let title = "Delegate a task";
    Tool::new(
        NAME,
        "Sends a task as a POST to the best healthy agent, and to the next one if that fails, and returns the agent's response. \
         Agents may do anything with a task: ask the user first if it changes something.",
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
    let post = "POST".parse().map_err(|_| "POST is no method".to_owned())?;
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

/// A path stays below the agent's base URL, which may be a part of a host that others share.
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
        "`path` has to begin with / and to have up to {MAX_PATH} visible ASCII characters, without \\, # and the segments . and .."
    ))
}

/// Reads a response as far as it is returned, and says why it is not complete.
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
