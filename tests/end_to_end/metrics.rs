//! `GET /metrics`, as Prometheus reads it.

use std::collections::HashMap;

use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use reqwest::header::CONTENT_TYPE;

use crate::support::{Database, Registry, agent, client, eventually, on_both_databases, on_postgres};

on_both_databases!(
    every_name_of_the_contract_is_there,
    an_agents_series_goes_with_it,
    paths_are_counted_by_their_route,
);

/// What takes several servers.
mod replicas {
    use super::*;

    on_postgres!(the_figures_are_those_of_all_servers);
}

/// Every sample by its name and labels.
async fn scrape(server: &Registry) -> HashMap<String, f64> {
    let answer = reqwest::get(format!("{}/metrics", server.url())).await.unwrap();
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

async fn every_name_of_the_contract_is_there(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.register(&agent("b", "work").status(AgentStatus::Busy)).await.unwrap();
    client.register(&agent("c", "work").status(AgentStatus::Offline)).await.unwrap();
    client.heartbeat("a").await.unwrap();
    client.set_maintenance("c", &MaintenanceRequest::new("disk upgrade")).await.unwrap();
    for _ in 0..3 {
        client.search_capabilities("Work").await.unwrap();
    }
    let found = scrape(&server).await;
    for (name, expected) in [
        ("agent_registry_agents_total{status=\"active\"}", 1.0),
        ("agent_registry_agents_total{status=\"busy\"}", 1.0),
        ("agent_registry_agents_total{status=\"offline\"}", 1.0),
        ("agent_registry_capabilities_total", 3.0),
        ("agent_registry_stale_agents_total", 0.0),
        ("agent_registry_maintenance_agents", 1.0),
        ("agent_registry_heartbeat_latency_seconds_count{agent_id=\"a\"}", 1.0),
        ("agent_registry_discovery_requests_total{capability=\"work\"}", 3.0),
        (
            "agent_registry_http_request_duration_seconds_count{method=\"POST\",route=\"/register\",status=\"200\"}",
            3.0,
        ),
        ("agent_registry_database_up", 1.0),
    ] {
        assert_eq!(found.get(name), Some(&expected), "{name}");
    }
    assert!(found["agent_registry_last_sweep_age_seconds"] < 300.0);
    server.shutdown().await;
}

async fn an_agents_series_goes_with_it(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    let of_agent =
        async || scrape(&server).await.into_keys().filter(|name| name.contains("agent_id=\"a\"")).count();
    assert!(of_agent().await > 0);
    client.deregister("a").await.unwrap();
    assert_eq!(of_agent().await, 0);
    server.shutdown().await;
}

async fn paths_are_counted_by_their_route(database: Database) {
    let server = database.start().await;
    for path in ["agents/one", "agents/two", "no/such/path", "another"] {
        reqwest::get(format!("{}/{path}", server.url())).await.unwrap();
    }
    let found = scrape(&server).await;
    let count = |route: &str| {
        let labels = format!("{{method=\"GET\",route=\"{route}\",status=\"404\"}}");
        found.get(&format!("agent_registry_http_request_duration_seconds_count{labels}")).copied()
    };
    assert_eq!((count("/agents/{id}"), count("unmatched")), (Some(2.0), Some(2.0)));
    server.shutdown().await;
}

async fn the_figures_are_those_of_all_servers(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    client(&one).register(&agent("a", "work")).await.unwrap();
    client(&two).register(&agent("b", "work")).await.unwrap();
    for server in [&one, &two] {
        let active = async || scrape(server).await["agent_registry_agents_total{status=\"active\"}"];
        eventually("it counts both", async || (active().await - 2.0).abs() < 0.5).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}
