//! Choosing agents and handing tasks over, with agents that are well, ill, slow and silent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::{Just, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use registry_sdk::contract::{Capability, CapabilityMatch, Registration};
use registry_sdk::discovery::{
    BreakerSettings, CircuitState, DelegateError, HealthFrom, HttpTaskError, Orchestrator, Policy,
    SelectError, TaskError, TaskQuery, Why,
};
use registry_sdk::testing::MockRegistry;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{Reply, Server};

const CHECK: Duration = Duration::from_secs(2);
const WELL: Reply = Reply::Answer(200, "", r#"{"status":"healthy"}"#);
const ILL: Reply = Reply::Answer(503, "", r#"{"status":"unhealthy"}"#);

/// A registry with agents that all can do `work`, and the one server on which they live: each below its id.
struct Scene {
    registry: MockRegistry,
    agents: Server,
    /// What an agent answers, whatever it is asked.
    answers: Arc<Mutex<HashMap<String, Reply>>>,
}

impl Scene {
    async fn new(ids: &[&str]) -> Self {
        let answers = Arc::<Mutex<HashMap<String, Reply>>>::default();
        let shared = answers.clone();
        let agents = Server::start(move |what, _| {
            let id = what.split('/').nth(1).unwrap();
            shared.lock().unwrap().get(id).cloned().unwrap_or(WELL)
        })
        .await;
        let scene = Self { registry: MockRegistry::start().await, agents, answers };
        for id in ids {
            scene.register(id, Capability::new("work")).await;
        }
        scene
    }

    async fn register(&self, id: &str, capability: Capability) {
        let registration =
            Registration::new(id, id, format!("{}/{id}", self.agents.url())).capability(capability);
        self.registry.client().register(&registration).await.unwrap();
    }

    fn set(&self, id: &str, reply: Reply) {
        self.answers.lock().unwrap().insert(id.to_owned(), reply);
    }

    fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.registry.client())
    }
}

fn query() -> TaskQuery {
    TaskQuery::new("work").health_from(HealthFrom::Agent).check_timeout(CHECK)
}

