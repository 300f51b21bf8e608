//! The agent's own health endpoint, and the load that its heartbeats report.

use std::time::Duration;

use registry_sdk::contract::{HealthReport, HealthStatus, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, HealthEndpoint};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::until;

fn agent(registry: &MockRegistry) -> Agent {
    Agent::new(registry.client(), Registration::new("a", "Agent", "http://agent:8000"))
}

/// Serves the endpoint. Returns its URL.
async fn serve(endpoint: HealthEndpoint) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, endpoint.router()).await.unwrap() });
    (url, serving)
}

async fn ask(url: &str) -> (u16, HealthReport) {
    let answer = reqwest::get(url).await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn healthy_agent_reports_its_id_and_tasks() {
    let registry = MockRegistry::start().await;
    let agent = agent(&registry);
    let (url, _serving) = serve(HealthEndpoint::new(&agent)).await;
    let _task = agent.tasks().begin();
    let answer = reqwest::get(&url).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let said: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((&said["status"], &said["agent_id"]), (&"healthy".into(), &"a".into()));
    assert_eq!(said["active_tasks"], 1);
    assert!(said["uptime_seconds"].as_f64().is_some_and(|uptime| uptime >= 0.0), "{said}");
    assert_eq!(said.as_object().unwrap().len(), 4, "{said}");
}

#[tokio::test(start_paused = true)]
async fn failed_or_slow_check_makes_the_agent_unhealthy_and_is_named() {
    let registry = MockRegistry::start().await;
    let endpoint = HealthEndpoint::new(&agent(&registry))
        .check("fine", || async { Ok(()) })
        .check("disk", || async { Err("full".to_owned()) })
        .check("model", std::future::pending);
    let (url, _serving) = serve(endpoint).await;
    let (status, health) = ask(&url).await;
    assert_eq!((status, health.status), (503, HealthStatus::Unhealthy));
    let failed: Vec<_> = health.failed_checks.iter().map(|check| (&*check.name, &*check.detail)).collect();
    assert_eq!(failed, [("disk", "full"), ("model", "no answer within 1s")]);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_report_the_load_and_the_number_of_tasks() {
    let registry = MockRegistry::start().await;
    let agent = agent(&registry);
    agent.register().await.unwrap();
    agent.start_heartbeat(Duration::from_secs(10)).unwrap();
    let known = || registry.agent("a").map(|record| (record.load, record.active_tasks)).unwrap();
    sleep(Duration::from_secs(15)).await;
    assert_eq!(known(), (None, None), "nothing is told where nothing is counted");

    let tasks = agent.tasks();
    let first = tasks.begin();
    until("the number is told", || known() == (None, Some(1))).await;
    tasks.set_capacity(4);
    let second = agent.tasks().begin();
    until("the load is told", || known() == (Some(0.5), Some(2))).await;
    drop((first, second));
    until("their end is told", || known() == (Some(0.0), Some(0))).await;
    let many: Vec<_> = (0..9).map(|_| tasks.begin()).collect();
    until("no load is above one", || known() == (Some(1.0), Some(9))).await;
    tasks.set_load(0.3);
    until("its own word counts", || known() == (Some(0.3), Some(9))).await;
    drop(many);
}

#[tokio::test]
async fn endpoint_is_at_the_path_that_the_agent_registers() {
    let registry = MockRegistry::start().await;
    for path in ["/healthz", "/v1/{how}/:are/*you", "/gesund/ä"] {
        let registration = Registration::new("a", "Agent", "http://agent:8000").health_path(path);
        let agent = Agent::new(registry.client(), registration);
        agent.register().await.unwrap();
        let (url, _serving) = serve(HealthEndpoint::new(&agent)).await;
        let base_url = url.strip_suffix("/health").unwrap();
        let registered = registry.agent("a").unwrap().health_path.unwrap();
        assert_eq!(ask(&format!("{base_url}{registered}")).await.0, 200, "{registered}");
        assert_eq!(reqwest::get(format!("{base_url}/health")).await.unwrap().status(), 404);
    }
}
