//! Health probes, and their protection against misuse.

mod agents;
mod replicas;

use std::sync::atomic::Ordering;
use std::time::Duration;

use registry_sdk::contract::{
    AgentHealth, AgentStatus, Capability, ProbeMode, ProbeResult, Registration, UnhealthyReason, limits,
};
use registry_sdk::{RegistryClient, SearchQuery, WatchEvent};
use registry_server::Config;

use self::agents::Agents;
use crate::support::{Database, LONG, client, eventually, on_both_databases};

on_both_databases!(
    two_failures_make_an_agent_unhealthy_and_one_success_healthy,
    agents_that_fail_probes_do_not_crowd_out_a_healthy_one,
    hostile_responses_only_make_the_agent_unhealthy,
    probe_results_are_discarded_when_the_address_changes,
    agents_that_answer_401_redirect_within_their_origin_or_send_a_page_are_healthy,
    response_404_does_not_change_the_health,
    agent_is_probed_at_its_health_path,
    agent_with_probe_off_is_not_probed_and_earlier_results_are_discarded,
    forbidden_addresses_are_not_probed,
    offline_agents_are_not_probed,
);

const INTERVAL: Duration = Duration::from_millis(100);
/// Probe timeout that only an agent that never answers exceeds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Probe timeout for tests with slow agents.
const SHORT_TIMEOUT: Duration = Duration::from_millis(400);

fn probing(config: &mut Config) {
    config.probe_interval = Some(INTERVAL);
    config.probe_timeout = TIMEOUT;
    config.probe_allow = vec!["127.0.0.1/32".parse().unwrap()];
}

async fn health(client: &RegistryClient, id: &str) -> AgentHealth {
    client.check_health(id).await.unwrap()
}

async fn two_failures_make_an_agent_unhealthy_and_one_success_healthy(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let mut watch = client.watch();
    agents.register(&client, "well").await;
    let probed = async || health(&client, "well").await.probe.is_some_and(|probe| probe.ok);
    eventually("the agent was probed", probed).await;
    let before = health(&client, "well").await;
    assert!(before.is_healthy() && before.reason.is_none(), "{before:?}");

    let asked = agents.probes();
    agents.ill.store(503, Ordering::SeqCst);
    eventually("the agent is unhealthy", async || !health(&client, "well").await.is_healthy()).await;
    assert!(agents.probes() >= asked + 2, "one failure is not enough");
    let found = health(&client, "well").await;
    assert_eq!(
        (found.reason, found.agent_status),
        (Some(UnhealthyReason::ProbeFailed), Some(AgentStatus::Active))
    );
    let probe = found.probe.unwrap();
    assert!(!probe.ok && probe.detail.unwrap().contains("503"));
    assert_eq!(client.search_capabilities("work").await.unwrap()[0].healthy, Some(false));
    assert_eq!(client.get_agent("well").await.unwrap().healthy, Some(false));

    agents.ill.store(0, Ordering::SeqCst);
    eventually("the agent is healthy again", async || health(&client, "well").await.is_healthy()).await;
    // Watchers get both changes.
    let mut told = Vec::new();
    while told.len() < 2 {
        if let WatchEvent::StatusChanged(agent) = watch.next().await.unwrap() {
            told.push(agent.healthy);
        }
    }
    assert_eq!(told, [Some(false), Some(true)]);
    server.shutdown().await;

    // A server without probing ignores the results of probes.
    agents.ill.store(503, Ordering::SeqCst);
    let server = database.start_with(probing).await;
    let client = crate::support::client(&server);
    eventually("the agent is unhealthy", async || !health(&client, "well").await.is_healthy()).await;
    server.shutdown().await;
    let server = database.start().await;
    let found = health(&crate::support::client(&server), "well").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");
    server.shutdown().await;
}

async fn agents_that_fail_probes_do_not_crowd_out_a_healthy_one(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let failing = format!("http://127.0.0.1:{}/failing", agents.port);
    for number in 0..limits::DEFAULT_MATCHES {
        agents.register_at(&client, &format!("dead{number:03}"), &failing).await;
    }
    let well = format!("http://127.0.0.1:{}/well", agents.port);
    let living = Registration::new("living", "Living", well).capability(Capability::new("hard_work"));
    client.register(&living).await.unwrap();
    let search = async |query| client.search_capabilities(query).await.unwrap();
    let active = || SearchQuery::new("work").status(AgentStatus::Active);
    // They match better, so they fill the page.
    let are_dead = async || search(active()).await.iter().all(|found| found.healthy == Some(false));
    eventually("all others are unhealthy", are_dead).await;

    let found = search(active().healthy(true)).await;
    assert_eq!(found.iter().map(|found| &*found.agent_id).collect::<Vec<_>>(), ["living"]);
    let found = search(active().healthy(false).limit(limits::PAGE)).await;
    assert_eq!(found.len(), limits::DEFAULT_MATCHES);
    server.shutdown().await;
}

