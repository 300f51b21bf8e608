//! Draining: no new tasks, then a shutdown once the current tasks have ended, with or without the registry.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, MaintenanceRequest, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, Error, RetryPolicy};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::{HEARTBEAT, PROBLEM, REGISTER, Reply, Server, until};

const INTERVAL: Duration = Duration::from_secs(10);

/// Longer than any test takes on the paused clock.
const HOUR: Duration = Duration::from_secs(3_600);

fn registration() -> Registration {
    Registration::new("a", "Agent", "http://agent:8000")
        .heartbeat_interval(INTERVAL)
        .capability(Capability::new("work"))
}

/// Starts an agent that is registered and sends heartbeats.
async fn running(registry: &MockRegistry) -> Agent {
    let agent = Agent::new(registry.client(), registration());
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    agent
}

fn drain(agent: &Agent) -> JoinHandle<()> {
    let agent = agent.clone();
    tokio::spawn(async move { agent.drain().await })
}

fn is_out(registry: &MockRegistry) -> bool {
    registry.agent("a").is_some_and(|agent| agent.maintenance.is_some())
}

/// Waits until the agent's maintenance has arrived.
async fn taken_out(registry: &MockRegistry) {
    registry.wait_until(|seen| seen.0.iter().any(|one| one.path == "/agents/a/maintenance")).await;
}

#[tokio::test(start_paused = true)]
async fn draining_agent_takes_itself_out_and_waits_for_its_tasks() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let (first, second) = (agent.tasks().begin(), agent.tasks().begin());
    assert!(!agent.is_draining());
    let draining = drain(&agent);
    taken_out(&registry).await;
    assert!(agent.is_draining() && agent.tasks().is_draining());
    let record = registry.agent("a").unwrap();
    let maintenance = record.maintenance.unwrap();
    assert_eq!((&*maintenance.reason, maintenance.until), ("draining", None));
    assert_eq!(maintenance.instance_id.as_deref(), Some(agent.instance_id()));
    assert_eq!(record.status, AgentStatus::Active);
    assert!(registry.client().search_capabilities("work").await.unwrap().is_empty());

    // A task that a caller has just sent is waited for as well.
    let third = agent.tasks().begin();
    drop((first, second));
    let (before, requests) = (registry.heartbeats("a"), registry.request_log().0.len());
    sleep(100 * INTERVAL).await;
    assert!(registry.heartbeats("a") >= before + 90, "heartbeats go on");
    let sent = registry.request_log();
    assert!(
        sent.0[requests..].iter().all(|one| one.path.ends_with("/heartbeat")),
        "and nothing else is sent"
    );
    assert!(!draining.is_finished() && is_out(&registry));

    drop(third);
    draining.await.unwrap();
    assert!(matches!(agent.state(), AgentState::Stopped));
    let record = registry.agent("a").unwrap();
    assert_eq!((record.status, record.maintenance), (AgentStatus::Offline, None));
    let sent = registry.request_log().0.len();
    sleep(100 * INTERVAL).await;
    assert_eq!(registry.request_log().0.len(), sent);
    // Its successor gets work at once.
    running(&registry).await;
    assert_eq!(registry.client().search_capabilities("work").await.unwrap().len(), 1);
}

