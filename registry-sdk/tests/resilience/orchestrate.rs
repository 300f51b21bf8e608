//! Selecting agents.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::{Just, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use registry_sdk::contract::{Capability, Heartbeat, Registration};
use registry_sdk::discovery::{
    Directory, Freshness, HealthSource, Orchestrator, Policy, SelectError, SkipReason, TaskQuery,
};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{RegistryClient, RetryPolicy};
use tokio::time::Instant;

use crate::scene::{ILL, Scene, WELL};
use crate::support::{Reply, Server, until};

const CHECK: Duration = Duration::from_secs(2);

fn query() -> TaskQuery {
    TaskQuery::new("work").policy(Policy::Rank).health_source(HealthSource::Agent).check_timeout(CHECK)
}

#[tokio::test(start_paused = true)]
async fn best_ranked_healthy_agent_is_found() {
    let scene = Scene::new(&["a", "b"]).await;
    scene.register("best", Capability::new("work")).await;
    scene.register("worse", Capability::new("other").tag("work")).await;
    let orchestrator = scene.orchestrator();
    let order: Vec<_> = scene.registry.client().search_capabilities("work").await.unwrap();
    let selection = orchestrator.select(&query()).await.unwrap();
    assert_eq!(selection.agent.agent_id, order[0].agent_id);
    assert!(!selection.is_fallback && selection.skipped.is_empty());
    // By default, equally good matches share the tasks, and worse ones get none.
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    assert_ne!(selection.agent.agent_id, "worse");

    scene.set(&order[0].agent_id, ILL);
    scene.set(&order[1].agent_id, Reply::Hang);
    let selection = orchestrator.select(&query()).await.unwrap();
    assert_eq!(selection.agent.agent_id, order[2].agent_id);
    let reasons: Vec<_> = selection.skipped.into_iter().map(|one| one.reason).collect();
    assert_eq!(reasons, [SkipReason::Unhealthy, SkipReason::NoAnswer]);
}

#[tokio::test(start_paused = true)]
async fn unwanted_agents_are_skipped_with_the_reason() {
    let scene = Scene::new(&["a", "b", "c"]).await;
    scene.register("tagged", Capability::new("work").tag("rust")).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.select(&query().tag("rust").exclude("a")).await.unwrap();
    assert_eq!(selection.agent.agent_id, "tagged");
    let error = orchestrator.select(&query().tag("cobol").exclude("tagged")).await.unwrap_err();
    let SelectError::NoAgent { skipped, .. } = error else { panic!("{error}") };
    let mut skipped: Vec<_> = skipped.into_iter().map(|one| (one.agent_id, one.reason)).collect();
    skipped.sort_by(|a, b| a.0.cmp(&b.0));
    let reasons: Vec<_> = skipped.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(
        reasons,
        [SkipReason::MissingTag, SkipReason::MissingTag, SkipReason::MissingTag, SkipReason::Excluded]
    );
}

#[tokio::test(start_paused = true)]
async fn fallback_is_used_if_no_healthy_agent_has_the_first_capability() {
    let scene = Scene::new(&["a"]).await;
    scene.register("spare", Capability::new("spare_work")).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.delegate_with_fallback("missing", "spare_work").await.unwrap();
    assert_eq!((selection.agent.agent_id.as_str(), selection.is_fallback), ("spare", true));
    assert_eq!(selection.matched_capability, "spare_work");
    scene.set("a", ILL);
    let selection = orchestrator.select(&query().fallback("spare_work")).await.unwrap();
    assert_eq!(selection.agent.agent_id, "spare");
    let error = orchestrator.delegate_with_fallback("missing", "also_missing").await.unwrap_err();
    assert!(matches!(error, SelectError::NoAgent { .. }));
    scene.registry.outage(Duration::from_secs(60));
    let unknown = orchestrator.find_best_agent("never searched for").await;
    assert!(matches!(unknown, Err(SelectError::Registry(_))), "{unknown:?}");
}