async fn hostile_responses_only_make_the_agent_unhealthy(database: Database) {
    let impatient = |config: &mut Config| {
        probing(config);
        config.probe_timeout = SHORT_TIMEOUT;
    };
    let server = database.start_with(impatient).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let kinds = [
        ("trickle", "no complete answer within 400ms"),
        ("silent", "no complete answer within 400ms"),
        ("redirect", "it answered 302, a redirect to another origin: http://169.254.169.254"),
        ("redirect-port", "a redirect to another origin: http://127.0.0.1:1"),
        ("circle", "it redirects more than 5 times"),
        ("nowhere", "it answered 307, a redirect without a location"),
        ("failing", "it answered 500"),
        ("in-words", "it says that it is unhealthy"),
    ];
    agents.register(&client, "well").await;
    for (kind, _) in kinds {
        agents.register(&client, kind).await;
    }
    // A port where nothing listens.
    agents.register_at(&client, "gone", "http://127.0.0.1:1").await;
    for (kind, detail) in kinds.into_iter().chain([("gone", "refused")]) {
        // On a busy machine, a response after several redirects may be too late once.
        let failed = async || {
            let found = health(&client, kind).await;
            let is_told = |said: String| said.contains(detail);
            !found.is_healthy()
                && found.probe.is_some_and(|probe| !probe.ok && probe.detail.is_some_and(is_told))
        };
        eventually(&format!("{kind} is unhealthy, since {detail}"), failed).await;
    }
    eventually("the other agents are not affected", async || health(&client, "well").await.is_healthy())
        .await;
    server.shutdown().await;
}

async fn agents_that_answer_401_redirect_within_their_origin_or_send_a_page_are_healthy(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    // A long page is not read to its end.
    let kinds = ["401", "403", "301", "302", "303", "307", "308", "endless", "long"];
    for kind in kinds {
        agents.register(&client, kind).await;
    }
    for kind in kinds {
        let rounds = probe_rounds(&client, kind, 3).await;
        assert!(rounds.iter().all(|probe| probe.ok && probe.detail.is_none()), "{kind}: {rounds:?}");
        assert!(health(&client, kind).await.is_healthy(), "{kind}");
    }
    server.shutdown().await;
}

async fn probe_results_are_discarded_when_the_address_changes(database: Database) {
    let patient = |config: &mut Config| {
        probing(config);
        config.probe_timeout = LONG;
    };
    let server = database.start_with(patient).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let url = |kind: &str| format!("http://127.0.0.1:{}/{kind}", agents.port);
    agents.register_at(&client, "moving", &url("failing")).await;
    eventually("the agent is unhealthy", async || !health(&client, "moving").await.is_healthy()).await;
    // The new address is probed, too, and never answers.
    agents.register_at(&client, "moving", &url("silent")).await;
    let found = health(&client, "moving").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");
    server.shutdown().await;
}

const CANNOT_TELL: &str =
    "it answered 404, which says nothing about its health: register its health_path, or \"probe\": \"off\"";

async fn response_404_does_not_change_the_health(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let kinds = ["404", "405", "501"];
    for kind in kinds {
        agents.register(&client, kind).await;
    }
    for kind in kinds {
        let rounds = probe_rounds(&client, kind, 3).await;
        let detail = CANNOT_TELL.replace("404", kind);
        let is_right = |probe: &ProbeResult| probe.ok && probe.detail.as_ref() == Some(&detail);
        assert!(rounds.iter().all(is_right), "{rounds:?}");
        assert!(health(&client, kind).await.is_healthy(), "{kind}");
    }
    // An unhealthy agent stays unhealthy until a probe succeeds.
    agents.ill.store(503, Ordering::SeqCst);
    agents.register(&client, "ill").await;
    eventually("the agent is unhealthy", async || !health(&client, "ill").await.is_healthy()).await;
    agents.ill.store(404, Ordering::SeqCst);
    let cannot_tell = async || {
        let found = health(&client, "ill").await;
        found.probe.is_some_and(|probe| probe.detail.as_deref() == Some(CANNOT_TELL))
    };
    eventually("the agent answers 404", cannot_tell).await;
    let rounds = probe_rounds(&client, "ill", 3).await;
    assert!(rounds.iter().all(|probe| !probe.ok), "{rounds:?}");
    let found = health(&client, "ill").await;
    assert_eq!(found.reason, Some(UnhealthyReason::ProbeFailed), "{found:?}");
    agents.ill.store(0, Ordering::SeqCst);
    eventually("the agent is healthy again", async || health(&client, "ill").await.is_healthy()).await;
    server.shutdown().await;
}

