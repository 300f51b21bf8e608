//! How to test an agent: a registry of the test's own, with scripted faults, on a paused clock.
//!
//! `cargo test --example testing_an_agent` runs the tests below; `cargo run --example testing_an_agent` tells one of
//! them as a story.
//!
//! To use this file as the `src/main.rs` of your own crate, add to its `Cargo.toml` (if only its tests use the mock registry, the features
//! `testing` and `test-util` belong to the `[dev-dependencies]`):
//!
//! ```toml
//! [dependencies]
//! registry-sdk = { version = "0.1", features = ["testing"] }
//! tokio = { version = "1", features = ["full", "test-util"] }
//! ```
#![allow(clippy::print_stdout, reason = "it tells a story")]

use std::time::{Duration, Instant};

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, RegistryClient};

/// The agent under test, as its own crate would make it.
fn documentation_writer(client: RegistryClient) -> Agent {
    let registration = Registration::new("docs", "Documentation Writer", "http://docs:8004")
        .capability(Capability::new("documentation").tag("markdown"))
        .heartbeat_interval(Duration::from_secs(30));
    Agent::new(client, registration)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let registry = MockRegistry::start().await;
    let agent = documentation_writer(registry.client());
    agent.register().await?;
    agent.start_heartbeat(Duration::from_secs(30))?;
    registry.wait_until(|seen| seen.heartbeats("docs") == 3).await;
    println!("The agent is registered, and has sent {} heartbeats.", registry.heartbeats("docs"));

    registry.outage(Duration::from_secs(3_600));
    let mut state = agent.watch();
    state.wait_for(AgentState::is_degraded).await?;
    println!("The registry is gone for an hour. The agent runs on, degraded.");

    registry.forget_agents();
    state.wait_for(AgentState::is_registered).await?;
    println!("The registry is back, and had forgotten everything: the agent has registered again.");

    agent.shutdown().await;
    let status = registry.agent("docs").map(|record| record.status.to_string()).unwrap_or_default();
    println!("The agent has shut down, and is {status}.");
    println!("All that took {:?}, for the clock is paused.", began.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    use registry_sdk::contract::AgentStatus;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_can_be_found_by_what_it_does() {
        let registry = MockRegistry::start().await;
        documentation_writer(registry.client()).register().await.unwrap();
        let found = registry.client().search_capabilities("markdown").await.unwrap();
        assert_eq!(found[0].agent_id, "docs");
    }

    #[tokio::test(start_paused = true)]
    async fn three_lost_heartbeats_do_not_make_it_offline() {
        let registry = MockRegistry::start().await;
        let agent = documentation_writer(registry.client());
        agent.register().await.unwrap();
        agent.start_heartbeat(Duration::from_secs(30)).unwrap();
        registry.drop_connections(3);
        registry.wait_until(|seen| seen.heartbeats("docs") == 4).await;
        assert_eq!(registry.agent("docs").unwrap().status, AgentStatus::Active);
    }

    #[tokio::test(start_paused = true)]
    async fn it_registers_again_where_the_registry_forgot_it() {
        let registry = MockRegistry::start().await;
        let agent = documentation_writer(registry.client());
        agent.register().await.unwrap();
        agent.start_heartbeat(Duration::from_secs(30)).unwrap();
        registry.forget_agents();
        registry.wait_until(|seen| seen.registrations("docs") == 2).await;
    }
}
