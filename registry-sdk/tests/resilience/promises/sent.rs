//! The requests of delegations.

use std::time::Duration;

use registry_sdk::contract::Registration;
use registry_sdk::discovery::{EjectionState, FailureKind};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Capability, Orchestrator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::send;
use crate::scene::Scene;
use crate::support::{Reply, Server};

/// "For streams, and for anything but JSON."
#[tokio::test(start_paused = true)]
async fn body_other_than_json_has_no_json_content_type() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = scene.orchestrator();
    orchestrator.delegate("work").send(Method::POST, "/execute", "plain text").await.unwrap();
    let task = scene.tasks("one").pop().unwrap();
    assert_ne!(task.header("content-type"), Some("application/json"));
}

/// "It replaces one of the SDK's own."
#[tokio::test(start_paused = true)]
async fn header_of_the_caller_replaces_the_sdks_header() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = scene.orchestrator();
    let own = [
        ("idempotency-key", "\"mine\""),
        ("delegation-attempt", "7"),
        ("delegation-time-left-seconds", "3"),
        ("content-type", "application/x-mine"),
        ("authorization", "Basic bWluZQ=="),
    ];
    let delegation =
        own.iter().fold(orchestrator.delegate("work"), |all, (name, value)| all.header(name, value));
    send(delegation).await.unwrap();
    let task = scene.tasks("one").pop().unwrap();
    for (name, value) in own {
        assert_eq!(task.header(name), Some(value), "{name}");
    }
}

/// Tokens must not appear in the log.
#[tokio::test(start_paused = true)]
async fn debug_output_of_a_delegation_hides_its_credentials() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = scene.orchestrator();
    let delegation = orchestrator.delegate("work").header("authorization", "Bearer s3cret");
    assert!(!format!("{delegation:?}").contains("s3cret"), "{delegation:?}");
}

/// The contract allows such base URLs, and health checks go below their path.
#[tokio::test(start_paused = true)]
async fn path_of_a_task_is_below_the_path_of_the_base_url() {
    let mut wrong = Vec::new();
    for (base, expected) in [
        ("", "POST /execute"),
        ("/", "POST /execute"),
        ("/api/v1", "POST /api/v1/execute"),
        ("/api/v1/", "POST /api/v1/execute"),
    ] {
        let registry = MockRegistry::start().await;
        let agents = Server::start(|_, _| Reply::Answer(200, "", "{}")).await;
        let url = format!("{}{base}", agents.url());
        let registration = Registration::new("odd", "odd", url).capability(Capability::new("work"));
        registry.client().register(&registration).await.unwrap();
        let orchestrator = Orchestrator::new(registry.client());
        let outcome = send(orchestrator.delegate("work")).await;
        let arrived: Vec<_> = agents.arrived().into_iter().map(|one| one.what).collect();
        if arrived.first().is_none_or(|what| what != expected) {
            wrong.push(format!("{base:?}: {arrived:?}, {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// An agent on axum with its limit of 2 MB, and a task of 20 MB: the response is 413 before the task was read.
#[tokio::test]
async fn task_that_is_too_large_is_not_charged_to_the_agent() {
    // A busy machine needs more than a minute for it, and no heartbeats are sent.
    let forever = Duration::from_secs(86_400);
    let registry = MockRegistry::builder().heartbeat_timeout(forever).start().await;
    for id in ["one", "two"] {
        let app = axum::Router::new().route("/execute", axum::routing::post(|_: String| async { "{}" }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let registration = Registration::new(id, id, url).capability(Capability::new("work"));
        registry.client().register(&registration).await.unwrap();
    }
    let orchestrator = Orchestrator::new(registry.client());
    let task = json!({"text": "x".repeat(20 * 1024 * 1024)});
    let mut wrong = Vec::new();
    for _ in 0..10 {
        let error = orchestrator.delegate("work").post_json::<Value>("/execute", &task).await.unwrap_err();
        if error.attempts.len() != 1 || !error.to_string().contains("413") {
            wrong.push(error.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of 10: {wrong:#?}", wrong.len());
}

/// The same for a server that responds and closes without reading the body.
#[tokio::test]
async fn refusal_before_the_task_was_read_is_recognized() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = connection.read(&mut head).await;
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = connection.write_all(answer).await;
            let _ = connection.shutdown().await;
            // Like careful servers, which keep reading for a while after closing.
            let mut rest = vec![0; 65_536];
            while connection.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    });
    let registry = MockRegistry::start().await;
    let registration = Registration::new("one", "one", url).capability(Capability::new("work"));
    registry.client().register(&registration).await.unwrap();
    let orchestrator = Orchestrator::new(registry.client());
    let task = json!({"text": "x".repeat(8 * 1024 * 1024)});
    let error = orchestrator.delegate("work").post_json::<Value>("/execute", &task).await.unwrap_err();
    assert!(error.to_string().contains("413"), "{error}");
}

/// A connection that the agent closed while it was idle does not fail a task.
#[tokio::test(start_paused = true)]
async fn connection_that_was_closed_while_idle_loses_no_task() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = served.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _ = connection.read(&mut bytes).await;
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // It announces that it keeps the connection, and closes it.
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        }
    });
    let registry = MockRegistry::start().await;
    let registration = Registration::new("one", "one", url)
        .capability(Capability::new("work"))
        .heartbeat_interval(Duration::from_secs(86_400));
    registry.client().register(&registration).await.unwrap();
    let orchestrator = Orchestrator::new(registry.client());
    for _ in 0..50 {
        send(orchestrator.delegate("work").at_most_once()).await.unwrap();
    }
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 50);
}

/// Invalid settings are reported before anything is sent.
#[tokio::test(start_paused = true)]
async fn invalid_headers_and_keys_are_reported_before_anything_is_sent() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = scene.orchestrator();
    for delegation in [
        orchestrator.delegate("work").header("a b", "c"),
        orchestrator.delegate("work").header("", "c"),
        orchestrator.delegate("work").header("a", "b\r\nc: d"),
        orchestrator.delegate("work").idempotency_key(""),
        orchestrator.delegate("work").idempotency_key("zwölf"),
    ] {
        let error = send(delegation).await.unwrap_err();
        assert!(error.to_string().contains("cannot be sent"), "{error}");
    }
    assert!(scene.tasks("one").is_empty());
}

/// Nothing was sent, so nothing is known about the agent.
#[tokio::test(start_paused = true)]
async fn task_that_was_not_sent_is_not_a_trial() {
    let scene = Scene::ranked(&["broken", "well"]).await;
    let orchestrator =
        scene.orchestrator_builder().token_provider(|_| Some("line\nbreak".to_owned())).build();
    for _ in 0..3 {
        orchestrator.find_best_agent("work").await.unwrap().report_failure(FailureKind::Agent);
    }
    tokio::time::sleep(Duration::from_secs(31)).await;
    let error = send(orchestrator.delegate("work")).await.unwrap_err();
    assert!(scene.tasks("broken").is_empty(), "{error}");
    assert_eq!(orchestrator.ejection("broken"), EjectionState::OnTrial, "{error}");
}

/// Agents have addresses of all kinds.
#[tokio::test(start_paused = true)]
async fn agent_on_ipv6_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        }
    });
    let registry = MockRegistry::start().await;
    let registration = Registration::new("one", "one", url)
        .capability(Capability::new("work"))
        .heartbeat_interval(Duration::from_secs(86_400));
    registry.client().register(&registration).await.unwrap();
    send(Orchestrator::new(registry.client()).delegate("work")).await.unwrap();
}

