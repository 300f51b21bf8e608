//! The cards by which agents are called: read once, read again when they change, and kept for outages.

use std::time::Duration;

use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::discovery::EndReason;
use registry_sdk::{Directory, Orchestrator};
use tokio::time::{Instant, sleep};

use crate::fakes::{Answer, Binding, Scene, interface, send, send_for};

#[tokio::test(start_paused = true)]
async fn card_is_read_once_and_again_when_it_changes() {
    for has_directory in [false, true] {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, Binding::JsonRpc).await;
        let elsewhere = scene.unregistered(Binding::HttpJson).await;
        elsewhere.answers(Answer::Task("completed", "elsewhere"), Answer::Hang);
        let mut builder = Orchestrator::builder(scene.registry.client());
        if has_directory {
            let directory = Directory::follow(&scene.registry.client());
            directory.ready().await.unwrap();
            builder = builder.directory(directory);
        }
        let orchestrator = builder.build();
        for _ in 0..5 {
            assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
            sleep(Duration::from_secs(600)).await;
        }
        assert_eq!(scene.cards_read(), 1);
        let details = CardDetails::new("Works", "1.0.0", interface(&elsewhere, Binding::HttpJson));
        scene.register("a", 0, &agent, Some(details)).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("elsewhere"));
        assert_eq!(scene.cards_read(), 2);
        // It may also be gone.
        scene.register("a", 0, &agent, None).await;
        sleep(Duration::from_secs(61)).await;
        let error = send(orchestrator.delegate("work")).await.unwrap_err();
        assert!(error.contains("it registered no A2A agent card"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn agent_is_called_by_its_last_card_while_the_registry_is_away() {
    let mut scene = Scene::new().await;
    scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator();
    assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    scene.registry.outage(Duration::from_secs(86_400));
    for _ in 0..5 {
        sleep(Duration::from_secs(300)).await;
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    }
}

/// The directory tells that it has changed, but the registry cannot be asked for it.
#[tokio::test(start_paused = true)]
async fn last_card_is_used_if_the_changed_one_cannot_be_read() {
    for hangs in [false, true] {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, Binding::JsonRpc).await;
        let directory = Directory::follow(&scene.registry.client());
        directory.ready().await.unwrap();
        let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
        let nowhere = Interface::json_rpc("http://127.0.0.1:1");
        let details = CardDetails::new("Works", "1.0.0", nowhere);
        scene.register("a", 0, &agent, Some(details)).await;
        sleep(Duration::from_secs(1)).await;
        if hangs {
            scene.registry.hang(99);
        } else {
            scene.registry.fail_next(99, 503);
        }
        let began = Instant::now();
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"), "hangs: {hangs}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(agent.count("SendMessage"), 2);
    }
}

/// The registry fails between the search and the card.
#[tokio::test(start_paused = true)]
async fn agent_whose_card_was_never_read_needs_the_registry() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    drop(selection);
    scene.registry.outage(Duration::from_secs(86_400));
    let began = Instant::now();
    let error = send_for(orchestrator.delegate("work")).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::NoAgent { .. }), "{error}");
    assert!(error.to_string().contains("a: its A2A agent card cannot be read: the registry"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(agent.count("SendMessage"), 0);
    scene.registry.heal();
    assert_eq!(
        send(orchestrator.delegate("work")).await.as_deref(),
        Ok("a"),
        "it is not held against the agent"
    );
}

/// An agent whose card was corrected is not held to the card with which it could not be called.
#[tokio::test(start_paused = true)]
async fn earlier_card_without_an_interface_is_no_reason_to_hurry() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let details = |interface| Some(CardDetails::new("Works", "1.0.0", interface));
    scene.register("a", 0, &agent, details(Interface::new("GRPC", "http://127.0.0.1:1"))).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    assert!(error.contains("a: its A2A agent card has no interface"), "{error}");
    scene.register("a", 0, &agent, details(interface(&agent, Binding::JsonRpc))).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.delay(Duration::from_secs(3));
    assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
}

/// Each further read would cost a task a second.
#[tokio::test(start_paused = true)]
async fn registry_that_hangs_is_not_asked_again_at_once_for_a_changed_card() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let elsewhere = scene.agent("b", 1, Binding::HttpJson).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
    assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    let details = CardDetails::new("Works", "1.0.0", interface(&elsewhere, Binding::HttpJson));
    scene.register("a", 0, &agent, Some(details)).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.hang(usize::from(u16::MAX));
    for _ in 0..4 {
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    }
    assert_eq!(scene.cards_read(), 2);
    scene.registry.heal();
    sleep(Duration::from_secs(11)).await;
    assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("b"));
    assert_eq!(scene.cards_read(), 3);
}
