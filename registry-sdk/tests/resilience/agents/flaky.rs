//! Agents that fail now and then, for a while, or all at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{TRIES, arrivals, counts, delegate, delegate_many};
use crate::scene::Scene;
use crate::support::Reply;

const BROKEN: Reply = Reply::Answer(500, "", "out of disk");
const DONE: Reply = Reply::Answer(200, "", r#"{"by":"flaky"}"#);

/// Sends 99 tasks to an agent that fails as specified and a healthy one.
async fn share_of(fails: fn(usize) -> bool) -> [usize; 2] {
    let scene = Scene::ranked(&["flaky", "well"]).await;
    scene.script("flaky", move |_, before| if fails(before) { BROKEN } else { DONE });
    let (done, last) = delegate_many(&scene.orchestrator(), 99).await;
    assert_eq!(done, 99, "{last:?}");
    counts(&scene, ["flaky", "well"])
}

#[tokio::test(start_paused = true)]
async fn agent_that_fails_two_of_three_tasks_is_ejected() {
    let [flaky, well] = share_of(|before| before % 3 != 2).await;
    assert!(flaky <= 50, "flaky had {flaky} tasks, well {well}");
}

#[tokio::test(start_paused = true)]
async fn agent_that_fails_every_second_task_is_ejected() {
    let [flaky, well] = share_of(|before| before % 2 == 0).await;
    assert!(flaky <= 50, "flaky had {flaky} tasks, well {well}");
}

/// One failure in twenty is normal, and the best-ranked agent stays the first choice.
#[tokio::test(start_paused = true)]
async fn agent_that_rarely_fails_is_not_ejected() {
    let [flaky, well] = share_of(|before| before % 20 == 19).await;
    assert_eq!([flaky, well], [99, 4]);
}

#[tokio::test(start_paused = true)]
async fn recovered_agents_do_the_next_task_after_all_had_failed() {
    let ids = ["one", "two", "three"];
    let scene = Scene::ranked(&ids).await;
    for id in ids {
        scene.set(id, BROKEN);
    }
    let orchestrator = scene.orchestrator();
    let (done, _) = delegate_many(&orchestrator, 20).await;
    assert_eq!(done, 0);
    for id in ids {
        scene.set_well(id);
    }
    let outcome = delegate(&orchestrator).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn while_all_fail_each_task_is_still_tried() {
    let ids = ["one", "two", "three", "four"];
    let scene = Scene::ranked(&ids).await;
    for id in ids {
        scene.set(id, BROKEN);
    }
    let orchestrator = scene.orchestrator();
    for task in 1..=40 {
        let before: usize = counts(&scene, ids).iter().sum();
        let error = delegate(&orchestrator).await.unwrap_err();
        let tried = counts(&scene, ids).iter().sum::<usize>() - before;
        // At most two of four agents are ejected.
        assert!(tried >= 2, "task {task} was tried {tried} times: {error}");
        sleep(Duration::from_millis(500)).await;
    }
}

/// A hundred tasks a second, and no agent does any of them.
#[tokio::test(start_paused = true)]
async fn outage_of_all_agents_does_not_multiply_the_load() {
    let ids = ["one", "two", "three", "four"];
    let scene = Scene::ranked(&ids).await;
    for id in ids {
        scene.set(id, BROKEN);
    }
    let orchestrator = scene.orchestrator();
    let tasks = 1_000;
    for _ in 0..tasks {
        delegate(&orchestrator).await.unwrap_err();
        sleep(Duration::from_millis(10)).await;
    }
    let requests: usize = counts(&scene, ids).iter().sum();
    // A fifth more, ten a second, and as many at the very beginning.
    assert!(requests <= tasks + tasks / 5 + 100 + 100, "{requests} requests for {tasks} tasks");
}

#[tokio::test(start_paused = true)]
async fn broken_agent_is_tried_less_and_less_often() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    scene.set("broken", BROKEN);
    let began = Instant::now();
    let (done, last) = delegate_many(&scene.orchestrator(), 600).await;
    assert_eq!(done, 600, "{last:?}");
    let arrivals = arrivals(&scene, "broken", began);
    let late = arrivals.iter().filter(|at| **at >= Duration::from_secs(300)).count();
    assert!((1..=5).contains(&late), "{late} of {} tries after 300 s: {arrivals:?}", arrivals.len());
}

#[tokio::test(start_paused = true)]
async fn recovered_agent_gets_tasks_again() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    scene.set("broken", BROKEN);
    let orchestrator = scene.orchestrator();
    delegate_many(&orchestrator, 120).await;
    scene.set_well("broken");
    // Maximum time of an ejection.
    sleep(Duration::from_secs(301)).await;
    delegate_many(&orchestrator, TRIES).await;
    let [before, _] = counts(&scene, ["broken", "well"]);
    delegate_many(&orchestrator, 20).await;
    let [after, _] = counts(&scene, ["broken", "well"]);
    assert_eq!(after - before, 20);
}