/// An operator's maintenance continues next to the drain, and may end before it.
#[tokio::test(start_paused = true)]
async fn draining_agent_stays_out_when_the_maintenance_of_an_operator_ends() {
    for ends_by_itself in [true, false] {
        let registry = MockRegistry::start().await;
        let (agent, operator) = (running(&registry).await, registry.client());
        let reason = || registry.agent("a").unwrap().maintenance.unwrap().reason;
        let mut request = MaintenanceRequest::new("upgrade");
        request.duration = ends_by_itself.then_some(3 * INTERVAL);
        operator.set_maintenance("a", &request).await.unwrap();
        let task = agent.tasks().begin();
        let draining = drain(&agent);
        sleep(2 * INTERVAL).await;
        assert_eq!(reason(), "upgrade");
        if !ends_by_itself {
            operator.end_maintenance("a").await.unwrap();
        }
        sleep(3 * INTERVAL).await;
        assert_eq!(reason(), "draining");
        let before = registry.request_log().0.len();
        sleep(10 * INTERVAL).await;
        let sent = &registry.request_log().0[before..];
        assert!(sent.iter().all(|one| one.path.ends_with("/heartbeat")), "and it asks no more");
        drop(task);
        draining.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn drain_ends_after_its_limit() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let _stuck = agent.tasks().begin();
    let began = Instant::now();
    agent.drain_within(3 * INTERVAL).await;
    let took = began.elapsed();
    assert!(took >= 3 * INTERVAL && took < 3 * INTERVAL + Duration::from_secs(5), "{took:?}");
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn idle_agent_drains_at_once() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    drop(agent.tasks().begin());
    let began = Instant::now();
    agent.drain().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let paths: Vec<_> = registry.request_log().0.iter().map(|one| one.path.clone()).collect();
    assert_eq!(paths[paths.len() - 2..], ["/agents/a/maintenance", "/agents/a/status"]);
    // Draining again has no effect.
    agent.drain().await;
    assert_eq!(registry.request_log().0.len(), paths.len());
}

#[tokio::test(start_paused = true)]
async fn agent_drains_without_its_registry_and_keeps_asking_it() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let task = agent.tasks().begin();
    registry.outage(HOUR);
    let draining = drain(&agent);
    sleep(10 * INTERVAL).await;
    assert!(!draining.is_finished() && agent.is_draining());
    registry.heal();
    until("the registry takes it out", || is_out(&registry)).await;
    drop(task);
    draining.await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);

    let agent = running(&registry).await;
    let task = agent.tasks().begin();
    registry.outage(HOUR);
    let draining = drain(&agent);
    sleep(10 * INTERVAL).await;
    drop(task);
    let began = Instant::now();
    draining.await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn registry_that_hangs_delays_a_drain_by_one_attempt() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    registry.hang(1_000);
    let began = Instant::now();
    agent.drain().await;
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn lost_request_is_repeated() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let task = agent.tasks().begin();
    registry.fail_next(3, 503);
    let draining = drain(&agent);
    until("the registry takes it out", || is_out(&registry)).await;
    drop(task);
    draining.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unregistered_agent_drains_without_a_request() {
    let registry = MockRegistry::start().await;
    let agent = Agent::new(registry.client(), registration());
    let task = agent.tasks().begin();
    let draining = drain(&agent);
    sleep(INTERVAL).await;
    assert!(!draining.is_finished());
    drop(task);
    draining.await.unwrap();
    assert!(registry.request_log().0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn draining_agent_does_not_register_with_a_registry_that_forgot_it() {
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let task = agent.tasks().begin();
    let draining = drain(&agent);
    taken_out(&registry).await;
    registry.forget_agents();
    sleep(10 * INTERVAL).await;
    assert!(registry.agent("a").is_none());
    // Unless a caller asks for it.
    agent.register().await.unwrap();
    until("the registry takes it out", || is_out(&registry)).await;
    drop(task);
    draining.await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Offline);
}

#[tokio::test(start_paused = true)]
async fn draining_agent_leaves_its_id_to_its_successor() {
    let registry = MockRegistry::start().await;
    let old = running(&registry).await;
    let task = old.tasks().begin();
    let draining = drain(&old);
    taken_out(&registry).await;
    sleep(Duration::from_secs(1)).await;
    let new = running(&registry).await;
    sleep(10 * INTERVAL).await;
    let record = registry.agent("a").unwrap();
    assert_eq!(record.instance_id.as_deref(), Some(new.instance_id()));
    assert_eq!((record.maintenance, record.healthy), (None, Some(true)));
    assert_eq!(registry.request_log().registrations("a"), 2);
    drop(task);
    draining.await.unwrap();
    assert_eq!(registry.agent("a").unwrap().status, AgentStatus::Active);
}

#[tokio::test(start_paused = true)]
async fn superseded_agent_drains_without_asking_for_maintenance() {
    let registry = MockRegistry::start().await;
    let old = running(&registry).await;
    sleep(Duration::from_secs(1)).await;
    let new = running(&registry).await;
    old.watch().wait_for(AgentState::is_superseded).await.unwrap();
    let task = old.tasks().begin();
    let draining = drain(&old);
    sleep(10 * INTERVAL).await;
    drop(task);
    draining.await.unwrap();
    assert!(registry.request_log().0.iter().all(|one| one.path != "/agents/a/maintenance"));
    let record = registry.agent("a").unwrap();
    assert_eq!(record.instance_id.as_deref(), Some(new.instance_id()));
    assert_eq!(record.healthy, Some(true));
}

/// Registries of earlier versions, and services with only the six basic operations.
#[tokio::test(start_paused = true)]
async fn registry_that_knows_no_maintenance_is_sent_the_status() {
    const RECORD: &str =
        r#"{"agent_id":"a","status":"active","heartbeat_timeout_seconds":60,"registration_tag":"1"}"#;
    const BEAT: &str = r#"{"agent_id":"a","status":"offline","registration_tag":"1"}"#;
    const EARLIER: Reply =
        Reply::Answer(404, PROBLEM, r#"{"status":404,"detail":"there is nothing at /agents/a/maintenance"}"#);
    const PLAIN: Reply = Reply::Answer(405, "", r#"{"detail":"Method Not Allowed"}"#);
    const NOT_FOUND: Reply = Reply::Answer(404, "", r#"{"detail":"Not Found"}"#);
    for (refusal, takes_status) in [(EARLIER, true), (PLAIN, true), (NOT_FOUND, true), (NOT_FOUND, false)] {
        let answered = refusal.clone();
        let registry = Server::start(move |what, _| match what {
            what if what.starts_with(REGISTER) => Reply::Answer(200, "", RECORD),
            what if what.starts_with(HEARTBEAT) => Reply::Answer(200, "", BEAT),
            what if what.starts_with("PUT /agents/a/status") && takes_status => {
                Reply::Answer(200, "", RECORD)
            }
            _ => answered.clone(),
        })
        .await;
        let client = registry_sdk::RegistryClient::builder(registry.url()).retry(RetryPolicy::none());
        let agent = Agent::new(client.build().unwrap(), registration());
        let request = MaintenanceRequest::new("disk upgrade");
        let outcomes =
            [agent.client().set_maintenance("a", &request).await, agent.client().end_maintenance("a").await];
        let asked_before = registry.arrived().len();
        assert!(outcomes.iter().all(|one| matches!(one, Err(Error::Unsupported { .. }))), "{outcomes:?}");
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
        let task = agent.tasks().begin();
        let draining = drain(&agent);
        sleep(10 * INTERVAL).await;
        assert!(!draining.is_finished());
        drop(task);
        draining.await.unwrap();

        let arrived = registry.arrived().split_off(asked_before);
        let asked = arrived.iter().filter(|one| one.what.starts_with("PUT /agents/a/maintenance")).count();
        assert_eq!(asked, 1, "{refusal:?}");
        let statuses: Vec<_> =
            arrived.iter().filter(|one| one.what.starts_with("PUT /agents/a/status")).collect();
        assert!(statuses.iter().all(|one| one.body.contains(r#""status":"offline""#)), "{statuses:?}");
        assert_eq!(statuses.len(), 2, "when it began, and at its end");
        let last = arrived.iter().rfind(|one| one.what.starts_with(HEARTBEAT)).unwrap();
        assert_eq!(last.body.contains("offline"), takes_status, "{refusal:?}: {}", last.body);
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn health_endpoint_reports_that_the_agent_drains() {
    use registry_sdk::HealthEndpoint;
    use registry_sdk::contract::HealthStatus;
    let registry = MockRegistry::start().await;
    let agent = running(&registry).await;
    let endpoint = HealthEndpoint::new(&agent);
    let task = agent.tasks().begin();
    assert_eq!(endpoint.health().await.status, HealthStatus::Healthy);
    let draining = drain(&agent);
    taken_out(&registry).await;
    let health = endpoint.health().await;
    assert_eq!((health.status, health.active_tasks), (HealthStatus::Unhealthy, 1));
    assert_eq!(health.failed_checks[0].name, "draining");
    drop(task);
    draining.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn counter_is_idle_when_its_last_task_ends() {
    let registry = MockRegistry::start().await;
    let tasks = Agent::new(registry.client(), registration()).tasks();
    tasks.idle().await;
    let held: Vec<_> = (0..100).map(|_| tasks.begin()).collect();
    let idle = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.idle().await }
    });
    for guard in held {
        assert!(!idle.is_finished());
        tokio::task::yield_now().await;
        drop(guard);
    }
    idle.await.unwrap();
    assert_eq!(tasks.active(), 0);
}