/// Twenty agents, nineteen of which turn out to be unhealthy after 50 ms each. One after another, the checks would take a
/// second.
#[tokio::test(start_paused = true)]
async fn health_checks_run_concurrently() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for number in 0..20 {
        let id = format!("a{number:02}");
        let registration =
            Registration::new(&id, &id, "http://agent:8000").capability(Capability::new("work"));
        client.register(&registration).await.unwrap();
    }
    registry.delay(Duration::from_millis(50));
    let began = Instant::now();
    Orchestrator::new(client).find_best_agent("work").await.unwrap();
    // One search and one round of health checks.
    assert!(began.elapsed() <= Duration::from_millis(110), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn round_robin_is_fair_within_one_and_least_recently_used_never_repeats_early() {
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed] {
        let orchestrator = scene.orchestrator();
        let mut counts = HashMap::<String, usize>::new();
        for round in 1..=18_usize {
            let selection = orchestrator.select(&query().policy(policy)).await.unwrap();
            *counts.entry(selection.agent.agent_id).or_default() += 1;
            let (least, most) = (round / 4, round.div_ceil(4));
            assert!(counts.values().all(|count| (least..=most).contains(count)), "{policy:?}: {counts:?}");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Ill,
    Silent,
    Gone,
}

#[test]
fn first_healthy_candidate_is_chosen() {
    let health = prop_oneof![
        1 => Just(Health::Well),
        3 => Just(Health::Ill),
        1 => Just(Health::Silent),
        1 => Just(Health::Gone),
    ];
    let scenes = (proptest::collection::vec(health, 1..12), 1..5_usize);
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&scenes, |(healths, max_concurrent_checks)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(choose(healths, max_concurrent_checks));
            Ok(())
        })
        .unwrap();
}

async fn choose(healths: Vec<Health>, max_concurrent_checks: usize) {
    let ids: Vec<String> = (0..healths.len()).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let order = scene.registry.client().search_capabilities("work").await.unwrap();
    for (agent, health) in order.iter().zip(&healths) {
        let reply = match health {
            Health::Well => WELL,
            Health::Ill => ILL,
            Health::Silent => Reply::Hang,
            Health::Gone => Reply::Close,
        };
        scene.set(&agent.agent_id, reply);
    }
    let chosen = scene.orchestrator().select(&query().max_concurrent_checks(max_concurrent_checks)).await;
    match healths.iter().position(|health| *health == Health::Well) {
        Some(place) => {
            let selection = chosen.unwrap();
            assert_eq!(selection.agent.agent_id, order[place].agent_id);
            let passed: Vec<_> = selection.skipped.iter().map(|one| &one.agent_id).collect();
            assert_eq!(passed, order[..place].iter().map(|agent| &agent.agent_id).collect::<Vec<_>>());
        }
        None => assert!(matches!(chosen, Err(SelectError::NoAgent { skipped, .. })
            if skipped.len() == healths.len())),
    }
}

#[tokio::test(start_paused = true)]
async fn less_loaded_of_two_is_chosen_and_never_the_most_loaded_of_all() {
    let ids: Vec<String> = (0..10).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let client = scene.registry.client();
    for (number, id) in (0..).zip(&ids) {
        let load = f64::from(number) / 10.0;
        client.heartbeat_with(id, &Heartbeat::default().load(load)).await.unwrap();
    }
    let query = query().policy(Policy::LeastLoaded).health_source(HealthSource::Search);
    let mut counts = HashMap::<String, usize>::new();
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    for _ in 0..400 {
        let selection = orchestrator.select(&query).await.unwrap();
        *counts.entry(selection.agent.agent_id).or_default() += 1;
    }
    assert_eq!(counts.get("a9"), None, "whoever it is drawn with has less to do");
    // Of two drawn from ten, the least loaded of all is in one pair of five.
    assert!((40..=120).contains(&counts["a0"]), "{counts:?}");
    assert!(counts["a0"] > counts["a8"], "{counts:?}");

    // If both are equally loaded or do not say, the number of tasks counts.
    scene.registry.forget_agents();
    for (id, tasks) in [("few", 1), ("many", 9)] {
        scene.register(id, Capability::new("work")).await;
        client.heartbeat_with(id, &Heartbeat::default().active_tasks(tasks)).await.unwrap();
    }
    for _ in 0..20 {
        assert_eq!(orchestrator.select(&query).await.unwrap().agent.agent_id, "few");
    }
    // Unhealthy agents are skipped anyway.
    scene.set("few", ILL);
    let query = query.health_source(HealthSource::Agent);
    assert_eq!(orchestrator.select(&query).await.unwrap().agent.agent_id, "many");
}

