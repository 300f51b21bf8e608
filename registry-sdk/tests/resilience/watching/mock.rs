//! The mock registry's effects on watches. Other tests do the same to real servers.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::discovery::{Directory, Freshness};
use registry_sdk::testing::MockRegistry;

use super::{events_within, next};
use crate::support::until;

fn agent(id: &str) -> Registration {
    Registration::new(id, id, "http://agent:8000")
        .capability(Capability::new("work"))
        .heartbeat_interval(Duration::from_secs(3_600))
}

#[tokio::test(start_paused = true)]
async fn restored_registry_begins_a_new_history() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    client.register(&agent("kept")).await.unwrap();
    let backup = registry.backup();
    for id in ["lost-1", "lost-2", "lost-3"] {
        client.register(&agent(id)).await.unwrap();
    }
    client.update_status("kept", AgentStatus::Busy).await.unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed kept busy, lost-1 active, lost-2 active, lost-3 active");
    // For a second, lists show the old history.
    registry.lag(Duration::from_secs(1));
    registry.restore(&backup);
    client.register(&agent("new")).await.unwrap();
    let record = client.update_status("new", AgentStatus::Busy).await.unwrap();
    assert_eq!(record.revision, Some(3), "revisions of the new history are used a second time");
    let told = events_within(&mut watch, Duration::from_secs(30)).await;
    assert_eq!(told.last().unwrap(), "listed kept active, new busy", "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn watch_resumes_only_within_its_own_history() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    client.register(&agent("a")).await.unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed a active");
    let backup = registry.backup();
    // What it has seen is in the backup.
    registry.outage(Duration::from_secs(5));
    registry.restore(&backup);
    client.register(&agent("b")).await.unwrap_err();
    assert!(next(&mut watch).await.starts_with("interrupted"));
    assert_eq!(next(&mut watch).await, "resumed");
    client.register(&agent("b")).await.unwrap();
    assert_eq!(next(&mut watch).await, "registered b");
    // This is not, although there is another change with the same number.
    registry.outage(Duration::from_secs(5));
    registry.restore(&backup);
    assert!(next(&mut watch).await.starts_with("interrupted"));
    registry.heal();
    client.register(&agent("c")).await.unwrap();
    assert_eq!(next(&mut watch).await, "listed a active, c active");
}

#[tokio::test(start_paused = true)]
async fn watch_of_a_registry_that_lost_everything_reports_no_agents() {
    let registry = MockRegistry::start().await;
    registry.client().register(&agent("a")).await.unwrap();
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    assert_eq!(directory.len(), 1);
    registry.forget_agents();
    until("it is empty", || directory.is_empty()).await;
    assert_eq!(directory.freshness(), Some(Freshness::Fresh));
}

#[tokio::test(start_paused = true)]
async fn lists_that_lag_are_corrected() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    client.register(&agent("a")).await.unwrap();
    registry.lag(Duration::from_secs(1));
    client.register(&agent("b")).await.unwrap();
    client.deregister("a").await.unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed a active");
    assert_eq!(next(&mut watch).await, "listed b active");
    assert_eq!(events_within(&mut watch, Duration::from_secs(600)).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn watch_survives_an_overrun() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed");
    for round in 0..5 {
        for number in 0..3 {
            client.register(&agent(&format!("a{round}{number}"))).await.unwrap();
        }
        registry.overrun_event_streams();
        for number in 0..3 {
            assert_eq!(next(&mut watch).await, format!("registered a{round}{number}"));
        }
    }
    assert_eq!(events_within(&mut watch, Duration::from_secs(600)).await, [""; 0]);
}

/// As many faults as there may be, in any order.
#[tokio::test(start_paused = true)]
async fn directory_is_correct_after_any_faults() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let registry = MockRegistry::start().await;
        let client = registry.client();
        let directory = Directory::follow(&client);
        let mut backup = registry.backup();
        for number in 0..60 {
            match random.u8(0..14) {
                0 => registry.cut_event_streams(),
                1 => registry.overrun_event_streams(),
                2 => registry.lag(Duration::from_secs(random.u64(0..2))),
                3 => registry.restore(&backup),
                4 => backup = registry.backup(),
                5 => registry.outage(Duration::from_millis(random.u64(0..2_000))),
                6 => registry.forget_events(),
                7 => registry.fail_next(1, 503),
                8 => drop(client.deregister(&format!("a{}", random.u8(0..10))).await),
                9 => drop(client.update_status(&format!("a{}", random.u8(0..10)), AgentStatus::Busy).await),
                _ => {
                    let capability = Capability::new(format!("work_{number}"));
                    let registration = agent(&format!("a{}", random.u8(0..10))).capability(capability);
                    drop(client.register(&registration).await);
                }
            }
            tokio::time::sleep(Duration::from_millis(random.u64(0..1_500))).await;
        }
        registry.heal();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let truth = client.list_agents(registry_sdk::ListQuery::all()).await.unwrap().agents;
        let truth: Vec<_> =
            truth.iter().map(|agent| (agent.agent_id.clone(), agent.revision, agent.status)).collect();
        let known: Vec<_> = directory
            .agents()
            .iter()
            .map(|agent| (agent.agent_id.clone(), agent.revision, agent.status))
            .collect();
        assert_eq!(known, truth, "seed {seed}");
        assert_eq!(directory.freshness(), Some(Freshness::Fresh), "seed {seed}");
    }
}
