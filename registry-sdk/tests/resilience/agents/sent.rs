//! The requests of tasks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::{FailureKind, HttpTaskError};
use reqwest::header::{HeaderMap, HeaderValue};

use super::{counts, delegate, send};
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 3] = ["first", "second", "third"];

#[tokio::test(start_paused = true)]
async fn attempts_are_numbered_and_carry_the_time_left() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Hang);
    scene.set("second", Reply::Close);
    let orchestrator = scene.orchestrator();
    let delegation = orchestrator.delegate("work").time_limit(Duration::from_secs(40)).attempts(2);
    assert_eq!(send(delegation).await.unwrap_err().matches("first").count(), 1);
    let sent = |id: &str, header: &str| scene.tasks(id)[0].header(header).unwrap().to_owned();
    assert_eq!(sent("first", "delegation-attempt"), "1");
    assert_eq!(sent("second", "delegation-attempt"), "2");
    let left = |id| sent(id, "delegation-time-left-seconds").parse::<f64>().unwrap();
    assert!((19.5..=20.0).contains(&left("first")), "{}", left("first"));
    // No third attempt may follow, so the second has all the remaining time.
    assert!((19.5..=20.0).contains(&left("second")), "{}", left("second"));
    assert_eq!(sent("first", "content-type"), "application/json");
}

#[tokio::test(start_paused = true)]
async fn custom_headers_and_key_are_sent() {
    let scene = Scene::ranked(&IDS).await;
    let orchestrator = scene.orchestrator();
    let delegation = orchestrator
        .delegate("work")
        .header("x-tenant", "blue")
        .header("content-type", "application/vnd.work+json")
        .idempotency_key("order 17 \"b\"");
    assert_eq!(send(delegation).await.as_deref(), Ok("first"));
    let task = &scene.tasks("first")[0];
    assert_eq!(task.header("x-tenant"), Some("blue"));
    assert_eq!(task.header("content-type"), Some("application/vnd.work+json"));
    assert_eq!(task.header("idempotency-key"), Some(r#""order 17 \"b\"""#));
}

#[tokio::test(start_paused = true)]
async fn task_with_an_empty_path_goes_to_the_base_url_itself() {
    let scene = Scene::ranked(&["first"]).await;
    let orchestrator = scene.orchestrator();
    for (path, sent) in [
        ("", "POST /first"),
        ("?as=json", "POST /first?as=json"),
        ("/", "POST /first/"),
        ("/execute", "POST /first/execute"),
        ("execute", "POST /first/execute"),
    ] {
        orchestrator.delegate("work").post_json::<serde_json::Value>(path, &1).await.unwrap();
        assert_eq!(scene.agents.arrived().pop().unwrap().what, sent);
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_task_is_an_error_before_anything_is_sent() {
    let scene = Scene::ranked(&IDS).await;
    let orchestrator = scene.orchestrator();
    let before = scene.registry.request_log().0.len();
    for (delegation, word) in [
        (orchestrator.delegate("work").header("x tenant", "blue"), "x tenant"),
        (orchestrator.delegate("work").header("x-tenant", "bl\nue"), "x-tenant"),
        (orchestrator.delegate("work").idempotency_key(""), "idempotency key"),
        (orchestrator.delegate("work").idempotency_key("größe").header("a", "b"), "idempotency key"),
    ] {
        let error = send(delegation).await.unwrap_err();
        assert!(error.starts_with("the task cannot be sent") && error.contains(word), "{error}");
    }
    let unwritable = std::collections::HashMap::from([((1, 2), 3)]);
    let error = orchestrator.delegate("work").post_json::<()>("/execute", &unwritable).await.unwrap_err();
    assert!(error.to_string().contains("JSON"), "{error}");
    assert_eq!(counts(&scene, IDS), [0, 0, 0]);
    assert_eq!(scene.registry.request_log().0.len(), before);
}

#[tokio::test(start_paused = true)]
async fn token_is_requested_before_each_attempt_and_sent_only_to_permitted_agents() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Close);
    scene.set("second", Reply::Close);
    let asked = AtomicUsize::new(0);
    let token = move |agent: &registry_sdk::CapabilityMatch| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        (agent.agent_id != "second").then(|| format!("secret-{number}"))
    };
    let orchestrator = scene.orchestrator_builder().token_provider(token).build();
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("third"));
    let sent = IDS.map(|id| scene.tasks(id)[0].header("authorization").map(str::to_owned));
    assert_eq!(sent, [Some("Bearer secret-0".to_owned()), None, Some("Bearer secret-2".to_owned())]);

    let orchestrator = scene.orchestrator_builder().token_provider(|_| Some("sec\nret".to_owned())).build();
    let error = delegate(&orchestrator).await.unwrap_err();
    assert!(error.contains("token") && !error.contains("ret\""), "{error}");
    assert!(!format!("{orchestrator:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn custom_http_client_sends_only_the_tasks() {
    let scene = Scene::ranked(&IDS).await;
    let headers = HeaderMap::from_iter([("x-fleet".parse().unwrap(), HeaderValue::from_static("7"))]);
    let client = reqwest::Client::builder().default_headers(headers).build().unwrap();
    let orchestrator = scene.orchestrator_builder().http_client(client).build();
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("first"));
    assert_eq!(scene.tasks("first")[0].header("x-fleet"), Some("7"));
}

#[tokio::test(start_paused = true)]
async fn table_of_outcomes_can_be_replaced() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Answer(422, "", "my model is too old"));
    assert!(delegate(&scene.orchestrator()).await.is_err());
    let classifier = |error: &HttpTaskError| match error {
        HttpTaskError::Status { status: 422, .. } => FailureKind::Deployment,
        error => error.kind(),
    };
    let orchestrator = scene.orchestrator_builder().classifier(classifier).build();
    assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("second"));
}
