//! Responses that are read chunk by chunk.

use std::time::Duration;

use registry_sdk::discovery::{EjectionSettings, EjectionState, Orchestrator, TaskResponse};
use reqwest::Method;
use tokio::time::{Instant, sleep};

use super::counts;
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 2] = ["first", "second"];

fn strict(scene: &Scene) -> Orchestrator {
    let settings = EjectionSettings::default().consecutive_failures(1);
    scene.orchestrator_builder().ejection(settings).build()
}

async fn open(orchestrator: &Orchestrator) -> TaskResponse {
    let delegation = orchestrator.delegate("work").chunk_timeout(Duration::from_secs(5));
    delegation
        .time_limit(Duration::from_secs(10))
        .send(Method::POST, "/stream", "a task")
        .await
        .unwrap()
        .value
}

#[tokio::test(start_paused = true)]
async fn stream_is_read_for_longer_than_the_time_limit() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Answer(503, "", "no"));
    scene.set("second", Reply::Parts("0123456789abcdefghij", 1, Duration::from_secs(4)));
    let orchestrator = strict(&scene);
    let began = Instant::now();
    let mut response = open(&orchestrator).await;
    assert_eq!((response.status(), response.headers()["content-length"].as_bytes()), (200, &b"20"[..]));
    assert!(began.elapsed() < Duration::from_secs(4), "it is there before its body is");
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.extend(chunk);
    }
    assert_eq!(text, b"0123456789abcdefghij");
    assert!(began.elapsed() >= Duration::from_secs(80));
    assert_eq!(scene.tasks("second")[0].body, "a task");
    assert_eq!(orchestrator.ejection("second"), EjectionState::Admitted);
}

#[tokio::test(start_paused = true)]
async fn stream_that_stops_is_an_error_and_counts_against_its_agent() {
    for reply in [Reply::Stall("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"), Reply::Truncated] {
        let scene = Scene::ranked(&IDS).await;
        scene.set("first", reply.clone());
        let orchestrator = strict(&scene);
        let mut response = open(&orchestrator).await;
        assert!(response.chunk().await.unwrap().is_some());
        assert_eq!(orchestrator.ejection("first"), EjectionState::Admitted);
        let error = response.chunk().await.unwrap_err().to_string();
        assert!(error.contains("chunk_timeout of 5s") || error.contains("broke off"), "{error}");
        assert!(matches!(orchestrator.ejection("first"), EjectionState::Ejected { .. }), "{reply:?}");
        assert_eq!(counts(&scene, IDS), [1, 0], "nobody else gets it");
    }
}

/// While a stream is being read, its agent is working.
#[tokio::test(start_paused = true)]
async fn stream_counts_as_in_flight_until_it_ends_or_is_dropped() {
    let scene = Scene::new(&IDS).await;
    let orchestrator = scene.orchestrator_builder().seed(3).build();
    let first = open(&orchestrator).await;
    let others = [open(&orchestrator).await, open(&orchestrator).await, open(&orchestrator).await];
    let [one, two] = counts(&scene, IDS);
    assert_eq!((one, two), (2, 2), "the less loaded one gets the next task");
    drop((first, others));
    sleep(Duration::from_secs(1)).await;
    let done = open(&orchestrator).await.into_inner().text().await.unwrap();
    assert!(done.contains("healthy"), "{done}");
}
