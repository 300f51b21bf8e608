//! Delegating tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::contract::CapabilityMatch;
use registry_sdk::discovery::{
    DelegateError, EjectionState, EndReason, FailureKind, HttpTaskError, Policy, SkipReason, TaskError,
    TaskQuery,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::scene::Scene;
use crate::support::Reply;

#[tokio::test(start_paused = true)]
async fn task_fails_over_to_the_next_agent() {
    let scene = Scene::new(&["a", "b", "c"]).await;
    let orchestrator = scene.orchestrator();
    let tried = AtomicUsize::new(0);
    let done = orchestrator
        .delegate("work")
        .run(|agent: CapabilityMatch| {
            let attempt = tried.fetch_add(1, Ordering::SeqCst);
            async move {
                if attempt < 2 { Err(TaskError::transient("it broke")) } else { Ok(agent.agent_id) }
            }
        })
        .await
        .unwrap();
    assert_eq!(done.failed.len(), 2);
    assert_eq!(done.value, done.selection.agent.agent_id);
    assert!(done.failed.iter().all(|one| one.agent_id != done.value), "nobody gets the task twice");

    let error = orchestrator
        .delegate("work")
        .attempts(2)
        .run(|_| async { Err::<(), _>(TaskError::transient("it broke")) })
        .await
        .unwrap_err();
    assert!(matches!(error.reason, EndReason::AttemptsExhausted), "{error}");
    assert_eq!(error.attempts.len(), 2);
    let error = orchestrator
        .delegate("work")
        .run(|_| async { Err::<(), _>(TaskError::permanent("no such thing")) })
        .await
        .unwrap_err();
    assert!(matches!(error.reason, EndReason::Rejected), "{error}");
    assert_eq!(error.attempts[0].error.to_string(), "no such thing");
}

#[tokio::test(start_paused = true)]
async fn error_says_that_all_agents_have_failed() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let error = orchestrator
        .delegate("work")
        .attempts(9)
        .run(|_| async { Err::<(), _>(TaskError::transient("it broke")) })
        .await
        .unwrap_err();
    assert!(matches!(error.reason, EndReason::NoAgent { .. }), "{error}");
    assert_eq!(error.attempts.len(), 2);
    assert!(error.attempts.iter().all(|one| one.error.to_string() == "it broke"));
}

