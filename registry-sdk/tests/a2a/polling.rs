//! Polls of long tasks: slow or failed ones, those that a busy agent puts off, and the last one before an attempt ends.

use std::time::Duration;

use registry_sdk::discovery::{EjectionState, EndReason, FailureKind};
use serde_json::json;
use tokio::time::Instant;

use crate::fakes::{Answer, BINDINGS, Binding, Scene, reply_text, send, until};

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
async fn result_that_has_begun_to_arrive_is_read_to_its_end_after_the_attempt_timeout() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        let result = Answer::Task("completed", "done");
        agent.answers(Answer::Task("working", ""), Answer::Slow(25, Box::new(result)));
        let orchestrator = scene.orchestrator();
        let sent = orchestrator.delegate("work").attempts(1).attempt_timeout(Duration::from_secs(10));
        assert_eq!(
            reply_text(sent.time_limit(Duration::from_secs(120))).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!((agent.count("GetTask"), agent.count("CancelTask")), (1, 0));
    }
}

/// The response only says that the agent is still working, or stalls after its headers.
#[tokio::test(start_paused = true)]
async fn late_task_is_given_up_as_soon_as_the_response_to_a_poll_has_ended() {
    let working = Answer::Slow(25, Box::new(Answer::Task("working", "")));
    for (answer, ends_after) in [(working, 25..30), (Answer::Stalled, 10..15)] {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, Binding::HttpJson).await;
        scene.agent("second", 1, Binding::HttpJson).await;
        first.answers(Answer::Task("working", ""), answer.clone());
        let began = Instant::now();
        let orchestrator = scene.orchestrator();
        let sent = orchestrator.delegate("work").attempt_timeout(Duration::from_secs(10));
        let done = send(sent.time_limit(Duration::from_secs(120))).await.unwrap();
        assert_eq!(done.value.text(), "second", "{answer:?}");
        assert!(done.failed[0].to_string().contains("the attempt_timeout of 10.0s"), "{}", done.failed[0]);
        assert!(ends_after.contains(&began.elapsed().as_secs()), "{answer:?}: {:?}", began.elapsed());
        until("the task is canceled", || first.count("CancelTask") == 1).await;
        assert_eq!(first.count("GetTask"), 1, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn result_is_waited_for_no_longer_than_the_time_limit() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let result = Answer::Task("completed", "done");
    agent.answers(Answer::Task("working", ""), Answer::Slow(40, Box::new(result)));
    let began = Instant::now();
    let orchestrator = scene.orchestrator();
    let sent = orchestrator.delegate("work").attempt_timeout(Duration::from_secs(10));
    let error = send(sent.time_limit(Duration::from_secs(30))).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::TimedOut { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

/// The agent may have lost the task, so nothing shows that it was done.
#[tokio::test(start_paused = true)]
async fn task_goes_to_the_next_agent_if_the_responses_to_polls_cannot_be_read() {
    let page = Answer::Http(200, None, "<html>maintenance</html>");
    let neither = Answer::Result(json!({"status": "maintenance"}));
    for binding in BINDINGS {
        for answer in [Answer::Broken, Answer::Stalled, page.clone(), neither.clone()] {
            let mut scene = Scene::new().await;
            let first = scene.agent("first", 0, binding).await;
            scene.agent("second", 1, binding).await;
            first.answers(Answer::Task("working", ""), answer.clone());
            let orchestrator = scene.orchestrator();
            for _ in 0..10 {
                let sent = orchestrator.delegate("work").time_limit(Duration::from_secs(600));
                let done = send(sent).await.unwrap();
                assert_eq!(done.value.text(), "second", "{binding:?} {answer:?}");
                let is_failure = done.failed.iter().all(|failed| failed.kind == FailureKind::Agent);
                assert!(is_failure, "{:?}", done.failed);
                if orchestrator.ejection("first") != EjectionState::Admitted {
                    break;
                }
            }
            assert_ne!(orchestrator.ejection("first"), EjectionState::Admitted, "{binding:?} {answer:?}");
            let sent = first.count("SendMessage");
            until("the tasks are canceled", || first.count("CancelTask") == sent).await;
        }
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
            text.contains(r#"the response is about another task: its id is "t-2" instead of "t-1""#),
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
