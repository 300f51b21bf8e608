//! Endless responses.

use std::time::Duration;

use registry_sdk::discovery::{HealthSource, TaskQuery};
use tokio::time::{Instant, timeout};

use super::{LONGEST_DELEGATION, counts, delegate};
use crate::scene::Scene;
use crate::support::{ENDLESS, Reply};

const PART: usize = 64 * 1024;

/// Default limit of a body, and what the kernel may buffer in addition.
const LARGEST: usize = ENDLESS / 2;

fn endless(status: u16) -> Reply {
    Reply::Endless(status, PART, Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn endless_response_is_cut_off_and_the_task_is_not_run_again() {
    let scene = Scene::ranked(&["alpha", "well"]).await;
    scene.set("alpha", endless(200));
    let began = Instant::now();
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    assert!(scene.agents.endless_bytes() <= LARGEST, "{} bytes: {error}", scene.agents.endless_bytes());
    assert_eq!(counts(&scene, ["alpha", "well"]), [1, 0], "{error}");
    assert!(error.contains("alpha"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "not by a time-out: {:?}", began.elapsed());
}

/// Only the beginning of an error matters.
#[tokio::test(start_paused = true)]
async fn endless_error_is_cut_and_the_next_agent_does_the_task() {
    for status in [500, 429, 404, 302] {
        let scene = Scene::ranked(&["alpha", "well"]).await;
        scene.set("alpha", endless(status));
        let began = Instant::now();
        assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("well"), "{status}");
        assert!(scene.agents.endless_bytes() <= LARGEST, "{} bytes", scene.agents.endless_bytes());
        assert!(began.elapsed() < Duration::from_secs(5), "not by a time-out: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn endless_refusal_is_cut_and_ends_the_task() {
    let scene = Scene::ranked(&["alpha", "well"]).await;
    scene.set("alpha", endless(422));
    let began = Instant::now();
    let error = delegate(&scene.orchestrator()).await.unwrap_err();
    assert_eq!(counts(&scene, ["alpha", "well"]), [1, 0], "{error}");
    assert!(scene.agents.endless_bytes() <= LARGEST, "{} bytes", scene.agents.endless_bytes());
    assert!(began.elapsed() < Duration::from_secs(5), "not by a time-out: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn endless_health_check_is_cut_and_its_status_counts() {
    for (status, expected) in [(200, "alpha"), (503, "well")] {
        let scene = Scene::ranked(&["alpha", "well"]).await;
        scene.set("alpha", endless(status));
        let query = TaskQuery::new("work").health_source(HealthSource::Agent);
        let orchestrator = scene.orchestrator();
        let selection = timeout(LONGEST_DELEGATION, orchestrator.select(&query)).await.unwrap().unwrap();
        assert_eq!(selection.agent.agent_id, expected);
        assert!(scene.agents.endless_bytes() <= LARGEST, "{} bytes", scene.agents.endless_bytes());
    }
}

/// A response of the maximum size is not endless.
#[tokio::test(start_paused = true)]
async fn large_response_is_read() {
    let scene = Scene::ranked(&["large"]).await;
    let body = format!(r#"{{"by":"large","pad":"{}"}}"#, "x".repeat(8 * 1024 * 1024));
    scene.set("large", Reply::Answer(200, "", body.leak()));
    assert_eq!(delegate(&scene.orchestrator()).await.as_deref(), Ok("large"));
}
