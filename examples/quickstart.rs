//! A complete example in one program: agents register, a search finds them by what they can do, one of them stops, and its task
//! goes to another one.
//!
//! `cargo run --example quickstart` starts a registry in the same process, on a temporary SQLite file. With
//! `REGISTRY_URL=http://…` it uses that registry instead.
#![allow(clippy::print_stdout, reason = "it tells a story")]

use std::time::{Duration, Instant};

use registry_sdk::contract::{Capability, CapabilityMatch, Registration};
use registry_sdk::{Agent, RegistryClient};
use registry_server::{Config, Server};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The agents' heartbeat interval. Real agents use about 30 s.
const INTERVAL: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Outcome {
    let began = Instant::now();
    let registry = Registry::find_or_start().await?;
    let client = RegistryClient::new(&registry.url)?;
    println!("The registry answers at {}.\n", registry.url);

    println!("Three agents register, and send a heartbeat every {INTERVAL:?}:");
    let feature_dev = join(&client, "feature-dev", "code_generation", "Writes features, with tests").await?;
    let fast_fixer = join(&client, "fast-fixer", "code_generation", "Fixes small bugs quickly").await?;
    let sec_scan = join(&client, "sec-scan", "security_scanning", "Looks for holes in code").await?;

    println!("\nAn orchestrator has code to generate. It searches for \"code gen\":");
    let chosen = find(&client, "code gen").await?;
    println!("  It gives the task to {}.", chosen.agent_id);

    let timeout = client.check_health(&chosen.agent_id).await?.heartbeat_timeout.unwrap_or_default();
    println!("\n{} hangs: its heartbeats stop. It may be silent for {timeout:?}.", chosen.agent_id);
    let (silent, other) = match chosen.agent_id.as_str() {
        "feature-dev" => (feature_dev, fast_fixer),
        _ => (fast_fixer, feature_dev),
    };
    silent.stop_heartbeat().await;
    let fell_silent = Instant::now();
    loop {
        let health = client.check_health(silent.agent_id()).await?;
        if !health.is_healthy() {
            let reason = health.reason.map_or_else(String::new, |reason| format!("{reason:?}"));
            let waited = fell_silent.elapsed().as_secs_f64();
            println!("  {waited:.1} s later the registry calls it unhealthy ({reason}).");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    println!("\nThe orchestrator searches again:");
    let fallback = find(&client, "code gen").await?;
    println!("  The task goes to {}.", fallback.agent_id);

    println!("\n{} recovers, and one heartbeat brings it back.", silent.agent_id());
    silent.start_heartbeat(INTERVAL)?;
    while !client.check_health(silent.agent_id()).await?.is_healthy() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = client.get_stats().await?;
    println!("  {} agents are active, with {} capabilities.", stats.active_agents, stats.total_capabilities);

    println!("\nAll shut down in good order, and say so:");
    for agent in [silent, other, sec_scan] {
        agent.shutdown().await;
        println!("  {} is {}.", agent.agent_id(), client.get_agent(agent.agent_id()).await?.status);
        client.deregister(agent.agent_id()).await?;
    }
    registry.stop().await;
    println!("\nThat was it, in {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Registers an agent and starts its heartbeats.
async fn join(client: &RegistryClient, id: &str, capability: &str, description: &str) -> Outcome<Agent> {
    let registration = Registration::new(id, id, format!("http://{id}:8000"))
        .capability(Capability::new(capability).description(description))
        .heartbeat_interval(INTERVAL);
    let agent = Agent::new(client.clone(), registration);
    agent.register().await?;
    agent.start_heartbeat(INTERVAL)?;
    println!("  {id:<12} can do {capability}: {description}.");
    Ok(agent)
}

/// Searches for words, prints the matches, and returns the best healthy one.
async fn find(client: &RegistryClient, words: &str) -> Outcome<CapabilityMatch> {
    let mut best = None;
    for found in client.search_capabilities(words).await? {
        println!("  {:<12} {:<8} score {}", found.agent_id, found.status, found.score.unwrap_or_default());
        if best.is_none() && client.check_health(&found.agent_id).await?.is_healthy() {
            best = Some(found);
        }
    }
    best.ok_or_else(|| "no healthy agent can do that".into())
}

/// The registry in this process, or another one.
struct Registry {
    url: String,
    /// The server, and the folder of its database.
    own: Option<(Server, tempfile::TempDir)>,
}

impl Registry {
    async fn find_or_start() -> Outcome<Self> {
        if let Ok(url) = std::env::var("REGISTRY_URL") {
            return Ok(Self { url, own: None });
        }
        let folder = tempfile::tempdir()?;
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: format!("sqlite://{}", folder.path().join("registry.db").display()),
            // Short, so that the example does not take long. The default is a minute.
            heartbeat_timeout: 4 * INTERVAL,
            sweep_interval: INTERVAL,
            ..Config::default()
        };
        let server = Server::bind(config).await?;
        Ok(Self { url: server.url(), own: Some((server, folder)) })
    }

    async fn stop(self) {
        if let Some((server, _folder)) = self.own {
            server.shutdown().await;
        }
    }
}
