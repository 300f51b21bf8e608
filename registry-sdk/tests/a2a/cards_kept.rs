//! The cards that an orchestrator keeps: read once, read again after a change, and used while the registry is away.

use std::time::Duration;

use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::discovery::EndReason;
use registry_sdk::{Directory, Orchestrator};
use tokio::time::{Instant, sleep};

use crate::fakes::{Answer, Binding, Scene, interface, reply_text, send};

#[tokio::test(start_paused = true)]
async fn card_is_read_once_and_again_after_it_changes() {
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
            assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
            sleep(Duration::from_secs(600)).await;
        }
        assert_eq!(scene.cards_read(), 1);
        let details = CardDetails::new("Works", "1.0.0", interface(&elsewhere, Binding::HttpJson));
        scene.register("a", 0, &agent, Some(details)).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("elsewhere"));
        assert_eq!(scene.cards_read(), 2);
        // A registration without a card removes it.
        scene.register("a", 0, &agent, None).await;
        sleep(Duration::from_secs(61)).await;
        let error = reply_text(orchestrator.delegate("work")).await.unwrap_err();
        assert!(error.contains("it registered no A2A agent card"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn last_card_is_used_while_the_registry_is_away() {
    let mut scene = Scene::new().await;
    scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator();
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    scene.registry.outage(Duration::from_secs(86_400));
    for _ in 0..5 {
        sleep(Duration::from_secs(300)).await;
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    }
}

/// The directory reports that the card has changed, but requests for the new card fail.
#[tokio::test(start_paused = true)]
async fn last_card_is_used_if_the_new_one_cannot_be_read() {
    for hangs in [false, true] {
        let mut scene = Scene::new().await;
        let agent = scene.agent("a", 0, Binding::JsonRpc).await;
        let directory = Directory::follow(&scene.registry.client());
        directory.ready().await.unwrap();
        let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
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
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"), "hangs: {hangs}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(agent.count("SendMessage"), 2);
    }
}

/// The registry goes away after the search, before the card is read.
#[tokio::test(start_paused = true)]
async fn agent_whose_card_was_never_read_cannot_be_called_while_the_registry_is_away() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    drop(selection);
    scene.registry.outage(Duration::from_secs(86_400));
    let began = Instant::now();
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::NoAgent { .. }), "{error}");
    assert!(error.to_string().contains("a: its A2A agent card cannot be read: the registry"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(agent.count("SendMessage"), 0);
    scene.registry.heal();
    assert_eq!(
        reply_text(orchestrator.delegate("work")).await.as_deref(),
        Ok("a"),
        "the outage does not count against the agent"
    );
}

/// A card that cannot be used is no replacement for the new one, so the read is not cut short after a second.
#[tokio::test(start_paused = true)]
async fn slow_read_of_a_card_is_awaited_if_the_last_card_has_no_supported_interface() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let details = |interface| Some(CardDetails::new("Works", "1.0.0", interface));
    scene.register("a", 0, &agent, details(Interface::new("GRPC", "http://127.0.0.1:1"))).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
    let error = reply_text(orchestrator.delegate("work")).await.unwrap_err();
    assert!(error.contains("a: its A2A agent card has no interface"), "{error}");
    scene.register("a", 0, &agent, details(interface(&agent, Binding::JsonRpc))).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.delay(Duration::from_secs(3));
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
}

/// Each further read would delay a task by a second.
#[tokio::test(start_paused = true)]
async fn read_of_a_changed_card_that_hung_is_not_repeated_at_once() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let elsewhere = scene.agent("b", 1, Binding::HttpJson).await;
    let directory = Directory::follow(&scene.registry.client());
    directory.ready().await.unwrap();
    let orchestrator = Orchestrator::builder(scene.registry.client()).directory(directory).build();
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    let details = CardDetails::new("Works", "1.0.0", interface(&elsewhere, Binding::HttpJson));
    scene.register("a", 0, &agent, Some(details)).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.hang(usize::from(u16::MAX));
    for _ in 0..4 {
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    }
    assert_eq!(scene.cards_read(), 2);
    scene.registry.heal();
    sleep(Duration::from_secs(11)).await;
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("b"));
    assert_eq!(scene.cards_read(), 3);
}
