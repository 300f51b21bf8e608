//! `GET /metrics`, as Prometheus reads it.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use futures_util::{StreamExt, stream};
use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use registry_sdk::testing::Fault;
use registry_server::Config;
use reqwest::header::CONTENT_TYPE;

use crate::support::{
    Database, NEVER, Registry, agent, client, eventually, impatient_client, on_both_databases, on_postgres,
    proxy_before,
};

on_both_databases!(
    every_metric_in_the_contract_exists,
    series_of_an_agent_is_removed_with_it,
    offline_agents_make_room_for_series_of_others,
    rare_searches_make_room_for_a_new_one,
    sum_over_all_searches_is_exact_at_each_scrape,
    queue_limits_are_as_documented,
    requests_are_counted_by_route,
    connections_and_streams_are_counted_with_their_limits,
);

/// Tests that need several servers.
mod replicas {
    use super::*;

    on_postgres!(agent_counts_are_those_of_all_servers, outage_shows_in_the_lag_and_in_the_errors);
}

/// Returns all samples by their names and labels.
pub(crate) async fn scrape(server: &Registry) -> HashMap<String, f64> {
    let answer = reqwest::get(format!("{}/metrics", server.url())).await.unwrap();
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// Returns the samples of a metric with one label, by the value of the label.
pub(crate) fn by_label(samples: &HashMap<String, f64>, name: &str) -> HashMap<String, u64> {
    let counts = samples.iter().filter_map(|(labelled, count)| {
        let (_, value) = labelled.strip_prefix(name)?.strip_prefix('{')?.split_once("=\"")?;
        Some((value.strip_suffix("\"}")?.to_owned(), format!("{count}").parse().unwrap()))
    });
    counts.collect()
}

async fn every_metric_in_the_contract_exists(database: Database) {
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
        (concat!("agent_registry_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        // Three registrations and one maintenance.
        ("agent_registry_revision", 4.0),
        ("agent_registry_queue_length{queue=\"heartbeats\"}", 0.0),
        ("agent_registry_queue_length{queue=\"changes\"}", 0.0),
        ("agent_registry_max_queue_length{queue=\"heartbeats\"}", 16_384.0),
        ("agent_registry_max_queue_length{queue=\"changes\"}", 8_192.0),
        ("agent_registry_watchers", 0.0),
    ] {
        assert_eq!(found.get(name), Some(&expected), "{name}");
    }
    assert!(found["agent_registry_last_sweep_age_seconds"] < 300.0);
    assert!(found["agent_registry_replica_lag_seconds"] < 300.0);
    for part in ["changes", "follower", "heartbeats", "reads"] {
        let name = format!("agent_registry_database_errors_total{{part=\"{part}\"}}");
        assert!(found.contains_key(&name), "{name}");
    }
    server.shutdown().await;
}

async fn series_of_an_agent_is_removed_with_it(database: Database) {
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

async fn offline_agents_make_room_for_series_of_others(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let client = &client;
    let beat = async |agent_id: String| {
        client.register(&agent(&agent_id, "work")).await.unwrap();
        client.heartbeat(&agent_id).await.unwrap();
    };
    let leave = async |agent_id: String| {
        client.update_status(&agent_id, AgentStatus::Offline).await.unwrap();
    };
    let random = || stream::iter((0..1_010).map(|number| format!("random-{number}")));
    random().map(beat).buffer_unordered(100).count().await;
    random().map(leave).buffer_unordered(100).count().await;
    stream::iter((0..10).map(|number| format!("real-{number}"))).for_each(beat).await;
    let heartbeats = by_label(&scrape(&server).await, "agent_registry_heartbeat_latency_seconds_count");
    let mut expected: HashMap<_, _> = (0..10).map(|number| (format!("real-{number}"), 1)).collect();
    expected.insert("other".to_owned(), 10);
    assert_eq!(heartbeats, expected);
    server.shutdown().await;
}

async fn rare_searches_make_room_for_a_new_one(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let client = &client;
    let search = async |word: String| drop(client.search_capabilities(&word).await.unwrap());
    search("summary".to_owned()).await;
    stream::iter((0..999).map(|number| format!("odd{number}")))
        .map(search)
        .buffer_unordered(100)
        .count()
        .await;
    // The first search is not the least recent one.
    search("summary".to_owned()).await;
    search("translation".to_owned()).await;
    let searches = by_label(&scrape(&server).await, "agent_registry_discovery_requests_total");
    assert_eq!(searches.get("summary"), Some(&2));
    assert_eq!(searches.get("translation"), Some(&1));
    // A search whose series was removed before a scrape is counted elsewhere.
    assert_eq!(searches["other"], 1);
    assert_eq!((searches.len(), searches.values().sum::<u64>()), (1_001, 1_002));
    server.shutdown().await;
}

async fn sum_over_all_searches_is_exact_at_each_scrape(database: Database) {
    const NAME: &str = "agent_registry_discovery_requests_total";
    let server = database.start().await;
    let client = client(&server);
    let client = &client;
    let search = async |word: String| drop(client.search_capabilities(&word).await.unwrap());
    let scraped = async || by_label(&scrape(&server).await, NAME);
    assert_eq!(scraped().await, HashMap::from([("other".to_owned(), 0)]), "before the first search");
    search("summary".to_owned()).await;
    search("summary".to_owned()).await;
    let (mut sum, mut others) = (2, 0);
    for round in 0..6 {
        let searches = scraped().await;
        assert_eq!(searches.values().sum::<u64>(), sum, "round {round}");
        // No series decreases, and searches of removed series are counted under `other`.
        assert!(searches["other"] >= others, "round {round}");
        others = searches["other"];
        let words = (0..300).map(|number| format!("word{round}x{number}"));
        stream::iter(words).map(search).buffer_unordered(50).count().await;
        sum += 300;
    }
    let searches = scraped().await;
    assert_eq!((searches.values().sum::<u64>(), searches.get("summary")), (sum, None));
    server.shutdown().await;
}

async fn queue_limits_are_as_documented(database: Database) {
    const GUIDE: &str = include_str!("../../docs/operations.md");
    let server = database.start().await;
    let limits = by_label(&scrape(&server).await, "agent_registry_max_queue_length");
    let numbers = |row: &str| -> Vec<u64> {
        let row = GUIDE.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap();
        let digits = row.replace(',', "");
        digits.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    assert_eq!(numbers("heartbeats that wait"), [limits["heartbeats"]]);
    let (changes, reserved) = match numbers("registrations and other changes that wait")[..] {
        [changes, all, reserved] if all == limits["changes"] => (changes, reserved),
        ref others => panic!("{others:?}, {limits:?}"),
    };
    assert_eq!(changes + reserved, limits["changes"]);
    server.shutdown().await;
}

async fn requests_are_counted_by_route(database: Database) {
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

async fn connections_and_streams_are_counted_with_their_limits(database: Database) {
    let limit = NonZeroUsize::new(40).unwrap();
    let server = database.start_with(|config| config.max_connections = limit).await;
    let found = scrape(&server).await;
    for (name, limit) in [("agent_registry_max_connections", 40.0), ("agent_registry_max_watchers", 20.0)] {
        assert_eq!(found.get(name), Some(&limit), "{name}");
    }
    let stream = reqwest::get(format!("{}/events", server.url())).await.unwrap();
    let used = async || {
        let found = scrape(&server).await;
        (found["agent_registry_connections"], found["agent_registry_watchers"])
    };
    // The connection of the scrape is one of them.
    let (connections, watchers) = used().await;
    assert!(connections >= 2.0 && (watchers - 1.0).abs() < 0.5, "{connections} {watchers}");
    drop(stream);
    eventually("the connection and the stream are closed", async || used().await == (1.0, 0.0)).await;
    server.shutdown().await;
}

async fn outage_shows_in_the_lag_and_in_the_errors(database: Database) {
    let proxy = proxy_before(&database).await;
    let probing = |config: &mut Config| config.probe_interval = Some(NEVER);
    let server = database.through(&proxy).start_with(probing).await;
    let client = impatient_client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    proxy.set(Fault::Refuse);
    eventually("every part has counted an error", async || {
        let outcomes = (client.heartbeat("a").await, client.update_status("a", AgentStatus::Busy).await);
        let found = scrape(&server).await;
        let errors = by_label(&found, "agent_registry_database_errors_total");
        let is_behind = found["agent_registry_replica_lag_seconds"] > 1.0;
        outcomes.0.is_err() && outcomes.1.is_err() && is_behind && errors.values().all(|count| *count > 0)
    })
    .await;
    proxy.set(Fault::None);
    let lag = async || scrape(&server).await["agent_registry_replica_lag_seconds"];
    eventually("the server has caught up with its database", async || lag().await < 1.0).await;
    server.shutdown().await;
}

async fn agent_counts_are_those_of_all_servers(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    client(&one).register(&agent("a", "work")).await.unwrap();
    client(&two).register(&agent("b", "work")).await.unwrap();
    for server in [&one, &two] {
        let active = async || scrape(server).await["agent_registry_agents_total{status=\"active\"}"];
        eventually("the server counts both agents", async || (active().await - 2.0).abs() < 0.5).await;
        assert!((scrape(server).await["agent_registry_revision"] - 2.0).abs() < 0.5);
    }
    one.shutdown().await;
    two.shutdown().await;
}
