//! Cost of ten thousand agents in one process: memory for each, CPU time at a heartbeat every 30 s, and how evenly their heartbeats are
//! spread.
//!
//! `cargo bench --bench loops` (Linux). The registry is a child process that runs this same program.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::{Agent, RegistryClient};
use registry_server::{Config, Server};
use test_support::ServerProcess;
use tokio::time::sleep;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const INTERVAL: Duration = Duration::from_secs(30);

fn main() -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    match ServerProcess::listen_address() {
        Some(address) => runtime.block_on(serve(address)),
        None => runtime.block_on(measure()),
    }
}

async fn serve(address: SocketAddr) -> Outcome {
    let database_url = "sqlite::memory:".to_owned();
    let config = Config { listen: address.into(), database_url, ..Config::default() };
    let _server = Server::bind(config).await?;
    std::future::pending().await
}

async fn measure() -> Outcome {
    let count: usize = std::env::var("AGENTS").map_or(Ok(10_000), |agents| agents.parse())?;
    let registry = ServerProcess::start();
    let client = RegistryClient::new(registry.url())?;
    // Connections and runtime are set up before the first measurement.
    let warm = stream::iter(0..64).map(|_| client.get_stats()).buffer_unordered(16).count().await;
    assert_eq!(warm, 64);
    let before = resident()?;

    let agents = stream::iter(0..count).map(|number| start(&client, number)).buffer_unordered(16);
    let agents: Vec<Agent> = agents.collect::<Vec<_>>().await.into_iter().collect::<Outcome<_>>()?;
    // All agents send their first heartbeat within an interval.
    sleep(INTERVAL).await;
    println!("loop_bytes {} of resident memory for each of {count} agents", (resident()? - before) / count);

    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    sleep(2 * INTERVAL).await;
    let share = (cpu_seconds()? - cpu) / began.elapsed().as_secs_f64() * 100.0;
    println!("loops_core_percent {share:.2} of a core, at a heartbeat every {INTERVAL:?} from each");

    // Only now, since a scrape every second takes more CPU time than the loops.
    let metrics = format!("{}/metrics", registry.url());
    let began = Instant::now();
    let mut heard = vec![heartbeats(&metrics).await?];
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    while began.elapsed() < INTERVAL {
        seconds.tick().await;
        heard.push(heartbeats(&metrics).await?);
    }
    let busiest = heard.windows(2).map(|two| two[1] - two[0]).fold(0.0, f64::max);
    let mean = (heard[heard.len() - 1] - heard[0]) / began.elapsed().as_secs_f64();
    println!("loops_burst {:.2} of the mean of {mean:.0} heartbeats a second in the busiest", busiest / mean);
    let stats = client.get_stats().await?;
    println!("the registry calls {} of them active", stats.active_agents);
    drop(agents);
    Ok(())
}

async fn start(client: &RegistryClient, number: usize) -> Outcome<Agent> {
    let id = format!("loop-{number}");
    let registration = Registration::new(&id, &id, "http://loop:8000")
        .capability(Capability::new("code_generation").description("Generates code").tag("python"))
        .heartbeat_interval(INTERVAL);
    let agent = Agent::new(client.clone(), registration);
    agent.register().await?;
    agent.start_heartbeat(INTERVAL)?;
    Ok(agent)
}

/// Returns how many heartbeats the registry has answered.
async fn heartbeats(metrics: &str) -> Outcome<f64> {
    let text = reqwest::get(metrics).await?.text().await?;
    let answered = text.lines().filter(|line| {
        line.starts_with("agent_registry_http_request_duration_seconds_count")
            && line.contains("/heartbeat\"")
    });
    Ok(answered.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Returns this process's resident memory, in bytes.
fn resident() -> Outcome<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1_024)
}

/// Returns this process's CPU time, in seconds. A tick is a hundredth of a second on every Linux.
fn cpu_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after_name) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).copied().unwrap_or_default().parse::<f64>();
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
