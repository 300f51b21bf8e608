//! A registry that fails or hangs during a delegation.

use std::time::Duration;

use registry_sdk::discovery::Directory;
use tokio::time::{Instant, sleep};

use registry_sdk::{Orchestrator, RegistryClient};

use super::{counts, send};
use crate::scene::Scene;
use crate::support::Reply;

/// Uses the client's default settings, which retry a failed search.
fn orchestrator(scene: &Scene) -> Orchestrator {
    Orchestrator::new(RegistryClient::new(scene.registry.url()).unwrap())
}

/// "So failing over needs no further search, not even if the registry has gone down meanwhile."
#[tokio::test(start_paused = true)]
async fn second_attempt_does_not_wait_for_a_registry_that_hangs() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = orchestrator(&scene);
    let registry = &scene.registry;
    let hang = async {
        sleep(Duration::from_secs(2)).await;
        registry.hang(1_000);
    };
    let began = Instant::now();
    let delegation = send(orchestrator.delegate("work").time_limit(Duration::from_secs(20)));
    let (outcome, ()) = tokio::join!(delegation, hang);
    assert_eq!(outcome.as_deref().ok(), Some("well"), "{outcome:?}");
    // The first agent has half of the time.
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}

/// The same for a registry that refuses connections, and a second agent that needs its time.
#[tokio::test(start_paused = true)]
async fn second_attempt_begins_at_once_while_the_registry_is_away() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = orchestrator(&scene);
    let registry = &scene.registry;
    let began = Instant::now();
    let outage = async {
        sleep(Duration::from_secs(2)).await;
        registry.outage(Duration::from_secs(600));
    };
    let delegation = send(orchestrator.delegate("work").time_limit(Duration::from_secs(30)));
    let (outcome, ()) = tokio::join!(delegation, outage);
    assert_eq!(outcome.as_deref().ok(), Some("well"), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(16), "{:?}", began.elapsed());
}

/// The credentials expire while an agent has the task.
#[tokio::test(start_paused = true)]
async fn second_attempt_needs_no_credentials_for_the_registry() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = orchestrator(&scene);
    let registry = &scene.registry;
    let expired = async {
        sleep(Duration::from_secs(2)).await;
        registry.fail_next(1_000, 401);
    };
    let delegation = send(orchestrator.delegate("work").time_limit(Duration::from_secs(30)));
    let (outcome, ()) = tokio::join!(delegation, expired);
    assert_eq!(outcome.as_deref().ok(), Some("well"), "{outcome:?}");
}

/// An agent is busy for three seconds. That the registry hangs meanwhile makes no difference.
#[tokio::test(start_paused = true)]
async fn busy_agent_is_asked_again_on_time_while_the_registry_hangs() {
    let scene = Scene::ranked(&["only"]).await;
    scene.script("only", |_, before| match before {
        0 => Reply::Answer(429, "retry-after: 3\r\n", ""),
        _ => Reply::Answer(200, "", r#"{"by":"only"}"#),
    });
    let orchestrator = orchestrator(&scene);
    // It responds to the first search, and to nothing after that.
    let registry = &scene.registry;
    let hang = async {
        registry.wait_until(|log| log.0.iter().any(|one| format!("{one:?}").contains("search"))).await;
        registry.hang(1_000);
    };
    let delegation = send(orchestrator.delegate("work").time_limit(Duration::from_secs(8)));
    let (outcome, ()) = tokio::join!(delegation, hang);
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// Waiting for a busy agent does not cause repeated requests to the registry.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_busy_agent_costs_the_registry_little() {
    let scene = Scene::ranked(&["only"]).await;
    scene.set("only", Reply::Answer(429, "retry-after: 1\r\n", ""));
    let orchestrator = orchestrator(&scene);
    let before = scene.registry.request_log().0.len();
    send(orchestrator.delegate("work")).await.unwrap_err();
    let requests = scene.registry.request_log().0.len() - before;
    let [tasks] = counts(&scene, ["only"]);
    assert!(requests <= 20, "{requests} requests to the registry for one task that was sent {tasks} times");
}

/// Without a directory, the agents come from the last search, and are asked for their health.
#[tokio::test(start_paused = true)]
async fn tasks_are_done_while_the_registry_is_away() {
    for hangs in [false, true] {
        let scene = Scene::ranked(&["dead", "well"]).await;
        let orchestrator = orchestrator(&scene);
        send(orchestrator.delegate("work")).await.unwrap();
        scene.set("dead", Reply::Close);
        if hangs {
            scene.registry.hang(100_000);
        } else {
            scene.registry.outage(Duration::from_secs(600));
        }
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(send(orchestrator.delegate("work")).await.unwrap(), "well", "hangs: {hangs}");
            assert!(began.elapsed() < Duration::from_secs(1), "hangs: {hangs}, {:?}", began.elapsed());
            sleep(Duration::from_secs(1)).await;
        }
        // No task was sent to the dead agent.
        assert_eq!(counts(&scene, ["dead", "well"]), [1, 20], "hangs: {hangs}");
    }
}

/// A response that has begun has all the remaining time, because no other agent gets the task.
#[tokio::test(start_paused = true)]
async fn response_that_is_arriving_is_not_cut_at_half_of_the_time() {
    let scene = Scene::ranked(&["slow", "well"]).await;
    scene.set("slow", Reply::Parts(r#"{"by":"slow"}"#, 1, Duration::from_secs(3)));
    let orchestrator = orchestrator(&scene);
    let outcome = send(orchestrator.delegate("work").time_limit(Duration::from_secs(60))).await;
    assert_eq!(outcome.unwrap(), "slow");
}

/// A directory has everything that is needed.
#[tokio::test(start_paused = true)]
async fn directory_does_not_wait_for_a_registry_that_is_away() {
    for hangs in [false, true] {
        let scene = Scene::ranked(&["broken", "well"]).await;
        scene.set("broken", Reply::Answer(500, "", "out of disk"));
        let directory = Directory::follow(&scene.registry.client());
        directory.ready().await.unwrap();
        let client = RegistryClient::new(scene.registry.url()).unwrap();
        let orchestrator = Orchestrator::builder(client).directory(directory.clone()).build();
        if hangs {
            scene.registry.hang(100_000);
            scene.registry.cut_event_streams();
        } else {
            scene.registry.outage(Duration::from_secs(600));
            scene.registry.cut_event_streams();
        }
        crate::support::until("it is known", || {
            directory.freshness().is_some_and(registry_sdk::discovery::Freshness::is_stale)
        })
        .await;
        let began = Instant::now();
        let outcome = send(orchestrator.delegate("work").time_limit(Duration::from_secs(20))).await;
        assert_eq!(outcome.as_deref().ok(), Some("well"), "hangs: {hangs}, {outcome:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "hangs: {hangs}, {:?}", began.elapsed());
    }
}
