//! Delegation to agents that fail: the outcome of the task, and the treatment of the agent.

mod answers;
mod bounded;
mod busy;
mod charged;
mod fair;
mod flaky;
mod found;
mod hung;
mod in_maintenance;
mod misdeployed;
mod once;
mod outages;
mod outcomes;
mod own;
mod repeats;
mod reported;
mod seen;
mod sent;
mod streams;
mod told;

use std::error::Error;
use std::time::Duration;

use registry_sdk::discovery::{Delegation, Orchestrator};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::scene::Scene;

/// A delegation that has not ended by then fails its test.
const LONGEST_DELEGATION: Duration = Duration::from_secs(3_600);

/// Maximum number of tries before an agent has to be known as broken. More than any rule needs: these tests are not about the
/// exact moment of an ejection.
const TRIES: usize = 10;

/// Delegates a task. Returns the agent that did it, or the error with its causes.
async fn delegate(orchestrator: &Orchestrator) -> Result<String, String> {
    send(orchestrator.delegate("work")).await
}

/// The same with the delegation's own settings.
async fn send(delegation: Delegation<'_>) -> Result<String, String> {
    send_for::<Value>(delegation).await.map(|value| value["by"].as_str().unwrap_or("nobody").to_owned())
}

/// The same for another type of response.
async fn send_for<T: DeserializeOwned>(delegation: Delegation<'_>) -> Result<T, String> {
    let payload = json!({"n": 1});
    let sent = delegation.post_json::<T>("/execute", &payload);
    match timeout(LONGEST_DELEGATION, sent).await {
        Ok(Ok(done)) => Ok(done.value),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err("the delegation never ended".to_owned()),
    }
}

/// Delegates tasks one second apart. Returns the number of successes, and the last error.
async fn delegate_many(orchestrator: &Orchestrator, tasks: usize) -> (usize, Option<String>) {
    let (mut done, mut last) = (0, None);
    for _ in 0..tasks {
        match delegate(orchestrator).await {
            Ok(_) => done += 1,
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_secs(1)).await;
    }
    (done, last)
}

/// Formats an error and all of its causes on one line.
fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns how long after this moment each task arrived at an agent.
fn arrivals(scene: &Scene, id: &str, since: Instant) -> Vec<Duration> {
    scene.tasks(id).iter().map(|task| task.at - since).collect()
}

/// Returns the number of tasks that arrived at each of these agents.
fn counts<const N: usize>(scene: &Scene, ids: [&str; N]) -> [usize; N] {
    ids.map(|id| scene.tasks(id).len())
}
