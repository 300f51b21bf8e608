//! An orchestrator to copy: it hands a task to the best healthy agent that can do it, and to the next where that fails.
//!
//! Start a registry (`cargo run -p registry-server`) and an agent or two (`cargo run --example agent`,
//! `AGENT_ID=other cargo run --example agent`), then `cargo run --example orchestrator -- code generation`.
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::discovery::{Orchestrator, TaskQuery};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry_url = std::env::var("REGISTRY_URL").unwrap_or_else(|_| "http://127.0.0.1:8009".to_owned());
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let words = if words.is_empty() { "code generation".to_owned() } else { words };
    let orchestrator = Orchestrator::new(RegistryClient::new(registry_url)?);

    // Who would it be? Health is asked side by side, and the best-ranked healthy agent is the answer.
    let selection = orchestrator.find_best_agent(&words).await?;
    println!("{} can do {:?} best", selection.agent.agent_id, selection.agent.capability);
    for passed in &selection.passed_over {
        println!("  {} was passed over: {:?}", passed.agent_id, passed.why);
    }

    // The task itself, to the next agent where one fails.
    let task = json!({"task": words});
    let done = orchestrator
        .delegate(TaskQuery::new(&words).fallback("code"))
        .attempts(3)
        .time_limit(Duration::from_secs(30))
        .post_json::<Value>("/execute", &task)
        .await?;
    for failed in &done.failed {
        println!("  {failed} failed at it");
    }
    println!("{} did it: {}", done.selection.agent.agent_id, done.value);
    Ok(())
}
