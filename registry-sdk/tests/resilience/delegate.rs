//! Handing tasks over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::contract::CapabilityMatch;
use registry_sdk::discovery::{
    BreakerSettings, CircuitState, DelegateError, HttpTaskError, SelectError, SkipReason, TaskError,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::scene::Scene;
use crate::support::Reply;

#[tokio::test(start_paused = true)]
async fn a_task_goes_to_the_next_agent_where_one_fails() {
    let scene = Scene::new(&["a", "b", "c"]).await;
    let orchestrator = scene.orchestrator();
    let tried = AtomicUsize::new(0);
    let done = orchestrator
        .delegate("work")
        .run(|agent: CapabilityMatch| {
            let attempt = tried.fetch_add(1, Ordering::SeqCst);
            async move {
                if attempt < 2 { Err(TaskError::Transient("it broke")) } else { Ok(agent.agent_id) }
            }
        })
        .await
        .unwrap();
    assert_eq!(done.failed.len(), 2);
    assert_eq!(done.value, done.selection.agent.agent_id);
    assert!(!done.failed.contains(&done.value), "nobody gets the task twice");

    let error = orchestrator
        .delegate("work")
        .attempts(2)
        .run(|_| async { Err::<(), _>(TaskError::Transient("it broke")) })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::Failed { failed, last: "it broke" } if failed.len() == 2));
    let error = orchestrator
        .delegate("work")
        .run(|_| async { Err::<(), _>(TaskError::Permanent("no such thing")) })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::Permanent { error: "no such thing", .. }));
}

