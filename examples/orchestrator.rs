//! An orchestrator to copy: it finds agents, delegates tasks, fails over, and watches the statistics.
//!
//! `cargo run --example orchestrator` starts a mock registry and five agents. One of them hangs, one is busy, one was
//! deployed without the path for tasks, and one is killed in between; all tasks are done.
//! With `REGISTRY_URL=http://…` it uses that registry and the agents that are there (`cargo run --example agent`).
//!
//! To use this file as the `src/main.rs` of your own crate, add to its `Cargo.toml` (if you remove its own registry and agents, you need neither
//! `axum` nor the feature `testing`):
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! registry-sdk = { version = "0.1", features = ["axum", "testing"] }
//! serde_json = "1"
//! tokio = { version = "1", features = ["full"] }
//! ```
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Directory, EjectionState, Orchestrator, Policy, TaskQuery};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AlertRule, DelegatedTask, HealthEndpoint, RegistryClient, StatsMonitor};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The agents' heartbeat interval. Real agents use about 30 s.
const INTERVAL: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Outcome {
    if let Ok(url) = std::env::var("REGISTRY_URL") {
        return orchestrate(&RegistryClient::new(url)?, None).await;
    }
    let registry = MockRegistry::builder().heartbeat_timeout(3 * INTERVAL).start().await;
    let client = RegistryClient::new(registry.url())?;
    let mut agents = Vec::new();
    for (id, capability, conduct) in [
        ("feature-dev", "code_generation", Conduct::Works),
        ("slow-thinker", "code_generation", Conduct::Hangs),
        ("fast-fixer", "code_generation", Conduct::IsBusy),
        ("old-release", "code_generation", Conduct::LacksThePath),
        ("sec-scan", "security_scanning", Conduct::Works),
    ] {
        agents.push(Worker::start(&client, id, capability, conduct).await?);
    }
    orchestrate(&client, Some(agents)).await
}

async fn orchestrate(client: &RegistryClient, agents: Option<Vec<Worker>>) -> Outcome {
    // A copy of the registry that a watch keeps up to date: selecting needs no request, and continues while the registry is down.
    let directory = Directory::follow(client);
    directory.ready().await?;
    let orchestrator = Orchestrator::builder(client.clone()).directory(directory.clone()).build();

    // Alerts, here after one broken round; the default is two.
    let monitor = StatsMonitor::builder(client.clone())
        .interval(INTERVAL)
        .hysteresis(1, 1)
        .rule(AlertRule::TooFew { capability: "code generation".to_owned(), at_least: 4 })
        .on_alert(|alert| println!("  [monitor] {}", alert.detail))
        .start();

    println!("{} agents are there. Nine tasks, to each agent in turn:", directory.len());
    let query = TaskQuery::new("code generation").policy(Policy::RoundRobin);
    for number in 0..9 {
        delegate(&orchestrator, &query, number).await?;
    }
    for agent in directory.agents() {
        if let EjectionState::Ejected { remaining } = orchestrator.ejection(&agent.agent_id) {
            println!("  {} is ejected for {remaining:.0?}", agent.agent_id);
        }
    }

    if let Some(agents) = agents {
        let (victim, others): (Vec<_>, Vec<_>) =
            agents.into_iter().partition(|worker| worker.agent.agent_id() == "feature-dev");
        println!("feature-dev dies, and nobody has noticed yet. Three more:");
        victim.iter().for_each(Worker::kill);
        for number in 9..12 {
            delegate(&orchestrator, &query, number).await?;
        }
        println!("Its deadline passes, and those who watch are told:");
        while directory.get("feature-dev").is_some_and(|agent| agent.healthy == Some(true)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("  feature-dev: {:?}", directory.get("feature-dev").map(|agent| agent.status));
        tokio::time::sleep(2 * INTERVAL).await;
        println!("If nobody can do the first thing, another one will do:");
        let query = TaskQuery::new("translation").fallback("security scan");
        delegate(&orchestrator, &query, 12).await?;
        for worker in others {
            worker.agent.shutdown().await;
        }
    }
    monitor.stop().await;
    Ok(())
}

/// Delegates a task, failing over to the next candidate.
async fn delegate(orchestrator: &Orchestrator, query: &TaskQuery, number: usize) -> Outcome {
    let done = orchestrator
        .delegate(query.clone())
        // Twice the slowest task, so that the next agent has time for it if one hangs.
        .time_limit(Duration::from_secs(2))
        .post_json::<Value>("/execute", &json!({"task": number}))
        .await?;
    let how = if done.selection.is_fallback { " (a fallback)" } else { "" };
    println!("  task {number}: {}{how}", done.selection.agent.agent_id);
    for attempt in &done.failed {
        println!("    before: {attempt}");
    }
    Ok(())
}

/// What an agent does with tasks.
#[derive(Clone, Copy)]
enum Conduct {
    Works,
    /// Accepts every task and never answers.
    Hangs,
    /// Refuses the first attempts, and says when to come again.
    IsBusy,
    /// Answers 404.
    LacksThePath,
}

/// An agent with its HTTP side.
struct Worker {
    agent: Agent,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Worker {
    async fn start(client: &RegistryClient, id: &str, capability: &str, conduct: Conduct) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let registration = Registration::new(id, id, format!("http://{}", listener.local_addr()?))
            .capability(Capability::new(capability))
            .heartbeat_interval(INTERVAL);
        let agent = Agent::new(client.clone(), registration);
        let tasks = agent.tasks();
        tasks.set_capacity(4);
        let free_at = tokio::time::Instant::now() + Duration::from_secs(2);
        let execute = async move |task: DelegatedTask, Json(input): Json<Value>| {
            // Counts as under way until this is answered.
            let _task = tasks.begin();
            match conduct {
                Conduct::Hangs => std::future::pending().await,
                Conduct::IsBusy if tokio::time::Instant::now() < free_at => {
                    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")], "the queue is full")
                        .into_response()
                }
                _ => Json(json!({"done": input, "attempt": task.attempt})).into_response(),
            }
        };
        let path = if let Conduct::LacksThePath = conduct { "/v1/execute" } else { "/execute" };
        let app = Router::new().route(path, post(execute)).merge(HealthEndpoint::new(&agent).router());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        agent.register().await?;
        agent.start_heartbeat(INTERVAL)?;
        Ok(Self { agent, serving })
    }

    /// As a crash does it: the port is closed, the heartbeats stop, and nobody is told.
    fn kill(&self) {
        self.serving.abort();
        let agent = self.agent.clone();
        tokio::spawn(async move { agent.stop_heartbeat().await });
    }
}
