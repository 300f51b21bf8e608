//! An orchestrator to copy: it finds agents, hands tasks over, falls back where one dies, and watches the figures.
//!
//! `cargo run --example orchestrator` starts a registry and three agents of its own, and kills one of them on the way.
//! With `REGISTRY_URL=http://…` it uses that registry and the agents that are there (`cargo run --example agent`).
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::time::Duration;

use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Directory, HealthSource, Orchestrator, Policy, TaskQuery};
use registry_sdk::{Agent, AlertRule, HealthEndpoint, RegistryClient, StatsMonitor};
use registry_server::{Config, Server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// How often the agents here say that they are alive. Real ones do every 30 s or so.
const INTERVAL: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Outcome {
    if let Ok(url) = std::env::var("REGISTRY_URL") {
        return orchestrate(&RegistryClient::new(url)?, None).await;
    }
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        database_url: "sqlite::memory:".to_owned(),
        heartbeat_timeout: 3 * INTERVAL,
        sweep_interval: INTERVAL,
        ..Config::default()
    };
    let server = Server::bind(config).await?;
    let client = RegistryClient::new(server.url())?;
    let mut agents = Vec::new();
    for (id, capability) in [
        ("feature-dev", "code_generation"),
        ("fast-fixer", "code_generation"),
        ("sec-scan", "security_scanning"),
    ] {
        agents.push(Worker::start(&client, id, capability).await?);
    }
    orchestrate(&client, Some(agents)).await?;
    server.shutdown().await;
    Ok(())
}

async fn orchestrate(client: &RegistryClient, agents: Option<Vec<Worker>>) -> Outcome {
    // A copy of the registry that a watch keeps: choosing costs no request, and goes on while the registry is away.
    let directory = Directory::follow(client);
    directory.ready().await?;
    let orchestrator = Orchestrator::builder(client.clone()).directory(directory.clone()).build();

    // Alerts, here after one broken round; the default is two.
    let monitor = StatsMonitor::builder(client.clone())
        .interval(INTERVAL)
        .hysteresis(1, 1)
        .rule(AlertRule::TooFew { capability: "code generation".to_owned(), at_least: 2 })
        .on_alert(|alert| println!("  [monitor] {}", alert.detail))
        .start();

    println!("{} agents are there. Who would do it?", directory.len());
    let query =
        TaskQuery::new("code generation").health_source(HealthSource::Search).policy(Policy::RoundRobin);
    let selection = orchestrator.select(&query).await?;
    println!("  {} ({:?})", selection.agent.agent_id, selection.freshness);

    println!("Four tasks, to each in turn:");
    for number in 0..4 {
        hand_over(&orchestrator, &query, number).await?;
    }

    if let Some(agents) = agents {
        let (victim, others): (Vec<_>, Vec<_>) =
            agents.into_iter().partition(|worker| worker.agent.agent_id() == "feature-dev");
        println!("feature-dev dies, and nobody has noticed yet. Four more:");
        victim.iter().for_each(Worker::kill);
        for number in 4..8 {
            hand_over(&orchestrator, &query, number).await?;
        }
        println!("Its deadline passes, and those who watch are told:");
        while directory.get("feature-dev").is_some_and(|agent| agent.healthy == Some(true)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("  feature-dev: {:?}", directory.get("feature-dev").map(|agent| agent.status));
        tokio::time::sleep(2 * INTERVAL).await;
        println!("Where nobody can do the first thing, another will do:");
        let query = TaskQuery::new("translation").fallback("security scan");
        hand_over(&orchestrator, &query, 8).await?;
        for worker in others {
            worker.agent.shutdown().await;
        }
    }
    monitor.stop().await;
    Ok(())
}

/// Hands a task over, to the next agent where one fails.
async fn hand_over(orchestrator: &Orchestrator, query: &TaskQuery, number: usize) -> Outcome {
    let done = orchestrator
        .delegate(query.clone())
        .attempts(3)
        .time_limit(Duration::from_secs(30))
        .post_json::<Value>("/execute", &json!({"task": number}))
        .await?;
    let by = &done.selection.agent.agent_id;
    let how = if done.selection.is_fallback { " (a fallback)" } else { "" };
    match done.failed.as_slice() {
        [] => println!("  task {number}: {by}{how}"),
        failed => println!("  task {number}: {by}{how}, after {} failed", failed.join(", ")),
    }
    Ok(())
}

/// An agent with its HTTP side.
struct Worker {
    agent: Agent,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Worker {
    async fn start(client: &RegistryClient, id: &str, capability: &str) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let registration = Registration::new(id, id, format!("http://{}", listener.local_addr()?))
            .capability(Capability::new(capability))
            .heartbeat_interval(INTERVAL);
        let agent = Agent::new(client.clone(), registration);
        let tasks = agent.tasks();
        tasks.set_capacity(4);
        let execute = async move |Json(task): Json<Value>| {
            // Counts as under way until this is answered.
            let _task = tasks.begin();
            Json(json!({"done": task}))
        };
        let app = Router::new().route("/execute", post(execute)).merge(HealthEndpoint::new(&agent).router());
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
