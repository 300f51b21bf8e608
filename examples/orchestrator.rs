//! An orchestrator to copy: it finds the best healthy agent for a task, hands the task over, and takes the next
//! agent where that fails.
//!
//! Start a registry (`cargo run -p registry-server`) and an agent or two (`cargo run --example agent`,
//! `AGENT_ID=other cargo run --example agent`), then `cargo run --example orchestrator -- code generation`.
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, CapabilityMatch};
use registry_sdk::{RegistryClient, SearchQuery};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry_url = std::env::var("REGISTRY_URL").unwrap_or_else(|_| "http://127.0.0.1:8009".to_owned());
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let words = if words.is_empty() { "code generation".to_owned() } else { words };
    let client = RegistryClient::new(registry_url)?;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;

    // The best match first; agents that are not active are not asked.
    let query = SearchQuery::new(&words).status(AgentStatus::Active);
    for found in client.search_capabilities(query).await? {
        println!("{} can do {}", found.agent_id, found.capability);
        if !client.check_health(&found.agent_id).await?.is_healthy() {
            println!("  but is not healthy");
            continue;
        }
        match hand_over(&http, &found, &json!({"task": words})).await {
            Ok(answer) => {
                println!("  and did it: {answer}");
                return Ok(());
            }
            Err(error) => println!("  but failed: {error}"),
        }
    }
    Err(format!("nobody did {words:?}").into())
}

async fn hand_over(
    http: &reqwest::Client,
    agent: &CapabilityMatch,
    task: &Value,
) -> Result<Value, reqwest::Error> {
    let url = format!("{}/execute", agent.base_url.trim_end_matches('/'));
    http.post(url).json(task).send().await?.error_for_status()?.json().await
}
