//! Agents in maintenance are skipped, however they are found.

use std::time::Duration;

use registry_sdk::contract::{Capability, MaintenanceRequest, Registration};
use registry_sdk::discovery::{Directory, HealthSource, SelectError, SkipReason};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Orchestrator, RegistryClient, SearchQuery, TaskQuery};

use crate::support::{Reply, Server, until};

const HOUR: Duration = Duration::from_secs(3_600);

/// A registry with two agents, the first of which matches better.
async fn start() -> MockRegistry {
    // The agents send no heartbeats.
    let registry = MockRegistry::builder().heartbeat_timeout(10 * HOUR).start().await;
    for (id, capability) in [("a", "review"), ("b", "review_more")] {
        let registration = Registration::new(id, "Agent", "http://127.0.0.1:1");
        registry.client().register(&registration.capability(Capability::new(capability))).await.unwrap();
    }
    registry
}

async fn take_out(registry: &MockRegistry, id: &str) {
    let request = MaintenanceRequest::new("disk upgrade").duration(HOUR);
    registry.client().set_maintenance(id, &request).await.unwrap();
}

async fn selected(orchestrator: &Orchestrator, query: &TaskQuery) -> Result<String, SelectError> {
    orchestrator.select(query).await.map(|selection| selection.agent.agent_id)
}

#[tokio::test(start_paused = true)]
async fn selections_skip_an_agent_in_maintenance() {
    for source in [HealthSource::Search, HealthSource::Registry] {
        let registry = start().await;
        let orchestrator = Orchestrator::new(registry.client());
        let query = TaskQuery::new("review").health_source(source);
        assert_eq!(selected(&orchestrator, &query).await.unwrap(), "a");
        take_out(&registry, "a").await;
        assert_eq!(selected(&orchestrator, &query).await.unwrap(), "b");
        take_out(&registry, "b").await;
        assert!(matches!(selected(&orchestrator, &query).await, Err(SelectError::NoAgent { .. })));
        registry.client().end_maintenance("a").await.unwrap();
        assert_eq!(selected(&orchestrator, &query).await.unwrap(), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn directory_skips_an_agent_in_maintenance_and_says_so() {
    let registry = start().await;
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(registry.client()).directory(directory.clone()).build();
    let query = TaskQuery::new("review");
    assert_eq!(selected(&orchestrator, &query).await.unwrap(), "a");
    take_out(&registry, "a").await;
    until("it is told", || directory.get("a").is_some_and(|agent| agent.maintenance.is_some())).await;
    assert_eq!(selected(&orchestrator, &query).await.unwrap(), "b");
    let found = directory.search(SearchQuery::new("review").limit(1));
    assert_eq!((found.len(), &*found[0].agent_id), (1, "b"));
    take_out(&registry, "b").await;
    until("it is told", || directory.search("review").is_empty()).await;
    // Even if agents are asked themselves: those two would not respond.
    for source in [HealthSource::Search, HealthSource::Agent] {
        let error = selected(&orchestrator, &query.clone().health_source(source)).await.unwrap_err();
        let reasons: Vec<_> = error.skipped().iter().map(|one| one.reason.clone()).collect();
        assert_eq!(reasons, [SkipReason::Maintenance, SkipReason::Maintenance], "{error}");
    }
    // They are available again when their maintenance is over.
    tokio::time::sleep(HOUR).await;
    until("it is told", || directory.search("review").len() == 2).await;
    assert_eq!(selected(&orchestrator, &query).await.unwrap(), "a");
}

/// The search was a moment before the maintenance.
#[tokio::test(start_paused = true)]
async fn health_check_reports_maintenance() {
    const FOUND: &str = r#"[{"agent_id":"a","agent_name":"A","base_url":"http://127.0.0.1:1","status":"active","capability":"review"}]"#;
    const HEALTH: &str = r#"{"agent_id":"a","status":"unhealthy","reason":"maintenance"}"#;
    let registry = Server::start(|what, _| match what {
        what if what.starts_with("GET /health/a") => Reply::Answer(200, "", HEALTH),
        what if what.contains("healthy=false") => Reply::Answer(200, "", "[]"),
        _ => Reply::Answer(200, "", FOUND),
    })
    .await;
    let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
    let query = TaskQuery::new("review").health_source(HealthSource::Registry);
    let error = selected(&orchestrator, &query).await.unwrap_err();
    assert_eq!(error.skipped()[0].reason, SkipReason::Maintenance);
    assert!(error.to_string().contains("a is in maintenance"), "{error}");
}
