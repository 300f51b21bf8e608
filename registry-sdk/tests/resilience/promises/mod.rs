//! The documented guarantees of delegation, in less common cases.

mod answers;
mod budget;
mod crowd;
mod ejected;
mod fuzz;
mod hidden;
mod misled;
mod outages;
mod sent;
mod time;
mod told;
mod types;

use std::error::Error;
use std::time::Duration;

use registry_sdk::discovery::{DelegateError, Delegation};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::scene::Scene;

/// Sends a task. Returns the agent that did it.
async fn send(delegation: Delegation<'_>) -> Result<String, DelegateError> {
    let payload = json!({"n": 1});
    let sent = delegation.post_json::<Value>("/execute", &payload);
    let done = timeout(Duration::from_secs(3_600), sent).await.unwrap()?;
    Ok(done.selection.agent.agent_id)
}

/// Returns the number of tasks that arrived at each of these agents.
fn counts<const N: usize>(scene: &Scene, ids: [&str; N]) -> [usize; N] {
    ids.map(|id| scene.tasks(id).len())
}

/// Formats an error and all of its causes on one line.
fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
