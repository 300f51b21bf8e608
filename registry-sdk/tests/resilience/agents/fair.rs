//! Equal agents get equal parts of the tasks.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::discovery::{Directory, HealthSource, Orchestrator, Policy, TaskQuery};
use tokio::time::sleep;

use super::{delegate, send};
use crate::scene::Scene;
use crate::support::{Reply, until};

/// Ten agents that match equally well, one of which sent the last heartbeat.
async fn equals() -> (Scene, Vec<String>) {
    let ids: Vec<String> = (0..10).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.client().heartbeat("a3").await.unwrap();
    (scene, ids)
}

/// How many times each agent was selected, in ascending order.
fn shares(ids: &[String], selected: impl IntoIterator<Item = String>) -> Vec<usize> {
    let mut counts: HashMap<_, _> = ids.iter().map(|id| (id.clone(), 0)).collect();
    for id in selected {
        *counts.entry(id).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_unstable();
    counts
}

/// How many of these concurrent selections each agent got.
async fn at_once(
    orchestrator: &Orchestrator,
    query: &TaskQuery,
    ids: &[String],
    number: usize,
) -> Vec<usize> {
    let selections = join_all((0..number).map(|_| orchestrator.select(query))).await;
    shares(ids, selections.into_iter().map(|selection| selection.unwrap().agent.agent_id))
}

#[tokio::test(start_paused = true)]
async fn concurrent_selections_rotate() {
    let (scene, ids) = equals().await;
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed] {
        for source in [HealthSource::Search, HealthSource::Registry, HealthSource::Agent] {
            let query = TaskQuery::new("work").policy(policy).health_source(source);
            for number in [10, 100] {
                let shares = at_once(&scene.orchestrator(), &query, &ids, number).await;
                assert_eq!(shares, [number / 10; 10], "{policy:?}, {source:?}, {number} at once");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_selections_from_a_directory_rotate() {
    let (scene, ids) = equals().await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    until("all are there", || directory.len() == 10).await;
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed] {
        let orchestrator = scene.orchestrator_builder().directory(directory.clone()).build();
        let query = TaskQuery::new("work").policy(policy);
        let shares = at_once(&orchestrator, &query, &ids, 10).await;
        assert_eq!(shares, [1; 10], "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_tasks_rotate() {
    let (scene, ids) = equals().await;
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").policy(Policy::RoundRobin);
    let outcomes = join_all((0..10).map(|_| send(orchestrator.delegate(query.clone())))).await;
    assert_eq!(shares(&ids, outcomes.into_iter().map(Result::unwrap)), [1; 10]);
}

#[tokio::test(start_paused = true)]
async fn by_default_the_most_recent_heartbeat_does_not_attract_every_task() {
    let (scene, ids) = equals().await;
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    let mut done = Vec::new();
    for _ in 0..100 {
        done.push(delegate(&orchestrator).await.unwrap());
    }
    let shares = shares(&ids, done);
    assert!(shares[0] >= 1 && shares[9] <= 30, "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn by_default_selections_alone_are_spread_as_well() {
    let (scene, ids) = equals().await;
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    let mut selected = Vec::new();
    for _ in 0..100 {
        selected.push(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id);
    }
    let shares = shares(&ids, selected);
    assert!(shares[0] >= 1 && shares[9] <= 30, "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn by_default_the_agents_of_a_directory_share_the_tasks() {
    let (scene, ids) = equals().await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    until("all are there", || directory.len() == 10).await;
    let orchestrator = scene.orchestrator_builder().directory(directory).seed(7).build();
    let mut done = Vec::new();
    for _ in 0..100 {
        done.push(delegate(&orchestrator).await.unwrap());
    }
    let shares = shares(&ids, done);
    assert!(shares[0] >= 1 && shares[9] <= 30, "{shares:?}");
}

/// Each task takes a second, so all of them are in flight at once.
#[tokio::test(start_paused = true)]
async fn by_default_concurrent_tasks_go_to_idle_agents() {
    let (scene, ids) = equals().await;
    for id in &ids {
        let body = format!(r#"{{"by":"{id}"}}"#);
        scene.set(id, Reply::Late(Duration::from_secs(1), body.leak()));
    }
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    let outcomes = join_all((0..20).map(|_| delegate(&orchestrator))).await;
    let shares = shares(&ids, outcomes.into_iter().map(Result::unwrap));
    assert!(shares[0] >= 1 && shares[9] <= 4, "{shares:?}");
}

/// The registry's order still counts: a worse match gets nothing while a better one is free.
#[tokio::test(start_paused = true)]
async fn by_default_the_better_match_is_preferred() {
    let scene = Scene::ranked(&["best", "worse", "worst"]).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.client().heartbeat("worst").await.unwrap();
    let orchestrator = scene.orchestrator();
    for _ in 0..20 {
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("best"));
    }
}
