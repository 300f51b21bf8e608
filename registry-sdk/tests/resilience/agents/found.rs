//! Finding healthy agents at a cost that a registry can afford.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::Orchestrator;
use registry_sdk::testing::MockRegistry;
use registry_sdk::{RegistryClient, SearchQuery};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::LONGEST_DELEGATION;
use crate::scene::{Scene, WELL};
use crate::support::{Reply, Server};

const SEARCH: &str = "GET /capabilities/search";

/// A registry with dead agents whose capability matches best, and one healthy agent with a worse match.
async fn graveyard(dead: usize) -> MockRegistry {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for number in 0..dead {
        let id = format!("dead{number}");
        let registration = Registration::new(&id, &id, "http://agent:8000");
        client.register(&registration.capability(Capability::new("work"))).await.unwrap();
    }
    // Past their deadline.
    sleep(Duration::from_secs(61)).await;
    let living = Registration::new("living", "Living", "http://agent:8000");
    client.register(&living.capability(Capability::new("other").example("work"))).await.unwrap();
    registry
}

#[tokio::test(start_paused = true)]
async fn hundred_dead_agents_do_not_hide_the_healthy_one() {
    let registry = graveyard(100).await;
    let selection = Orchestrator::new(registry.client()).find_best_agent("work").await;
    assert_eq!(selection.unwrap().agent.agent_id, "living");
}

/// As many as the longest page of the contract has, and more.
#[tokio::test(start_paused = true)]
async fn more_dead_agents_than_a_page_holds_do_not_hide_the_healthy_one() {
    for dead in [1_000, 1_200] {
        let registry = graveyard(dead).await;
        let selection = Orchestrator::new(registry.client()).find_best_agent("work").await;
        let selected = selection.map(|selection| selection.agent.agent_id);
        assert_eq!(selected.as_deref().ok(), Some("living"), "{dead} dead: {selected:?}");
    }
}

/// A search for healthy agents also returns the healthy one.
#[tokio::test(start_paused = true)]
async fn hundred_dead_agents_do_not_fill_a_search() {
    let registry = graveyard(100).await;
    let found = registry.client().search_capabilities(SearchQuery::new("work").healthy(true)).await.unwrap();
    assert!(found.iter().any(|found| found.agent_id == "living"), "{} matches", found.len());
}

