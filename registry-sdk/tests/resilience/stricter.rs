//! Agents of a registry that became stricter: after an upgrade it responds with 422 to a registration that it accepted before.

use std::time::Duration;

use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, Error};
use tokio::time::{Instant, sleep, timeout};

use crate::logs::Logs;
use crate::support::{agent_of, can};

const INTERVAL: Duration = Duration::from_secs(30);

/// The log of a refusal, with the field and its error.
const REFUSAL: &str = "base_url: 0.0.0.0 is an address to listen on";

fn refuse(registry: &MockRegistry) {
    registry.refuse_registrations("base_url", "0.0.0.0 is an address to listen on");
}

async fn registered(registry: &MockRegistry) -> Agent {
    let agent = agent_of(registry.client(), INTERVAL);
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    agent
}

fn registrations(registry: &MockRegistry) -> Vec<Instant> {
    let log = registry.request_log();
    log.0.iter().filter(|request| request.path == "/register").map(|request| request.at).collect()
}

/// Checks that the agent keeps trying, with delays that grow up to the interval.
fn check_pauses(tried: &[Instant]) {
    let pauses: Vec<_> = tried.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.len() >= 20, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= INTERVAL + Duration::from_secs(1)), "{pauses:?}");
    // Drawn from up to an interval each, half of one on average.
    assert!(pauses.len() < 100, "{pauses:?}");
}

/// Waits until the agent's registrations were refused for twenty intervals.
async fn refused_for_long(registry: &MockRegistry) -> Vec<Instant> {
    let before = registrations(registry).len();
    sleep(20 * INTERVAL).await;
    registrations(registry).split_off(before)
}

#[tokio::test(start_paused = true)]
async fn forgotten_agent_stays_degraded_and_keeps_trying() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    let agent = registered(&registry).await;
    refuse(&registry);
    registry.forget_agents();
    agent.watch().wait_for(AgentState::is_degraded).await.unwrap();
    check_pauses(&refused_for_long(&registry).await);
    let AgentState::Degraded { last_error, attempts, .. } = agent.state() else {
        panic!("{:?}", agent.state())
    };
    assert!(attempts > 20 && matches!(&*last_error, Error::Invalid { .. }), "{last_error}");
    assert_eq!(last_error.fields()[0].field, "base_url");
    let lines = logs.with(REFUSAL);
    assert!(lines.len() == 1 && lines[0].starts_with("WARN"), "{lines:?}");

    registry.heal();
    timeout(2 * INTERVAL, agent.watch().wait_for(AgentState::is_registered)).await.unwrap().unwrap();
    assert!(registry.agent("a").is_some());
}

#[tokio::test(start_paused = true)]
async fn unregistered_agent_stays_degraded_and_keeps_trying() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    let agent = agent_of(registry.client(), INTERVAL);
    refuse(&registry);
    agent.start_heartbeat(INTERVAL).unwrap();
    check_pauses(&refused_for_long(&registry).await);
    assert!(agent.state().is_degraded(), "{:?}", agent.state());
    assert_eq!(logs.with(REFUSAL).len(), 1, "{:?}", logs.with(REFUSAL));
    // Callers get the error, and the agent continues.
    assert_eq!(agent.register_with_retry().await.unwrap_err().fields()[0].field, "base_url");
    registry.heal();
    timeout(2 * INTERVAL, agent.watch().wait_for(AgentState::is_registered)).await.unwrap().unwrap();
}

/// The upgrade itself begins with an outage.
#[tokio::test(start_paused = true)]
async fn refusal_is_logged_once_even_after_an_outage() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    registry.outage(5 * INTERVAL);
    let agent = agent_of(registry.client(), INTERVAL);
    agent.start_heartbeat(INTERVAL).unwrap();
    agent.watch().wait_for(AgentState::is_degraded).await.unwrap();
    refuse(&registry);
    sleep(20 * INTERVAL).await;
    let AgentState::Degraded { last_error, .. } = agent.state() else { panic!("{:?}", agent.state()) };
    assert_eq!(last_error.fields()[0].field, "base_url");
    let lines = logs.with(REFUSAL);
    assert!(lines.len() == 1 && lines[0].starts_with("WARN"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_update_does_not_affect_the_heartbeats() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    let agent = registered(&registry).await;
    refuse(&registry);
    let error = agent.update_capabilities(can(&["new"])).await.unwrap_err();
    assert_eq!(error.fields()[0].field, "base_url");
    still_heard(&registry, &agent, &logs).await;
    registry.heal();
    let taken = async {
        while registry.agent("a").unwrap().capabilities != can(&["new"]) {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(2 * INTERVAL, taken).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restored_and_stricter_registry_keeps_receiving_heartbeats() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    let agent = registered(&registry).await;
    let backup = registry.backup();
    agent.update_capabilities(can(&["new"])).await.unwrap();
    registry.restore(&backup);
    refuse(&registry);
    still_heard(&registry, &agent, &logs).await;
    registry.heal();
    let taken = async {
        while registry.agent("a").unwrap().capabilities != can(&["new"]) {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(2 * INTERVAL, taken).await.unwrap();
}

/// The registry has an earlier registration of the agent, and refuses the new one.
async fn still_heard(registry: &MockRegistry, agent: &Agent, logs: &Logs) {
    let beats = registry.heartbeats("a");
    check_pauses(&refused_for_long(registry).await);
    assert!(registry.heartbeats("a") >= beats + 19, "{}", registry.heartbeats("a") - beats);
    assert!(agent.state().is_registered(), "{:?}", agent.state());
    let lines = logs.with(REFUSAL);
    assert!(lines.len() == 1 && lines[0].starts_with("WARN"), "{lines:?}");
    // An outage in between changes nothing: the same refusal is not logged again.
    registry.outage(5 * INTERVAL);
    sleep(10 * INTERVAL).await;
    assert!(agent.state().is_registered(), "{:?}", agent.state());
    assert_eq!(logs.with(REFUSAL).len(), 1, "{:?}", logs.with(REFUSAL));
}

/// The first attempt at the update fails for another reason.
#[tokio::test(start_paused = true)]
async fn refused_update_is_logged_once_even_after_another_failure() {
    let (registry, logs) = (MockRegistry::start().await, Logs::record());
    let agent = registered(&registry).await;
    registry.fail_next(1, 503);
    agent.update_capabilities(can(&["new"])).await.unwrap_err();
    refuse(&registry);
    sleep(20 * INTERVAL).await;
    assert!(agent.state().is_registered(), "{:?}", agent.state());
    let lines = logs.with(REFUSAL);
    assert!(lines.len() == 1 && lines[0].starts_with("WARN"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn agents_own_work_continues() {
    let registry = MockRegistry::start().await;
    let agent = agent_of(registry.client(), INTERVAL);
    let work = async {
        agent.watch().wait_for(AgentState::is_registered).await.unwrap();
        refuse(&registry);
        registry.forget_agents();
        agent.watch().wait_for(AgentState::is_degraded).await.unwrap();
        sleep(100 * INTERVAL).await;
        assert!(agent.state().is_degraded(), "{:?}", agent.state());
    };
    agent.run_until(work).await.unwrap();
    assert!(matches!(agent.state(), AgentState::Stopped));
}
