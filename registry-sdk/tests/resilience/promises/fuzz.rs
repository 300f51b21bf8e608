//! Delegations with random settings among agents that respond at random.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use registry_sdk::discovery::{EndReason, RetryBudget};
use tokio::time::{Instant, sleep};

use super::{counts, send};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
struct Case {
    replies: Vec<Reply>,
    attempts: usize,
    limit: u64,
    attempt_timeout: Option<u64>,
    hedge: Option<u64>,
    at_most_once: bool,
    budget: bool,
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        2 => Just(Reply::Answer(200, "", "{}")),
        2 => (1..40_000_u64).prop_map(|time| Reply::Late(Duration::from_millis(time), "{}")),
        2 => Just(Reply::Hang),
        1 => Just(Reply::Close),
        2 => Just(Reply::Answer(500, "", "out of disk")),
        1 => Just(Reply::Answer(404, "", "")),
        1 => Just(Reply::Answer(429, "retry-after: 3\r\n", "")),
        1 => Just(Reply::Answer(503, "retry-after: 40\r\n", "")),
        1 => Just(Reply::Stall("HTTP/1.1 500 x\r\ncontent-length: 9\r\n\r\n")),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let replies = proptest::collection::vec(reply(), 4);
    let optional = || proptest::option::of(1..30_000_u64);
    (replies, 1..6_usize, 1..60_000_u64, optional(), optional(), any::<bool>(), any::<bool>()).prop_map(
        |(replies, attempts, limit, attempt_timeout, hedge, at_most_once, budget)| Case {
            replies,
            attempts,
            limit,
            attempt_timeout,
            hedge,
            at_most_once,
            budget,
        },
    )
}

#[test]
fn delegations_keep_their_promises_whatever_agents_answer() {
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&case(), |case| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.unwrap().block_on(check(&case));
            Ok(())
        })
        .unwrap();
}

async fn check(case: &Case) {
    let scene = Scene::ranked(&IDS).await;
    for (id, reply) in IDS.iter().zip(&case.replies) {
        scene.set(id, reply.clone());
    }
    let budget = if case.budget {
        RetryBudget::default()
    } else {
        RetryBudget::default().ratio(0.0).min_per_second(0)
    };
    let orchestrator = scene.orchestrator_builder().retry_budget(budget).build();
    let limit = Duration::from_millis(case.limit);
    let mut delegation = orchestrator.delegate("work").attempts(case.attempts).time_limit(limit);
    if let Some(timeout) = case.attempt_timeout {
        delegation = delegation.attempt_timeout(Duration::from_millis(timeout));
    }
    if let Some(delay) = case.hedge {
        delegation = delegation.hedge_after(Duration::from_millis(delay));
    }
    if case.at_most_once {
        delegation = delegation.at_most_once();
    }
    let began = Instant::now();
    let outcome = send(delegation).await;
    let elapsed = began.elapsed();
    assert!(elapsed <= limit + Duration::from_millis(10), "{elapsed:?}: {outcome:?}");
    // Dropped delegations are not in flight any more.
    sleep(Duration::from_millis(10)).await;
    let states = format!("{orchestrator:?}");
    assert_eq!(states.matches("in_flight: ").count(), states.matches("in_flight: 0").count(), "{states}");
    let tasks = counts(&scene, IDS);
    for (count, reply) in tasks.iter().zip(&case.replies) {
        let is_busy = matches!(reply, Reply::Answer(429 | 503, ..));
        assert!(*count <= 1 || is_busy, "{tasks:?}: {outcome:?}");
    }
    let all: usize = tasks.iter().sum();
    assert!(!case.at_most_once || all <= 1, "at most once: {tasks:?}: {outcome:?}");
    if let Err(error) = &outcome {
        // Each agent that got the task is named.
        let text = error.to_string();
        for (id, count) in IDS.iter().zip(tasks) {
            assert!(count == 0 || text.contains(&format!("{id}: ")), "{id} is missing: {text}");
        }
        assert_ne!(matches!(error.reason, EndReason::Busy { .. }), error.retry_after().is_none());
    }
    // If all responses are fast and one agent is healthy, the task is done.
    let is_quick = |reply: &Reply| !matches!(reply, Reply::Late(..) | Reply::Hang | Reply::Stall(_));
    let is_well = |reply: &Reply| matches!(reply, Reply::Answer(200, ..));
    if case.budget && !case.at_most_once && case.attempts >= 4 && case.replies.iter().all(is_quick) {
        assert_eq!(outcome.is_ok(), case.replies.iter().any(is_well), "{tasks:?}: {outcome:?}");
    }
}

/// Agents with random ids that come and go leave nothing behind.
#[tokio::test(start_paused = true)]
async fn state_of_removed_agents_is_forgotten() {
    let registry = registry_sdk::testing::MockRegistry::start().await;
    let client = registry.client();
    let orchestrator = registry_sdk::Orchestrator::new(client.clone());
    let mut most = 0;
    for round in 0..4 {
        for number in 0..1_200 {
            let id = format!("pod-{round}-{number}");
            let registration = registry_sdk::Registration::new(&id, &id, "http://agent:8000")
                .capability(registry_sdk::Capability::new("work"));
            client.register(&registration).await.unwrap();
            orchestrator.find_best_agent("work").await.unwrap().report_success();
            client.deregister(&id).await.unwrap();
        }
        sleep(Duration::from_secs(1_000)).await;
        most = most.max(format!("{orchestrator:?}").matches("in_flight: ").count());
    }
    assert!(most <= 2_600, "{most} agents are remembered");
}
