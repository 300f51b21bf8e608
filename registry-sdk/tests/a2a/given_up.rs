//! Attempts that are given up: how their tasks are canceled, and whether they count against their agents.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::Orchestrator;
use registry_sdk::discovery::{EjectionState, EndReason, FailureKind};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use crate::fakes::{Answer, BINDINGS, Binding, Scene, reply_text, send, until};

#[tokio::test(start_paused = true)]
async fn slow_read_of_a_card_does_not_count_against_the_agent() {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, Binding::JsonRpc).await;
    scene.agent("second", 1, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator_with_directory().await;
    for _ in 0..10 {
        // The directory answers the search itself, so the next request is the one for the first agent's card.
        scene.registry.hang(1);
        let sent = orchestrator.delegate("work").hedge_after(Duration::from_secs(1));
        assert_eq!(reply_text(sent).await.as_deref(), Ok("second"));
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(first.count("SendMessage"), 0);
    assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
}

#[tokio::test(start_paused = true)]
async fn delegation_that_ends_while_a_card_is_read_does_not_count_against_the_agent() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("first", 0, Binding::JsonRpc).await;
    // Without a second agent, the first would never be ejected.
    scene.agent("second", 1, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator_with_directory().await;
    for _ in 0..10 {
        scene.registry.hang(1);
        let sent = orchestrator.delegate("work").time_limit(Duration::from_secs(3)).attempts(1);
        let error = send(sent).await.unwrap_err();
        assert_eq!(error.attempts.len(), 1, "{error}");
        assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
        // Until then, the card is not read again.
        sleep(Duration::from_secs(11)).await;
    }
    assert_eq!(agent.count("SendMessage"), 0);
}

#[tokio::test(start_paused = true)]
async fn token_provider_is_called_again_to_cancel_a_task() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    agent.answers(Answer::Task("working", ""), Answer::Task("working", ""));
    let count = AtomicUsize::new(0);
    let orchestrator = Orchestrator::builder(scene.registry.client())
        .token_provider(move |_| Some(format!("{:03}", count.fetch_add(1, Ordering::Relaxed))))
        .build();
    let sent = orchestrator.delegate("work").send_message("Find a recipe");
    assert!(timeout(Duration::from_secs(30), sent).await.is_err());
    until("the task is canceled", || agent.count("CancelTask") == 1).await;
    let token = |operation| {
        let calls = agent.calls(operation);
        calls.last().and_then(|call| call.header("authorization")).unwrap().to_owned()
    };
    assert!(token("CancelTask") > token("GetTask"), "{} {}", token("CancelTask"), token("GetTask"));
}

#[test]
fn task_is_canceled_even_if_its_delegation_is_dropped_outside_the_runtime() {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let mut scene = runtime.block_on(Scene::new());
    let agent = runtime.block_on(scene.agent("a", 0, Binding::HttpJson));
    agent.answers(Answer::Task("working", ""), Answer::Task("working", ""));
    let orchestrator = runtime.block_on(async { scene.orchestrator() });
    let mut sent = Box::pin(orchestrator.delegate("work").send_message("Find a recipe"));
    let waited = runtime.block_on(async { timeout(Duration::from_secs(10), &mut sent).await.map(|_| ()) });
    assert!(waited.is_err());
    drop(sent);
    runtime.block_on(until("the task is canceled", || agent.count("CancelTask") == 1));
}