#[tokio::test(start_paused = true)]
async fn delegation_ends_within_its_time_limit() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let limit = Duration::from_secs(5);
    let began = Instant::now();
    let error = orchestrator
        .delegate("work")
        .time_limit(limit)
        .run(|_| async {
            sleep(Duration::from_secs(3_600)).await;
            Ok::<_, TaskError>(())
        })
        .await
        .unwrap_err();
    assert!(matches!(error.reason, EndReason::TimedOut { .. }), "{error}");
    assert_eq!(said(&error)[0], "no response within the attempt_timeout of 2.5s");
    assert!(began.elapsed() <= limit + Duration::from_millis(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tasks_are_sent_as_json() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let order = scene.registry.client().search_capabilities("work").await.unwrap();
    let (first, second) = (order[0].agent_id.as_str(), order[1].agent_id.as_str());
    let send = || async {
        let query = TaskQuery::new("work").policy(Policy::Rank);
        orchestrator.delegate(query).post_json::<Value>("/execute", &json!({"n": 1})).await
    };

    scene.set(first, Reply::Answer(200, "", r#"{"done":true}"#));
    let done = send().await.unwrap();
    assert_eq!((done.value, done.failed.len()), (json!({"done": true}), 0));
    let request = scene.agents.arrived().pop().unwrap();
    assert_eq!((request.what, request.body.as_str()), (format!("POST /{first}/execute"), r#"{"n":1}"#));

    scene.set(second, Reply::Answer(200, "", r#"{"done":2}"#));
    for failure in [Reply::Close, Reply::Answer(500, "", "no")] {
        scene.set(first, failure);
        let done = send().await.unwrap();
        assert_eq!(done.value, json!({"done": 2}));
        assert_eq!((done.failed.len(), done.failed[0].agent_id.as_str()), (1, first));
        assert_eq!(done.failed[0].kind, FailureKind::Agent);
    }
    scene.set(first, Reply::Answer(422, "", "not like that"));
    let error = send().await.unwrap_err();
    assert!(matches!(error.reason, EndReason::Rejected), "{error}");
    let said = error.attempts[0].error.downcast_ref::<HttpTaskError>();
    assert!(matches!(said, Some(HttpTaskError::Status { status: 422, .. })), "{said:?}");
}

/// As an orchestrator's author sees it: of two agents, the better one fails for a while.
#[tokio::test(start_paused = true)]
async fn agent_that_keeps_failing_is_ejected_and_tried_again() {
    let scene = Scene::new(&["good", "bad"]).await;
    let orchestrator = scene.orchestrator();
    let works = Arc::new(AtomicBool::new(false));
    let ranked = TaskQuery::new("work").policy(Policy::Rank);
    // "bad" was registered last, so it ranks first.
    assert_eq!(orchestrator.select(&ranked).await.unwrap().agent.agent_id, "bad");
    let client = scene.registry.client();
    let attempt = async || {
        for id in ["good", "bad"] {
            client.heartbeat(id).await.unwrap();
        }
        let works = works.load(Ordering::SeqCst);
        let delegation = orchestrator.delegate(ranked.clone());
        let done = delegation.run(|agent| async move {
            if works || agent.agent_id == "good" { Ok(()) } else { Err(TaskError::transient("it broke")) }
        });
        done.await.unwrap().selection.agent.agent_id
    };
    for _ in 0..3 {
        assert_eq!(orchestrator.ejection("bad"), EjectionState::Admitted);
        assert_eq!(attempt().await, "good");
    }
    // Clones share the state.
    let remaining = Duration::from_secs(30);
    client.heartbeat("bad").await.unwrap();
    assert_eq!(orchestrator.clone().ejection("bad"), EjectionState::Ejected { remaining });
    let selection = orchestrator.select(&ranked).await.unwrap();
    assert_eq!(
        (selection.agent.agent_id.as_str(), &selection.skipped[0].reason),
        ("good", &SkipReason::Ejected)
    );
    sleep(remaining).await;
    assert_eq!(orchestrator.ejection("bad"), EjectionState::OnTrial);
    assert_eq!(attempt().await, "good");
    let remaining = Duration::from_secs(60);
    assert_eq!(orchestrator.ejection("bad"), EjectionState::Ejected { remaining }, "the trial failed");
    sleep(remaining).await;
    works.store(true, Ordering::SeqCst);
    assert_eq!(attempt().await, "bad");
    assert_eq!(orchestrator.ejection("bad"), EjectionState::Admitted);
}

const HEDGE: Duration = Duration::from_secs(1);

/// Delegates with hedging. Each attempt takes the next of these times and then has the given outcome. Returns the number of
/// attempts and how long it took.
async fn hedge(
    scene: &Scene,
    script: &[(u64, Result<(), &'static str>)],
) -> (Result<(), DelegateError>, usize, Duration) {
    let attempts = AtomicUsize::new(0);
    let began = Instant::now();
    let outcome = scene
        .orchestrator()
        .delegate("work")
        .attempts(3)
        .time_limit(Duration::from_secs(30))
        .hedge_after(HEDGE)
        .run(|_| {
            let (seconds, outcome) = script[attempts.fetch_add(1, Ordering::SeqCst)];
            async move {
                sleep(Duration::from_secs(seconds)).await;
                outcome.map_err(TaskError::transient)
            }
        })
        .await;
    (outcome.map(|_| ()), attempts.into_inner(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn hedging_gives_the_task_to_a_second_agent_and_uses_the_first_success() {
    const SCRIPT: &[(u64, Result<(), &str>)] = &[(3, Ok(())), (0, Err("it broke")), (9, Ok(()))];
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    let about = |seconds: u64| {
        let seconds = Duration::from_secs(seconds);
        move |took: Duration| (seconds..seconds + Duration::from_millis(300)).contains(&took)
    };
    // The first agent is fast enough, so no other one is used.
    let (outcome, begun, took) = hedge(&scene, &[(0, Ok(()))]).await;
    assert!(outcome.is_ok() && begun == 1 && about(0)(took), "{begun} {took:?}");
    // The second agent is faster than the first.
    let (outcome, begun, took) = hedge(&scene, &[(10, Ok(())), (1, Ok(())), (9, Ok(()))]).await;
    assert!(outcome.is_ok() && begun == 2 && about(2)(took), "{begun} {took:?}");
    // The first agent responds after all, while the second is working.
    let (outcome, begun, took) = hedge(&scene, &[(2, Ok(())), (9, Ok(())), (9, Ok(()))]).await;
    assert!(outcome.is_ok() && about(2)(took) && begun >= 2, "{begun} {took:?}");
    // A failed attempt is followed by the next one at once, while the other continues.
    let (outcome, begun, took) = hedge(&scene, SCRIPT).await;
    assert!(outcome.is_ok() && begun == 3 && about(3)(took), "{begun} {took:?}");
}

#[tokio::test(start_paused = true)]
async fn hedging_ends_like_any_delegation() {
    const SLOW: &[(u64, Result<(), &str>)] = &[(99, Ok(())), (99, Ok(())), (99, Ok(()))];
    const FAIL: &[(u64, Result<(), &str>)] = &[(2, Err("one")), (5, Err("two")), (1, Err("three"))];
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    let (outcome, begun, _) = hedge(&scene, FAIL).await;
    assert_eq!(begun, 3);
    assert!(
        matches!(&outcome, Err(error) if matches!(error.reason, EndReason::AttemptsExhausted)
            && said(error) == ["one", "three", "two"]),
        "{outcome:?}"
    );
    // With fewer agents than attempts.
    let scene = Scene::new(&["a", "b"]).await;
    let (outcome, begun, _) = hedge(&scene, FAIL).await;
    assert_eq!(begun, 2);
    assert!(
        matches!(&outcome, Err(error) if matches!(error.reason, EndReason::NoAgent { .. })
            && said(error) == ["one", "two"]),
        "{outcome:?}"
    );
    // Once the time is over, all running attempts have failed.
    let (outcome, _, took) = hedge(&scene, SLOW).await;
    assert!(
        matches!(&outcome, Err(error) if matches!(error.reason, EndReason::TimedOut { .. })
            && said(error).len() == 2),
        "{outcome:?}"
    );
    assert!(took < Duration::from_secs(31), "{took:?}");
}

/// The agents' messages, in the order in which they failed.
fn said(error: &DelegateError) -> Vec<String> {
    error.attempts.iter().map(|one| one.error.to_string()).collect()
}
