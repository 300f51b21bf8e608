//! Long tasks: they are polled until they end, or canceled.

use std::time::Duration;

use registry_sdk::discovery::{EjectionState, EndReason};
use tokio::time::{Instant, timeout};

use crate::fakes::{Agent, Answer, BINDINGS, Binding, Call, Scene, reply_text, send, until};

/// Answers that a task is being worked on, and after some time that it is completed.
fn completed_after(time: Duration) -> impl FnMut(&Call, usize) -> Answer + Send {
    let mut began = None;
    move |_, _| {
        let began = *began.get_or_insert_with(Instant::now);
        if began.elapsed() < time { Answer::Task("working", "") } else { Answer::Task("completed", "done") }
    }
}

/// Makes an agent die once it has accepted a task.
fn die_after_accepting_a_task(agent: &Agent) {
    let killed = agent.clone();
    agent.script(move |_, _| {
        killed.kill();
        Answer::Task("working", "")
    });
}

#[tokio::test(start_paused = true)]
async fn task_is_polled_until_it_is_done() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.script(completed_after(Duration::from_secs(600)));
        let began = Instant::now();
        let orchestrator = scene.orchestrator();
        let sent = orchestrator.delegate("work").time_limit(Duration::from_secs(1_800));
        assert_eq!(reply_text(sent).await.as_deref(), Ok("done"), "{binding:?}");
        let (elapsed, polls) = (began.elapsed().as_secs(), agent.count("GetTask"));
        assert!((600..660).contains(&elapsed), "{elapsed}");
        assert!((120..500).contains(&polls), "{polls}");
        assert_eq!((agent.count("SendMessage"), agent.count("CancelTask")), (1, 0));
        // An agent must not mistake a poll for a repetition of the message.
        let poll = &agent.calls("GetTask")[0];
        assert_eq!(
            (poll.header("idempotency-key"), poll.header("delegation-time-left-seconds")),
            (None, None)
        );
        assert!(poll.header("a2a-version").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn two_failed_polls_in_a_row_do_not_fail_the_task() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, binding).await;
        agent.script(|call, index| match (call.operation, index) {
            ("SendMessage", _) | (_, 3) => Answer::Task("submitted", ""),
            (_, 0) => Answer::Http(503, Some(1), "a moment"),
            (_, 1) => Answer::Hang,
            (_, 4) => Answer::Broken,
            (_, 5) => Answer::Error(-32_001, "TASK_NOT_FOUND", 404),
            (_, 2 | 6) => Answer::Task("working", ""),
            _ => Answer::Task("completed", "done"),
        });
        assert_eq!(
            reply_text(scene.orchestrator().delegate("work")).await.as_deref(),
            Ok("done"),
            "{binding:?}"
        );
        assert_eq!((agent.count("SendMessage"), agent.count("GetTask")), (1, 8));
    }
}

#[tokio::test(start_paused = true)]
async fn task_of_an_agent_that_dies_goes_to_the_next_agent() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, binding).await;
        scene.agent("second", 1, binding).await;
        die_after_accepting_a_task(&first);
        let orchestrator = scene.orchestrator();
        let began = Instant::now();
        let done = send(orchestrator.delegate("work").time_limit(Duration::from_secs(600))).await.unwrap();
        assert_eq!((done.value.text().as_str(), done.failed.len()), ("second", 1), "{binding:?}");
        assert!(done.failed[0].to_string().contains("first: no connection"), "{}", done.failed[0]);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        // A dead agent cannot receive a task, so another agent may get it.
        let reply = reply_text(orchestrator.delegate("work").at_most_once()).await;
        assert_eq!(reply.as_deref(), Ok("second"), "{binding:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_once_task_that_arrived_is_not_sent_again() {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, Binding::JsonRpc).await;
    let second = scene.agent("second", 1, Binding::JsonRpc).await;
    die_after_accepting_a_task(&first);
    let error = send(scene.orchestrator().delegate("work").at_most_once()).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::MayHaveArrived), "{error}");
    assert_eq!(second.count("SendMessage"), 0);
}

#[tokio::test(start_paused = true)]
async fn late_task_is_canceled_and_goes_to_the_next_agent() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, binding).await;
        scene.agent("second", 1, binding).await;
        first.answers(Answer::Task("working", ""), Answer::Task("working", ""));
        let orchestrator = scene.orchestrator();
        let began = Instant::now();
        let done = send(orchestrator.delegate("work")).await.unwrap();
        assert_eq!((done.value.text().as_str(), began.elapsed().as_secs()), ("second", 30), "{binding:?}");
        until("the task is canceled", || first.count("CancelTask") == 1).await;
        if binding != Binding::HttpJson {
            assert_eq!(first.calls("CancelTask")[0].params()["id"], "t-1");
        }
        for _ in 0..5 {
            let _ = reply_text(orchestrator.delegate("work")).await;
        }
        assert_ne!(
            orchestrator.ejection("first"),
            EjectionState::Admitted,
            "being late counts against the agent"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn task_of_a_caller_that_gave_up_is_canceled() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    // The cancellation is sent even if the agent never responds to it.
    agent.script(
        |call, _| if call.operation == "CancelTask" { Answer::Hang } else { Answer::Task("working", "") },
    );
    let orchestrator = scene.orchestrator();
    let sent = orchestrator.delegate("work").send_message("Find a recipe");
    assert!(timeout(Duration::from_secs(10), sent).await.is_err());
    until("the task is canceled", || agent.count("CancelTask") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn overtaken_task_is_canceled_and_the_hedge_has_the_same_message_id() {
    let mut scene = Scene::new().await;
    let slow = scene.agent("slow", 0, Binding::JsonRpc).await;
    let fast = scene.agent("fast", 1, Binding::HttpJson).await;
    slow.answers(Answer::Task("working", ""), Answer::Task("working", ""));
    let orchestrator = scene.orchestrator();
    let sent = orchestrator.delegate("work").hedge_after(Duration::from_secs(2));
    assert_eq!(reply_text(sent).await.as_deref(), Ok("fast"));
    until("the task is canceled", || slow.count("CancelTask") == 1).await;
    assert_eq!(fast.count("CancelTask"), 0);
    let id = |agent: &Agent| agent.calls("SendMessage")[0].params()["message"]["messageId"].clone();
    assert_eq!(id(&slow), id(&fast));
    assert!(id(&slow).is_string());
}
