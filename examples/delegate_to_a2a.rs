//! An orchestrator of A2A agents to copy: it finds the best agent for a question, sends it the question, and waits for the answer.
//!
//! Start a registry (`cargo run -p registry-server`) and an agent (`cargo run --example a2a_agent`), then
//! `cargo run --example delegate_to_a2a -- "What can I cook with leeks?"`. `registryctl import URL` registers A2A agents of others.
//!
//! A crate that has this file as its `src/main.rs` needs in its `Cargo.toml`:
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

    // A program that delegates more than once keeps it: it remembers the cards, and which agents fail.
    let orchestrator = Orchestrator::new(RegistryClient::new(registry_url)?);
    let done = orchestrator
        .delegate(TaskQuery::describe(&question))
        // More than twice the slowest task, so that the next agent has time for it if one hangs.
        .time_limit(Duration::from_secs(600))
        .send_message(question)
        .await?;
    for attempt in &done.failed {
        println!("before: {attempt}");
    }
    println!("{} ({}): {}", done.selection.agent.agent_id, done.value.state(), done.value.text());
    Ok(())
}
