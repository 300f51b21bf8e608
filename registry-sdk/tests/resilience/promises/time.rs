//! How the time of a delegation is divided.

use std::time::Duration;

use registry_sdk::discovery::{EjectionState, HealthSource, TaskQuery};
use tokio::time::{Instant, sleep};

use super::{counts, send};
use crate::scene::Scene;
use crate::support::Reply;

const DONE: &str = r#"{"by":"slow"}"#;

/// "If it is to have time for your slowest task, too, set four times of it."
#[tokio::test(start_paused = true)]
async fn four_times_the_slowest_task_is_enough_if_one_of_three_agents_hangs() {
    let slowest = Duration::from_secs(28);
    let scene = Scene::ranked(&["hung", "well", "also_well"]).await;
    scene.set("hung", Reply::Hang);
    scene.set("well", Reply::Late(slowest, DONE));
    scene.set("also_well", Reply::Late(slowest, DONE));
    let orchestrator = scene.orchestrator();
    let outcome = send(orchestrator.delegate("work").time_limit(4 * slowest + Duration::from_secs(4))).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// With twice that time the second agent has less time than the first, which is not its fault.
#[tokio::test(start_paused = true)]
async fn healthy_agent_is_not_ejected_because_the_first_one_hangs() {
    let slowest = Duration::from_secs(28);
    let scene = Scene::ranked(&["hung", "well", "also_well"]).await;
    scene.set("hung", Reply::Hang);
    scene.set("well", Reply::Late(slowest, DONE));
    scene.set("also_well", Reply::Late(slowest, DONE));
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        let _ = send(orchestrator.delegate("work").time_limit(2 * slowest + Duration::from_secs(4))).await;
    }
    let states = [orchestrator.ejection("well"), orchestrator.ejection("also_well")];
    assert_eq!(states, [EjectionState::Admitted; 2]);
}

/// A hung agent would get the whole time of every task, and would never be noticed.
#[tokio::test(start_paused = true)]
async fn hung_agent_does_not_lose_every_task_if_the_attempt_timeout_equals_the_time_limit() {
    for timeout in [60, 90] {
        let scene = Scene::ranked(&["hung", "well"]).await;
        scene.set("hung", Reply::Hang);
        let orchestrator = scene.orchestrator();
        let mut done = 0;
        for _ in 0..20 {
            let delegation = orchestrator.delegate("work").attempt_timeout(Duration::from_secs(timeout));
            done += usize::from(send(delegation).await.is_ok());
        }
        assert!(done >= 10, "{timeout} s: {done} of 20 done, {:?}", counts(&scene, ["hung", "well"]));
    }
}

/// An agent that is busy for nine of ten seconds has one second for its task. That the task takes two is not its fault.
#[tokio::test(start_paused = true)]
async fn agent_is_not_charged_for_time_spent_waiting_for_it() {
    let scene = Scene::ranked(&["only"]).await;
    scene.script("only", |_, before| match before % 2 {
        0 => Reply::Answer(429, "retry-after: 8\r\n", ""),
        _ => Reply::Late(Duration::from_secs(3), DONE),
    });
    let orchestrator = scene.orchestrator();
    for _ in 0..3 {
        let _ = send(orchestrator.delegate("work").time_limit(Duration::from_secs(10))).await;
    }
    assert_eq!(orchestrator.ejection("only"), EjectionState::Admitted);
}

/// "If an agent has not done the task after this time, the next one gets it as well": however long the selection took.
#[tokio::test(start_paused = true)]
async fn time_of_a_hedge_begins_with_the_attempt() {
    let scene = Scene::new(&["one", "two"]).await;
    for id in ["one", "two"] {
        scene.set(id, Reply::Late(Duration::from_millis(500), DONE));
    }
    scene.registry.delay(Duration::from_secs(3));
    let orchestrator = scene.orchestrator();
    let outcome = send(orchestrator.delegate("work").hedge_after(Duration::from_secs(2))).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let tasks: usize = counts(&scene, ["one", "two"]).iter().sum();
    assert_eq!(tasks, 1, "each task takes half a second");
}

