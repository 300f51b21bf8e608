//! What heartbeats and delegations cost a program that has no subscriber, for builds with and without spans.
//!
//! `benches/README.md` has the commands, and the figures. `-- heartbeat 1000` does one thing so often and prints nothing, for a program
//! that counts instructions.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::{Duration, Instant};

use axum::routing::post;
use axum::{Json, Router};
use opentelemetry::global;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use registry_sdk::discovery::{Directory, TaskError};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Capability, Orchestrator, Registration, RegistryClient};
use serde_json::{Value, json};
use tokio::net::TcpListener;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 41;

/// A benchmark, and its number of repetitions in a round.
const WORK: [(&str, usize); 3] =
    [("heartbeat", 300), ("delegation_by_http", 300), ("delegation_without_a_request", 2_000)];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    // As in a program that traces, so that it is asked at each request.
    global::set_text_map_propagator(TraceContextPropagator::new());
    let bench = Bench::start().await?;
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with('-')).collect();
    if let [name, count] = &arguments[..] {
        return bench.work(name, count.parse()?).await;
    }
    let mut times = [const { Vec::new() }; WORK.len()];
    for _ in 0..ROUNDS {
        for ((name, count), times) in WORK.iter().zip(&mut times) {
            let began = Instant::now();
            bench.work(name, *count).await?;
            times.push(began.elapsed() / u32::try_from(*count)?);
        }
    }
    for ((name, _), times) in WORK.iter().zip(&mut times) {
        times.sort_unstable();
        println!("{name} {:?} (median), {:?} (least)", times[ROUNDS / 2], times[0]);
    }
    Ok(())
}

struct Bench {
    client: RegistryClient,
    orchestrator: Orchestrator,
    _registry: MockRegistry,
}

impl Bench {
    /// Starts an agent whose server also answers heartbeats, and an orchestrator that finds the agent without a request.
    async fn start() -> Outcome<Self> {
        let heartbeat = async || Json(json!({"agent_id": "agent", "status": "active"}));
        let app = Router::new()
            .route("/agents/agent/heartbeat", post(heartbeat))
            .route("/execute", post(async |task: Json<Value>| task));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async { axum::serve(listener, app).await });
        let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(86_400)).start().await;
        let agent = Registration::new("agent", "Agent", &url).capability(Capability::new("work"));
        registry.client().register(&agent).await?;
        let directory = Directory::follow(&registry.client());
        directory.ready().await?;
        let orchestrator = Orchestrator::builder(registry.client()).directory(directory).build();
        Ok(Self { client: RegistryClient::new(url)?, orchestrator, _registry: registry })
    }

    async fn work(&self, name: &str, count: usize) -> Outcome {
        for _ in 0..count {
            let delegation = || self.orchestrator.delegate("work");
            match name {
                "heartbeat" => drop(self.client.heartbeat("agent").await?),
                "delegation_by_http" => drop(delegation().post_json::<Value>("/execute", &1).await?),
                "delegation_without_a_request" => {
                    drop(delegation().run(async |_| Ok::<_, TaskError>(())).await?);
                }
                _ => return Err(format!("{name} is not measured").into()),
            }
        }
        Ok(())
    }
}
