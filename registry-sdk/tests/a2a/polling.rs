//! Polls of long tasks: slow or failed ones, those that a busy agent puts off, and the last one before an attempt ends.

use std::time::Duration;

use registry_sdk::discovery::EndReason;
use serde_json::json;
use tokio::time::Instant;

use crate::fakes::{Answer, BINDINGS, Binding, Scene, reply_text, send};

#[tokio::test(start_paused = true)]
async fn poll_is_repeated_if_its_response_stalls() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.script(|call, index| match (call.operation, index) {
            ("SendMessage", _) => Answer::Task("working", ""),
            (_, 0) => Answer::Stalled,
            _ => Answer::Task("completed", "done"),
        });
        let began = Instant::now();
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!((agent.count("SendMessage"), agent.count("GetTask")), (1, 2));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn result_that_takes_long_to_arrive_needs_one_poll() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let result = Answer::Task("completed", "done");
        agent.answers(Answer::Task("working", ""), Answer::Slow(25, Box::new(result)));
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!((agent.count("SendMessage"), agent.count("GetTask")), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn task_that_is_done_just_before_the_attempt_ends_has_succeeded() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let mut began = None;
        agent.script(move |_, _| {
            let began = *began.get_or_insert_with(Instant::now);
            let is_done = began.elapsed() >= Duration::from_millis(299_300);
            if is_done { Answer::Task("completed", "done") } else { Answer::Task("working", "") }
        });
        let orchestrator = scene.orchestrator();
        let sent = orchestrator.delegate("work").attempt_timeout(Duration::from_secs(300)).attempts(1);
        assert_eq!(
            reply_text(sent.time_limit(Duration::from_secs(900))).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert!(agent.count("GetTask") < 300, "{}", agent.count("GetTask"));
    }
}

#[tokio::test(start_paused = true)]
async fn task_is_not_repeated_if_polls_fail_for_a_short_time() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, binding).await;
        let second = scene.agent("second", 1, binding).await;
        let mut failed_since = None;
        first.script(move |call, _| {
            if call.operation == "SendMessage" {
                return Answer::Task("working", "");
            }
            let failed_since = *failed_since.get_or_insert_with(Instant::now);
            if failed_since.elapsed() < Duration::from_millis(2_500) {
                return Answer::Http(502, None, "restarting");
            }
            Answer::Task("completed", "done")
        });
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!((first.count("SendMessage"), second.count("SendMessage")), (1, 0));
        assert!((2..=3).contains(&first.count("GetTask")), "{}", first.count("GetTask"));
    }
}

#[tokio::test(start_paused = true)]
async fn busy_agent_keeps_the_task_and_is_polled_after_the_time_that_it_asked_for() {
    for (status, binding) in [(429, Binding::JsonRpc), (503, Binding::HttpJson), (503, Binding::OldJsonRpc)] {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let other = scene.agent("b", 1, binding).await;
        agent.script(move |call, index| match (call.operation, index) {
            ("SendMessage", _) => Answer::Task("working", ""),
            (_, 0..5) => Answer::Http(status, Some(20), "too many polls"),
            _ => Answer::Task("completed", "done"),
        });
        let began = Instant::now();
        let orchestrator = scene.orchestrator();
        let sent = orchestrator.delegate("work").time_limit(Duration::from_secs(600));
        assert_eq!(reply_text(sent).await.as_deref(), Ok("done"), "{binding:?}");
        assert_eq!((agent.count("GetTask"), other.count("SendMessage")), (6, 0));
        let elapsed = began.elapsed().as_secs();
        assert!((100..120).contains(&elapsed), "{elapsed}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_agent_is_polled_once_more_before_the_attempt_ends() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    agent.script(|call, index| match (call.operation, index) {
        ("SendMessage", _) => Answer::Task("working", ""),
        (_, 0) => Answer::Http(429, Some(3_600), "too many polls"),
        _ => Answer::Task("completed", "done"),
    });
    let began = Instant::now();
    assert_eq!(reply_text(scene.orchestrator().delegate("work")).await.as_deref(), Ok("done"));
    let elapsed = began.elapsed().as_secs();
    assert!((58..60).contains(&elapsed), "{elapsed}");
}

#[tokio::test(start_paused = true)]
async fn state_of_another_task_is_not_taken_for_the_result() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let state = if binding == Binding::OldJsonRpc { "completed" } else { "TASK_STATE_COMPLETED" };
        let other = json!({"id": "t-2", "kind": "task", "status": {"state": state}});
        agent.answers(Answer::Task("working", ""), Answer::Result(other));
        let error = send(scene.orchestrator().delegate("work")).await.unwrap_err();
        assert!(matches!(error.reason, EndReason::UnusableResponse), "{binding:?}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(r#"the response is about another task: its id is "t-2" in place of "t-1""#),
            "{text}"
        );
        assert_eq!(agent.count("GetTask"), 3);
    }
}

/// Otherwise a proxy might repeat an earlier state.
#[tokio::test(start_paused = true)]
async fn polls_are_not_answered_from_a_cache() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.answers(Answer::Task("working", ""), Answer::Task("completed", "done"));
        let orchestrator = scene.orchestrator();
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("done"));
        assert_eq!(agent.calls("GetTask")[0].header("cache-control"), Some("no-cache"), "{binding:?}");
        assert_eq!(agent.calls("SendMessage")[0].header("cache-control"), None, "{binding:?}");
        let sent = orchestrator.delegate("work").header("Cache-Control", "no-store");
        assert_eq!(reply_text(sent).await.as_deref(), Ok("done"));
        assert_eq!(agent.calls("GetTask")[1].header("cache-control"), Some("no-store"), "{binding:?}");
    }
}
