//! Registrations: reading the record back, and restarts.

use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::ListQuery;
use registry_sdk::contract::{AgentStatus, Capability, ProbeMode, Registration};
use serde_json::{Value, json};

use crate::support::{Database, agent, client, on_both_databases, on_every_registry};

on_every_registry!(
    registration_is_read_back_unchanged,
    second_registration_updates_the_record_and_keeps_registered_at,
    repeated_registration_counts_as_a_heartbeat,
    health_path_and_probe_are_only_in_records_if_registered,
    deregistered_agent_is_gone_and_can_register_again,
);

/// Tests that need a database or a restart.
mod lasting {
    use super::*;

    on_both_databases!(
        agents_survive_a_restart,
        last_heartbeat_survives_a_restart,
        concurrent_registrations_are_all_stored,
        concurrent_registrations_of_one_agent_leave_one_of_them,
    );
}

const INTERVAL: Duration = Duration::from_millis(2_000_500);

fn full() -> Registration {
    Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
        .capability(
            Capability::new("code_generation")
                .description("Generates \"Python\" code — ünïcödé 🦀")
                .cost_estimate("~100 tokens")
                .title("Code generator")
                .example("Write a parser")
                .tag("coding")
                .tag("python"),
        )
        .capability(Capability::new("bare"))
        .metadata("team", "platform")
        .metadata(
            "nested",
            json!({"b": [1, 2.5, null, true], "a": {"deep": "'; DROP TABLE agent_registry; --"}}),
        )
        .heartbeat_interval(INTERVAL)
}

async fn registration_is_read_back_unchanged(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let sent = full();
    let record = client.register(&sent).await.unwrap();
    assert_eq!(record.capabilities, sent.capabilities);
    assert_eq!(record.metadata, sent.metadata);
    assert_eq!(record.heartbeat_interval, Some(INTERVAL));
    assert_eq!(record.heartbeat_timeout, Some(2 * INTERVAL), "longer than the server's own");
    assert_eq!(record.status, AgentStatus::Active);
    assert_eq!(record.registered_at, record.last_heartbeat);
    assert_eq!(client.get_agent("feature-dev").await.unwrap(), record);
    server.shutdown().await;
}

async fn second_registration_updates_the_record_and_keeps_registered_at(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let first = client.register(&full()).await.unwrap();
    let changed = agent("feature-dev", "review").status(AgentStatus::Busy);
    let second = client.register(&changed).await.unwrap();
    assert_eq!(second.registered_at, first.registered_at);
    assert!(second.last_heartbeat >= first.last_heartbeat);
    assert_eq!(second.status, AgentStatus::Busy);
    assert_eq!(second.capabilities, changed.capabilities);
    assert!(second.metadata.is_empty());
    assert_eq!(client.get_agent("feature-dev").await.unwrap(), second);
    assert!(client.search_capabilities("code_generation").await.unwrap().is_empty());
    server.shutdown().await;
}

async fn health_path_and_probe_are_only_in_records_if_registered(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let get = async |path: &str| {
        let response = reqwest::get(format!("{}{path}", server.url())).await.unwrap();
        serde_json::from_slice::<Value>(&response.bytes().await.unwrap()).unwrap()
    };
    let plain = client.register(&agent("feature-dev", "work")).await.unwrap();
    for path in ["/agents/feature-dev", "/agents", "/capabilities/search?q=work"] {
        let answer = get(path).await;
        let fields = answer.get(0).unwrap_or(&answer);
        assert_eq!((fields.get("health_path"), fields.get("probe")), (None, None), "{answer}");
    }
    let changed = agent("feature-dev", "work").health_path("/healthz").no_probe();
    let record = client.register(&changed).await.unwrap();
    assert_eq!((record.health_path.as_deref(), record.probe), (Some("/healthz"), Some(ProbeMode::Off)));
    assert_ne!(record.registration_tag, plain.registration_tag);
    assert!(record.revision > plain.revision);
    for path in ["/agents/feature-dev", "/agents", "/capabilities/search?q=work"] {
        let answer = get(path).await;
        let fields = answer.get(0).unwrap_or(&answer);
        assert_eq!(
            (&fields["health_path"], &fields["probe"]),
            (&json!("/healthz"), &json!("off")),
            "{answer}"
        );
    }
    let found = client.search_capabilities("work").await.unwrap().remove(0);
    assert_eq!((found.health_path.as_deref(), found.probe), (Some("/healthz"), Some(ProbeMode::Off)));
    let again = client.register(&agent("feature-dev", "work")).await.unwrap();
    assert_eq!((again.health_path, again.probe), (None, None));
    assert_eq!(again.registration_tag, plain.registration_tag);
    server.shutdown().await;
}