/// A token that has expired is refused by all agents, and is the fault of none.
#[tokio::test(start_paused = true)]
async fn polls_with_wrong_credentials_do_not_count_against_the_agents() {
    for (binding, status) in [(Binding::JsonRpc, 401), (Binding::HttpJson, 403), (Binding::OldJsonRpc, 401)] {
        let mut scene = Scene::new().await;
        let agents = [scene.agent("first", 0, binding).await, scene.agent("second", 1, binding).await];
        for agent in &agents {
            agent.answers(Answer::Task("working", ""), Answer::Http(status, None, "expired"));
        }
        let orchestrator = scene.orchestrator();
        for _ in 0..10 {
            let error = send(orchestrator.delegate("work")).await.unwrap_err();
            assert!(matches!(error.reason, EndReason::Misdeployed), "{binding:?}: {error}");
            sleep(Duration::from_secs(1)).await;
        }
        for (id, agent) in ["first", "second"].into_iter().zip(&agents) {
            assert_eq!(orchestrator.ejection(id), EjectionState::Admitted, "{binding:?} {id}");
            until("the tasks are canceled", || agent.count("CancelTask") == 10).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn polls_with_refused_credentials_count_against_the_agent_if_another_one_succeeds() {
    for binding in BINDINGS {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, binding).await;
        scene.agent("second", 1, binding).await;
        first.answers(Answer::Task("working", ""), Answer::Http(401, None, "who are you?"));
        let orchestrator = scene.orchestrator();
        for _ in 0..10 {
            let done = send(orchestrator.delegate("work")).await.unwrap();
            assert_eq!(done.value.text(), "second", "{binding:?}");
            let is_refusal = done.failed.iter().all(|failed| failed.kind == FailureKind::Deployment);
            assert!(is_refusal, "{:?}", done.failed);
            sleep(Duration::from_secs(1)).await;
        }
        assert_ne!(orchestrator.ejection("first"), EjectionState::Admitted, "{binding:?}");
        assert!(first.count("SendMessage") < 10, "{binding:?}");
    }
}

/// These agents have begun the task, unlike those that refuse the message itself.
#[tokio::test(start_paused = true)]
async fn polls_with_refused_credentials_use_up_the_attempts() {
    let mut scene = Scene::new().await;
    let agents = scene.three_agents(Answer::Task("working", ""), Answer::Http(401, None, "expired")).await;
    let orchestrator = scene.orchestrator();
    let error = send(orchestrator.delegate("work").attempts(2)).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::AttemptsExhausted), "{error}");
    let error = send(orchestrator.delegate("work").at_most_once()).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::MayHaveArrived), "{error}");
    assert_eq!([2, 1, 0], agents.map(|agent| agent.count("SendMessage")));
}

#[tokio::test(start_paused = true)]
async fn attempt_that_ends_while_the_agent_is_busy_does_not_count_against_it() {
    for (binding, status) in [(Binding::JsonRpc, 429), (Binding::HttpJson, 503), (Binding::OldJsonRpc, 409)] {
        // The attempt is given up at the end of its own time, at the end of the delegation, or for a hedge.
        for case in ["attempt", "delegation", "hedge"] {
            let mut scene = Scene::new().await;
            let first = scene.agent("first", 0, binding).await;
            scene.agent("second", 1, binding).await;
            first.answers(Answer::Task("working", ""), Answer::Http(status, Some(60), ""));
            let orchestrator = scene.orchestrator();
            for _ in 0..10 {
                let sent = orchestrator.delegate("work");
                let (sent, expected) = match case {
                    "attempt" => (sent, Some("second")),
                    "delegation" => (sent.attempts(1), None),
                    _ => (sent.hedge_after(Duration::from_secs(5)), Some("second")),
                };
                let reply = reply_text(sent).await;
                assert_eq!(reply.as_deref().ok(), expected, "{binding:?} {case}: {reply:?}");
            }
            assert_eq!(first.count("SendMessage"), 10, "{binding:?} {case}");
            assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted, "{binding:?} {case}");
        }
    }
}

/// An agent that is busy, and later fails or only works on, is late like any other.
#[tokio::test(start_paused = true)]
async fn attempt_that_ends_after_the_agent_was_busy_counts_against_it() {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, Binding::JsonRpc).await;
    scene.agent("second", 1, Binding::JsonRpc).await;
    first.script(|call, _| match call.operation {
        "GetTask" if call.json["id"] == 2 => Answer::Http(429, Some(1), ""),
        _ => Answer::Task("working", ""),
    });
    let orchestrator = scene.orchestrator();
    for _ in 0..5 {
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("second"));
    }
    assert_ne!(orchestrator.ejection("first"), EjectionState::Admitted);
}
