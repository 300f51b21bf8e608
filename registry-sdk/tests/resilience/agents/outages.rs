//! Outages during a delegation, and of all agents.

use std::time::Duration;

use registry_sdk::TaskError;
use registry_sdk::discovery::{EndReason, RetryBudget};
use tokio::time::{Instant, sleep};

use super::{counts, send};
use crate::scene::Scene;
use crate::support::Reply;

/// Also if the registry hangs.
#[tokio::test(start_paused = true)]
async fn failover_needs_no_registry() {
    for (pause, hangs) in [(0, false), (8, false), (8, true)] {
        let scene = Scene::ranked(&["first", "second"]).await;
        let orchestrator = scene.orchestrator();
        let registry = &scene.registry;
        let delegation = orchestrator.delegate("work").time_limit(Duration::from_secs(60));
        let done = delegation.run(|agent| async move {
            if agent.agent_id == "second" {
                return Ok(());
            }
            if hangs {
                registry.hang(9);
            } else {
                registry.outage(Duration::from_secs(3_600));
            }
            sleep(Duration::from_secs(pause)).await;
            Err(TaskError::transient("it broke"))
        });
        let began = Instant::now();
        assert_eq!(done.await.unwrap().selection.agent.agent_id, "second", "after {pause} s");
        assert!(began.elapsed() < Duration::from_secs(pause + 3), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_retry_budget_each_task_is_tried_once() {
    let scene = Scene::ranked(&["first", "second"]).await;
    scene.set("first", Reply::Answer(500, "", "no"));
    let budget = RetryBudget::default().ratio(0.0).min_per_second(0);
    let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
    let error = orchestrator.delegate("work").post_json::<()>("/execute", &1).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::RetryBudgetExhausted), "{error}");
    assert!(error.to_string().contains("retry budget"), "{error}");
    // Hedges draw from it, too.
    scene.set("first", Reply::Late(Duration::from_secs(9), r#"{"by":"first"}"#));
    let hedged = orchestrator.delegate("work").hedge_after(Duration::from_secs(1));
    assert_eq!(send(hedged).await.as_deref(), Ok("first"));
    assert_eq!(counts(&scene, ["first", "second"]), [2, 0]);
    // Refusals are free.
    for refusal in [Reply::Answer(429, "", "no"), Reply::Answer(404, "", "no")] {
        scene.set("first", refusal);
        assert_eq!(send(orchestrator.delegate("work")).await.as_deref(), Ok("second"));
        sleep(Duration::from_secs(1)).await;
    }
}