async fn agent_is_probed_at_its_health_path(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let registration = |path: &str| {
        let base_url = format!("http://127.0.0.1:{}/failing", agents.port);
        Registration::new("a", "A", base_url).health_path(path)
    };
    client.register(&registration("/health")).await.unwrap();
    eventually("the agent is unhealthy", async || !health(&client, "a").await.is_healthy()).await;
    let record = client.register(&registration("/elsewhere/")).await.unwrap();
    assert_eq!((record.health_path.as_deref(), record.healthy), (Some("/elsewhere/"), Some(true)));
    let rounds = probe_rounds(&client, "a", 3).await;
    assert!(rounds.iter().skip(1).all(|probe| probe.ok && probe.detail.is_none()), "{rounds:?}");
    server.shutdown().await;
}

async fn agent_with_probe_off_is_not_probed_and_earlier_results_are_discarded(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let url = format!("http://127.0.0.1:{}/failing", agents.port);
    let registration = || Registration::new("a", "A", &*url).capability(Capability::new("work"));
    client.register(&registration()).await.unwrap();
    eventually("the agent is unhealthy", async || !health(&client, "a").await.is_healthy()).await;

    let record = client.register(&registration().no_probe()).await.unwrap();
    assert_eq!((record.probe, record.healthy), (Some(ProbeMode::Off), Some(true)));
    let found = health(&client, "a").await;
    assert!(found.is_healthy() && found.reason.is_none() && found.probe.is_none(), "{found:?}");
    assert_eq!(client.search_capabilities("work").await.unwrap()[0].healthy, Some(true));
    // A probe in flight changes nothing, and no other follows: the rounds continue with another agent.
    agents.register(&client, "well").await;
    probe_rounds(&client, "well", 3).await;
    let asked = agents.probes_of("failing");
    probe_rounds(&client, "well", 3).await;
    assert_eq!(agents.probes_of("failing"), asked);
    let found = health(&client, "a").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");

    client.register(&registration().probe(ProbeMode::On)).await.unwrap();
    eventually("the agent is unhealthy again", async || !health(&client, "a").await.is_healthy()).await;
    server.shutdown().await;
}

/// Returns the results of the next probes of an agent.
async fn probe_rounds(client: &RegistryClient, id: &str, count: usize) -> Vec<ProbeResult> {
    let mut seen: Vec<ProbeResult> = Vec::new();
    while seen.len() < count {
        let latest = async || health(client, id).await.probe;
        let last = seen.last().map(|probe| probe.checked_at);
        let is_new = async || latest().await.is_some_and(|probe| Some(probe.checked_at) != last);
        eventually("the agent is probed", is_new).await;
        seen.extend(latest().await);
    }
    seen
}

async fn forbidden_addresses_are_not_probed(database: Database) {
    let forbid = |config: &mut Config| {
        probing(config);
        config.probe_allow.clear();
    };
    let server = database.start_with(forbid).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let port = agents.port;
    for (id, host) in [
        ("literal", "127.0.0.1"),
        ("name", "localhost"),
        ("decimal", "2130706433"),
        ("mapped", "[::ffff:7f00:1]"),
    ] {
        agents.register_at(&client, id, &format!("http://{host}:{port}/well")).await;
    }
    agents.register_at(&client, "metadata", "http://169.254.169.254/latest").await;
    for id in ["literal", "name", "decimal", "mapped", "metadata"] {
        let failed = async || !health(&client, id).await.is_healthy();
        eventually(&format!("{id} is unhealthy"), failed).await;
        let said = health(&client, id).await.probe.unwrap().detail.unwrap();
        assert!(said.contains("probes may not reach"), "{id}: {said}");
    }
    assert_eq!(agents.probes(), 0);
    server.shutdown().await;
}

async fn offline_agents_are_not_probed(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    agents.register(&client, "well").await;
    eventually("the agent was probed", async || agents.probes() > 0).await;
    client.update_status("well", AgentStatus::Offline).await.unwrap();
    // One probe may still be in flight.
    let settled = async || {
        let before = agents.probes();
        tokio::time::sleep(4 * INTERVAL).await;
        agents.probes() == before
    };
    eventually("probing has stopped", settled).await;
    client.heartbeat("well").await.unwrap();
    let before = agents.probes();
    eventually("the agent is probed again", async || agents.probes() > before).await;
    server.shutdown().await;
}