/// A wrong length would truncate the task, and the agent would do half of it.
#[tokio::test(start_paused = true)]
async fn connection_headers_do_not_change_the_task() {
    let scene = Scene::ranked(&["one"]).await;
    let orchestrator = scene.orchestrator();
    for (name, value) in [("content-length", "3"), ("transfer-encoding", "chunked"), ("connection", "close")]
    {
        let outcome = send(orchestrator.delegate("work").header(name, value)).await;
        let bodies: Vec<_> = scene.tasks("one").into_iter().map(|task| task.body).collect();
        let is_whole = bodies.last().is_some_and(|body| body.contains(r#"{"n":1}"#));
        assert!(
            outcome.is_ok() && is_whole || outcome.is_err() && bodies.is_empty(),
            "{name}: {outcome:?}, {bodies:?}"
        );
    }
}

/// A registry behind a gateway whose key is in the client's default headers: it is meant for the registry, not for agents.
#[tokio::test(start_paused = true)]
async fn registrys_credentials_do_not_go_to_agents() {
    let scene = Scene::ranked(&["stranger"]).await;
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("authorization", "Bearer registry-admin".parse().unwrap());
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .default_headers(headers)
        .build()
        .unwrap();
    let client =
        registry_sdk::RegistryClient::builder(scene.registry.url()).http_client(http).build().unwrap();
    send(Orchestrator::new(client).delegate("work")).await.unwrap();
    let task = scene.tasks("stranger").pop().unwrap();
    assert_eq!(task.header("authorization"), None);
}

/// The timeout of calls to the registry does not apply to tasks.
#[tokio::test(start_paused = true)]
async fn timeout_of_the_registrys_client_does_not_cut_tasks() {
    let scene = Scene::ranked(&["slow"]).await;
    scene.set("slow", crate::support::Reply::Late(Duration::from_secs(20), "{}"));
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    let client =
        registry_sdk::RegistryClient::builder(scene.registry.url()).http_client(http).build().unwrap();
    let outcome = send(Orchestrator::new(client).delegate("work")).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}