async fn repeated_registration_counts_as_a_heartbeat(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let first = client.register(&full()).await.unwrap();
    let second = client.register(&full()).await.unwrap();
    assert!(second.last_heartbeat >= first.last_heartbeat);
    assert_eq!(client.get_agent("feature-dev").await.unwrap(), second);
    server.shutdown().await;
}

async fn agents_survive_a_restart(database: Database) {
    let server = database.start().await;
    let before = client(&server);
    before.register(&full()).await.unwrap();
    before.register(&agent("resting", "rest").health_path("/").probe(ProbeMode::On)).await.unwrap();
    before.update_status("resting", AgentStatus::Offline).await.unwrap();
    before.heartbeat("feature-dev").await.unwrap();
    let everyone = before.list_agents(ListQuery::all()).await.unwrap().agents;
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert_eq!(after.list_agents(ListQuery::all()).await.unwrap().agents, everyone);
    assert_eq!(after.search_capabilities("code").await.unwrap().len(), 1);
    server.shutdown().await;
}

async fn last_heartbeat_survives_a_restart(database: Database) {
    let server = database.start().await;
    let before = client(&server);
    let ids: Vec<_> = (0..100).map(|number| format!("often-{number}")).collect();
    before.register(&agent("once", "work")).await.unwrap();
    before.heartbeat("once").await.unwrap();
    for id in &ids {
        before.register(&agent(id, "work")).await.unwrap();
    }
    for _ in 0..42 {
        let heard = join_all(ids.iter().map(|id| before.heartbeat(id))).await;
        assert!(heard.iter().all(Result::is_ok), "{heard:?}");
    }
    let everyone = before.list_agents(ListQuery::all()).await.unwrap().agents;
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server).list_agents(ListQuery::all()).await.unwrap().agents;
    assert_eq!(after, everyone);
    server.shutdown().await;
}

async fn deregistered_agent_is_gone_and_can_register_again(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&full()).await.unwrap();
    client.deregister("feature-dev").await.unwrap();
    for error in [
        client.get_agent("feature-dev").await.map(|_| ()).unwrap_err(),
        client.heartbeat("feature-dev").await.map(|_| ()).unwrap_err(),
        client.check_health("feature-dev").await.map(|_| ()).unwrap_err(),
        client.update_status("feature-dev", AgentStatus::Busy).await.map(|_| ()).unwrap_err(),
        client.deregister("feature-dev").await.unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error}");
    }
    assert_eq!(client.get_stats().await.unwrap().total_capabilities, 0);
    client.register(&full()).await.unwrap();
    assert!(client.check_health("feature-dev").await.unwrap().is_healthy());
    server.shutdown().await;
}

async fn concurrent_registrations_are_all_stored(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let all: Vec<_> = (0..200)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.register(&agent(&format!("agent-{number:03}"), "work")).await })
        })
        .collect();
    for registered in all {
        registered.await.unwrap().unwrap();
    }
    server.shutdown().await;
    let server = database.start().await;
    let stats = crate::support::client(&server).get_stats().await.unwrap();
    assert_eq!((stats.total_agents, stats.total_capabilities, stats.distinct_capabilities), (200, 200, 1));
    server.shutdown().await;
}

async fn concurrent_registrations_of_one_agent_leave_one_of_them(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let all: Vec<_> = (0..50)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.register(&agent("one", &format!("capability-{number}"))).await })
        })
        .collect();
    for registered in all {
        registered.await.unwrap().unwrap();
    }
    let held = client.get_agent("one").await.unwrap();
    server.shutdown().await;
    let server = database.start().await;
    assert_eq!(crate::support::client(&server).get_agent("one").await.unwrap(), held);
    server.shutdown().await;
}
