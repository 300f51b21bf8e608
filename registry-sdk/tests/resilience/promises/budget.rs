//! What draws from the retry budget.

use std::time::Duration;

use registry_sdk::contract::Capability;

use super::send;
use crate::scene::Scene;
use crate::support::Reply;

/// No further attempt was made, so none draws from the budget.
#[tokio::test(start_paused = true)]
async fn failures_without_another_agent_cost_no_budget() {
    let scene = Scene::ranked(&["first", "second"]).await;
    scene.register("lonely", Capability::new("translation")).await;
    scene.set("lonely", Reply::Answer(500, "", "out of disk"));
    scene.set("first", Reply::Answer(500, "", "out of disk"));
    let orchestrator = scene.orchestrator();
    for _ in 0..100 {
        send(orchestrator.delegate("translation")).await.unwrap_err();
    }
    let outcome = send(orchestrator.delegate("work")).await;
    assert_eq!(outcome.as_deref().ok(), Some("second"), "{outcome:?}");
}

/// The same for hedges without an agent.
#[tokio::test(start_paused = true)]
async fn hedges_without_an_agent_cost_no_budget() {
    let scene = Scene::ranked(&["first", "second"]).await;
    scene.register("lonely", Capability::new("translation")).await;
    scene.set("lonely", Reply::Late(Duration::from_secs(3), r#"{"by":"lonely"}"#));
    scene.set("first", Reply::Answer(500, "", "out of disk"));
    let orchestrator = scene.orchestrator();
    let hedged = || send(orchestrator.delegate("translation").hedge_after(Duration::from_secs(1)));
    let outcomes = futures_util::future::join_all((0..100).map(|_| hedged())).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let outcome = send(orchestrator.delegate("work")).await;
    assert_eq!(outcome.as_deref().ok(), Some("second"), "{outcome:?}");
}