#[tokio::test(start_paused = true)]
async fn where_all_have_failed_that_is_said() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let error = orchestrator
        .delegate("work")
        .attempts(9)
        .run(|_| async { Err::<(), _>(TaskError::Transient("it broke")) })
        .await
        .unwrap_err();
    assert!(
        matches!(error, DelegateError::NoAgent { failed, last: Some("it broke"), .. } if failed.len() == 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_delegation_is_over_in_its_time() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let limit = Duration::from_secs(5);
    let began = Instant::now();
    let error = orchestrator
        .delegate("work")
        .time_limit(limit)
        .run(|_| async {
            sleep(Duration::from_secs(3_600)).await;
            Ok::<_, TaskError<&str>>(())
        })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::TimedOut { .. }));
    assert!(began.elapsed() <= limit + Duration::from_millis(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tasks_are_sent_as_json() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let order = scene.registry.client().search_capabilities("work").await.unwrap();
    let (first, second) = (order[0].agent_id.as_str(), order[1].agent_id.as_str());
    let send =
        || async { orchestrator.delegate("work").post_json::<Value>("/execute", &json!({"n": 1})).await };

    scene.set(first, Reply::Answer(200, "", r#"{"done":true}"#));
    let done = send().await.unwrap();
    assert_eq!((done.value, done.failed.len()), (json!({"done": true}), 0));
    let request = scene.agents.arrived().pop().unwrap();
    assert_eq!((request.what, request.body.as_str()), (format!("POST /{first}/execute"), r#"{"n":1}"#));

    scene.set(second, Reply::Answer(200, "", r#"{"done":2}"#));
    for failure in
        [Reply::Close, Reply::Truncated, Reply::Answer(500, "", "no"), Reply::Answer(200, "", "<html>")]
    {
        scene.set(first, failure);
        let done = send().await.unwrap();
        assert_eq!((done.value, done.failed.as_slice()), (json!({"done": 2}), &[first.to_owned()][..]));
        // So that its circuit stays closed.
        scene.set(first, Reply::Answer(200, "", "1"));
        send().await.unwrap();
    }
    scene.set(first, Reply::Answer(422, "", "not like that"));
    let error = send().await.unwrap_err();
    assert!(
        matches!(&error, DelegateError::Permanent { error: HttpTaskError::Status { status: 422, .. }, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_keeps_failing_is_left_alone_and_tried_again() {
    let scene = Scene::new(&["only"]).await;
    let settings = BreakerSettings::default().failure_threshold(3);
    let orchestrator = scene.orchestrator_builder().breakers(settings).build();
    let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let attempt = || async {
        let works = works.load(Ordering::SeqCst);
        let task = orchestrator.clone();
        let task = task
            .delegate("work")
            .run(|_| async move { if works { Ok(()) } else { Err(TaskError::Transient("it broke")) } });
        task.await.is_ok()
    };
    for _ in 0..3 {
        assert_eq!(orchestrator.circuit("only"), CircuitState::Closed);
        assert!(!attempt().await);
    }
    // Clones know it, too.
    assert_eq!(orchestrator.clone().circuit("only"), CircuitState::Open);
    let error = orchestrator.find_best_agent("work").await.unwrap_err();
    assert!(
        matches!(error, SelectError::NoAgent { skipped, .. } if skipped[0].reason == SkipReason::CircuitOpen)
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(orchestrator.circuit("only"), CircuitState::HalfOpen);
    assert!(!attempt().await);
    assert_eq!(orchestrator.circuit("only"), CircuitState::Open, "the trial failed");
    sleep(Duration::from_secs(30)).await;
    works.store(true, Ordering::SeqCst);
    assert!(attempt().await);
    assert_eq!(orchestrator.circuit("only"), CircuitState::Closed);
}

const HEDGE: Duration = Duration::from_secs(1);

/// Delegates with hedging; each attempt takes the next of these times, and then goes as it says. Answers with how
/// many attempts there were and how long it all took.
async fn hedge(
    scene: &Scene,
    script: &'static [(u64, Result<(), TaskError<&'static str>>)],
) -> (Result<(), DelegateError<&'static str>>, usize, Duration) {
    let attempts = AtomicUsize::new(0);
    let began = Instant::now();
    let outcome = scene
        .orchestrator()
        .delegate("work")
        .attempts(3)
        .time_limit(Duration::from_secs(30))
        .hedge_after(HEDGE)
        .run(|_| {
            let (seconds, outcome) = script[attempts.fetch_add(1, Ordering::SeqCst)].clone();
            async move {
                sleep(Duration::from_secs(seconds)).await;
                outcome
            }
        })
        .await;
    (outcome.map(|_| ()), attempts.into_inner(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn with_hedging_a_second_agent_gets_the_task_and_the_first_good_answer_counts() {
    const SCRIPT: &[(u64, Result<(), TaskError<&str>>)] =
        &[(3, Ok(())), (0, Err(TaskError::Transient("it broke"))), (9, Ok(()))];
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    let about = |seconds: u64| {
        let seconds = Duration::from_secs(seconds);
        move |took: Duration| (seconds..seconds + Duration::from_millis(300)).contains(&took)
    };
    // Done in time: nobody else is troubled.
    let (outcome, begun, took) = hedge(&scene, &[(0, Ok(()))]).await;
    assert!(outcome.is_ok() && begun == 1 && about(0)(took), "{begun} {took:?}");
    // The second is faster than the first.
    let (outcome, begun, took) = hedge(&scene, &[(10, Ok(())), (1, Ok(())), (9, Ok(()))]).await;
    assert!(outcome.is_ok() && begun == 2 && about(2)(took), "{begun} {took:?}");
    // The first comes after all, while the second is at it.
    let (outcome, begun, took) = hedge(&scene, &[(2, Ok(())), (9, Ok(())), (9, Ok(()))]).await;
    assert!(outcome.is_ok() && about(2)(took) && begun >= 2, "{begun} {took:?}");
    // One that fails is followed by the next at once, while the other goes on.
    let (outcome, begun, took) = hedge(&scene, SCRIPT).await;
    assert!(outcome.is_ok() && begun == 3 && about(3)(took), "{begun} {took:?}");
}

#[tokio::test(start_paused = true)]
async fn hedging_ends_as_delegation_does() {
    const SLOW: &[(u64, Result<(), TaskError<&str>>)] = &[(99, Ok(())), (99, Ok(())), (99, Ok(()))];
    const FAIL: &[(u64, Result<(), TaskError<&str>>)] = &[
        (2, Err(TaskError::Transient("one"))),
        (5, Err(TaskError::Transient("two"))),
        (1, Err(TaskError::Transient("three"))),
    ];
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    let (outcome, begun, _) = hedge(&scene, FAIL).await;
    assert_eq!(begun, 3);
    assert!(
        matches!(&outcome, Err(DelegateError::Failed { failed, last: "two" }) if failed.len() == 3),
        "{outcome:?}"
    );
    // With fewer agents than attempts.
    let scene = Scene::new(&["a", "b"]).await;
    let (outcome, begun, _) = hedge(&scene, FAIL).await;
    assert_eq!(begun, 2);
    assert!(
        matches!(&outcome, Err(DelegateError::NoAgent { failed, last: Some("two"), .. }) if failed.len() == 2),
        "{outcome:?}"
    );
    // Out of time, all who are at it have failed.
    let (outcome, _, took) = hedge(&scene, SLOW).await;
    assert!(
        matches!(&outcome, Err(DelegateError::TimedOut { failed, .. }) if failed.len() == 2),
        "{outcome:?}"
    );
    assert!(took < Duration::from_secs(31), "{took:?}");
}
