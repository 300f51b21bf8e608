//! Many concurrent delegations, and cancelled ones.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use registry_sdk::Orchestrator;
use registry_sdk::contract::Capability;
use registry_sdk::discovery::{EjectionState, FailureKind, HealthSource, Policy, TaskQuery};
use tokio::time::{sleep, timeout};

use super::{counts, send};
use crate::scene::{ILL, Scene};
use crate::support::Reply;

const BROKEN: Reply = Reply::Answer(500, "", "out of disk");

/// How many of forty selections, none of which ever ends, each of two agents gets.
async fn shares(orchestrator: &Orchestrator) -> [usize; 2] {
    let mut all = Vec::new();
    for _ in 0..40 {
        all.push(orchestrator.find_best_agent("work").await.unwrap());
    }
    ["one", "two"].map(|id| all.iter().filter(|selection| selection.agent.agent_id == id).count())
}

#[tokio::test(start_paused = true)]
async fn cancelled_delegations_leave_nothing_in_flight() {
    let scene = Scene::new(&["one", "two"]).await;
    scene.set("one", Reply::Hang);
    scene.set("two", Reply::Hang);
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    for milliseconds in [0, 1, 500, 1_500, 20_000] {
        let delegations = (0..30).map(|_| {
            let hedged = orchestrator.delegate("work").hedge_after(Duration::from_secs(1));
            timeout(Duration::from_millis(milliseconds), send(hedged))
        });
        assert!(join_all(delegations).await.iter().all(Result::is_err));
    }
    for _ in 0..10 {
        let panicking =
            orchestrator.delegate("work").run(|_| async { if true { panic!("a bug") } else { Ok(()) } });
        assert!(AssertUnwindSafe(panicking).catch_unwind().await.is_err());
    }
    let shares = shares(&orchestrator).await;
    assert_eq!(shares, [20, 20]);
}

#[tokio::test(start_paused = true)]
async fn hundred_concurrent_tasks_eject_a_flaky_agent_and_one_trial_follows() {
    let scene = Scene::ranked(&["flaky", "well"]).await;
    scene.set("flaky", BROKEN);
    let orchestrator = scene.orchestrator();
    let outcomes = join_all((0..100).map(|_| send(orchestrator.delegate("work")))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let remaining = Duration::from_secs(30);
    assert_eq!(orchestrator.ejection("flaky"), EjectionState::Ejected { remaining });
    sleep(remaining).await;
    let [before, _] = counts(&scene, ["flaky", "well"]);
    let outcomes = join_all((0..100).map(|_| send(orchestrator.delegate("work")))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let [after, _] = counts(&scene, ["flaky", "well"]);
    assert_eq!(after - before, 1, "trials");
}

/// A cancelled trial is followed by another one.
#[tokio::test(start_paused = true)]
async fn cancelled_trial_is_repeated() {
    let scene = Scene::ranked(&["flaky", "well"]).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        orchestrator.find_best_agent("work").await.unwrap().report_failure(FailureKind::Agent);
    }
    sleep(Duration::from_secs(30)).await;
    let trial = orchestrator.find_best_agent("work").await.unwrap();
    assert_eq!(trial.agent.agent_id, "flaky");
    assert_eq!(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id, "well");
    drop(trial);
    assert_eq!(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id, "flaky");
}

/// Agents register and deregister while tasks rotate.
#[tokio::test(start_paused = true)]
async fn round_robin_stays_fair_while_agents_come_and_go() {
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").policy(Policy::RoundRobin);
    let mut shares = HashMap::<String, usize>::new();
    for round in 0..120 {
        match round % 8 {
            2 => scene.registry.client().deregister("b").await.unwrap(),
            5 => scene.register("b", Capability::new("work")).await,
            _ => {}
        }
        let selection = orchestrator.select(&query).await.unwrap();
        *shares.entry(selection.agent.agent_id.clone()).or_default() += 1;
    }
    assert!(["a", "c", "d"].iter().all(|id| (25..=45).contains(&shares[*id])), "{shares:?}");
}

/// Slow health checks do not make many selections choose the same agent.
#[tokio::test(start_paused = true)]
async fn every_policy_is_fair_with_slow_health_checks_and_unhealthy_agents() {
    let ids: Vec<String> = (0..10).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for id in &ids {
        scene.set(id, Reply::Late(Duration::from_millis(700), r#"{"status":"healthy"}"#));
    }
    for id in ["a2", "a3", "a4"] {
        scene.set(id, ILL);
    }
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed, Policy::LeastLoaded] {
        let orchestrator = scene.orchestrator_builder().seed(7).build();
        let query = TaskQuery::new("work").policy(policy).health_source(HealthSource::Agent);
        let selections = join_all((0..70).map(|_| orchestrator.select(&query))).await;
        let mut shares = HashMap::<String, usize>::new();
        for selection in &selections {
            *shares.entry(selection.as_ref().unwrap().agent.agent_id.clone()).or_default() += 1;
        }
        // An equal share would be ten each.
        assert!(shares.values().all(|share| (4..=20).contains(share)), "{policy:?}: {shares:?}");
    }
}

/// Two capabilities that share an agent.
#[tokio::test(start_paused = true)]
async fn round_robin_is_independent_of_other_tasks() {
    let scene = Scene::new(&["b"]).await;
    let registration = registry_sdk::Registration::new("a", "a", format!("{}/a", scene.agents.url()))
        .capability(Capability::new("work"))
        .capability(Capability::new("translation"))
        .heartbeat_interval(Duration::from_secs(86_400));
    scene.registry.client().register(&registration).await.unwrap();
    let orchestrator = scene.orchestrator();
    let mut to_a = 0;
    for _ in 0..20 {
        let query = TaskQuery::new("work").policy(Policy::RoundRobin);
        to_a += usize::from(orchestrator.select(&query).await.unwrap().agent.agent_id == "a");
        let query = TaskQuery::new("translation").policy(Policy::RoundRobin);
        assert_eq!(orchestrator.select(&query).await.unwrap().agent.agent_id, "a");
    }
    assert_eq!(to_a, 10, "of 20 tasks that two agents can do in turn");
}
