//! Situations hidden by a page, an old response or somebody else's failure.

use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::discovery::{EndReason, HealthSource, HttpTaskError, Policy, TaskQuery};
use registry_sdk::{Capability, Orchestrator, RegistryClient};
use serde_json::json;
use tokio::time::Instant;

use super::{counts, send};
use crate::scene::Scene;
use crate::support::{Reply, Server};

/// A load that was reported a quarter of an hour ago says nothing about now.
#[tokio::test(start_paused = true)]
async fn outdated_load_is_ignored() {
    let agents = Server::start(|_, _| Reply::Answer(200, "", r#"{"status":"healthy"}"#)).await;
    let found = ["one", "two"].map(|id| {
        json!({"agent_id": id, "status": "active", "capability": "work", "healthy": true, "score": 1.0,
            "base_url": agents.url(), "load": if id == "one" { 1.0 } else { 0.0 },
            "active_tasks": if id == "one" { 50 } else { 0 }})
    });
    let found: &'static str = json!(found).to_string().leak();
    let registry =
        Server::start(move |_, _| Reply::Answer(200, "registry-stale-seconds: 900\r\n", found)).await;
    let orchestrator = Orchestrator::builder(RegistryClient::new(registry.url()).unwrap()).seed(7).build();
    let mut to_one = 0;
    for _ in 0..40 {
        to_one += usize::from(send(orchestrator.delegate("work")).await.unwrap() == "one");
    }
    assert!(to_one >= 8, "one got {to_one} of 40 tasks");
}

/// If the registry used up the time, the error says so.
#[tokio::test(start_paused = true)]
async fn error_says_that_the_registry_did_not_answer() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = Orchestrator::new(RegistryClient::new(scene.registry.url()).unwrap());
    scene.registry.hang(1_000);
    let error = send(orchestrator.delegate("work").time_limit(Duration::from_secs(10))).await.unwrap_err();
    assert!(error.to_string().contains("registry"), "{error}");
}

/// One of two agents is restarted while it has half of a few hundred tasks.
#[tokio::test(start_paused = true)]
async fn tasks_of_an_agent_that_dies_go_to_the_other_one() {
    let scene = Scene::ranked(&["dies", "well"]).await;
    scene.set("dies", Reply::Close);
    let orchestrator = scene.orchestrator();
    let outcomes = join_all((0..400).map(|_| send(orchestrator.delegate("work")))).await;
    let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let over = outcomes
        .iter()
        .filter(|one| {
            one.as_ref().is_err_and(|error| matches!(error.reason, EndReason::RetryBudgetExhausted))
        })
        .count();
    assert_eq!(lost, 0, "of 400, {over} by the retry budget");
}

/// "If agents are asked themselves, those that are probably dead come last."
#[tokio::test(start_paused = true)]
async fn agents_that_are_probably_dead_are_asked_last() {
    let ids: Vec<String> = (0..9).map(|number| format!("dead{number}")).collect();
    let scene = Scene::new(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for id in &ids {
        scene.registry.client().update_status(id, registry_sdk::AgentStatus::Offline).await.unwrap();
        scene.set(id, Reply::Hang);
    }
    scene.register("living", Capability::new("work")).await;
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    let query = TaskQuery::new("work").health_source(HealthSource::Agent);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(orchestrator.select(&query).await.unwrap().agent.agent_id, "living");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?} for 20 selections", began.elapsed());
}

/// An overloaded agent says so, and gets the same tasks again each second.
#[tokio::test(start_paused = true)]
async fn waiting_tasks_do_not_multiply_the_load_of_a_busy_agent() {
    let scene = Scene::ranked(&["busy"]).await;
    scene.set("busy", Reply::Answer(429, "", "too much to do"));
    let orchestrator = scene.orchestrator();
    let tasks = 20;
    let outcomes = join_all((0..tasks).map(|_| send(orchestrator.delegate("work")))).await;
    assert!(outcomes.iter().all(Result::is_err));
    let [requests] = counts(&scene, ["busy"]);
    assert!(requests <= 10 * tasks, "{requests} requests for {tasks} tasks within their minute");
}

/// An error of the SDK keeps its kind, even if it comes by `?` from a stream or another delegation.
#[tokio::test(start_paused = true)]
async fn error_of_the_sdk_keeps_its_kind() {
    let scene = Scene::ranked(&["first", "second"]).await;
    let orchestrator = scene.orchestrator();
    let refused =
        || HttpTaskError::Status { status: 422, retry_after: None, location: None, body: String::new() };
    let error =
        orchestrator.delegate("work").run(|_| async { Err::<(), _>(refused().into()) }).await.unwrap_err();
    assert!(matches!(error.reason, EndReason::Rejected), "{error}");
}

/// Credentials and all other headers are kept in a redirect within the agent.
#[tokio::test(start_paused = true)]
async fn redirect_within_the_agent_keeps_all_headers() {
    let scene = Scene::ranked(&["moved"]).await;
    scene.script("moved", |what, _| match what {
        "POST /moved/execute" => Reply::Answer(307, "location: /moved/v2\r\n", ""),
        "POST /moved/v2" => Reply::Answer(308, "location: v3\r\n", ""),
        _ => Reply::Answer(200, "", "{}"),
    });
    let orchestrator = scene.orchestrator_builder().token_provider(|_| Some("t0ken".to_owned())).build();
    send(orchestrator.delegate("work").header("x-mine", "yes")).await.unwrap();
    let tasks = scene.tasks("moved");
    let whats: Vec<_> = tasks.iter().map(|task| task.what.as_str()).collect();
    assert_eq!(whats, ["POST /moved/execute", "POST /moved/v2", "POST /moved/v3"]);
    for task in &tasks {
        assert_eq!(task.body, r#"{"n":1}"#);
        assert_eq!(task.header("authorization"), Some("Bearer t0ken"));
        assert_eq!(task.header("x-mine"), Some("yes"));
        assert_eq!(task.header("idempotency-key"), tasks[0].header("idempotency-key"));
    }
}

/// A fast response counts as fast, whatever the delegation did afterwards.
#[tokio::test(start_paused = true)]
async fn agent_that_refused_at_once_does_not_look_slow() {
    // The last one that was registered ranks first.
    let scene = Scene::new(&["two", "one"]).await;
    let orchestrator = scene.orchestrator_builder().seed(7).build();
    // Both are fast.
    for _ in 0..20 {
        send(orchestrator.delegate("work")).await.unwrap();
    }
    // A job that one agent does not know, and the other one works on until the caller gives up.
    scene.set("one", Reply::Answer(404, "", "no such job"));
    scene.set("two", Reply::Hang);
    send(orchestrator.delegate(TaskQuery::new("work").policy(Policy::Rank))).await.unwrap_err();
    scene.set_well("one");
    scene.set_well("two");
    let mut to_one = 0;
    for _ in 0..40 {
        to_one += usize::from(orchestrator.find_best_agent("work").await.unwrap().agent.agent_id == "one");
    }
    assert!(
        to_one >= 30,
        "the one that answered at once got {to_one} of 40, the one that hung for a minute the others"
    );
}
