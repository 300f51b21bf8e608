//! The monitor of a registry's statistics.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{AlertRule, StatsMonitor, StatsMonitorBuilder};
use tokio::time::{sleep, timeout};

const EVERY: Duration = Duration::from_secs(10);

async fn registry() -> MockRegistry {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(1_000_000)).start().await;
    for number in 0..10 {
        let id = format!("a{number}");
        let registration =
            Registration::new(&id, &id, "http://agent:8000").capability(Capability::new("work"));
        registry.client().register(&registration).await.unwrap();
    }
    registry
}

fn monitor(registry: &MockRegistry) -> StatsMonitorBuilder {
    StatsMonitor::builder(registry.client()).interval(EVERY)
}

async fn set(registry: &MockRegistry, numbers: std::ops::Range<usize>, status: AgentStatus) {
    for number in numbers {
        registry.client().update_status(&format!("a{number}"), status).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_offline_agents_raise_an_alert_that_ends_when_they_are_back() {
    let registry = registry().await;
    let called = Arc::<Mutex<Vec<bool>>>::default();
    let calls = called.clone();
    let monitor =
        monitor(&registry).on_alert(move |alert| calls.lock().unwrap().push(alert.cleared_at.is_some()));
    let monitor = monitor.start();
    let mut alerts = monitor.alerts();
    // Two of eight are a quarter; three of seven are more than 30 %.
    set(&registry, 0..2, AgentStatus::Offline).await;
    assert!(timeout(5 * EVERY, alerts.recv()).await.is_err());
    set(&registry, 0..3, AgentStatus::Offline).await;
    let raised = alerts.recv().await.unwrap();
    assert_eq!((raised.rule, raised.cleared_at), (AlertRule::OfflineAbove(0.3), None));
    assert_eq!(raised.stats.unwrap().offline_agents, 3);
    assert!(timeout(5 * EVERY, alerts.recv()).await.is_err(), "once is enough");
    set(&registry, 0..3, AgentStatus::Active).await;
    let over = alerts.recv().await.unwrap();
    assert_eq!(over.started_at, raised.started_at);
    assert!(over.cleared_at.is_some());
    assert_eq!(*called.lock().unwrap(), [false, true]);
    monitor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn short_failures_raise_no_alert() {
    let registry = registry().await;
    let monitor = monitor(&registry).rules([AlertRule::Unreachable]).hysteresis(3, 2).start();
    let mut alerts = monitor.alerts();
    for _ in 0..5 {
        registry.fail_next(2, 503);
        sleep(4 * EVERY).await;
    }
    assert!(alerts.try_recv().is_err());
    registry.fail_next(3, 503);
    assert!(alerts.recv().await.unwrap().cleared_at.is_none());
    assert!(alerts.recv().await.unwrap().cleared_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn missing_agents_and_capabilities_are_reported() {
    let registry = registry().await;
    let too_few = AlertRule::TooFew { capability: "work".to_owned(), at_least: 9 };
    let rules = [AlertRule::AgentMissing("a0".to_owned()), too_few.clone()];
    let monitor = monitor(&registry).rules(rules).hysteresis(1, 1).start();
    let mut alerts = monitor.alerts();
    registry.client().deregister("a0").await.unwrap();
    let missing = alerts.recv().await.unwrap();
    assert_eq!(missing.rule, AlertRule::AgentMissing("a0".to_owned()));
    set(&registry, 1..2, AgentStatus::Offline).await;
    let few = alerts.recv().await.unwrap();
    assert_eq!(few.rule, too_few);
    assert!(few.detail.starts_with('8'), "{}", few.detail);
}

/// Dead agents that match better than the healthy ones fill the page that a search returns.
#[tokio::test(start_paused = true)]
async fn dead_agents_do_not_hide_healthy_ones() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for number in 0..101 {
        let (id, capability) = if number == 0 {
            ("living".to_owned(), Capability::new("other").tag("work"))
        } else {
            (format!("dead-{number}"), Capability::new("work"))
        };
        client
            .register(&Registration::new(&id, &id, "http://agent:8000").capability(capability))
            .await
            .unwrap();
        if number > 0 {
            client.update_status(&id, AgentStatus::Offline).await.unwrap();
        }
    }
    let enough = AlertRule::TooFew { capability: "work".to_owned(), at_least: 1 };
    let gone = AlertRule::AgentMissing("living".to_owned());
    let monitor = monitor(&registry).rules([gone.clone(), enough]).hysteresis(1, 1).start();
    let mut alerts = monitor.alerts();
    sleep(3 * EVERY).await;
    client.deregister("living").await.unwrap();
    assert_eq!(alerts.recv().await.unwrap().rule, gone, "the first alert is the one that is due");
}

#[tokio::test(start_paused = true)]
async fn only_the_outage_is_reported_while_the_registry_is_unreachable() {
    let registry = registry().await;
    let rules =
        [AlertRule::Unreachable, AlertRule::AgentMissing("a0".to_owned()), AlertRule::OfflineAbove(0.0)];
    let monitor = monitor(&registry).rules(rules).hysteresis(1, 1).start();
    let mut alerts = monitor.alerts();
    let mut figures = monitor.stats();
    figures.wait_for(Option::is_some).await.unwrap();
    registry.outage(10 * EVERY);
    assert_eq!(alerts.recv().await.unwrap().rule, AlertRule::Unreachable);
    assert!(figures.borrow().is_none());
    let over = alerts.recv().await.unwrap();
    assert!(over.rule == AlertRule::Unreachable && over.cleared_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn monitor_ends_when_it_is_stopped_or_dropped() {
    let registry = registry().await;
    let first = monitor(&registry).start();
    let second = monitor(&registry).start();
    let mut alerts = second.alerts();
    sleep(3 * EVERY).await;
    first.stop().await;
    drop(second);
    assert!(alerts.recv().await.is_err());
    let seen = registry.request_log().0.len();
    sleep(100 * EVERY).await;
    assert_eq!(registry.request_log().0.len(), seen);
}
