//! The SDK's metrics.

use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use registry_sdk::contract::Registration;
use registry_sdk::discovery::RetryBudget;
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, AgentState, RetryPolicy};
use serde_json::Value;

use crate::scene::Scene;
use crate::support::Reply;

#[test]
fn registrations_heartbeats_retries_and_states_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let registry = MockRegistry::start().await;
            let client = registry.client().with_retry(RetryPolicy::registration());
            let agent = Agent::new(client, Registration::new("a", "Agent", "http://agent:8000"));
            registry.fail_next(2, 503);
            agent.register().await.unwrap();
            agent.start_heartbeat(Duration::from_secs(30)).unwrap();
            registry.wait_until(|seen| seen.heartbeats("a") == 2).await;
            registry.drop_connections(1);
            agent.watch().wait_for(AgentState::is_degraded).await.unwrap();
            registry.forget_agents();
            registry.wait_until(|seen| seen.registrations("a") == 5).await;
            agent.shutdown().await;
        });
    });
    assert_counts(
        &snapshotter,
        &[
            ("agent_registry_sdk_retries_total{}", 2.0),
            // At the start, for its interval, and after the registry forgot it.
            ("agent_registry_sdk_registrations_total{outcome=ok}", 3.0),
            ("agent_registry_sdk_heartbeats_total{outcome=ok}", 2.0),
            ("agent_registry_sdk_heartbeats_total{outcome=failed}", 1.0),
            ("agent_registry_sdk_heartbeats_total{outcome=unknown}", 1.0),
            ("agent_registry_sdk_state{agent_id=a,state=stopped}", 1.0),
            ("agent_registry_sdk_state{agent_id=a,state=registered}", 0.0),
        ],
    );
}

#[test]
fn tasks_attempts_failovers_and_ejections_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let scene = Scene::ranked(&["first", "second"]).await;
            let budget = RetryBudget::default().ratio(1.0).min_per_second(0);
            let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
            let send =
                async || orchestrator.delegate("work").post_json::<Value>("/execute", &1).await.is_ok();
            for (status, is_done) in
                [(500, true), (404, true), (429, true), (500, true), (500, true), (200, true)]
            {
                // Then it is ejected, and the next agent does the task.
                scene.set("first", Reply::Answer(status, "", "1"));
                assert_eq!(send().await, is_done, "{status}");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            for (status, body) in [(422, "no"), (200, "no JSON")] {
                scene.set("second", Reply::Answer(status, "", body));
                assert!(!send().await, "{status}");
            }
        });
    });
    assert_counts(
        &snapshotter,
        &[
            ("agent_registry_sdk_tasks_total{outcome=done}", 6.0),
            ("agent_registry_sdk_tasks_total{outcome=failed}", 2.0),
            ("agent_registry_sdk_attempts_total{outcome=ok}", 6.0),
            ("agent_registry_sdk_attempts_total{outcome=agent}", 2.0),
            ("agent_registry_sdk_attempts_total{outcome=deployment}", 1.0),
            ("agent_registry_sdk_attempts_total{outcome=busy}", 1.0),
            ("agent_registry_sdk_attempts_total{outcome=task}", 1.0),
            ("agent_registry_sdk_attempts_total{outcome=response}", 1.0),
            ("agent_registry_sdk_failovers_total{}", 4.0),
            ("agent_registry_sdk_ejections_total{}", 1.0),
            ("agent_registry_sdk_retry_budget_exhausted_total{}", 0.0),
        ],
    );
}

fn assert_counts(snapshotter: &Snapshotter, expected: &[(&str, f64)]) {
    let snapshot = snapshotter.snapshot().into_vec();
    let count = |wanted: &str| {
        let found = snapshot.iter().find(|(key, ..)| {
            let labels = key.key().labels().map(|label| format!("{}={}", label.key(), label.value()));
            format!("{}{{{}}}", key.key().name(), labels.collect::<Vec<_>>().join(",")) == wanted
        });
        match found.map(|(.., value)| value) {
            Some(DebugValue::Counter(count)) => f64::from(u32::try_from(*count).unwrap()),
            Some(DebugValue::Gauge(value)) => value.into_inner(),
            _ => 0.0,
        }
    };
    for (name, expected) in expected {
        assert!((count(name) - expected).abs() < f64::EPSILON, "{name}: {}", count(name));
    }
}
