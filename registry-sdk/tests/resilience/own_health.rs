//! Agents that are asked for their own health: their responses mean the same as in the registry's probes.

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::discovery::{Directory, HealthSource, Orchestrator, TaskQuery};
use registry_sdk::testing::MockRegistry;

use crate::support::{Reply, Server};

const WELL: Reply = Reply::Answer(200, "", "{}");

/// Returns whether an agent that is asked for its health is chosen, from a search and from a directory.
async fn is_chosen(agent: &Server, change: impl Fn(Registration) -> Registration) -> bool {
    let registry = MockRegistry::start().await;
    let plain = Registration::new("a", "Agent", agent.url()).capability(Capability::new("work"));
    registry.client().register(&change(plain)).await.unwrap();
    let query = TaskQuery::new("work").health_source(HealthSource::Agent);
    let is_found = Orchestrator::new(registry.client()).select(&query).await.is_ok();
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    let with_directory = Orchestrator::builder(registry.client()).directory(directory).build();
    assert_eq!(with_directory.select(&query).await.is_ok(), is_found, "{:?}", agent.arrived());
    is_found
}

fn as_it_is(registration: Registration) -> Registration {
    registration
}

fn offline(registration: Registration) -> Registration {
    registration.status(AgentStatus::Offline)
}

#[tokio::test(start_paused = true)]
async fn redirects_within_an_agent_are_followed() {
    for (status, location) in [
        (301, "location: /health/\r\n"),
        (302, "location: health/\r\n"),
        (303, "location: ?from=health\r\n"),
        (307, "location: /health/\r\n"),
        (308, "location: /health/\r\n"),
    ] {
        let agent = Server::start(move |what, _| match what {
            "GET /health" => Reply::Answer(status, location, ""),
            _ => WELL,
        })
        .await;
        assert!(is_chosen(&agent, as_it_is).await, "{status}");
        assert_eq!(agent.arrived().len(), 4, "{status}");
    }
    for location in ["location: http://127.0.0.1:1/health\r\n", "location: http://\r\n", ""] {
        let agent = Server::start(move |_, _| Reply::Answer(302, location, "")).await;
        assert!(!is_chosen(&agent, as_it_is).await, "{location:?}");
        assert_eq!(agent.arrived().len(), 2, "{location:?}");
    }
    let circle = Server::start(|_, _| Reply::Answer(302, "location: /health\r\n", "")).await;
    assert!(!is_chosen(&circle, as_it_is).await);
    assert_eq!(circle.arrived().len(), 12, "five redirects are followed, each time");
}

#[tokio::test(start_paused = true)]
async fn agents_that_ask_for_credentials_are_alive_and_the_registry_decides_about_unknown_ones() {
    for status in [401, 403] {
        let agent = Server::start(move |_, _| Reply::Answer(status, "", "")).await;
        assert!(is_chosen(&agent, as_it_is).await && is_chosen(&agent, offline).await, "{status}");
    }
    for status in [404, 405, 501] {
        let agent = Server::start(move |_, _| Reply::Answer(status, "", "")).await;
        assert!(is_chosen(&agent, as_it_is).await && !is_chosen(&agent, offline).await, "{status}");
    }
    for status in [400, 429, 500, 503] {
        let agent = Server::start(move |_, _| Reply::Answer(status, "", "")).await;
        assert!(!is_chosen(&agent, as_it_is).await && !is_chosen(&agent, offline).await, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn agent_is_asked_at_its_health_path_and_never_with_probe_off() {
    let agent = Server::start(|what, _| match what {
        "GET /v1/healthz" => WELL,
        _ => Reply::Answer(500, "", ""),
    })
    .await;
    assert!(!is_chosen(&agent, as_it_is).await);
    assert!(is_chosen(&agent, |plain| plain.health_path("/v1/healthz")).await);
    let asked = agent.arrived().len();
    assert!(is_chosen(&agent, Registration::no_probe).await, "the registry says that it is well");
    assert!(!is_chosen(&agent, |plain| offline(plain).no_probe()).await);
    assert_eq!(agent.arrived().len(), asked);
}