#[tokio::test(start_paused = true)]
async fn selection_among_forty_healthy_agents_costs_one_request() {
    let ids: Vec<String> = (0..40).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    // So that all concurrent requests arrive.
    scene.registry.delay(Duration::from_millis(50));
    let orchestrator = scene.orchestrator();
    let requests = || scene.registry.request_log().0.len();
    let before = requests();
    orchestrator.find_best_agent("work").await.unwrap();
    assert_eq!(requests() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn task_that_three_agents_fail_costs_few_requests() {
    let ids: Vec<String> = (0..40).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for id in &ids {
        scene.set(id, Reply::Answer(500, "", "out of disk"));
    }
    let orchestrator = scene.orchestrator();
    let requests = || scene.registry.request_log().0.len();
    let before = requests();
    super::delegate(&orchestrator).await.unwrap_err();
    assert!(requests() - before <= 3, "{} requests", requests() - before);
}

/// A registry that serves this many requests a second, and responds with 429 to the others.
async fn rate_limited(limit: usize, matches: String) -> Server {
    let matches: &'static str = matches.leak();
    let taken = Mutex::new(Vec::<Instant>::new());
    Server::start(move |what, _| {
        let mut taken = taken.lock().unwrap();
        taken.retain(|at| at.elapsed() < Duration::from_secs(1));
        if taken.len() >= limit {
            return Reply::Answer(429, "retry-after: 1\r\n", "");
        }
        taken.push(Instant::now());
        match what.strip_prefix("GET /health/") {
            Some(_) => Reply::Late(Duration::from_millis(20), r#"{"status":"healthy"}"#),
            None => Reply::Answer(200, "", matches),
        }
    })
    .await
}

fn matches(count: usize, healthy: Option<bool>) -> String {
    let found: Vec<_> = (0..count)
        .map(|number| {
            let mut found = json!({"agent_id": format!("a{number:02}"), "status": "active", "capability": "work",
                "base_url": "http://agent:8000", "score": 1.0});
            if let Some(healthy) = healthy {
                found["healthy"] = healthy.into();
            }
            found
        })
        .collect();
    json!(found).to_string()
}

#[tokio::test(start_paused = true)]
async fn five_concurrent_selections_fit_a_rate_limit() {
    let registry = rate_limited(50, matches(40, Some(true))).await;
    let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
    let began = Instant::now();
    // Searches of the second five are added to the requests of the first five.
    for _ in 0..2 {
        let selections = join_all((0..5).map(|_| orchestrator.find_best_agent("work"))).await;
        let failed: Vec<_> = selections.iter().filter_map(|selection| selection.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of 5 failed: {failed:?}", failed.len());
    }
    assert!(registry.arrived().len() <= 10, "{} requests", registry.arrived().len());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Number of health checks of each agent.
fn health_checks(registry: &Server) -> Vec<String> {
    let requests = registry.arrived().into_iter();
    let mut ids: Vec<_> =
        requests.filter_map(|one| Some(one.what.strip_prefix("GET /health/")?.to_owned())).collect();
    ids.sort_unstable();
    ids
}

/// A registry without optional features: its matches do not report health.
#[tokio::test(start_paused = true)]
async fn few_health_checks_run_at_once_if_matches_have_no_health() {
    let found: &'static str = matches(40, None).leak();
    let registry = Server::start(move |what, _| match what {
        "GET /health/a00" | "GET /health/a01" => Reply::Answer(200, "", r#"{"status":"unhealthy"}"#),
        what if what.starts_with(SEARCH) => Reply::Answer(200, "", found),
        _ => Reply::Answer(200, "", r#"{"status":"healthy"}"#),
    })
    .await;
    let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    assert!(!["a00", "a01"].contains(&selection.agent.agent_id.as_str()), "{}", selection.agent.agent_id);
    let checks = health_checks(&registry);
    assert!(checks.len() <= 2 + 3, "{} checks: {checks:?}", checks.len());
}

#[tokio::test(start_paused = true)]
async fn health_check_is_one_request() {
    for status in [404, 429, 500, 503] {
        let found: &'static str = matches(3, None).leak();
        let registry = Server::start(move |what, _| match what {
            what if what.starts_with(SEARCH) => Reply::Answer(200, "", found),
            _ => Reply::Answer(status, "", ""),
        })
        .await;
        let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
        // Whichever agent is selected, if any.
        let _ = timeout(LONGEST_DELEGATION, orchestrator.find_best_agent("work")).await.unwrap();
        let mut checks = health_checks(&registry);
        let all = checks.len();
        checks.dedup();
        assert_eq!(checks.len(), all, "{status}: some were checked twice");
    }
}

/// A registry that answers from memory does not know an agent's health, so the agent itself is asked.
#[tokio::test(start_paused = true)]
async fn agents_are_asked_themselves_while_matches_are_stale() {
    for first in [Reply::Hang, Reply::Close, Reply::Answer(503, "", "")] {
        let asked = Arc::<AtomicUsize>::default();
        let count = asked.clone();
        let agents = Server::start(move |what, _| {
            count.fetch_add(1, Ordering::SeqCst);
            if what.starts_with("GET /first/") { first.clone() } else { WELL }
        })
        .await;
        let found = ["first", "second"].map(|id| {
            json!({"agent_id": id, "status": "active", "capability": "work", "healthy": true, "score": 1.0,
                "base_url": format!("{}/{id}", agents.url())})
        });
        let found: &'static str = json!(found).to_string().leak();
        let registry = Server::start(move |what, _| match what {
            what if what.starts_with(SEARCH) => Reply::Answer(200, "registry-stale-seconds: 900\r\n", found),
            _ => Reply::Answer(503, "", ""),
        })
        .await;
        let orchestrator = Orchestrator::new(RegistryClient::new(registry.url()).unwrap());
        let selection =
            timeout(LONGEST_DELEGATION, orchestrator.find_best_agent("work")).await.unwrap().unwrap();
        assert_eq!(selection.agent.agent_id, "second");
        assert!(selection.freshness.is_stale());
        assert!((1..=4).contains(&asked.load(Ordering::SeqCst)), "each agent is asked once at most");
    }
}
