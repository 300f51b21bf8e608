//! The cards that an orchestrator keeps: read once, read again after a change, and used while the registry is unavailable.

use std::time::Duration;

use registry_sdk::a2a::{CardDetails, Interface};
use registry_sdk::discovery::{EjectionState, EndReason, TaskQuery};
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
        let orchestrator = scene.orchestrator_with_directory().await;
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

/// The registry becomes unavailable after the search, before the card is read.
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
    sleep(Duration::from_secs(11)).await;
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
    let orchestrator = scene.orchestrator_with_directory().await;
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
    let orchestrator = scene.orchestrator_with_directory().await;
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

/// Otherwise each delegation would wait for an agent that cannot be called anyway.
#[tokio::test(start_paused = true)]
async fn registry_that_hangs_or_fails_while_a_first_card_is_read_costs_delegations_little_time() {
    for hangs in [true, false] {
        let mut scene = Scene::new().await;
        let first = scene.agent("first", 0, Binding::JsonRpc).await;
        scene.agent("second", 1, Binding::JsonRpc).await;
        let orchestrator = scene.orchestrator_with_directory().await;
        let without_first = || orchestrator.delegate(TaskQuery::new("work").exclude("first"));
        assert_eq!(reply_text(without_first()).await.as_deref(), Ok("second"));
        let read_before = scene.cards_read();
        if hangs {
            scene.registry.hang(usize::from(u16::MAX));
        } else {
            scene.registry.fail_next(usize::from(u16::MAX), 503);
        }
        let began = Instant::now();
        let mut read = 0;
        for index in 0..4 {
            let done = send(orchestrator.delegate("work")).await.unwrap();
            assert_eq!(done.value.text(), "second", "hangs: {hangs}");
            let failed = done.failed[0].to_string();
            assert!(failed.contains("first: its A2A agent card cannot be read: "), "{failed}");
            if index == 0 {
                read = scene.cards_read();
                assert!(read > read_before, "{read}");
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20), "hangs: {hangs}: {:?}", began.elapsed());
        if hangs {
            assert_eq!(scene.cards_read(), read);
        }
        let read = scene.cards_read();
        scene.registry.heal();
        // A registry that fails at once keeps no agent waiting after it is back.
        sleep(if hangs { Duration::from_secs(11) } else { Duration::from_secs(4) }).await;
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("first"));
        assert_eq!((scene.cards_read(), first.count("SendMessage")), (read + 1, 1), "hangs: {hangs}");
        assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted, "hangs: {hangs}");
    }
}

/// A read that was cut off by a short attempt says nothing about one that may take longer.
#[tokio::test(start_paused = true)]
async fn first_read_of_a_card_may_take_longer_than_one_that_was_cut_off() {
    let mut scene = Scene::new().await;
    scene.agent("first", 0, Binding::JsonRpc).await;
    scene.agent("second", 1, Binding::JsonRpc).await;
    let orchestrator = scene.orchestrator_with_directory().await;
    let without_first = || orchestrator.delegate(TaskQuery::new("work").exclude("first"));
    assert_eq!(reply_text(without_first()).await.as_deref(), Ok("second"));
    scene.registry.delay(Duration::from_secs(3));
    let quick = || orchestrator.delegate("work").attempt_timeout(Duration::from_secs(2));
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(reply_text(quick()).await.as_deref(), Ok("second"));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("first"));
    assert_eq!(reply_text(quick()).await.as_deref(), Ok("first"));
}

/// The registry takes longer than a second to send the card. Each read has twice as long as the last one.
#[tokio::test(start_paused = true)]
async fn changed_card_that_takes_long_to_read_is_used_after_some_reads() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    let elsewhere = scene.unregistered(Binding::HttpJson).await;
    elsewhere.answers(Answer::Task("completed", "elsewhere"), Answer::Hang);
    let orchestrator = scene.orchestrator_with_directory().await;
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    // After a success, the next change begins at a second again.
    for (version, earlier) in [("2.0.0", "a"), ("3.0.0", "elsewhere")] {
        let details = CardDetails::new("Works", version, interface(&elsewhere, Binding::HttpJson));
        scene.register("a", 0, &agent, Some(details)).await;
        sleep(Duration::from_secs(1)).await;
        scene.registry.delay(Duration::from_millis(4_500));
        for (expected, seconds) in
            [(earlier, 1), (earlier, 2), (earlier, 4), ("elsewhere", 4), ("elsewhere", 0)]
        {
            let began = Instant::now();
            assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok(expected));
            assert_eq!(began.elapsed().as_secs(), seconds, "{version}");
            sleep(Duration::from_secs(15)).await;
        }
        scene.registry.delay(Duration::ZERO);
    }
}

/// The earlier card may be as good as the new one, so the task must not be late because of it.
#[tokio::test(start_paused = true)]
async fn read_of_a_changed_card_leaves_half_of_the_time_to_the_agent() {
    let mut scene = Scene::new().await;
    let agent = scene.agent("a", 0, Binding::JsonRpc).await;
    agent.answers(
        Answer::Late(Duration::from_secs(3), Box::new(Answer::Task("completed", "a"))),
        Answer::Hang,
    );
    let orchestrator = scene.orchestrator_with_directory().await;
    assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    let details = CardDetails::new("Works", "2.0.0", interface(&agent, Binding::JsonRpc));
    scene.register("a", 0, &agent, Some(details)).await;
    sleep(Duration::from_secs(1)).await;
    scene.registry.hang(usize::from(u16::MAX));
    for _ in 0..8 {
        let sent = orchestrator.delegate("work").attempt_timeout(Duration::from_secs(8));
        assert_eq!(reply_text(sent).await.as_deref(), Ok("a"));
        sleep(Duration::from_secs(15)).await;
    }
}
