//! Agents that are known to be broken, and agents that are known to be healthy.

use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::contract::Capability;
use registry_sdk::discovery::{
    EjectionSettings, EjectionState, FailureKind, HealthSource, Policy, TaskQuery,
};
use reqwest::Method;
use tokio::time::sleep;

use super::{counts, send};
use crate::scene::{ILL, Scene};
use crate::support::Reply;

const BROKEN: Reply = Reply::Answer(500, "", "out of disk");

/// "Capabilities that are used instead, in this order, if no agent can be given a task of those before."
#[tokio::test(start_paused = true)]
async fn fallback_does_the_task_if_all_primaries_are_broken() {
    let scene = Scene::new(&["one", "two", "three"]).await;
    for id in ["one", "two", "three"] {
        scene.set(id, BROKEN);
    }
    scene.register("spare", Capability::new("translation")).await;
    let orchestrator = scene.orchestrator();
    let mut done = 0;
    for _ in 0..40 {
        let query = TaskQuery::new("work").fallback("translation");
        done += usize::from(send(orchestrator.delegate(query)).await.is_ok());
        sleep(Duration::from_secs(1)).await;
    }
    assert!(done >= 20, "{done} of 40 done, spare had {:?}", counts(&scene, ["spare"]));
}

/// The common setup, one primary and one fallback: the primary, which is known to hang, would use half of each task's time.
#[tokio::test(start_paused = true)]
async fn primary_that_is_known_to_hang_does_not_delay_its_fallback() {
    let scene = Scene::new(&["hung"]).await;
    scene.set("hung", Reply::Hang);
    scene.register("spare", Capability::new("translation")).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..20 {
        let query = TaskQuery::new("work").fallback("translation");
        send(orchestrator.delegate(query)).await.unwrap();
    }
    let [hung] = counts(&scene, ["hung"]);
    assert!(hung <= 10, "hung had {hung} of 20 tasks");
}

/// All but one of ten equal agents are broken, and each task has three attempts.
#[tokio::test(start_paused = true)]
async fn only_agent_known_to_be_healthy_gets_the_tasks() {
    let ids: Vec<String> = (0..10).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for id in &ids[1..] {
        scene.set(id, BROKEN);
    }
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    // Finds out which.
    for _ in 0..60 {
        let _ = send(orchestrator.delegate("work")).await;
        sleep(Duration::from_millis(200)).await;
    }
    let mut done = 0;
    for _ in 0..50 {
        done += usize::from(send(orchestrator.delegate("work")).await.is_ok());
        sleep(Duration::from_millis(200)).await;
    }
    assert!(done >= 45, "{done} of 50 done; {} requests", scene.agents.arrived().len());
}

/// Three of four hang. Agents that are known to hang are not tried before the healthy one.
#[tokio::test(start_paused = true)]
async fn task_does_not_wait_for_agents_that_are_known_to_hang() {
    let scene = Scene::ranked(&["hung", "hung_too", "hung_as_well", "well"]).await;
    for id in ["hung", "hung_too", "hung_as_well"] {
        scene.set(id, Reply::Hang);
    }
    let orchestrator = scene.orchestrator();
    let limit = Duration::from_secs(8);
    for _ in 0..20 {
        let _ = send(orchestrator.delegate("work").attempts(4).time_limit(limit)).await;
    }
    let before: usize = counts(&scene, ["hung", "hung_too", "hung_as_well"]).iter().sum();
    let began = tokio::time::Instant::now();
    for _ in 0..20 {
        send(orchestrator.delegate("work").attempts(4).time_limit(limit)).await.unwrap();
    }
    let after: usize = counts(&scene, ["hung", "hung_too", "hung_as_well"]).iter().sum();
    assert!(after - before <= 10, "{} of 20 tasks waited, for {:?}", after - before, began.elapsed());
}

/// "After its time one task goes to it as a trial."
#[tokio::test(start_paused = true)]
async fn single_task_is_the_trial_even_if_a_better_agent_is_unhealthy() {
    let scene = Scene::ranked(&["ill", "broken", "well"]).await;
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").health_source(HealthSource::Agent);
    scene.set("ill", ILL);
    for _ in 0..3 {
        let selection = orchestrator.select(&query).await.unwrap();
        assert_eq!(selection.agent.agent_id, "broken");
        selection.report_failure(FailureKind::Agent);
    }
    sleep(Duration::from_secs(31)).await;
    assert_eq!(orchestrator.ejection("broken"), EjectionState::OnTrial);
    let selections = join_all((0..10).map(|_| orchestrator.select(&query))).await;
    let trials = selections.iter().filter(|one| one.as_ref().unwrap().agent.agent_id == "broken").count();
    assert_eq!(trials, 1);
}

