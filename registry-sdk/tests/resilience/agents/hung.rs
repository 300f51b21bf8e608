//! Agents that accept a task and never respond.

use std::time::Duration;

use tokio::time::Instant;

use super::{TRIES, arrivals, counts, delegate, delegate_many, send};
use crate::scene::Scene;
use crate::support::Reply;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn hung_agent_leaves_time_for_the_next_one() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let outcome = send(orchestrator.delegate("work").attempts(3).time_limit(LIMIT)).await;
    assert_eq!(outcome.as_deref(), Ok("well"));
    assert_eq!(counts(&scene, ["hung", "well"]), [1, 1]);
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn two_hung_agents_leave_time_for_the_third() {
    let scene = Scene::ranked(&["hung", "hung_too", "well"]).await;
    scene.set("hung", Reply::Hang);
    scene.set("hung_too", Reply::Hang);
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let outcome = send(orchestrator.delegate("work").attempts(3).time_limit(LIMIT)).await;
    assert_eq!(outcome.as_deref(), Ok("well"));
    assert_eq!(counts(&scene, ["hung", "hung_too", "well"]), [1, 1, 1]);
    // The first agent gets half of the time, and the second half of the rest.
    let second = arrivals(&scene, "hung_too", began)[0];
    assert!(second >= Duration::from_secs(14), "the first one had time to answer: {second:?}");
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn with_default_settings_a_hung_agent_delays_few_tasks_and_fails_none() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let (done, last) = delegate_many(&scene.orchestrator(), 20).await;
    assert_eq!(done, 20, "{last:?}");
    let [hung, well] = counts(&scene, ["hung", "well"]);
    assert!(hung <= TRIES && well == 20, "hung had {hung} tasks, well {well}");
}

#[tokio::test(start_paused = true)]
async fn agent_that_stops_in_the_middle_of_an_error_counts_as_hung() {
    let stops = [
        Reply::Stall("HTTP/1.1 500 x\r\ncontent-le"),
        Reply::Stall("HTTP/1.1 500 x\r\ncontent-length: 100\r\n\r\nout of d"),
        Reply::Endless(500, 1, Duration::from_secs(1)),
    ];
    for reply in stops {
        let scene = Scene::ranked(&["hung", "well"]).await;
        scene.set("hung", reply.clone());
        let outcome = delegate(&scene.orchestrator()).await;
        assert_eq!(outcome.as_deref(), Ok("well"), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_names_the_time_limits_if_all_agents_hang() {
    let ids = ["alpha", "beta", "gamma"];
    let scene = Scene::ranked(&ids).await;
    for id in ids {
        scene.set(id, Reply::Hang);
    }
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let error = send(orchestrator.delegate("work").attempts(3).time_limit(LIMIT)).await.unwrap_err();
    assert!(began.elapsed() <= LIMIT + Duration::from_millis(10), "{:?}", began.elapsed());
    assert_eq!(counts(&scene, ids), [1, 1, 1], "{error}");
    assert!(error.contains("attempt_timeout"), "{error}");
    assert!(ids.iter().all(|id| error.contains(id)), "{error}");
}

/// The only agent is slow once. It gets the next task anyway, because there is no other.
#[tokio::test(start_paused = true)]
async fn only_agent_is_used_again_after_it_hung() {
    let scene = Scene::ranked(&["only"]).await;
    scene.set("only", Reply::Hang);
    let orchestrator = scene.orchestrator();
    for _ in 0..TRIES {
        let error = send(orchestrator.delegate("work").time_limit(Duration::from_secs(4))).await.unwrap_err();
        assert!(!error.is_empty());
    }
    scene.set_well("only");
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("only"));
}
