//! Watching a registry that fails and recovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use registry_sdk::contract::{AgentRecord, AgentStatus, Capability, Registration};
use registry_sdk::discovery::{Directory, Freshness};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{ListQuery, RegistryClient, SearchQuery, Watch, WatchEvent};
use tokio::time::timeout;

use crate::support::until;

fn agent(id: &str) -> Registration {
    Registration::new(id, id, "http://agent:8000").capability(Capability::new("work"))
}

/// The next event in short form. Fails if there is none for an hour.
async fn next(watch: &mut Watch) -> String {
    let one = |agent: Arc<AgentRecord>| format!("{} {}", agent.agent_id, agent.status);
    match timeout(Duration::from_secs(3_600), watch.next()).await.unwrap() {
        Some(WatchEvent::Listed(agents)) => {
            let ids: Vec<_> = agents.iter().map(|agent| agent.agent_id.as_str()).collect();
            format!("listed {}", ids.join(" "))
        }
        Some(WatchEvent::Registered(agent)) => format!("registered {}", one(agent)),
        Some(WatchEvent::StatusChanged(agent)) => format!("changed {}", one(agent)),
        Some(WatchEvent::Deregistered(agent)) => format!("gone {}", one(agent)),
        Some(WatchEvent::Interrupted(_)) => "interrupted".to_owned(),
        Some(WatchEvent::Resumed) => "resumed".to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_change_is_reported_in_order() {
    let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(60)).start().await;
    let client = registry.client();
    client.register(&agent("a")).await.unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed a");
    client.register(&agent("b")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    client.update_status("b", AgentStatus::Busy).await.unwrap();
    client.register(&agent("a").capability(Capability::new("rest"))).await.unwrap();
    client.deregister("b").await.unwrap();
    for expected in ["registered b active", "changed b busy", "registered a active", "gone b busy"] {
        assert_eq!(next(&mut watch).await, expected);
    }
    // A missed deadline is reported without a request.
    assert_eq!(next(&mut watch).await, "changed a offline");
    client.heartbeat("a").await.unwrap();
    assert_eq!(next(&mut watch).await, "changed a active");
}

#[tokio::test(start_paused = true)]
async fn lost_connection_neither_misses_nor_repeats_changes() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed ");
    for round in 0..5 {
        registry.cut_event_streams();
        let id = format!("a{round}");
        client.register(&agent(&id)).await.unwrap();
        assert_eq!(next(&mut watch).await, format!("registered {id} active"));
    }
    // If the missed changes are not kept any more, all agents are listed.
    registry.cut_event_streams();
    client.deregister("a3").await.unwrap();
    registry.forget_events();
    assert_eq!(next(&mut watch).await, "listed a0 a1 a2 a4");
    client.register(&agent("b")).await.unwrap();
    assert_eq!(next(&mut watch).await, "registered b active");
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_token_provider_interrupts_a_watch_until_it_works_again() {
    let registry = MockRegistry::start().await;
    let is_broken = Arc::new(AtomicBool::new(false));
    let asked = is_broken.clone();
    let provider = move || {
        assert!(!asked.load(Ordering::SeqCst), "on purpose");
        "token".to_owned()
    };
    let client = RegistryClient::builder(registry.url()).token_provider(provider).build().unwrap();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed ");
    is_broken.store(true, Ordering::SeqCst);
    registry.cut_event_streams();
    assert_eq!(next(&mut watch).await, "interrupted");
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(next(&mut watch).await, "listed ");
    client.register(&agent("a")).await.unwrap();
    assert_eq!(next(&mut watch).await, "registered a active");
}

#[tokio::test(start_paused = true)]
async fn outage_and_its_end_are_reported_once() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "listed ");
    registry.outage(Duration::from_secs(120));
    assert_eq!(next(&mut watch).await, "interrupted");
    assert_eq!(next(&mut watch).await, "resumed");
    client.register(&agent("a")).await.unwrap();
    assert_eq!(next(&mut watch).await, "registered a active");
    // The same from the very beginning.
    registry.outage(Duration::from_secs(120));
    let mut late = client.watch();
    assert_eq!(next(&mut late).await, "interrupted");
    assert_eq!(next(&mut late).await, "listed a");
}

#[tokio::test(start_paused = true)]
async fn invalid_responses_are_an_outage_like_any_other() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    client.register(&agent("a")).await.unwrap();
    for harm in [MockRegistry::garbage_body, MockRegistry::hang, MockRegistry::drop_connections] {
        harm(&registry, 3);
        let mut watch = client.watch();
        assert_eq!(next(&mut watch).await, "interrupted");
        registry.heal();
        assert_eq!(next(&mut watch).await, "listed a");
    }
    registry.fail_next(2, 503);
    let mut watch = client.watch();
    assert_eq!(next(&mut watch).await, "interrupted");
    assert_eq!(next(&mut watch).await, "listed a");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_watch_closes_its_connection() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    let mut watch = client.watch();
    next(&mut watch).await;
    drop(watch);
    registry.cut_event_streams();
    let before = registry.request_log().0.len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(registry.request_log().0.len(), before, "nobody comes back");
}

#[tokio::test(start_paused = true)]
async fn directory_finds_and_lists_the_same_agents_as_the_registry() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    assert!(directory.is_empty() && directory.freshness() == Some(Freshness::Fresh));
    let names = ["code_generation", "security_scanning", "codeReview", "documentation"];
    for number in 0..40_usize {
        let name = names[number % names.len()];
        let mut registration = Registration::new(format!("a{number:02}"), "Agent", "http://agent:8000")
            .capability(Capability::new(name).tag(names[(number / 4) % names.len()]));
        if number.is_multiple_of(7) {
            registration = registration.status(AgentStatus::Busy);
        }
        client.register(&registration).await.unwrap();
    }
    client.deregister("a05").await.unwrap();
    client.update_status("a06", AgentStatus::Offline).await.unwrap();
    until("all is told", || {
        directory.get("a06").is_some_and(|agent| agent.status == AgentStatus::Offline)
            && directory.len() == 39
    })
    .await;
    for words in ["code", "code review", "scan", "documentation", "nothing"] {
        let all = SearchQuery::new(words);
        let busy = all.clone().status(AgentStatus::Busy);
        let filtered = [all.clone().healthy(true), all.clone().healthy(false), busy.healthy(true)];
        let limited = filtered.clone().map(|query| query.limit(1));
        for query in [all].into_iter().chain(filtered).chain(limited) {
            let expected = client.search_capabilities(query.clone()).await.unwrap();
            assert_eq!(directory.search(query.clone()), expected, "{query:?}");
        }
    }
    assert!(!directory.is_empty());
    let all = ListQuery::all;
    let filtered = [all(), all().status(AgentStatus::Busy), all().tag("codeReview")];
    let later = filtered.clone().map(|query| query.after("a14"));
    for query in filtered.into_iter().chain(later).flat_map(|query| [query.clone(), query.limit(2)]) {
        let expected = client.list_agents(query.clone()).await.unwrap().agents;
        let listed: Vec<_> = directory.list(&query).iter().map(|agent| AgentRecord::clone(agent)).collect();
        assert!(!listed.is_empty(), "{query:?}");
        assert_eq!(listed, expected, "{query:?}");
    }
}
