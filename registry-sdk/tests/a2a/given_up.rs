//! Attempts that are given up: how their tasks are canceled, and whether they count against their agents.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::EjectionState;
use registry_sdk::{Directory, Orchestrator};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use crate::fakes::{Answer, Binding, Scene, reply_text, send, until};

#[tokio::test(start_paused = true)]
async fn slow_read_of_a_card_does_not_count_against_the_agent() {
    let mut scene = Scene::new().await;
    let first = scene.agent("first", 0, Binding::JsonRpc).await;
    scene.agent("second", 1, Binding::JsonRpc).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
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
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
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
