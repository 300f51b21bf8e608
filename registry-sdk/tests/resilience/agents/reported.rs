//! Outcomes of calls that the caller makes itself after a selection.

use std::time::Duration;

use registry_sdk::TaskQuery;
use registry_sdk::discovery::{EjectionState, FailureKind, Policy, SelectError, SkipReason};
use tokio::time::sleep;

use crate::scene::Scene;

#[tokio::test(start_paused = true)]
async fn reported_failures_eject_an_agent_and_a_success_admits_it_again() {
    let scene = Scene::ranked(&["first", "second"]).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        let selection = orchestrator.find_best_agent("work").await.unwrap();
        assert_eq!(selection.agent.agent_id, "first");
        selection.report_failure(FailureKind::Agent);
        // Only the first report counts.
        selection.report_success();
    }
    let remaining = Duration::from_secs(30);
    assert_eq!(orchestrator.ejection("first"), EjectionState::Ejected { remaining });
    assert_eq!(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id, "second");
    sleep(remaining).await;
    let trial = orchestrator.find_best_agent("work").await.unwrap();
    assert_eq!(trial.agent.agent_id, "first");
    assert_eq!(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id, "second", "one trial");
    trial.report_success();
    assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
}

#[tokio::test(start_paused = true)]
async fn trial_without_a_report_does_not_count() {
    let scene = Scene::ranked(&["first", "second"]).await;
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        orchestrator.find_best_agent("work").await.unwrap().report_failure(FailureKind::Agent);
    }
    sleep(Duration::from_secs(30)).await;
    for _ in 0..3 {
        let selection = orchestrator.find_best_agent("work").await.unwrap();
        assert_eq!(selection.agent.agent_id, "first", "the selection before was dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_agent_is_skipped_for_as_long_as_it_asked() {
    let scene = Scene::ranked(&["only"]).await;
    let orchestrator = scene.orchestrator();
    let retry_after = Duration::from_secs(7);
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    selection.report_failure(FailureKind::Busy { retry_after });
    sleep(Duration::from_secs(2)).await;
    let error = orchestrator.find_best_agent("work").await.unwrap_err();
    assert_eq!(error.to_string(), "no agent can be given \"work\": only is busy for another 5.0s");
    let SelectError::NoAgent { skipped, .. } = &error else { panic!("{error}") };
    assert!(matches!(skipped[0].reason, SkipReason::Busy { .. }));
    sleep(error.retry_after().unwrap()).await;
    orchestrator.find_best_agent("work").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn selections_count_as_in_flight_until_they_are_reported_or_dropped() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let query = TaskQuery::new("work").policy(Policy::LeastLoaded);
    let first = orchestrator.select(&query).await.unwrap();
    let second = orchestrator.select(&query).await.unwrap();
    assert_ne!(first.agent.agent_id, second.agent.agent_id);
    let copy = first.clone();
    drop(first);
    let third = orchestrator.select(&query).await.unwrap();
    let fourth = orchestrator.select(&query).await.unwrap();
    assert_ne!(third.agent.agent_id, fourth.agent.agent_id, "a clone is still there");
    let id = copy.agent.agent_id.clone();
    drop(copy);
    for _ in 0..5 {
        assert_eq!(
            orchestrator.select(&query).await.unwrap().agent.agent_id,
            id,
            "it has one task, the other two"
        );
    }
}
