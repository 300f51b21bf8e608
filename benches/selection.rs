//! Cost of selecting an agent: with concurrent and with sequential health checks, and from a directory.
//!
//! `cargo bench --bench selection`. Everything runs in this process, over sockets.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::{Duration, Instant};

use axum::extract::Path;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use registry_sdk::RegistryClient;
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::{Directory, HealthSource, Orchestrator, Policy, TaskQuery};
use registry_server::{Config, Server};
use tokio::net::TcpListener;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Time that an agent takes to answer a health check.
const ANSWER: Duration = Duration::from_millis(50);

const CANDIDATES: usize = 20;
const ROUNDS: usize = 15;

/// Number of agents in the directory. A hundred agents share each capability.
const AGENTS: usize = 10_000;
const SELECTIONS: usize = 20_000;

#[tokio::main]
async fn main() -> Outcome {
    let database_url = "sqlite::memory:".to_owned();
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), database_url, ..Config::default() };
    let server = Server::bind(config).await?;
    let client = RegistryClient::new(server.url())?;
    let agents = serve_agents().await?;
    ask_side_by_side(&client, &agents).await?;
    from_a_directory(&client).await?;
    server.shutdown().await;
    Ok(())
}

/// Serves healthy and unhealthy agents at `/well/…/health` and `/ill/…/health`, each after a delay.
async fn serve_agents() -> Outcome<String> {
    let health = |Path((kind, _)): Path<(String, String)>| async move {
        tokio::time::sleep(ANSWER).await;
        if kind == "well" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    let app = Router::new().route("/{kind}/{id}/health", get(health));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

async fn ask_side_by_side(client: &RegistryClient, agents: &str) -> Outcome {
    // Among equal matches, the latest heartbeat comes first: the healthy agent registers first, and is checked last.
    for number in 0..CANDIDATES {
        let kind = if number == 0 { "well" } else { "ill" };
        register(client, &format!("mixed-{number:02}"), &format!("{agents}/{kind}/{number}"), "mixed")
            .await?;
        register(client, &format!("well-{number:02}"), &format!("{agents}/well/{number}"), "fine").await?;
    }
    let orchestrator = Orchestrator::new(client.clone());
    let http = reqwest::Client::new();
    let (mut one_by_one, mut three_at_once, mut side_by_side) = (Vec::new(), Vec::new(), Vec::new());
    let (mut one_call, mut all_well) = (Vec::new(), Vec::new());
    // Alternating, so that the load of the machine affects all equally.
    for round in 0..ROUNDS {
        if round < 3 {
            one_by_one.push(timed(ask_one_by_one(client, &http, "mixed")).await?);
        }
        three_at_once.push(timed(select(&orchestrator, "mixed", 3, CANDIDATES - 1)).await?);
        side_by_side.push(timed(select(&orchestrator, "mixed", 32, CANDIDATES - 1)).await?);
        one_call.push(timed(is_well(&http, &format!("{agents}/well/0"))).await?);
        all_well.push(timed(select(&orchestrator, "fine", 3, 0)).await?);
    }
    let (loops, three, ours) =
        (median(&mut one_by_one), median(&mut three_at_once), median(&mut side_by_side));
    println!("{CANDIDATES} candidates, all but the last ill after {ANSWER:?}:");
    println!("  one after another {loops:?}, three at once {three:?} ({:.1} times)", ratio(loops, three));
    println!("  side by side {ours:?} ({:.0} times)", ratio(loops, ours));
    let (call, ours) = (median(&mut one_call), median(&mut all_well));
    println!(
        "{CANDIDATES} candidates, all well: {ours:?}, one health call {call:?}: {:.3}",
        ratio(ours, call)
    );
    Ok(())
}

async fn from_a_directory(client: &RegistryClient) -> Outcome {
    for number in 0..AGENTS {
        let capability = format!("task-{}", number % (AGENTS / 100));
        register(client, &format!("many-{number}"), "http://agent:8000", &capability).await?;
    }
    let directory = Directory::follow(client);
    directory.ready().await?;
    let orchestrator = Orchestrator::builder(client.clone()).directory(directory.clone()).build();
    let mut times = Vec::with_capacity(SELECTIONS);
    for number in 0..SELECTIONS {
        let query = TaskQuery::new(format!("task-{}", number % 100)).health_source(HealthSource::Search);
        let began = Instant::now();
        orchestrator.select(&query).await?;
        times.push(began.elapsed());
    }
    let agents = directory.len();
    println!("from a directory of {agents} agents, 100 of whom can do it: {:?} (median)", median(&mut times));
    Ok(())
}

async fn register(client: &RegistryClient, id: &str, base_url: &str, capability: &str) -> Outcome {
    let registration = Registration::new(id, id, base_url)
        .capability(Capability::new(capability).description("Does it, and does it well").tag("bench"));
    client.register(&registration).await?;
    Ok(())
}

async fn select(orchestrator: &Orchestrator, capability: &str, at_once: usize, skipped: usize) -> Outcome {
    let query = TaskQuery::new(capability).policy(Policy::Rank).health_source(HealthSource::Agent);
    let query = query.max_concurrent_checks(at_once);
    let selection = orchestrator.select(&query).await?;
    assert_eq!(selection.skipped.len(), skipped);
    Ok(())
}

/// Checks agents one after another in a simple loop.
async fn ask_one_by_one(client: &RegistryClient, http: &reqwest::Client, capability: &str) -> Outcome {
    for agent in client.search_capabilities(capability).await? {
        if is_well(http, &agent.base_url).await.is_ok() {
            return Ok(());
        }
    }
    Err("nobody is well".into())
}

async fn is_well(http: &reqwest::Client, base_url: &str) -> Outcome {
    http.get(format!("{base_url}/health")).send().await?.error_for_status()?;
    Ok(())
}

async fn timed(work: impl Future<Output = Outcome>) -> Outcome<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
