//! An agent to copy: it registers, and answers at `/execute` and `/health`.
//!
//! Start a registry (`cargo run -p registry-server`), then `cargo run --example agent`, and find it:
//! `curl 'http://127.0.0.1:8009/capabilities/search?q=code'`. Ctrl-C shuts it down.
//!
//! To use this file as the `src/main.rs` of your own crate, add to its `Cargo.toml`:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! registry-sdk = { version = "0.1", features = ["axum"] }
//! serde_json = "1"
//! tokio = { version = "1", features = ["full"] }
//! ```
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::{Agent, HealthEndpoint, RegistryClient, TaskCounter, shutdown_signal};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let registry_url = setting("REGISTRY_URL", "http://127.0.0.1:8009");
    let agent_id = setting("AGENT_ID", "feature-dev");
    let listener = TcpListener::bind(setting("AGENT_LISTEN", "127.0.0.1:0")).await?;
    let base_url = setting("AGENT_URL", &format!("http://{}", listener.local_addr()?));

    let registration = Registration::new(&agent_id, "Feature Development Agent", &base_url)
        .capability(
            Capability::new("code_generation")
                .description("Generates code from a description")
                .cost_estimate("~100 tokens")
                .tag("coding"),
        )
        .metadata("version", env!("CARGO_PKG_VERSION"));
    let agent = Agent::new(RegistryClient::new(registry_url)?, registration);

    // Heartbeats tell how busy it is, and orchestrators may choose by that.
    let tasks = agent.tasks();
    tasks.set_capacity(8);
    let health = HealthEndpoint::new(&agent);
    let app = Router::new().route("/execute", post(execute)).with_state(tasks).merge(health.router());
    println!("{agent_id} works at {base_url}");
    // It works at once, and registers beside that, whether the registry answers or not.
    agent.run_until(axum::serve(listener, app).with_graceful_shutdown(shutdown_signal())).await?;
    println!("{agent_id} has said goodbye");
    Ok(())
}

/// The agent's own work.
async fn execute(State(tasks): State<TaskCounter>, Json(task): Json<Value>) -> Json<Value> {
    let _task = tasks.begin();
    Json(json!({"done": true, "task": task}))
}
