//! Failures that count against an agent.

use std::time::Duration;

use registry_sdk::discovery::{EjectionSettings, EjectionState, Orchestrator};
use tokio::time::sleep;

use super::{counts, delegate, send};
use crate::scene::Scene;
use crate::support::Reply;

/// Ejects an agent at the first failure that counts.
fn strict(scene: &Scene) -> Orchestrator {
    let settings = EjectionSettings::default().consecutive_failures(1);
    scene.orchestrator_builder().ejection(settings).build()
}

fn is_ejected(orchestrator: &Orchestrator, id: &str) -> bool {
    matches!(orchestrator.ejection(id), EjectionState::Ejected { .. })
}

#[tokio::test(start_paused = true)]
async fn attempt_that_was_cut_off_counts_only_if_it_had_its_whole_time() {
    let scene = Scene::ranked(&["first", "second", "third"]).await;
    scene.set("first", Reply::Hang);
    scene.set("second", Reply::Hang);
    let orchestrator = strict(&scene);
    let seconds = Duration::from_secs;
    let delegation = orchestrator.delegate("work").time_limit(seconds(12)).attempt_timeout(seconds(10));
    let error = send(delegation).await.unwrap_err();
    assert_eq!(counts(&scene, ["first", "second", "third"]), [1, 1, 0]);
    assert!(error.contains("attempt_timeout of 10.0s"), "{error}");
    assert!(is_ejected(&orchestrator, "first"), "it had ten seconds");
    assert!(!is_ejected(&orchestrator, "second"), "it had two");
}

#[tokio::test(start_paused = true)]
async fn attempt_that_its_caller_gives_up_does_not_count() {
    let scene = Scene::ranked(&["only"]).await;
    scene.set("only", Reply::Hang);
    let orchestrator = strict(&scene);
    for _ in 0..5 {
        let gave_up = tokio::time::timeout(Duration::from_secs(20), delegate(&orchestrator)).await;
        assert!(gave_up.is_err() && !is_ejected(&orchestrator, "only"));
    }
}

/// Otherwise an agent that hangs would cost a hedge each time.
#[tokio::test(start_paused = true)]
async fn attempt_counts_if_a_later_one_has_overtaken_it() {
    let scene = Scene::ranked(&["slow", "quick"]).await;
    scene.set("slow", Reply::Hang);
    let orchestrator = strict(&scene);
    let delegation = orchestrator.delegate("work").hedge_after(Duration::from_secs(1));
    assert_eq!(send(delegation).await.as_deref(), Ok("quick"));
    assert!(is_ejected(&orchestrator, "slow"));
    assert!(!is_ejected(&orchestrator, "quick"));
}

#[tokio::test(start_paused = true)]
async fn hedge_that_was_not_needed_does_not_count() {
    let scene = Scene::ranked(&["slow", "hedge"]).await;
    scene.set("slow", Reply::Late(Duration::from_secs(3), r#"{"by":"slow"}"#));
    scene.set("hedge", Reply::Hang);
    let orchestrator = strict(&scene);
    let delegation = orchestrator.delegate("work").hedge_after(Duration::from_secs(1));
    assert_eq!(send(delegation).await.as_deref(), Ok("slow"));
    assert_eq!(counts(&scene, ["slow", "hedge"]), [1, 1]);
    assert!(!is_ejected(&orchestrator, "slow") && !is_ejected(&orchestrator, "hedge"));
}

#[tokio::test(start_paused = true)]
async fn wrong_deployment_counts_only_if_another_agent_does_the_task() {
    let scene = Scene::ranked(&["wrong", "too"]).await;
    for status in [401, 403, 404, 405, 301] {
        let orchestrator = strict(&scene);
        let refusal = Reply::Answer(status, "location: https://elsewhere.invalid/\r\n", "no");
        scene.set("wrong", refusal.clone());
        scene.set("too", refusal);
        for _ in 0..3 {
            let error = delegate(&orchestrator).await.unwrap_err();
            assert!(error.contains("check how the task is sent, and the token"), "{error}");
        }
        assert!(!is_ejected(&orchestrator, "wrong") && !is_ejected(&orchestrator, "too"), "{status}");
        scene.set_well("too");
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("too"), "{status}");
        assert!(is_ejected(&orchestrator, "wrong"), "{status}");
    }
}

/// The agent responded, so this is not a failure, and ends a row of failures.
#[tokio::test(start_paused = true)]
async fn refusing_an_impossible_task_counts_as_a_success_of_the_agent() {
    let scene = Scene::ranked(&["first", "second"]).await;
    scene.script("first", |_, before| {
        if before % 3 == 2 { Reply::Answer(422, "", "not like that") } else { Reply::Answer(500, "", "no") }
    });
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("second"));
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("second"));
        assert!(delegate(&orchestrator).await.unwrap_err().contains("not like that"));
    }
    assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
}

#[tokio::test(start_paused = true)]
async fn single_task_is_the_trial_after_an_ejection() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    scene.set("broken", Reply::Answer(500, "", "no"));
    let orchestrator = strict(&scene);
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("well"));
    sleep(Duration::from_secs(30)).await;
    scene.set("broken", Reply::Hang);
    // Five at once, one of which is the trial.
    let many = futures_util::future::join_all((0..5).map(|_| delegate(&orchestrator)));
    assert!(many.await.iter().all(|outcome| outcome.as_deref() == Ok("well")));
    assert_eq!(counts(&scene, ["broken", "well"]), [2, 6]);
}