/// The hedge does the task, so the attempt at the agent that hangs is dropped each time, and without a rule the agent would get
/// the next task first.
#[tokio::test(start_paused = true)]
async fn agent_that_always_loses_against_its_hedge_is_ejected() {
    let scene = Scene::ranked(&["hung", "well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = scene.orchestrator();
    for _ in 0..100 {
        send(orchestrator.delegate("work").hedge_after(Duration::from_secs(1))).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    let [hung, well] = counts(&scene, ["hung", "well"]);
    assert!(hung <= 50, "hung had {hung} tasks, well {well}");
}

/// Among equals the load decides, and an agent that never responded does not count as less loaded.
#[tokio::test(start_paused = true)]
async fn among_equals_an_agent_that_always_loses_against_its_hedge_gets_few_tasks() {
    let scene = Scene::new(&["hung", "well", "also_well"]).await;
    scene.set("hung", Reply::Hang);
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    for _ in 0..100 {
        send(orchestrator.delegate("work").hedge_after(Duration::from_secs(1))).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    let [hung, ..] = counts(&scene, ["hung", "well", "also_well"]);
    assert!(hung <= 15, "hung had {hung} of 100 tasks");
}

/// A custom task must not take longer than its limit, and a limit of zero is over at once.
#[tokio::test(start_paused = true)]
async fn zero_time_limit_ends_at_once() {
    let scene = Scene::ranked(&["one", "two"]).await;
    let orchestrator = scene.orchestrator();
    let began = Instant::now();
    let error = send(orchestrator.delegate("work").time_limit(Duration::ZERO)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(10), "{error}");
    assert_eq!(orchestrator.ejection("one"), EjectionState::Admitted);
    // Endless durations do not panic.
    let delegation = orchestrator.delegate("work").time_limit(Duration::MAX).attempt_timeout(Duration::MAX);
    send(delegation.hedge_after(Duration::MAX).chunk_timeout(Duration::MAX)).await.unwrap();
}

/// The hedge's selection takes a while. Meanwhile no agent is charged, and a hedge that was paid for is not lost.
#[tokio::test(start_paused = true)]
async fn hedge_in_selection_gets_the_task_if_the_first_attempt_fails() {
    let scene = Scene::ranked(&["first", "second"]).await;
    scene.set("second", Reply::Late(Duration::from_secs(1), r#"{"status":"healthy"}"#));
    let budget = registry_sdk::discovery::RetryBudget::default().min_per_second(0).ratio(1.0);
    let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
    let query = TaskQuery::new("work").health_source(HealthSource::Agent).max_concurrent_checks(1);
    let failing = std::sync::atomic::AtomicUsize::new(0);
    let outcome = orchestrator
        .delegate(query)
        .hedge_after(Duration::from_secs(1))
        .run(|_| {
            let number = failing.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            async move {
                if number == 0 {
                    sleep(Duration::from_millis(1_500)).await;
                    return Err(std::io::Error::other("it broke").into());
                }
                Ok(number)
            }
        })
        .await;
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// The first agent is still working and would succeed. The hedge's unusable response does not matter.
#[tokio::test(start_paused = true)]
async fn hedge_with_an_unusable_response_does_not_end_the_running_attempt() {
    let scene = Scene::ranked(&["well", "odd"]).await;
    scene.set("well", Reply::Late(Duration::from_secs(3), DONE));
    scene.set("odd", Reply::Answer(200, "", "<html>welcome</html>"));
    let orchestrator = scene.orchestrator();
    let outcome = send(orchestrator.delegate("work").hedge_after(Duration::from_secs(1))).await;
    assert_eq!(outcome.as_deref().ok(), Some("well"), "{outcome:?}");
}