#[tokio::test(start_paused = true)]
async fn the_best_ranked_healthy_agent_is_found() {
    let scene = Scene::new(&["a", "b"]).await;
    scene.register("best", Capability::new("work")).await;
    scene.register("worse", Capability::new("other").tag("work")).await;
    let orchestrator = scene.orchestrator();
    let order: Vec<_> = scene.registry.client().search_capabilities("work").await.unwrap();
    let selection = orchestrator.find_best_agent("work").await.unwrap();
    assert_eq!(selection.agent.agent_id, order[0].agent_id);
    assert!(!selection.by_fallback && selection.passed_over.is_empty());

    scene.set(&order[0].agent_id, ILL);
    scene.set(&order[1].agent_id, Reply::Hang);
    let selection = orchestrator.select(&query()).await.unwrap();
    assert_eq!(selection.agent.agent_id, order[2].agent_id);
    let why: Vec<_> = selection.passed_over.into_iter().map(|one| one.why).collect();
    assert_eq!(why, [Why::Unhealthy, Why::NoAnswer]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_wanted_is_passed_over_with_the_reason() {
    let scene = Scene::new(&["a", "b", "c"]).await;
    scene.register("tagged", Capability::new("work").tag("rust")).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.select(&query().tag("rust").leave_out("a")).await.unwrap();
    assert_eq!(selection.agent.agent_id, "tagged");
    let error = orchestrator.select(&query().tag("cobol").leave_out("tagged")).await.unwrap_err();
    let SelectError::NoAgent { passed_over, .. } = error else { panic!("{error}") };
    let mut why: Vec<_> = passed_over.into_iter().map(|one| (one.agent_id, one.why)).collect();
    why.sort_by(|a, b| a.0.cmp(&b.0));
    let reasons: Vec<_> = why.into_iter().map(|(_, why)| why).collect();
    assert_eq!(reasons, [Why::NoSuchTag, Why::NoSuchTag, Why::NoSuchTag, Why::LeftOut]);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_serves_where_nobody_healthy_has_the_first_capability() {
    let scene = Scene::new(&["a"]).await;
    scene.register("spare", Capability::new("spare_work")).await;
    let orchestrator = scene.orchestrator();
    let selection = orchestrator.delegate_with_fallback("missing", "spare_work").await.unwrap();
    assert_eq!((selection.agent.agent_id.as_str(), selection.by_fallback), ("spare", true));
    assert_eq!(selection.found_by, "spare_work");
    scene.set("a", ILL);
    let selection = orchestrator.select(&query().fallback("spare_work")).await.unwrap();
    assert_eq!(selection.agent.agent_id, "spare");
    let error = orchestrator.delegate_with_fallback("missing", "also_missing").await.unwrap_err();
    assert!(matches!(error, SelectError::NoAgent { .. }));
    scene.registry.outage(Duration::from_secs(60));
    assert!(matches!(orchestrator.find_best_agent("work").await, Err(SelectError::Registry(_))));
}

/// Twenty agents of which the first nineteen turn out ill after 50 ms each: asked one after another that is
/// a second.
#[tokio::test(start_paused = true)]
async fn health_is_asked_side_by_side() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for number in 0..20 {
        let id = format!("a{number:02}");
        let registration =
            Registration::new(&id, &id, "http://agent:8000").capability(Capability::new("work"));
        client.register(&registration).await.unwrap();
    }
    registry.delay(Duration::from_millis(50));
    let began = Instant::now();
    Orchestrator::new(client).find_best_agent("work").await.unwrap();
    // One search and one round of health checks.
    assert!(began.elapsed() <= Duration::from_millis(110), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn round_robin_is_fair_within_one_and_least_recently_used_never_repeats_early() {
    let scene = Scene::new(&["a", "b", "c", "d"]).await;
    for policy in [Policy::RoundRobin, Policy::LeastRecentlyUsed] {
        let orchestrator = scene.orchestrator();
        let mut counts = HashMap::<String, usize>::new();
        for round in 1..=18_usize {
            let selection = orchestrator.select(&query().policy(policy)).await.unwrap();
            *counts.entry(selection.agent.agent_id).or_default() += 1;
            let (least, most) = (round / 4, round.div_ceil(4));
            assert!(counts.values().all(|count| (least..=most).contains(count)), "{policy:?}: {counts:?}");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Ill,
    Silent,
    Gone,
}

#[test]
fn whoever_is_chosen_is_the_first_who_is_well() {
    let health = prop_oneof![
        1 => Just(Health::Well),
        3 => Just(Health::Ill),
        1 => Just(Health::Silent),
        1 => Just(Health::Gone),
    ];
    let scenes = (proptest::collection::vec(health, 1..12), 1..5_usize);
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&scenes, |(healths, at_once)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(choose(healths, at_once));
            Ok(())
        })
        .unwrap();
}

async fn choose(healths: Vec<Health>, at_once: usize) {
    let ids: Vec<String> = (0..healths.len()).map(|number| format!("a{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let order = scene.registry.client().search_capabilities("work").await.unwrap();
    for (agent, health) in order.iter().zip(&healths) {
        let reply = match health {
            Health::Well => WELL,
            Health::Ill => ILL,
            Health::Silent => Reply::Hang,
            Health::Gone => Reply::Close,
        };
        scene.set(&agent.agent_id, reply);
    }
    let chosen = scene.orchestrator().select(&query().at_once(at_once)).await;
    match healths.iter().position(|health| *health == Health::Well) {
        Some(place) => {
            let selection = chosen.unwrap();
            assert_eq!(selection.agent.agent_id, order[place].agent_id);
            let passed: Vec<_> = selection.passed_over.iter().map(|one| &one.agent_id).collect();
            assert_eq!(passed, order[..place].iter().map(|agent| &agent.agent_id).collect::<Vec<_>>());
        }
        None => assert!(matches!(chosen, Err(SelectError::NoAgent { passed_over, .. })
            if passed_over.len() == healths.len())),
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_to_the_next_agent_where_one_fails() {
    let scene = Scene::new(&["a", "b", "c"]).await;
    let orchestrator = scene.orchestrator();
    let tried = AtomicUsize::new(0);
    let done = orchestrator
        .delegate("work")
        .run(|agent: CapabilityMatch| {
            let attempt = tried.fetch_add(1, Ordering::SeqCst);
            async move {
                if attempt < 2 { Err(TaskError::Transient("it broke")) } else { Ok(agent.agent_id) }
            }
        })
        .await
        .unwrap();
    assert_eq!(done.failed.len(), 2);
    assert_eq!(done.value, done.selection.agent.agent_id);
    assert!(!done.failed.contains(&done.value), "nobody gets the task twice");

    let error = orchestrator
        .delegate("work")
        .attempts(2)
        .run(|_| async { Err::<(), _>(TaskError::Transient("it broke")) })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::Failed { failed, last: "it broke" } if failed.len() == 2));
    let error = orchestrator
        .delegate("work")
        .run(|_| async { Err::<(), _>(TaskError::Permanent("no such thing")) })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::Permanent { error: "no such thing", .. }));
}

#[tokio::test(start_paused = true)]
async fn where_all_have_failed_that_is_said() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let error = orchestrator
        .delegate("work")
        .attempts(9)
        .run(|_| async { Err::<(), _>(TaskError::Transient("it broke")) })
        .await
        .unwrap_err();
    assert!(
        matches!(error, DelegateError::NoAgent { failed, last: Some("it broke"), .. } if failed.len() == 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_delegation_is_over_in_its_time() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let limit = Duration::from_secs(5);
    let began = Instant::now();
    let error = orchestrator
        .delegate("work")
        .time_limit(limit)
        .run(|_| async {
            sleep(Duration::from_secs(3_600)).await;
            Ok::<_, TaskError<&str>>(())
        })
        .await
        .unwrap_err();
    assert!(matches!(error, DelegateError::TimedOut { .. }));
    assert!(began.elapsed() <= limit + Duration::from_millis(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tasks_are_sent_as_json() {
    let scene = Scene::new(&["a", "b"]).await;
    let orchestrator = scene.orchestrator();
    let order = scene.registry.client().search_capabilities("work").await.unwrap();
    let (first, second) = (order[0].agent_id.as_str(), order[1].agent_id.as_str());
    let send =
        || async { orchestrator.delegate("work").post_json::<Value>("/execute", &json!({"n": 1})).await };

    scene.set(first, Reply::Answer(200, "", r#"{"done":true}"#));
    let done = send().await.unwrap();
    assert_eq!((done.value, done.failed.len()), (json!({"done": true}), 0));
    let request = scene.agents.arrived().pop().unwrap();
    assert_eq!((request.what, request.body.as_str()), (format!("POST /{first}/execute"), r#"{"n":1}"#));

    scene.set(second, Reply::Answer(200, "", r#"{"done":2}"#));
    for failure in
        [Reply::Close, Reply::Truncated, Reply::Answer(500, "", "no"), Reply::Answer(200, "", "<html>")]
    {
        scene.set(first, failure);
        let done = send().await.unwrap();
        assert_eq!((done.value, done.failed.as_slice()), (json!({"done": 2}), &[first.to_owned()][..]));
        // So that its circuit stays closed.
        scene.set(first, Reply::Answer(200, "", "1"));
        send().await.unwrap();
    }
    scene.set(first, Reply::Answer(422, "", "not like that"));
    let error = send().await.unwrap_err();
    assert!(
        matches!(&error, DelegateError::Permanent { error: HttpTaskError::Status { status: 422, .. }, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_keeps_failing_is_left_alone_and_tried_again() {
    let scene = Scene::new(&["only"]).await;
    let settings = BreakerSettings::default().failures(3);
    let orchestrator = Orchestrator::with_breakers(scene.registry.client(), settings);
    let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let attempt = || async {
        let works = works.load(Ordering::SeqCst);
        let task = orchestrator.clone();
        let task = task
            .delegate("work")
            .run(|_| async move { if works { Ok(()) } else { Err(TaskError::Transient("it broke")) } });
        task.await.is_ok()
    };
    for _ in 0..3 {
        assert_eq!(orchestrator.circuit("only"), CircuitState::Closed);
        assert!(!attempt().await);
    }
    // Clones know it, too.
    assert_eq!(orchestrator.clone().circuit("only"), CircuitState::Open);
    let error = orchestrator.find_best_agent("work").await.unwrap_err();
    assert!(
        matches!(error, SelectError::NoAgent { passed_over, .. } if passed_over[0].why == Why::CircuitOpen)
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(orchestrator.circuit("only"), CircuitState::HalfOpen);
    assert!(!attempt().await);
    assert_eq!(orchestrator.circuit("only"), CircuitState::Open, "the trial failed");
    sleep(Duration::from_secs(30)).await;
    works.store(true, Ordering::SeqCst);
    assert!(attempt().await);
    assert_eq!(orchestrator.circuit("only"), CircuitState::Closed);
}
