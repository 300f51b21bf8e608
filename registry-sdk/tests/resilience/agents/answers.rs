//! Successes whose response the caller cannot use. The task was done, so no other agent gets it.

use std::time::Duration;

use serde_json::Value;

use super::{TRIES, counts, delegate, send_for};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 3] = ["alpha", "beta", "gamma"];

#[tokio::test(start_paused = true)]
async fn task_whose_response_does_not_decode_is_not_run_again() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("alpha", Reply::Answer(200, "", r#"{"by":"alpha","report":"no flaws found"}"#));
    let orchestrator = scene.orchestrator();
    for round in 1..=TRIES {
        let error = send_for::<Vec<u64>>(orchestrator.delegate("work")).await.unwrap_err();
        assert_eq!(counts(&scene, IDS), [round, 0, 0], "{error}");
        assert!(error.contains("alpha") && error.contains("no flaws found"), "{error}");
    }
    // It is the caller's fault, so no agent is charged.
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("alpha"));
}

#[tokio::test(start_paused = true)]
async fn unreadable_success_is_neither_run_again_nor_charged() {
    let cases = [
        Reply::Answer(200, "", "<html>welcome</html>"),
        Reply::Answer(200, "content-type: application/json\r\n", r#"{"by":"#),
        Reply::Answer(201, "", "made it"),
        Reply::Answer(299, "", "{]"),
        Reply::Truncated,
    ];
    let mut wrong = Vec::new();
    for reply in cases {
        let scene = Scene::ranked(&IDS).await;
        scene.set("alpha", reply.clone());
        let orchestrator = scene.orchestrator();
        for _ in 0..TRIES {
            let outcome = send_for::<Value>(orchestrator.delegate("work")).await;
            if outcome.as_ref().err().is_none_or(|error| !error.contains("alpha")) {
                wrong.push(format!("{reply:?}: {outcome:?}"));
                break;
            }
        }
        let tasks = counts(&scene, IDS);
        if tasks != [TRIES, 0, 0] {
            wrong.push(format!("{reply:?}: the agents had {tasks:?} tasks"));
            continue;
        }
        scene.set_well("alpha");
        let outcome = delegate(&orchestrator).await;
        if outcome.as_deref() != Ok("alpha") {
            wrong.push(format!("{reply:?}: afterwards {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The attempt used its whole time, so it is charged: otherwise such an agent would take every task.
#[tokio::test(start_paused = true)]
async fn success_that_does_not_end_in_time_is_charged_but_not_run_again() {
    for reply in [
        Reply::Stall("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"by\":"),
        Reply::Stall("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        Reply::Endless(200, 1, Duration::from_secs(1)),
    ] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("alpha", reply.clone());
        let orchestrator = scene.orchestrator();
        for round in 1..=3 {
            let error = send_for::<Value>(orchestrator.delegate("work")).await.unwrap_err();
            assert!(error.contains("alpha") && error.contains("time_limit"), "{reply:?}: {error}");
            assert_eq!(counts(&scene, IDS), [round, 0, 0], "{reply:?}");
        }
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("beta"), "{reply:?}");
    }
}

/// A connection that merely breaks does not show a success.
#[tokio::test(start_paused = true)]
async fn response_that_breaks_off_before_its_status_is_not_a_success() {
    for reply in [Reply::Close, Reply::Stall("HTTP/1.1 2")] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("alpha", reply.clone());
        assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("beta"), "{reply:?}");
    }
}
