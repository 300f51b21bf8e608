//! An orchestrator for A2A agents to copy: it finds the best agent for a question, sends the question, and waits for the answer.
//!
//! Start a registry (`cargo run -p registry-server`) and an agent (`cargo run --example a2a_agent`), then
//! `cargo run --example delegate_to_a2a -- "What can I cook with leeks?"`. `registryctl import URL` registers other A2A agents.
//!
//! To use this file as the `src/main.rs` of your own crate, add to its `Cargo.toml`:
//!
//! ```toml
//! [dependencies]
//! registry-sdk = { version = "0.1", features = ["a2a"] }
//! tokio = { version = "1", features = ["full"] }
//! ```
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::time::Duration;

use registry_sdk::{Orchestrator, RegistryClient, TaskQuery};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry_url = std::env::var("REGISTRY_URL").unwrap_or_else(|_| "http://127.0.0.1:8009".to_owned());
    let question = std::env::args().nth(1).unwrap_or_else(|| "What can I cook with leeks?".to_owned());

    // Keep the orchestrator if you delegate more than once: it remembers the cards, and which agents fail.
    let orchestrator = Orchestrator::new(RegistryClient::new(registry_url)?);
    let done = orchestrator
        .delegate(TaskQuery::describe(&question))
        // More than twice as long as the slowest task, so that another agent has time for it if the first hangs.
        .time_limit(Duration::from_secs(600))
        .send_message(question)
        .await?;
    for attempt in &done.failed {
        println!("before: {attempt}");
    }
    println!("{} ({}): {}", done.selection.agent.agent_id, done.value.state(), done.value.text());
    Ok(())
}