/// The same for a slow trial: tasks of agents take minutes.
#[tokio::test(start_paused = true)]
async fn single_task_is_the_trial_however_long_it_takes() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        let selection = orchestrator.find_best_agent("work").await.unwrap();
        selection.report_failure(FailureKind::Agent);
    }
    sleep(Duration::from_secs(31)).await;
    let mut trials = Vec::new();
    // A task that has been running for ten minutes.
    for _ in 0..60 {
        let selection = orchestrator.find_best_agent("work").await.unwrap();
        if selection.agent.agent_id == "broken" {
            trials.push(selection);
        }
        sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(trials.len(), 1, "tasks at an agent whose trial has not ended");
}

/// Ten concurrent selections, and the best-ranked agent is unhealthy: the ten equally good agents after it rotate.
#[tokio::test(start_paused = true)]
async fn concurrent_selections_rotate_behind_an_unhealthy_agent() {
    let scene = Scene::new(&["ill"]).await;
    scene.set("ill", ILL);
    let ids: Vec<String> = (0..10).map(|number| format!("a{number}")).collect();
    for id in &ids {
        scene.register(id, Capability::new("work_in_part")).await;
    }
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed, Policy::LeastLoaded] {
        let orchestrator = scene.orchestrator_builder().seed(7).build();
        let query = TaskQuery::new("work").policy(policy).health_source(HealthSource::Agent);
        let selections = join_all((0..10).map(|_| orchestrator.select(&query))).await;
        let mut shares = std::collections::HashMap::<_, usize>::new();
        for selection in &selections {
            *shares.entry(selection.as_ref().unwrap().agent.agent_id.clone()).or_default() += 1;
        }
        let most = shares.values().max().copied().unwrap_or_default();
        assert!(most <= 4, "{policy:?}: one agent got {most} of ten");
    }
}

/// For a task sent with `send`, only the status matters: most agents that accept a task respond with 202.
#[tokio::test(start_paused = true)]
async fn sent_task_whose_body_is_not_read_was_done() {
    let scene = Scene::ranked(&["flaky", "well"]).await;
    scene.script("flaky", |_, before| match before % 20 {
        19 => BROKEN,
        _ => Reply::Answer(202, "", ""),
    });
    let orchestrator = scene.orchestrator();
    for _ in 0..99 {
        let done = orchestrator.delegate("work").send(Method::POST, "/execute", "{}").await.unwrap();
        assert!([200, 202].contains(&done.value.status()));
        sleep(Duration::from_secs(1)).await;
    }
    // One failure in twenty is normal.
    assert_eq!(counts(&scene, ["flaky", "well"]), [99, 4]);
}

/// It also ends a trial.
#[tokio::test(start_paused = true)]
async fn trial_whose_body_is_not_read_readmits_the_agent() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        orchestrator.find_best_agent("work").await.unwrap().report_failure(FailureKind::Agent);
    }
    sleep(Duration::from_secs(31)).await;
    for _ in 0..10 {
        let done = orchestrator.delegate("work").send(Method::POST, "/execute", "{}").await.unwrap();
        assert_eq!((done.selection.agent.agent_id.as_str(), done.value.status()), ("broken", 200));
    }
    assert_eq!(orchestrator.ejection("broken"), EjectionState::Admitted);
}

/// "The task counts as in flight until the body has ended or this is dropped."
#[tokio::test(start_paused = true)]
async fn response_that_was_dropped_is_no_longer_in_flight() {
    let scene = Scene::new(&["one", "two"]).await;
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    let done = orchestrator.delegate("work").send(Method::POST, "/execute", "{}").await.unwrap();
    let selection = done.selection;
    drop(done.value);
    let id = selection.agent.agent_id.as_str();
    let mut again = 0;
    for _ in 0..40 {
        again += usize::from(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id == id);
    }
    assert!(again >= 5, "{id} got {again} of 40 selections");
}

/// A base time of zero does not mean a trial forever.
#[tokio::test(start_paused = true)]
async fn extreme_ejection_settings_do_no_harm() {
    for settings in [
        EjectionSettings::default().base_time(Duration::ZERO),
        EjectionSettings::default().base_time(Duration::MAX).max_time(Duration::MAX),
        EjectionSettings::default().min_success_rate(f64::NAN).window(Duration::MAX),
        EjectionSettings::default().consecutive_failures(0).min_outcomes(0),
    ] {
        let scene = Scene::ranked(&["flaky", "well"]).await;
        scene
            .script("flaky", |_, before| if before % 2 == 0 { BROKEN } else { Reply::Answer(200, "", "{}") });
        let orchestrator = scene.orchestrator_builder().ejection(settings).build();
        for _ in 0..40 {
            send(orchestrator.delegate("work")).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
    }
}
