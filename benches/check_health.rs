//! Overhead of the SDK for one request: `check_health` against the same request with plain `reqwest`.
//!
//! `cargo bench --bench check_health`. Both send requests to one registry over one connection each, alternating every few hundred.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::{Duration, Instant};

use registry_sdk::RegistryClient;
use registry_sdk::contract::{AgentHealth, Registration};
use registry_server::{Config, Server};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 61;
const REQUESTS: u32 = 300;

#[tokio::main]
async fn main() -> Outcome {
    let listen = "127.0.0.1:0".parse()?;
    let server =
        Server::bind(Config { listen, database_url: "sqlite::memory:".to_owned(), ..Config::default() })
            .await?;
    let client = RegistryClient::new(server.url())?;
    client.register(&Registration::new("agent", "Agent", "http://agent:8000")).await?;
    let (bare, url) = (reqwest::Client::new(), format!("{}/health/agent", server.url()));

    let mut ratios = Vec::new();
    let mut took = [Duration::ZERO; 2];
    for round in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..REQUESTS {
            let answer = bare.get(&url).send().await?.error_for_status()?;
            let health: AgentHealth = serde_json::from_slice(&answer.bytes().await?)?;
            assert_eq!(health.agent_id, "agent");
        }
        let by_reqwest = began.elapsed();
        let began = Instant::now();
        for _ in 0..REQUESTS {
            assert_eq!(client.check_health("agent").await?.agent_id, "agent");
        }
        let by_sdk = began.elapsed();
        // The first round opens the connections.
        if round > 0 {
            ratios.push(by_reqwest.as_secs_f64() / by_sdk.as_secs_f64());
            took = [took[0] + by_reqwest, took[1] + by_sdk];
        }
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let all = REQUESTS * u32::try_from(ratios.len())?;
    println!("check_health_ratio {:.3} of reqwest's requests in the same time", ratios[ratios.len() / 2]);
    println!("{:?} each by reqwest, {:?} by the SDK", took[0] / all, took[1] / all);
    server.shutdown().await;
    Ok(())
}