#[tokio::test(start_paused = true)]
async fn same_seed_draws_the_same_agents() {
    let scene = Scene::new(&["a", "b", "c", "d", "e"]).await;
    for policy in [Policy::Random, Policy::LeastLoaded] {
        let mut drawn = Vec::new();
        for _ in 0..2 {
            let orchestrator = scene.orchestrator_builder().seed(11).build();
            let mut ids = Vec::new();
            for _ in 0..20 {
                ids.push(orchestrator.select(&query().policy(policy)).await.unwrap().agent.agent_id);
            }
            drawn.push(ids);
        }
        assert_eq!(drawn[0], drawn[1]);
        assert!(drawn[0].iter().any(|id| *id != drawn[0][0]), "{policy:?} draws at all");
    }
}

#[tokio::test(start_paused = true)]
async fn agent_that_reports_itself_unhealthy_in_its_body_is_not_chosen() {
    let scene = Scene::new(&["a"]).await;
    scene.set("a", Reply::Answer(200, "", r#"{"status":"unhealthy"}"#));
    let error = scene.orchestrator().select(&query()).await.unwrap_err();
    assert!(
        matches!(error, SelectError::NoAgent { skipped, .. } if skipped[0].reason == SkipReason::Unhealthy)
    );
}

#[tokio::test(start_paused = true)]
async fn with_a_directory_selection_needs_no_request_and_outlives_the_registry() {
    let scene = Scene::new(&["a", "b"]).await;
    let client = scene.registry.client();
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    let orchestrator = scene.orchestrator_builder().directory(directory.clone()).build();
    let from_search = query().health_source(HealthSource::Search);
    let asked = || scene.registry.request_log().0.len();

    let before = asked();
    let selection = orchestrator.select(&from_search).await.unwrap();
    assert_eq!((asked() - before, selection.freshness), (0, Freshness::Fresh));
    orchestrator.select(&from_search.clone().policy(Policy::LeastLoaded)).await.unwrap();
    assert_eq!(asked() - before, 0);

    scene.registry.outage(Duration::from_secs(30));
    until("the outage is noticed", || directory.freshness().is_some_and(Freshness::is_stale)).await;
    let selection = orchestrator.select(&from_search).await.unwrap();
    assert!(selection.freshness.is_stale(), "{:?}", selection.freshness);
    // Even if the registry was to report the health.
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    assert!(selection.freshness.is_stale());
    until("it is over", || directory.freshness() == Some(Freshness::Fresh)).await;
    assert_eq!(orchestrator.find_best_agent("work").await.unwrap().freshness, Freshness::Fresh);
}

/// While its database is unavailable, a registry answers from memory and says so.
#[tokio::test(start_paused = true)]
async fn selection_from_a_registry_that_answers_from_memory_says_so() {
    let agent = Server::start(|_, _| WELL).await;
    let url = agent.url();
    let found = format!(
        r#"[{{"agent_id":"a","base_url":"{url}","status":"active","capability":"work","healthy":true}}]"#
    );
    let agents = format!(
        r#"[{{"agent_id":"a","base_url":"{url}","status":"active","healthy":true,"revision":1,"capabilities":[{{"name":"work"}}]}}]"#
    );
    let (found, agents): (&str, &str) = (found.leak(), agents.leak());
    let is_away = Arc::new(AtomicBool::new(true));
    let away = is_away.clone();
    let server = Server::start(move |what, _| {
        let is_stale = away.load(Ordering::SeqCst);
        let stale = if is_stale { "registry-stale-seconds: 900\r\n" } else { "" };
        match what {
            "GET /events" => Reply::Answer(200, "content-type: text/event-stream\r\n", "id: 1\n\n"),
            what if what.starts_with("GET /agents?") => Reply::Answer(200, stale, agents),
            what if what.starts_with("GET /capabilities") => Reply::Answer(200, stale, found),
            _ => Reply::Answer(503, "", ""),
        }
    })
    .await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    // Its health checks would fail, so the agent itself is asked.
    let selection = Orchestrator::new(client.clone()).find_best_agent("work").await.unwrap();
    let Freshness::Stale { age } = selection.freshness else { panic!("{selection:?}") };
    assert_eq!((age.as_secs(), agent.arrived().len()), (900, 1));
    // A directory that could only be filled from memory is out of date until the registry recovers.
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    until("it is out of date", || directory.freshness().is_some_and(Freshness::is_stale)).await;
    assert_eq!(directory.len(), 1);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(directory.freshness().unwrap().is_stale());
    is_away.store(false, Ordering::SeqCst);
    until("it is current", || directory.freshness() == Some(Freshness::Fresh)).await;
}
