//! Tasks that are sent at most once.

use std::time::Duration;

use registry_sdk::contract::{Capability, Registration};
use tokio::time::Instant;

use super::{counts, send};
use crate::scene::Scene;
use crate::support::{Reply, without_listener};

const IDS: [&str; 3] = ["first", "second", "third"];

#[tokio::test(start_paused = true)]
async fn task_that_may_have_arrived_is_sent_to_no_other_agent() {
    for reply in [
        Reply::Hang,
        Reply::Close,
        Reply::Stall("HTTP/1.1 2"),
        Reply::Answer(500, "", "no"),
        Reply::Answer(503, "", "no"),
        // A refusal also shows that the task arrived.
        Reply::Answer(429, "retry-after: 1\r\n", "no"),
        Reply::Answer(404, "", "no"),
    ] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("first", reply.clone());
        let orchestrator = scene.orchestrator();
        let error = send(orchestrator.delegate("work").at_most_once()).await.unwrap_err();
        assert_eq!(counts(&scene, IDS), [1, 0, 0], "{reply:?}");
        assert!(error.contains("first") && error.contains("at most once"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn task_that_cannot_have_arrived_is_sent_to_the_next_agent() {
    let scene = Scene::ranked(&IDS).await;
    let (_socket, url) = without_listener();
    let registration = Registration::new("gone", "gone", url).capability(Capability::new("work").tag("gone"));
    scene.registry.client().register(&registration).await.unwrap();
    let orchestrator = scene.orchestrator();
    // Both match equally well, so either may come first.
    for _ in 0..10 {
        let outcome = send(orchestrator.delegate("work").at_most_once()).await;
        assert_eq!(outcome.as_deref(), Ok("first"));
    }
    assert_eq!(counts(&scene, IDS), [10, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn at_most_once_task_is_not_hedged_and_has_all_of_the_time() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Late(Duration::from_secs(50), r#"{"by":"first"}"#));
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let delegation = orchestrator.delegate("work").hedge_after(Duration::from_secs(1)).at_most_once();
    assert_eq!(send(delegation).await.as_deref(), Ok("first"));
    assert!(began.elapsed() >= Duration::from_secs(50));
    assert_eq!(counts(&scene, IDS), [1, 0, 0]);
}
